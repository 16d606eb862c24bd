"""python -m dclr.report RUN: the page of a training, also while it runs, and of an evaluation anew."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from browser import browser, needs_chromium
from conftest import refuse

from dclr import page
from dclr.report import report
from dclr.text import duration


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A pretraining's folder, without its checkpoints."""
    shutil.copytree(checkpoint.parent, tmp_path / "run", ignore=shutil.ignore_patterns("*.pt", "events*"))
    return tmp_path / "run"


def charts(text: str) -> dict[str, str]:
    """The charts of a page by their titles."""
    found = re.findall(r"<figure><figcaption>([^<]*)</figcaption><svg.*?</figure>", text)
    return dict(zip(found, re.findall(r"<figure><figcaption>[^<]*</figcaption>(<svg.*?)</figure>", text), strict=True))


def test_the_page_of_a_pretraining(folder: Path) -> None:
    """Every scalar is drawn, the pictures are there, and the other files stay as they are."""
    before = {path: path.read_bytes() for path in folder.iterdir()}
    text = report(folder).read_text()
    assert {path: path.read_bytes() for path in before} == before and set(folder.iterdir()) == {*before, folder / "report.html"}
    drawn = charts(text)
    assert {"All terms", "L_vv", "L_sv", "L_vs", "L_dv", "L_vd", "align", "Learning rate", "Momentum of f_k"} <= set(drawn)
    assert {"Top-1 of the contrasts, per cent", "Mined videos with the query&#x27;s label, per cent"} <= set(drawn)
    assert {"Videos a second", "Waiting for data, per cent", "Videos mined for a query"} <= set(drawn)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = {name for line in lines for name in line} - {"step"}
    assert sum(chart.count("<li>") for chart in drawn.values()) == len(names)  # a line each
    assert "L_vv" not in drawn["All terms"]
    assert all(f"</i>{view} <b>" in drawn["Top-1 of the contrasts, per cent"] for view in ("vv", "sv", "dv", "vs", "vd"))
    assert "arch r2plus1d_10, width 4" in text and "step 16, written" in text
    steps = [0, *(line["step"] for line in lines)]
    seconds = sum(16 * (line["step"] - steps[n]) / line["speed/clips_per_second"] for n, line in enumerate(lines))
    assert f"Where {duration(seconds)} of training went" in text
    assert len(re.findall("<img", text)) == 2


def test_a_run_that_is_being_written_to_is_read(folder: Path) -> None:
    """A line that is half there, a picture that is half there, values that are no numbers, and another process that appends."""
    whole, lines = report(folder).read_text(), folder / "metrics.jsonl"
    odd = [
        '{"step": 20, "loss/total": NaN, "loss/flow": Infinity}',
        '{"step": 21, "loss/total": "?"}',
        "[1]",
        '"x"',
        '{"a": 1}',
    ]
    with lines.open("a") as file:
        file.write("\n".join([*odd, '{"step": 22, "lo']))
    picture = (folder / "maps.png").read_bytes()
    (folder / "maps.png").write_bytes(picture[: len(picture) // 2])
    text = report(folder).read_text()
    assert charts(text)["All terms"] == charts(whole)["All terms"] and ">nan" not in text and text.count("<img") == 1
    script = (
        "import sys\nfile = open(sys.argv[1], 'a', buffering=1)\nprint(flush=True)\n"
        'for n in range(10**9):\n    file.write(\'{"step": %d, "loss/to\' % (100 + n))\n    file.flush()\n'
        "    file.write('tal\": 1.5}\\n')\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, lines], stdout=subprocess.PIPE) as writer:
        try:
            writer.stdout.readline()
            for _ in range(3):
                text = report(folder).read_text()
        finally:
            writer.kill()
    assert "All terms" in charts(text) and len(text) < len(whole) + 100_000  # however many lines


def test_a_run_before_its_first_line_and_one_without_settings(folder: Path, tmp_path: Path) -> None:
    (folder / "metrics.jsonl").write_text("")
    assert "metrics.jsonl has no step yet" in report(folder).read_text()
    finetuning = tmp_path / "finetuning"
    finetuning.mkdir()
    with (finetuning / "metrics.jsonl").open("w") as file:
        for step in range(1, 41):
            said = {"step": step, "finetune/loss": 1 / step, "finetune/top1": 0.5, "finetune/lr": 0.1}
            said |= {"speed/clips_per_second": 9.0, "speed/data_wait": 0.25} | ({"val/top1": 0.75} if step % 20 == 0 else {})
            file.write(json.dumps(said) + "\n")
    (finetuning / "config.yaml").write_text("[" * 10_000)
    text = report(finetuning).read_text()
    shares = {"Videos held out, per cent", "Clips in training, per cent"}
    assert {"loss", "Learning rate", "Clips a second", *shares} <= set(charts(text))
    assert "75.0 %" in text and "of training went" not in text


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "absent"):
        said = refuse("-m", "dclr.report", place)
        assert f"{place}: neither a training's folder (it has no metrics.jsonl) nor an evaluation's (no result.json)" in said
    (tmp_path / "result.json").write_text("{}")
    assert "result.json: not a result of train_eval.py" in refuse("-m", "dclr.report", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json"]


def test_it_starts_without_torch(folder: Path) -> None:
    """So it takes a second beside a run that has the machine."""
    code = (
        "import sys; from pathlib import Path; from dclr.report import report; report(Path(sys.argv[1])); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True).stdout.split()
    assert "dclr.report" in loaded and "torch" not in loaded


@needs_chromium
def test_the_page_in_a_browser(folder: Path, tmp_path: Path) -> None:
    url = report(folder).as_uri()
    with browser(tmp_path / "profile") as tab:
        for width, dark in ((1280, False), (390, True)):
            tab.open(url, width, dark=dark)
            assert tab.complaints == [] and tab.requests == [url]
            assert tab.value("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
            beyond = """[...document.querySelectorAll("svg")].filter(one => {
                const box = one.getBBox(), view = one.viewBox.baseVal;
                return box.x < 0 || box.y < 0 || box.x + box.width > view.width || box.y + box.height > view.height }).length"""
            assert tab.value(beyond) == 0


def test_a_chart_is_bounded_and_its_running_mean_is_one() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=1000)
    mean = page.running_mean(values)
    assert mean[500] == pytest.approx(values[475:526].mean()) and mean[0] == pytest.approx(values[:26].mean())
    assert page.running_mean(values[:10]).tolist() == pytest.approx(values[:10].tolist())
    chart = page.curves("a < b", {"x": [(n, y) for n, y in enumerate(rng.normal(size=100_000))]}, "step")
    assert len(chart) < 20_000 and "a &lt; b" in chart and page.curves("none", {"x": []}, "step") == ""
    xs = [float(x) for x in re.findall(r"([\d.]+),[\d.]+", chart)]
    assert min(xs) == 46 and max(xs) == 352
    assert 3 <= len(page.ticks(0, 0.07)) <= 6 and page.ticks(3, 3) == [3]
    flat = page.curves("a constant", {"x": [(n, 0.03) for n in range(400)]}, "step")
    assert len(set(re.findall(r"[\d.]+,([\d.]+)", flat))) == 1  # its running mean is rounded
