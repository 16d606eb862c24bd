"""The contact sheet: what is drawn where, in which colour and at which scale."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import succeed

from dclr.data.manifest import ShardSet
from dclr.record import Record
from preprocess import preview
from preprocess.preview import CURVE, CUT, FRAMES_SHOWN, GAP, LABEL, LINE, SHOWN, energy_curve, flow_colours, hues, wheel


@pytest.fixture
def record(synthetic_set: Path) -> Record:
    return ShardSet(synthetic_set).read(5)


def test_the_sheet_has_a_labelled_row_for_each_cue(synthetic_set: Path, h264_set: Path, tmp_path: Path) -> None:
    for place, cues in ((synthetic_set, 3), (h264_set, 2)):  # with flow and without: diff, (flow,) grid
        succeed("-m", "preprocess", "preview", place, "--out", tmp_path / "sheet.png", "--videos", "3")
        sheet, shards = cv2.imread(str(tmp_path / "sheet.png")), ShardSet(place)
        sizes = [shards.read(n).size for n in (0, (len(shards) - 1) // 2, len(shards) - 1)]
        assert sheet.shape[0] == sum(2 * LINE + (1 + cues) * (height + GAP) + CURVE + GAP + 4 for height, _ in sizes)
        assert sheet.shape[1] == LABEL + FRAMES_SHOWN * max(w for _, w in sizes) + (FRAMES_SHOWN - 1) * GAP
        height, width = sizes[0]
        for top in [2 * LINE + n * (height + GAP) for n in range(1 + cues)]:
            assert (sheet[top : top + 20, : LABEL - GAP] < 128).any()  # letters
            assert (sheet[top : top + height, LABEL + width : LABEL + width + GAP] == 255).all()  # a gap between the frames


def test_frames_and_cues_are_those_of_the_record_at_their_places(record: Record) -> None:
    drawn, at = preview._rows(record), np.linspace(0, len(record) - 1, FRAMES_SHOWN).astype(int)
    (height, width), frame = record.size, at[3]
    rows = [drawn[top : top + height] for top in range(2 * LINE, 2 * LINE + 4 * (height + GAP), height + GAP)]
    frames, diff, flow, grid = (row[:, LABEL + 3 * (width + GAP) :][:, :width] for row in rows)
    np.testing.assert_array_equal(frames, record.frames([frame])[0])
    np.testing.assert_array_equal(diff[..., 1], record.pictures("diff", [frame])[0])
    vectors = record.vectors("flow", at)
    most = np.linalg.norm(vectors, axis=-1).max()
    np.testing.assert_array_equal(flow[2::4, 2::4], flow_colours(vectors[3] / most)[: height // 4, : width // 4])
    energies = record.array("grid")[at].astype(np.float32)
    cells = grid[height // 16 :: height // 8, ((np.arange(8) + 0.5) * width / 8).astype(int), 0]
    np.testing.assert_allclose(cells, 255 * energies[3] / energies.max(), atol=1)


def test_the_wheel_is_middleburys() -> None:
    """Of its published code: red to the right, yellow down, blue left, purple up; slower is whiter."""
    assert hues().shape == (55, 3) and hues()[0].tolist() == [1, 0, 0] and hues()[15].tolist() == [1, 1, 0]
    right, down, left, up = flow_colours(np.array([[[1, 0], [0, 1], [-1, 0], [0, -1]]], np.float32))[0].astype(int).tolist()
    assert right[0] > 240 and max(right[1:]) < 40 and min(down[:2]) > 200 and down[2] < 40
    assert left[2] > 240 and left[0] < 40 and up[2] > 240 and 80 < up[0] < 200 and up[1] < 40
    still, half, fast = flow_colours(np.array([[[0, 0], [0.5, 0], [3, 0]]], np.float32))[0].astype(int).tolist()
    assert still == [255, 255, 255] and fast == right and half[1] == pytest.approx(128 + right[1] / 2, abs=1)
    drawn = wheel(31)
    assert drawn[15, 15].tolist() == [255, 255, 255] == drawn[0, 0].tolist()
    assert drawn[15, 30].tolist() == right and drawn[15, 0].tolist() == left and drawn[30, 15].tolist() == down


@pytest.mark.parametrize("frames", [10, 5000])
def test_the_curve_is_as_high_as_the_picture_at_its_most(frames: int) -> None:
    energy = np.zeros(frames, np.float32)
    energy[frames // 2] = 0.02  # however little moves
    curve = energy_curve(energy, np.array([0]), [], 400)
    high = np.flatnonzero((curve[0] != 255).any(axis=1))
    assert high.min() == 0 and abs(high.max() - 200) <= 22  # column 0 is the shown frame
    assert (curve[:, 0] == SHOWN).all() and (curve[:, 100] == 255).all()
    assert (energy_curve(np.zeros(1, np.float32), np.array([0]), [], 50)[:, 1:] == 255).all()


def test_cuts_are_lines_in_the_curve_and_between_frames(record: Record) -> None:
    at = np.linspace(0, len(record) - 1, FRAMES_SHOWN).astype(int)
    cut, (height, frame) = int(at[4]) - 1, record.size
    drawn = preview._rows(replace(record, meta=replace(record.meta, cuts=(cut,))))
    blue = (drawn == CUT).all(axis=2)
    gaps = [slice(LABEL + n * (frame + GAP) - GAP, LABEL + n * (frame + GAP)) for n in range(1, FRAMES_SHOWN)]
    rows = slice(2 * LINE, 2 * LINE + height)
    assert [blue[rows, gap].all() for gap in gaps] == [n == 4 for n in range(1, FRAMES_SHOWN)]
    width = drawn.shape[1] - LABEL
    assert blue[-CURVE - GAP : -GAP, LABEL + cut * (width - 1) // (len(record) - 1)].all()
    assert not (preview._rows(record) == CUT).all(axis=2)[2 * LINE :].any()
