"""Progress: bars on a terminal, few lines elsewhere."""

import io
from pathlib import Path

import pytest
from conftest import REPOSITORY
from tqdm import tqdm

from dclr import bars


def test_a_log_gets_a_line_every_half_a_minute_and_one_at_the_end() -> None:
    seconds, log = [0.0], io.StringIO()
    with tqdm(total=200, desc="working", file=bars.Lines(log, lambda: seconds[0]), ncols=0, mininterval=0) as bar:
        for _ in range(200):
            seconds[0] += 1
            bar.update()
    lines = log.getvalue().splitlines()
    assert [line.split()[2].split("/")[0] for line in lines] == ["30", "60", "90", "120", "150", "180", "200"]
    assert all(line.startswith("working: ") and "\r" not in line for line in lines)


def test_a_last_state_is_one_line_though_it_was_told_just_before() -> None:
    seconds, log = [0.0], io.StringIO()
    lines = bars.Lines(log, lambda: seconds[0])
    seconds[0] += 31
    for text in ("\rworking: 100%", "\rworking: 100%", "\n"):
        lines.write(text)
    assert log.getvalue() == "working: 100%\n"


def test_short_work_is_one_line_and_what_vanishes_on_a_terminal_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert sum(bars.bar(range(1000), "adding", unit="video")) == 499500
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("adding: 100% 1000/1000 [") and "\r" not in said
    assert list(bars.bar(range(10), "checking", leave=False)) == list(range(10)) and not capsys.readouterr().err


def test_bars_in_bars_and_text_between_leave_each_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with bars.bar(total=3, desc="outer") as outer:
        for _ in range(3):
            list(bars.bar(range(5), "inner"))
            bars.write("text")
            outer.update()
            outer.set_postfix({"loss": 1})
    found = capsys.readouterr()
    assert [line.partition(":")[0] for line in found.err.splitlines()] == ["inner"] * 3 + ["outer"]
    assert found.out == "text\n" * 3 and "3/3" in found.err.splitlines()[-1] and "loss=1" in found.err.splitlines()[-1]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", terminal)
    list(bars.bar(range(100), "working"))
    assert "\r" in terminal.getvalue() and "#" in terminal.getvalue()


def test_no_other_file_makes_bars_of_its_own() -> None:
    sources = [path for folder in ("dclr", "preprocess", "benchmarks") for path in (REPOSITORY / folder).glob("**/*.py")]
    using = {path for path in sources if "tqdm" in path.read_text()}
    assert using == {Path(bars.__file__)}
