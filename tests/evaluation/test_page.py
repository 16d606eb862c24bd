"""report.html: one page, everything in it, of one evaluation or of all of them."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import succeed

from dclr.compare import compare
from dclr.evaluation import page
from dclr.evaluation.modes import MODES

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def everything(synthetic_set: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list, Path]:
    """``train_eval.py all`` on the embedded set, and its command."""
    out = tmp_path_factory.mktemp("all") / "all"
    command = [
        "train_eval.py", "all", "--shards", synthetic_set, "--train-split", "train", "--test-split", "test", "--pretrained",
        checkpoint, "--label", "scene", "--precision", "fp32", "-j", "0", "--test-clips", "1", "-cpv", "1", "--epochs", "1",
        "-b", "16", "--shots", "1", "--out", out,
    ]  # fmt: skip
    succeed(*command)
    return command, out


def test_all_modes_in_one_command_and_what_is_done_is_kept(everything: tuple[list, Path]) -> None:
    command, out = everything
    modes = ("finetune", "linear", "knn", "retrieval", "fewshot", "bias")
    before = {mode: (out / mode / "result.json").stat().st_mtime_ns for mode in modes}
    assert len(list((out / "features").iterdir())) == 6  # train, test, altered test; of random weights too
    shutil.rmtree(out / "knn")
    said = succeed(*command)
    assert (
        len(
            re.findall(
                r"^\S+/all/\w+ is finished: \w+ on scene: .* %.* of 32 videos; \S+/report.html; --force evaluates anew$",
                said,
                re.M,
            )
        )
        == 5
    )
    after = {mode: (out / mode / "result.json").stat().st_mtime_ns for mode in modes}
    assert [mode for mode in modes if after[mode] != before[mode]] == ["knn"]
    table = said[said.rindex("run  ") :].splitlines()
    assert [line.split()[:2] for line in table[2:7]] == [[f"all/{mode}", mode] for mode in sorted(modes) if mode != "bias"]
    assert table[8].split("  ")[:2] == ["test clips", ""] and "all/bias, random weights" in table[8]


def test_a_page_holds_numbers_and_pictures_and_asks_for_nothing(everything: tuple[list, Path]) -> None:
    text = (everything[1] / "report.html").read_text()
    linear = json.loads((everything[1] / "linear/result.json").read_text())
    low, high = linear["interval"]["top1"]
    assert f"<td>top1</td><td>{100 * linear['top1']:.1f}</td><td>{100 * low:.1f} - {100 * high:.1f}</td>" in text
    for mode in MODES.values():
        for caption in mode.captions.values():
            assert f"<figcaption>{caption}</figcaption>" in text
    sources = re.findall(r"(?:src|href)=\"([^\"]{0,30})", text)
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert "<script" not in text and "http" not in re.sub(r"data:[^\"]*", "", text)


def test_results_of_before_they_said_their_metrics_give_the_same_table_and_pages(
    everything: tuple[list, Path], tmp_path: Path
) -> None:
    old = tmp_path / everything[1].name
    shutil.copytree(everything[1], old)
    for path in old.glob("*/result.json"):
        result = json.loads(path.read_text())
        assert result.pop("metrics")
        path.write_text(json.dumps(result))
    assert compare([old]) == compare([everything[1]])
    for path in old.glob("*/result.json"):
        said = (path.parent / "report.html").read_text()
        assert page.write(path.parent, [path.parent]).read_text() == said


def test_what_a_result_says_is_text_and_never_markup(everything: tuple[list, Path], tmp_path: Path) -> None:
    result = json.loads((everything[1] / "knn/result.json").read_text())
    result["options"]["pretrained"] = "<script>alert(1)</script>"
    result["pictures"] = ["../../etc/passwd", "<b>.png"]
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert "<script" not in page.write(tmp_path, [tmp_path]).read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
def test_the_page_opens_in_a_browser_with_its_pictures(everything: tuple[list, Path], tmp_path: Path) -> None:
    """A screenshot without a network, beside one of the page without its pictures."""

    def colours(text: str) -> int:
        source, shot = tmp_path / "page.html", tmp_path / "page.png"
        source.write_text(text)
        subprocess.run(
            [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", "--disable-quic", f"--user-data-dir={tmp_path / 'profile'}",
             "--window-size=1200,4000", f"--screenshot={shot}", source.as_uri()],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        picture = cv2.imread(str(shot))
        assert picture is not None and picture.shape == (4000, 1200, 3)
        return len(np.unique(picture.reshape(-1, 3), axis=0))

    text = (everything[1] / "report.html").read_text()
    with_pictures, without = colours(text), colours(re.sub(r"<img[^>]*>", "", text))
    assert without > 10  # text on a page
    assert with_pictures > 10 * without
