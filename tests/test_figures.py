"""Pictures: bounded whatever they show, and any name in them."""

import warnings
from pathlib import Path
from typing import Any

import cv2
import matplotlib.mathtext
import numpy as np
import pytest
import torch

from dclr import canvas, figures
from dclr.errors import InputError
from dclr.figures import Cell
from dclr.method.views import GREY
from dclr.text import plain

NAMES = ["$x_1^{$", "a$b$ 100 %", "new\nline\x1b[0m", "日本語", "x" * 200, "\ud800"]


def counts(classes: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, (classes, classes)) + np.eye(classes, dtype=int)


def test_a_picture_stays_small_however_many_classes_there_are(tmp_path: Path) -> None:
    """700 classes took 85 s and 19 GB; now a second and 0.4 GB (``/usr/bin/time -v`` in front of this):

    python -c "import numpy, pathlib; from dclr import figures; counts, names = numpy.ones((700, 700), int), ['name'] * 700
    for draw in (figures.confusion_matrix, figures.class_bars): draw(counts, names, pathlib.Path('picture.png'))"
    """
    frame, most = np.zeros((8, 8, 3), np.uint8), canvas.WIDEST * canvas.DPI
    for classes in (2, 100, 150):
        names = [f"class number {n}" for n in range(classes)]
        for draw in (figures.confusion_matrix, figures.class_bars):
            height, width = cv2.imread(str(draw(counts(classes), names, tmp_path / "a.png"))).shape[:2]
            assert max(height, width) <= (most if classes <= 100 else 2600), (draw, classes)
    figures.bars({"a": {f"name {n}": 0.5 for n in range(150)}}, {}, tmp_path / "b.png")
    figures.neighbours([[Cell(frame, "query: x"), *[Cell(frame, "x", False)] * 40]], tmp_path / "c.png", "mined")
    figures.curves([{"step": 1, "a": 1}], ["a"] * 20, tmp_path / "d.png")
    for name in "bcd":
        assert max(cv2.imread(str(tmp_path / f"{name}.png")).shape) <= most


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are written from now on."""
    figures: list[Any] = []
    write = canvas.write
    monkeypatch.setattr(canvas, "write", lambda figure, out: figures.append(figure) or write(figure, out))
    return figures


def test_each_map_lies_over_its_own_view_on_one_scale(tmp_path: Path, drawn: list[Any]) -> None:
    """Five clips, of which four are shown; the map of view n is n + 1 in each clip's upper half, and 0 below."""
    views = {name: torch.rand(5, 3, 8, 32, 32) for name in "vsd"}
    level = {name: n + 1.0 for n, name in enumerate("vsd")}

    def active(clip_BCTHW: torch.Tensor, view: str) -> torch.Tensor:
        torch.testing.assert_close(clip_BCTHW, views[view][:4])
        return torch.tensor([level[view], 0]).view(1, 1, 2, 1).expand(len(clip_BCTHW), 2, 2, 2)

    figures.activation_maps(active, views, ["walk", "run", "$x_1^{$", "jump", "sit"], tmp_path / "maps.png")
    (figure,) = drawn
    *panels, bar = figure.axes
    assert [panel.get_title() for panel in panels[:4]] == ["walk", "run", "$x_1^{$", "jump"]
    names = ["RGB clip v", "A(v) over v", "static view s", "A(s) over s", "dynamic view d", "A(d) over d"]
    assert [panel.get_ylabel() for panel in panels[::4]] == names
    assert [label.get_text() for label in panels[-1].get_xticklabels()] == ["frame 0", "frame 2", "frame 4", "frame 7"]
    maps = [panel.images[1] for n, panel in enumerate(panels) if n // 4 % 2]
    assert {(image.norm.vmin, image.norm.vmax, image.get_cmap().name) for image in maps} == {(0, 3, "viridis")}
    assert bar.get_ylim() == (0, 3) and "multiples of its" in bar.get_ylabel()
    for n, name in enumerate("vsd"):
        for clip in range(4):
            view, over = panels[8 * n + clip], panels[8 * n + 4 + clip]
            frames, (grey, a) = view.images[0].get_array(), over.images
            expected_CHW = figures._visible(views[name], name)[clip, :, 2]  # the second of the four frames
            assert np.allclose(frames[:, 32:64], expected_CHW.permute(1, 2, 0))
            assert frames.shape == (32, 4 * 32, 3) and np.allclose(grey.get_array(), frames @ np.array(GREY))
            assert np.allclose(a.get_array()[0], level[name]) and np.allclose(a.get_array()[-1], 0)


def test_neighbours_are_right_or_wrong_without_colour_too(tmp_path: Path, drawn: list[Any]) -> None:
    """Of five videos, the first asks; the last has no label and is called by its key."""

    class Shards:
        keys = ("q", "a", "b", "c", "video-without-label")

        def read(self, sample: int) -> None:
            raise InputError("damaged")

    row = figures.beside(Shards(), range(5), [1, 1, 0, 1, -1], ["run", "walk"])  # type: ignore[arg-type]
    assert [cell.title for cell in row] == ["walk", "walk", "run", "walk", "video-without-label"]
    assert [cell.right for cell in row] == [None, True, False, True, None]
    unlabelled = figures.beside(Shards(), [4, 0], [-1, 1], ["run", "walk"])  # type: ignore[arg-type]
    assert [cell.right for cell in unlabelled] == [None, None]
    figures.neighbours([row, unlabelled], tmp_path / "neighbours.png", "Videos")
    (figure,) = drawn
    assert figure.get_suptitle().startswith("Videos: 2 of 3 are of the query's class (✓)")
    assert [axis.get_ylabel() for axis in figure.axes[::5]] == ["query", "query"]
    shown = [axis.get_title() for axis in figure.axes[:5]]
    assert shown == ["walk", "✓ walk", "✗ run", "✓ walk", "video-without-label"]
    borders = [axis.spines["left"].get_linestyle() for axis in figure.axes[:5]]
    assert borders == ["-", "-", "--", "-", "-"]


def test_a_frame_in_a_picture_is_small(tmp_path: Path) -> None:
    class Record:
        def __len__(self) -> int:
            return 3

        def frames(self, at: list[int]) -> np.ndarray:
            assert at == [1]
            return np.full((1, 900, 1200, 3), 7, np.uint8)

    class Shards:
        def read(self, sample: int) -> Record:
            return Record()

    frame = figures.middle_frame(Shards(), 0)  # type: ignore[arg-type]
    assert frame.shape == (192, 256, 3) and (frame == 7).all()


def test_any_name_is_drawn_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No name is read as mathematics, none breaks a picture, and letters that no font has take one line a picture."""

    def parse(*_: object, **__: object) -> None:
        raise AssertionError("read as mathematics")

    monkeypatch.setattr(matplotlib.mathtext.MathTextParser, "parse", parse)
    frame = np.zeros((8, 8, 3), np.uint8)
    draw = {
        "confusion": lambda out: figures.confusion_matrix(counts(6), NAMES, out),
        "classes": lambda out: figures.class_bars(counts(6), NAMES, out),
        "neighbours": lambda out: figures.neighbours([[Cell(frame, name, True) for name in NAMES]], out, "$x_1^{$"),
        "bars": lambda out: figures.bars({"this network": dict.fromkeys(NAMES, 0.5)}, {}, out),
        "curves": lambda out: figures.curves([{"step": 1, "val/$top$": 1}], ["val/$top$"], out),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, drawn in draw.items():
            drawn(tmp_path / f"{name}.png")
            assert cv2.imread(str(tmp_path / f"{name}.png")).std() > 1
    told = capfd.readouterr().err.splitlines()
    assert len(told) <= 4 and all("no font here has some letters" in line for line in told)


def test_names_as_text() -> None:
    assert [plain(name) for name in NAMES] == [
        "$x_1^{$",
        "a$b$ 100 %",
        "new\\nline\\x1b[0m",
        "日本語",
        "x" * 29 + "…",
        "\\ud800",
    ]
    assert plain("a\u3000b\u202e") == "a b\\u202e" and plain("x" * 30) == "x" * 30 and plain("x" * 10**7, 5) == "xxxx…"


def test_axes_fit_what_is_drawn_with_its_intervals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars of a few per cent fill the picture, none is cut off, and the counts stand in cells of up to 30 classes."""
    drawn = []
    monkeypatch.setattr(canvas, "write", lambda figure, out: drawn.append(figure) or out)
    ends = {"random": {"a": (0.01, 0.09)}, "this": {"a": (0.1, 0.2), "b": (0.05, 0.15)}}
    figures.bars({"random": {"a": 0.05, "b": 0.02}, "this": {"a": 0.15, "b": 0.1}}, ends, tmp_path / "a.png")
    (axis,) = drawn[0].axes
    assert 0.2 < axis.get_ylim()[1] < 0.25 and [bar.get_height() for bar in axis.patches] == [0.05, 0.02, 0.15, 0.1]
    seen = {tuple(path.vertices[:, 1].round(6)) for lines in axis.collections for path in lines.get_paths()}
    assert {(0.01, 0.09), (0.1, 0.2), (0.05, 0.15), (0.02, 0.02)} == seen
    figures.class_bars(np.array([[3, 97], [98, 2]]), ["a", "b"], tmp_path / "b.png")
    assert 0.08 < drawn[1].axes[0].get_ylim()[1] < 0.1
    figures.bars({"all": {"a": 1.0}}, {}, tmp_path / "c.png")
    assert drawn[2].axes[0].get_ylim() == (0, 1)
    counts = np.diag(np.arange(1, 31))
    counts[3, 4] = 77
    for classes, numbers in ((counts, [*range(1, 31), 77]), (np.eye(31, dtype=int), [])):
        figures.confusion_matrix(classes, [f"n{n}" for n in range(len(classes))], tmp_path / "d.png")
        assert sorted(int(text.get_text()) for text in drawn[-1].axes[0].texts) == numbers
    places = {text.get_text(): text.get_position() for text in drawn[3].axes[0].texts}
    assert places["77"] == (4, 3)  # named 4, true 3
