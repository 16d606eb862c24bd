"""One sample's bytes <-> arrays, for both codecs, and what hostile bytes meet."""

import io
import tarfile
from collections.abc import Mapping

import cv2
import numpy as np
import pytest

from dclr import record
from dclr.record import FormatError, Record
from preprocess.transcode import JpegEncoder, PacketEncoder


def parts(codec: str = "jpeg", frames: int = 5) -> tuple[dict, dict]:
    """Members and meta of a sample whose frame i is uniformly 40 i, with differences 128 + i, flow (i, -i) and energies i."""
    encoder = JpegEncoder if codec == "jpeg" else PacketEncoder
    quality = {"jpeg": 90, "h264": 10}[codec]
    rgb, diff, flow = encoder(quality), encoder(quality, "diff."), JpegEncoder(90, "flow.")
    scales = []
    for i in range(frames):
        rgb.add([np.full((16, 24), 40 * i % 256, np.uint8), *np.full((2, 8, 12), 128, np.uint8)])
        diff.add([np.full((16, 24), 128 + i, np.uint8)])
        levels, scale = record.flow_levels(np.full((4, 6, 2), (i, -i), np.float32))
        flow.add([levels])
        scales.append(scale)
    members = rgb.members() | diff.members() | flow.members()
    members["flow.npy"] = record.pack_array(np.array(scales, "<f4"))
    members["energy.npy"] = record.pack_array(np.arange(frames, dtype="<f4"))
    members["grid.npy"] = record.pack_array(np.ones((frames, 8, 8), "<f2"))
    meta = {"width": 24, "height": 16, "video": "a/b.avi", "frames": frames, "codec": codec, "cues": list(record.CUES)}
    return members, meta


def sample(codec: str = "jpeg", frames: int = 5, **changes: object) -> bytes:
    members, meta = parts(codec, frames)
    return b"".join(record.pack("a_b", members, meta | changes))


@pytest.mark.parametrize("codec", list(record.CODECS))
def test_any_frame_in_any_order_with_its_cues(codec: str) -> None:
    found = record.unpack(sample(codec))
    assert found.key == "a_b" and len(found) == 5
    frames = found.frames([4, 0, 4, 2])
    assert frames.shape == (4, 16, 24, 3)
    assert [f.mean() for f in frames] == pytest.approx([160, 0, 160, 80], abs=1.5)
    assert [d.mean() for d in found.differences([1, 3])] == pytest.approx([129, 131], abs=0.5)
    flow = found.flow([0, 4, 2])
    assert flow.shape == (3, 4, 6, 2)
    np.testing.assert_allclose(flow.mean((1, 2)), [(0, 0), (4, -4), (2, -2)], atol=0.1)
    np.testing.assert_array_equal(found.energy_N, [0, 1, 2, 3, 4])
    assert found.grid_NGG is not None and found.grid_NGG.shape == (5, 8, 8)
    with pytest.raises(IndexError, match="of 5"):
        found.frames([5])


@pytest.mark.parametrize("codec", list(record.CODECS))
def test_members_are_adjacent_and_in_the_specified_order(codec: str) -> None:
    with tarfile.open(fileobj=io.BytesIO(sample(codec) + bytes(1024))) as tar:
        assert tar.getnames() == [f"a_b.{extension}" for extension in record.member_names(codec, record.CUES)]
        assert {(m.mtime, m.uid, m.mode) for m in tar.getmembers()} == {(0, 0, 0o644)}


def noise(frames: int, codec: str) -> Record:
    """A sample of moving blobs, so that pictures depend on those before them."""
    rng, encoder = np.random.default_rng(0), JpegEncoder(90) if codec == "jpeg" else PacketEncoder(20)
    canvas = cv2.GaussianBlur(rng.integers(0, 256, (48, 200), np.uint8), (9, 9), 3)
    for i in range(frames):
        encoder.add([canvas[:, 2 * i : 2 * i + 64], *np.full((2, 24, 32), 128, np.uint8)])
    meta = {"width": 64, "height": 48, "video": "v", "frames": frames, "codec": codec, "cues": []}
    return record.unpack(b"".join(record.pack("k", encoder.members(), meta)))


@pytest.mark.parametrize("frames", [1, 2, 3, 15, 16, 17, 50])
def test_h264_gives_any_subset_as_a_whole_decode_does(frames: int) -> None:
    """Pictures that nobody needs are left out, and not one pixel changes."""
    found = noise(frames, "h264")
    whole = found.frames(range(frames))
    rng = np.random.default_rng(frames)
    for size in [1, 2, 5, frames] * 4:
        some = rng.integers(0, frames, size)
        np.testing.assert_array_equal(found.frames(some), whole[some])


def test_a_clip_of_every_second_frame_leaves_the_droppable_ones_out() -> None:
    stream = noise(50, "h264").rgb
    assert isinstance(stream, record.PacketStream) and stream.kinds.startswith("IbPbPbPb")
    fed = [number for number, _ in stream.packets(np.arange(16, 32, 2))]
    assert fed == [16, 18, 20, 22, 24, 26, 28, 30]
    assert [number for number, _ in stream.packets(np.array([19]))] == [16, 18, 20, 19]  # a b needs the picture after it


