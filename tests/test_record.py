"""One sample's bytes <-> arrays, and what hostile bytes meet."""

import io
import tarfile

import cv2
import numpy as np
import pytest
import simplejpeg

from dclr import record
from dclr.record import FormatError


def sample(frames: int = 5, **changes: object) -> bytes:
    """A sample whose frame i is uniformly 40 i, with differences 128 + i and energies i."""
    grey = [np.full((16, 24), 40 * i, np.uint8) for i in range(frames)]
    colour = [simplejpeg.encode_jpeg(np.repeat(g[..., None], 3, 2), 90) for g in grey]
    moved = [simplejpeg.encode_jpeg_yuv_planes(np.full((16, 24), 128 + i, np.uint8), None, None, 90) for i in range(frames)]
    meta = {"width": 24, "height": 16, "video": "a/b.avi", **changes}
    return record.pack("a_b", colour, moved, np.arange(frames, dtype=np.float32), meta)


def test_any_frame_is_one_slice_in_any_order() -> None:
    found = record.unpack(sample())
    assert found.key == "a_b" and len(found) == 5
    frames = found.frames([4, 0, 4, 2])
    assert frames.shape == (4, 16, 24, 3)
    assert [f.mean() for f in frames] == pytest.approx([160, 0, 160, 80], abs=1)
    assert [d.mean() for d in found.differences([1, 3])] == [129, 131]
    np.testing.assert_array_equal(found.energy_N, [0, 1, 2, 3, 4])


def test_members_are_adjacent_and_in_the_specified_order() -> None:
    with tarfile.open(fileobj=io.BytesIO(sample() + bytes(1024))) as tar:
        assert tar.getnames() == [f"a_b.{extension}" for extension in record.MEMBERS]
        assert {(m.mtime, m.uid, m.mode) for m in tar.getmembers()} == {(0, 0, 0o644)}


def test_luma_difference_is_half_the_change_around_128() -> None:
    luma = np.array([[0, 255, 10, 10, 10, 13]], np.uint8)
    previous = np.array([[255, 0, 10, 12, 9, 10]], np.uint8)
    x = luma.astype(float) - previous
    expected = np.clip(np.round(x / 2) + 128, 0, 255)
    np.testing.assert_array_equal(record.luma_difference(luma, previous), expected)
    np.testing.assert_array_equal(expected, [[0, 255, 128, 127, 128, 130]])


def test_video_ids_are_63_bit_and_differ() -> None:
    ids = {record.video_id(f"video {i}") for i in range(10_000)}
    assert len(ids) == 10_000 and all(0 <= i < 2**63 for i in ids)


def rewritten(change: dict[str, bytes | None], extra: list[tarfile.TarInfo] | None = None) -> bytes:
    """The sample with members replaced (or dropped: None), and more members behind."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(sample() + bytes(1024))) as old, tarfile.open(fileobj=out, mode="w") as new:
        for member in old.getmembers():
            contents = old.extractfile(member)
            assert contents is not None
            data = change.get(member.name.partition(".")[2], contents.read())
            if data is not None:
                member.size = len(data)
                new.addfile(member, io.BytesIO(data))
        for member in extra or []:
            new.addfile(member)
        end = new.offset
    return out.getvalue()[:end]


def pickled() -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return out.getvalue()


def announcing(values: int) -> bytes:
    """A .npy whose header promises more than there is."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": (values,)})
    return out.getvalue()


@pytest.mark.parametrize(
    ("damaged", "says"),
    [
        (sample()[:600], "announced"),
        (sample()[:300], "inside a tar header"),
        (b"\xff" * 1024, "not a tar header"),
        (rewritten({"idx": None}), "expected"),
        (rewritten({"idx": np.array([0, 5, 3], "<u8").tobytes()}), "offsets do not rise"),
        (rewritten({"idx": np.array([0, 2**60], "<u8").tobytes()}), "offsets do not rise"),
        (rewritten({"idx": b"123"}), "uint64 offsets"),
        (rewritten({"energy.npy": pickled()}), "expected a float32 vector"),
        (rewritten({"energy.npy": announcing(10**14)}), "expected a float32 vector"),
        (rewritten({"energy.npy": b"PK" + bytes(40)}), "a_b"),
        (rewritten({"json": b"{"}), "a_b"),
        (sample(video=None), "video is None"),
        (rewritten({"json": b"[]"}), "format version"),
        (rewritten({}, [tarfile.TarInfo("../../etc/passwd")]), "unexpected tar member"),
        (rewritten({}, [tarfile.TarInfo("other.json")]), "unexpected tar member"),
        (sample(version=2), "version 2"),
        (sample(width=10**9), "width"),
        (sample(width=0), "width"),
    ],
)  # fmt: skip
def test_hostile_bytes_are_refused_by_name(damaged: bytes, says: str) -> None:
    with pytest.raises(FormatError, match=says):
        record.unpack(damaged)


def test_a_frame_of_another_size_does_not_decode() -> None:
    big = cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
    data = record.pack("k", [big], [big], np.zeros(1), {"width": 16, "height": 16, "video": "v"})
    with pytest.raises(FormatError, match="frame 0 does not decode to 16x16"):
        record.unpack(data).frames([0])


def test_keys_hold_no_dots() -> None:
    with pytest.raises(FormatError, match=r"a\.b"):
        record.pack("a.b", [], [], np.zeros(0), {})
