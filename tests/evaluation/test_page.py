"""report.html: one page, everything in it, of one evaluation or of all of them."""

import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from browser import browser, needs_chromium
from conftest import succeed

from dclr.compare import compare
from dclr.evaluation import page
from dclr.evaluation.modes import MODES
from dclr.metrics import interval, paired


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
    assert f'<td>top1</td><td>{100 * linear["top1"]:.1f}</td><td>{100 * low:.1f} - {100 * high:.1f}<span class="bar"' in text
    for mode in MODES.values():
        for caption in mode.captions.values():
            assert f"<figcaption>{caption}</figcaption>" in text
    sources = re.findall(r"(?:src|href)=\"([^\"]{0,30})", text)
    assert sources and all(source.startswith(("data:image/png;base64,", "data:,")) for source in sources)
    assert text.count("<script") == 1 and "default-src 'none'" in text
    assert "http" not in re.sub(r"data:[^\"]*|http-equiv", "", text)
    head = text[text.index("<h2>linear on scene</h2>") :].replace("<span>", "").replace("</span>", "")
    for name, said in (
        ("command", linear["command"]), ("clips", "frames 4, stride 2, size 32, cpv 1, test clips 1, crops 1, average"),
        ("hardware", linear["hardware"]["processor"]), ("precision", "fp32"), ("made", linear["date"].replace("T", " ")),
    ):  # fmt: skip
        assert html.escape(said) in head[head.index(f"<dt>{name}</dt>") : head.index("<table")]


def test_a_page_has_each_class_with_what_it_is_taken_for(everything: tuple[list, Path]) -> None:
    folder = everything[1] / "linear"
    result = json.loads((folder / "result.json").read_text())
    counts, names, text = np.array(result["confusion"]), result["class_names"], (folder / "report.html").read_text()
    for c in np.flatnonzero(counts.sum(1)):
        videos, right = counts[c].sum(), counts[c, c]
        row = text[text.index(f"<td>{names[c]}</td>") :].partition("</tr>")[0]
        assert f'data-v="{videos}">{videos}</td>' in row and f">{100 * right / videos:.1f}</td>" in row
        wrong = counts[c] * (np.arange(len(counts)) != c)
        assert row.endswith(f"<td>{names[wrong.argmax()]} ({wrong.max()})</td>" if wrong.any() else "<td></td>")


@pytest.mark.parametrize(
    ("numbers", "random", "said"),
    [
        ({"whole": 0.1}, {"whole": 0.6}, "names 10.0 % of the whole clips, which is not above guessing (25.0 %)"),
        ({"whole": 0.5}, {"whole": 0.9}, "random weights 90.0 %): random weights are ahead, so nothing here was gained"),
        ({"whole": 0.5}, {"whole": 0.5}, "random weights are not told apart from it, so nothing here was gained"),
        ({"whole": 0.9, "static": 0.25}, {"whole": 0.3}, "which is guessing: it needs what changes from frame to frame."),
        ({"whole": 0.9, "static": 0.9}, {"whole": 0.3}, "90.0 %, which is not told apart: still pictures are enough."),
        ({"whole": 0.9, "static": 0.6}, {}, "(guessing 25.0 %); of one frame, repeated, 60.0 %: still pictures are a part"),
        (
            {"whole": 0.9, "static": 0.6, "swap as foreground": 0.1, "swap as background": 0.7},
            {},
            "follows the background (10.0",
        ),
        (
            {"whole": 0.9, "static": 0.6, "appearance removed": 0.3},
            {},
            "as the clip does 30.0 %, not told apart from guessing.",
        ),
    ],
)
def test_the_bias_report_says_what_it_shows(numbers: dict, random: dict, said: str) -> None:
    """Also where random weights do better, or nothing is named at all: of 100 videos and four classes."""
    found = {f"walk: {name}": value for name, value in numbers.items()}
    result = found | {
        "mode": "bias", "metrics": {name: {"kind": "share"} for name in found},
        "interval": {name: interval(value, 100) for name, value in found.items()}, "chance": {"walk: chance": 0.25},
        "majority": {"walk: majority": 0.2},
    }  # fmt: skip
    if random:
        apart = round(100 * (numbers["whole"] - random["whole"]))
        ends = paired(np.array([np.sign(apart)] * abs(apart) + [0] * (100 - abs(apart))))
        result |= {"random": {"walk: whole": random["whole"]}, "random_paired": {"interval": {"walk: whole": ends}}}
    (sentence,) = page.summary(result)
    assert said in sentence and sentence.startswith("walk: the network names")
    assert page.summary(result | {"mode": "linear"}) == []


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
    result["baseline"] = {name: "<script>" for name in ("run", "mode", "pretrained", "arch", "width")} | {"numbers": {}}
    (tmp_path / "result.json").write_text(json.dumps(result))
    text = page.write(tmp_path, [tmp_path]).read_text()
    assert text.count("<script") == 1 and "&lt;script&gt;alert(1)" in text


@needs_chromium
def test_the_page_in_a_browser(everything: tuple[list, Path], tmp_path: Path) -> None:
    """In two widths, light and dark: no complaint, no request but for the page, nothing beyond the window's side, every picture
    shown. A click sorts the classes, first the greatest number and then the least."""
    url, grounds = (everything[1] / "report.html").as_uri(), set()
    with browser(tmp_path / "profile") as tab:
        for width, dark in ((1280, False), (1280, True), (390, False), (390, True)):
            tab.open(url, width, dark=dark)
            assert tab.complaints == [] and tab.requests == [url]
            assert tab.value("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
            pictures = tab.value("[...document.images].map(one => one.naturalWidth)")
            assert len(pictures) == sum(len(mode.captions) for mode in MODES.values()) and min(pictures) > 100
            grounds.add(tab.value("getComputedStyle(document.body).backgroundColor"))
        assert len(grounds) == 2
        shares = []
        for _ in range(3):
            script = "[...document.querySelector('table.sort').tBodies[0].rows].map(row => Number(row.cells[2].textContent))"
            shares.append(tab.value(script))
            tab.value("document.querySelectorAll('table.sort th button')[2].click()")
        assert len(set(shares[0])) > 1 and shares[1:] == [sorted(shares[0], reverse=True), sorted(shares[0])]
        assert tab.value("fetch('https://example.com').then(() => 'asked', () => 'refused')") == "refused"
        assert len(tab.complaints) > 0  # which it would have noticed