def test_an_h264_stream_is_played_by_any_decoder() -> None:
    import av

    stream = noise(20, "h264").rgb
    with av.open(io.BytesIO(bytes(stream.data)), format="h264") as container:
        assert sum(1 for _ in container.decode(video=0)) == 20


@pytest.mark.parametrize("cues", [(), ("diff",), ("flow",), ("energy",), ("diff", "energy")])
def test_a_cue_that_is_not_stored_is_said_to_be_missing(cues: tuple[str, ...]) -> None:
    members, meta = parts()
    found = record.unpack(b"".join(record.pack("k", members, meta | {"cues": list(cues)})))
    assert (found.energy_N is not None) == ("energy" in cues)
    for cue, read in (("diff", found.differences), ("flow", found.flow)):
        if cue in cues:
            assert len(read([1])) == 1
        else:
            with pytest.raises(FormatError, match=f"no cue '{cue}'.*--cues {cue}"):
                read([1])


def test_flow_is_at_most_half_a_level_off() -> None:
    rng = np.random.default_rng(0)
    for reach in (0.01, 0.5, 5, 60):
        flow = rng.uniform(-reach, reach, (32, 42, 2)).astype(np.float32)
        levels, scale = record.flow_levels(flow)
        assert levels.shape == (64, 42) and levels.dtype == np.uint8 and scale == max(1 / 16, np.abs(flow).max() / 127)
        back = record.flow_pixels(levels[None], np.array([scale], np.float32))[0]
        assert np.abs(back - flow).max() <= scale / 2 + 1e-5
    assert record.flow_levels(np.zeros((4, 4, 2), np.float32))[0].tolist() == [[128] * 4] * 8


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


def rewritten(change: Mapping[str, bytes | None], extra: list[tarfile.TarInfo] | None = None, codec: str = "jpeg") -> bytes:
    """The sample with members replaced (or dropped: None), and more members behind."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(sample(codec) + bytes(1024))) as old, tarfile.open(fileobj=out, mode="w") as new:
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
        (rewritten({"energy.npy": pickled()}), "expected float32"),
        (rewritten({"energy.npy": announcing(10**14)}), "expected float32"),
        (rewritten({"energy.npy": b"PK" + bytes(40)}), "a_b"),
        (rewritten({"json": b"{"}), "a_b"),
        (sample(video=None), "video is None"),
        (rewritten({"json": b"[]"}), "format version"),
        (rewritten({}, [tarfile.TarInfo("../../etc/passwd")]), "unexpected tar member"),
        (rewritten({}, [tarfile.TarInfo("other.json")]), "unexpected tar member"),
        (sample(version=1), "version 1"),
        (rewritten({"kinds": b"bbbbb"}, codec="h264"), "expected 5 letters"),
        (rewritten({"kinds": b"IPPPb"}, codec="h264"), "no b last"),
        (rewritten({"kinds": b"IPP"}, codec="h264"), "expected 5 letters"),
        (rewritten({"kinds": None}, codec="h264"), "expected"),
        (rewritten({"grid.npy": announcing(5)}), "expected float16"),
        (rewritten({"flow.idx": np.arange(3, dtype="<u8").tobytes()}), "flow.idx"),
        (sample(cues=["diff", "taste"]), "cues are"),
        (sample(cues="diff"), "cues are"),
        (sample(width=10**9), "width"),
        (sample(width=0), "width"),
    ],
)  # fmt: skip
def test_hostile_bytes_are_refused_by_name(damaged: bytes, says: str) -> None:
    with pytest.raises(FormatError, match=says):
        record.unpack(damaged)


def test_an_unknown_codec_is_refused() -> None:
    document = b'{"version": 2, "codec": "realvideo", "frames": 5, "width": 24, "height": 16, "video": "v", "cues": []}'
    with pytest.raises(FormatError, match="codec is 'realvideo'"):
        record.unpack(rewritten({"json": document}))


def test_a_frame_of_another_size_does_not_decode() -> None:
    big = JpegEncoder(90)
    big.add(list(np.zeros((1, 64, 64), np.uint8)))
    meta = {"width": 16, "height": 16, "video": "v", "frames": 1, "codec": "jpeg", "cues": []}
    with pytest.raises(FormatError, match="frame 0 does not decode to 16x16"):
        record.unpack(b"".join(record.pack("k", big.members(), meta))).frames([0])
    members, meta = parts("h264")
    with pytest.raises(FormatError, match="frame 2 does not decode to 12x8"):
        record.unpack(b"".join(record.pack("k", members, meta | {"width": 12, "height": 8, "cues": []}))).frames([2])


@pytest.mark.parametrize("seed", range(5))
def test_h264_packets_that_are_noise_are_an_error_not_a_crash(seed: int) -> None:
    members, meta = parts("h264", 20)
    stream = bytearray(members["h264"].read() if members["h264"].seek(0) == 0 else b"")
    rng = np.random.default_rng(seed)
    stream[:] = rng.integers(0, 256, len(stream), np.uint8).tobytes()
    broken = record.unpack(b"".join(record.pack("k", members | {"h264": bytes(stream)}, meta)))
    with pytest.raises(FormatError, match="does not decode"):
        broken.frames(range(20))


def test_keys_hold_no_dots() -> None:
    with pytest.raises(FormatError, match=r"a\.b"):
        list(record.pack("a.b", {}, {}))
