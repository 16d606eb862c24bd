"""Accuracies, intervals, confusions and neighbours by hand."""

import numpy as np
import pytest

from dclr import metrics


def test_accuracies_by_hand() -> None:
    scores = np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.4, 0.4, 0.2], [0.3, 0.6, 0.1]])
    labels = np.array([0, 0, 0, 1])
    found = metrics.accuracies(scores, labels)
    assert found == pytest.approx({"top1": 0.75, "top5": 1.0, "mean_class": (2 / 3 + 1) / 2})
    assert metrics.confusion(scores.argmax(1), labels, 3).tolist() == [[2, 0, 1], [0, 1, 0], [0, 0, 0]]
    many = np.eye(10)[[3]] * 0 + np.arange(10)
    assert metrics.accuracies(many, np.array([5]))["top5"] == 1 and metrics.accuracies(many, np.array([4]))["top5"] == 0


def test_the_pairs_that_are_taken_for_each_other() -> None:
    """The greatest count first, of equal counts the greater share; what is right is none of them."""
    found = metrics.confused(np.array([[9, 2, 0], [2, 1, 1], [0, 0, 4]]), ["a", "b", "c"])
    assert [(pair["true"], pair["named"], pair["count"]) for pair in found] == [("b", "a", 2), ("a", "b", 2), ("b", "c", 1)]
    assert [pair["share"] for pair in found] == [0.5, pytest.approx(2 / 11), 0.25]
    assert metrics.confused(np.eye(3, dtype=int), ["a", "b", "c"]) == []
    assert len(metrics.confused(1 - np.eye(9, dtype=int), ["n"] * 9)) == 20


@pytest.mark.parametrize("hits", [0, 7, 32])
def test_wilsons_interval_is_where_the_score_test_stops_rejecting(hits: int) -> None:
    share, videos = hits / 32, 32
    for limit in metrics.interval(share, videos):
        if 0 < limit < 1:
            assert abs(share - limit) == pytest.approx(1.96 * np.sqrt(limit * (1 - limit) / videos))
    low, high = metrics.interval(share, videos)
    assert 0 <= low <= share <= high <= 1 and high - low > 0.09


@pytest.mark.parametrize(("gallery", "k"), [(40, 20), (7, 20), (1, 1)])
def test_knn_equals_the_slow_version(gallery: int, k: int) -> None:
    rng = np.random.default_rng(0)
    known, label, asked = rng.normal(size=(gallery, 5)), rng.integers(0, 3, gallery), rng.normal(size=(6, 5))
    found = metrics.knn(known, label, asked, 3, k)
    for query, scores in zip(asked, found, strict=True):
        cosines = [float(query @ x / np.linalg.norm(query) / np.linalg.norm(x)) for x in known]
        expected = np.zeros(3)
        for n in sorted(range(gallery), key=lambda n: -cosines[n])[:k]:
            expected[label[n]] += np.exp(cosines[n] / 0.07)
        np.testing.assert_allclose(scores / scores.sum(), expected / expected.sum())


def test_retrieval_by_hand() -> None:
    gallery = np.array([[1.0, 0], [0.9, 0.1], [0, 2], [0, 0], [-1, 0]])
    found = metrics.retrieval(gallery, np.array([0, 1, 2, 2, 1]), np.array([[3.0, 0], [0, 1], [0.1, -1]]), np.array([1, 2, 0]))
    assert found == pytest.approx({"R@1": 2 / 3, "R@5": 1, "R@10": 1, "R@20": 1, "R@50": 1})


def test_neighbours_are_found_for_any_number_of_queries() -> None:
    """More than are asked at a time, against one by one; of equal ones the earlier is first, and zeros are like nothing."""
    rng = np.random.default_rng(0)
    gallery, queries = rng.integers(-2, 3, (30, 3)).astype(float), rng.normal(size=(2100, 3))
    gallery[4], queries[1500] = 0, 0
    place, cosine = metrics.nearest(queries, gallery, 7)
    assert place.shape == cosine.shape == (2100, 7)
    for row in (0, 1023, 1024, 1500, 2047, 2048, 2099):
        size = np.linalg.norm(queries[row]) * np.linalg.norm(gallery, axis=1)
        expected = np.where(size > 0, gallery @ queries[row] / np.where(size > 0, size, 1), 0)
        np.testing.assert_allclose(cosine[row], np.sort(expected)[::-1][:7], atol=1e-12)
        np.testing.assert_allclose(cosine[row], expected[place[row]], atol=1e-12)
    assert place[1500].tolist() == list(range(7))
    np.testing.assert_array_equal(
        metrics.nearest(queries[:3] * 1e-9, gallery * 1e9, 30)[0], metrics.nearest(queries[:3], gallery, 99)[0]
    )


def test_knn_asks_20_neighbours_unless_told_otherwise() -> None:
    rng = np.random.default_rng(0)
    known, label, asked = rng.normal(size=(40, 5)), rng.integers(0, 3, 40), rng.normal(size=(6, 5))
    np.testing.assert_array_equal(metrics.knn(known, label, asked, 3), metrics.knn(known, label, asked, 3, 20))
    alike = metrics.knn(np.ones((25, 2)), np.arange(25) // 20, np.ones((1, 2)), 2)
    np.testing.assert_allclose(alike, [[20, 0]])


def test_recall_is_told_at_1_5_10_20_and_50() -> None:
    gallery = np.stack([np.cos(np.arange(60) / 40), np.sin(np.arange(60) / 40)], 1)  # ever further from the query
    asked, labels = np.array([[1.0, 0]] * 7), np.array([0, 4, 5, 9, 19, 49, 50])
    found = metrics.retrieval(gallery, np.arange(60), asked, labels)
    assert found == pytest.approx({"R@1": 1 / 7, "R@5": 2 / 7, "R@10": 4 / 7, "R@20": 5 / 7, "R@50": 6 / 7})


@pytest.mark.parametrize(("kind", "shown"), [("share", "12.5 %"), ("percent", "12.5 %"), ("number", "0.125")])
def test_a_metric_is_shown_as_its_kind_says(kind: str, shown: str) -> None:
    metric = metrics.Metric(kind)
    assert metric.text(0.125) + metric.unit == shown
    with pytest.raises(ValueError, match=f"kind '{kind}s' and title '': expected share, percent, number"):
        metrics.Metric(f"{kind}s")
    with pytest.raises(ValueError, match="title 7"):
        metrics.Metric(kind, 7)  # type: ignore[arg-type]


def test_a_count_is_shown_with_all_its_digits() -> None:
    metric = metrics.Metric("number")
    assert [metric.text(value) for value in (3, 1234567, -98765.4, 0.00012345)] == ["3", "1234567", "-98765", "0.0001234"]


def test_wilsons_interval_is_of_95_percent() -> None:
    """Wilson 1927, by hand: 10 of 20."""
    assert metrics.interval(0.5, 20) == pytest.approx([0.29930, 0.70070], abs=1e-5)
    assert metrics.interval(0.0, 20) == pytest.approx([0, 1.96**2 / (20 + 1.96**2)])
    assert metrics.interval(1.0, 20) == pytest.approx([20 / (20 + 1.96**2), 1])
