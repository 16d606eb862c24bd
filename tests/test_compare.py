"""python -m dclr.compare: results side by side, whatever folders it is given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import refuse, succeed

from dclr.compare import compare, gather, read_result
from dclr.errors import InputError


def made(folder: Path, top1: float = 0.5) -> Path:
    """A folder with a result."""
    folder.mkdir(parents=True)
    options = {"mode": "knn", "pretrained": "random"}
    result = {"top1": top1, "label": "motion", "arch": "i3d", "width": 8, "videos": 4, "classes": 4, "options": options}
    (folder / "result.json").write_text(json.dumps(result | {"metrics": {"top1": {"kind": "share"}}}))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Results at several depths, one of them the mean of two; pretrainings, a damaged result, and what is nothing."""
    for name in ("linear", "all/knn", "all/bias", "folds", "folds/fold1", "folds/fold2", "sweep/lr/small"):
        made(tmp_path / "runs" / name)
    for name in ("first", "sweep/second", ".hidden", "notes"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    for name in ("first", "sweep/second"):
        (tmp_path / "runs" / name / "config.yaml").write_text("lr: 1")
    (made(tmp_path / "runs" / "damaged") / "result.json").write_text("{")
    return tmp_path / "runs"


def test_a_folder_stands_for_all_results_in_it_and_what_is_none_is_told(runs: Path) -> None:
    found, left_out = gather([runs])
    assert [name for name, _ in found] == [
        f"runs/{name}" for name in ("all/bias", "all/knn", "folds", "linear", "sweep/lr/small")
    ]
    whys = {Path(place).relative_to(runs).as_posix(): why.partition(" (")[0] for place, why in left_out.items()}
    pretrainings = dict.fromkeys(("first", "sweep/second"), "a pretraining")
    assert whys == pretrainings | {"notes": "no result.json", "damaged": "result.json: not a result of train_eval.py"}
    said = succeed("-m", "dclr.compare", runs, runs / "linear")
    assert said.count("runs/linear") == 1 and len(said.splitlines()) == 2 + 5


def test_a_run_is_a_row_and_runs_of_one_name_are_told_apart(runs: Path) -> None:
    assert compare([runs / "linear"]).splitlines()[2].startswith("linear  knn")
    assert compare([runs / "linear/result.json"]) == compare([runs / "linear"])
    other = made(runs.parent / "more/linear", top1=0.25)
    rows = compare([runs / "linear", other]).splitlines()[2:]
    assert [row.split()[0] for row in rows] == [str(runs / "linear"), str(other)]


def test_no_result_at_all_and_no_such_folder_are_mistakes(runs: Path) -> None:
    assert f"no result in {runs}/first (a pretraining); train_eval.py makes them" in refuse(
        "-m", "dclr.compare", runs / "first"
    )
    assert f"{runs}/frist: no such folder" in refuse("-m", "dclr.compare", runs / "frist", runs / "linear")
    with pytest.raises(InputError, match=r"damaged \(result.json: not a result"):
        compare([runs / "damaged"])


def test_what_is_left_out_is_one_line(runs: Path) -> None:
    from dclr.compare import LISTED_MOST, listed

    assert listed({f"r{n}": "a pretraining" for n in range(LISTED_MOST + 5)}).endswith(
        f"r{LISTED_MOST - 1} (a pretraining) and 5 more"
    )


@pytest.mark.parametrize(
    ("edited", "says"),
    [
        ({"top1": "0.5"}, "expected int . float, got str"),
        ({"top1": [1]}, "expected int . float, got array"),
        ({"top1": 10**400}, "expected int"),
        ({"classes": 0}, "classes: "),
        ({"options": []}, "options: expected object"),
        ({"options": {"mode": 3, "pretrained": "random"}}, "options.mode: expected str, got int"),
        ({"metrics": {"top1": {"kind": "lots"}}}, "a metric of kind"),
        ({"metrics": {"top2": {"kind": "share"}}}, "KeyError: 'top2'"),
        ({"deviation": {"top1": "wide"}}, "deviation"),
        ({"chance": {"a": None}}, "chance"),
        ({"interval": {"top1": [0.1]}}, "interval"),
        ({"runs": [3]}, "runs"),
    ],
)
def test_an_edited_result_is_refused_by_what_is_wrong(edited: dict[str, object], says: str, tmp_path: Path) -> None:
    path = made(tmp_path / "run") / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | edited))
    with pytest.raises(InputError, match=rf"result.json: not a result of train_eval.py \(.*{says}") as refused:
        read_result(tmp_path / "run")
    assert "\n" not in str(refused.value)


def test_a_deep_or_huge_result_is_refused(tmp_path: Path) -> None:
    path = made(tmp_path / "run") / "result.json"
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"not a result of train_eval\.py"):
        read_result(tmp_path / "run")
    with path.open("wb") as file:
        file.truncate(10**10)
    with pytest.raises(InputError, match=r"10000000000 bytes, expected a result of train_eval\.py of at most"):
        read_result(tmp_path / "run")


def test_a_number_that_is_none_is_shown(tmp_path: Path) -> None:
    """Python's JSON has NaN, and an evaluation may find it."""
    assert "nan" in compare([made(tmp_path / "run", float("nan"))])
