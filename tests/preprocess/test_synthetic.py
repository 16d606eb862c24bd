"""The embedded set's split ``swapped``: the motion of each test video, as it was, over another scene."""

import hashlib
import json
from collections import Counter
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from conftest import refuse, succeed

from dclr.data.manifest import ShardSet
from preprocess import synthetic
from preprocess.synthetic import MOTIONS, SCENES, SWAPPED, DrawnVideo, encode, plan, render


def pairs(plans: list[DrawnVideo]) -> list[tuple[DrawnVideo, DrawnVideo]]:
    """Each test video and its swapped one, found by the number in their paths, in the order of the numbers."""

    def numbered(split: str) -> dict[str, DrawnVideo]:
        return {Path(p.path).stem.rpartition("_")[2]: p for p in plans if p.path.startswith(f"{split}/")}

    test, swapped = numbered("test"), numbered("swapped")
    assert set(test) == set(swapped)
    return [(test[number], swapped[number]) for number in sorted(test)]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_object_of_a_swapped_video_is_where_it_was(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    chosen = pairs(plan(192, seed, swap_scenes=True))[:: len(MOTIONS) + 1]
    assert {test.scene for test, _ in chosen} == set(SCENES) and {test.motion for test, _ in chosen} == set(MOTIONS)
    monkeypatch.setitem(SCENES, "black", lambda h, w, rng: np.zeros((h, w, 3)))
    monkeypatch.setitem(SCENES, "white", lambda h, w, rng: np.full((h, w, 3), 255.0))
    for test, swapped in chosen:
        (here, rate), (there, other_rate) = (render(p.motion, p.scene, p.seed) for p in (test, swapped))
        assert here.shape == there.shape and rate == other_rate
        # Where the object is, black and white show none of themselves; these two draw nothing for the scene.
        black, white = (render(test.motion, scene, test.seed)[0].astype(int) for scene in ("black", "white"))
        shown = (white - black).max(-1)
        apart = abs(here.astype(int) - there).max(-1)
        assert (shown == 0).mean((1, 2)).min() > 0.01  # the object is in every frame
        assert apart[shown == 0].max() <= 1 and abs(here - black)[shown == 0].max() <= 1  # of rounding, while blending
        assert (apart[shown == 255] > 5).mean() > 0.8


def test_the_plan_has_a_swapped_video_for_each_of_test() -> None:
    plans = plan(1200, 0, swap_scenes=True)
    found = pairs(plans)
    assert len(found) == 400 and len({p.path for p in plans}) == len(plans) == 1600
    for test, swapped in found:
        assert (swapped.split, swapped.motion, swapped.seed) == ("swapped", test.motion, test.seed)
        assert swapped.scene == SWAPPED[test.scene] != test.scene and swapped.path[-4:] == test.path[-4:]
        assert swapped.path.startswith(f"swapped/{swapped.motion}/{swapped.scene}_")
    assert set(SWAPPED) == set(SWAPPED.values()) == set(SCENES)
    before, after = (Counter((p[n].motion, p[n].scene) for p in pairs(plan(576, 0, swap_scenes=True))) for n in (0, 1))
    assert before == after and set(before.values()) == {3}  # every motion over every scene equally often, as in test


def test_a_background_has_not_the_colours_of_the_one_it_replaces(monkeypatch: pytest.MonkeyPatch) -> None:
    draw, drawn = synthetic._colours, list[np.ndarray]()
    monkeypatch.setattr(synthetic, "_colours", lambda rng, n: drawn.append(draw(rng, n)) or drawn[-1])
    for test, swapped in pairs(plan(192, 0, swap_scenes=True)):
        drawn.clear()
        for p in (test, swapped):
            SCENES[p.scene](8, 8, synthetic.generator(*p.seed))
        assert not np.isin(*drawn).any()


@pytest.mark.parametrize(("videos", "seed", "digest"), [(24, 0, "96ed746573d29812"), (1200, 0, "9a80d1d034d8cec8")])
def test_without_swapped_the_plan_is_what_it_was(videos: int, seed: int, digest: str) -> None:
    """The digests are those of the plans before there was a split swapped."""
    plain = plan(videos, seed)
    assert hashlib.sha256(repr([astuple(p) for p in plain]).encode()).hexdigest()[:16] == digest
    assert [p for p in plan(videos, seed, swap_scenes=True) if p.split != "swapped"] == plain
    assert synthetic.made_with(videos, seed, False) == {"videos": videos, "seed": seed}


@pytest.mark.parametrize("name", ["a.avi", "a.mp4"])
def test_a_video_that_cannot_be_written_leaves_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()  # no file can take this name
    with pytest.raises(OSError, match=name):
        encode(np.zeros((20, 16, 16, 3), np.uint8), 25, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_set_with_swapped_scenes(tmp_path: Path) -> None:
    command = ("-m", "preprocess", "synthetic", "--out", tmp_path / "s", "--videos", "24", "--size", "32")
    assert "splits: swapped 8, test 8, train 16" in succeed(*command, "--swap-scenes")
    manifest = json.loads((tmp_path / "s/manifest.json").read_text())
    assert manifest["splits"] == {"swapped": 8, "test": 8, "train": 16} and manifest["options"]["swap_scenes"] is True
    shards = ShardSet(tmp_path / "s")
    motion, scene = ([shards.labels[kind][shards.select([of])] for of in ("test", "swapped")] for kind in ("motion", "scene"))
    assert sorted(motion[0]) == sorted(motion[1]) == list(range(8))
    assert set(scene[0]) == {0} and set(scene[1]) == {list(SCENES).index(SWAPPED["stripes"])}
    assert len(set(shards.video_N.tolist())) == 32
    assert "a finished shard set is there already" in refuse(*command)  # its options are others
