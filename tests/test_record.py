"""One sample's bytes <-> arrays, for both codecs, and what hostile bytes meet."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
import simplejpeg

from dclr import record
from dclr.record import FormatError, Record
from preprocess.transcode import FLOW_QUALITY, JpegEncoder, PacketEncoder


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


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize(("cue", "height", "width"), [("", 16, 24), ("diff.", 16, 24), ("flow.", 8, 6)])
def test_a_jpeg_of_another_size_is_refused_in_every_stream(cue: str, height: int, width: int, colours: int) -> None:
    """Also one that is smaller, or as large and of another shape: the rest of the picture would be what the memory held."""
    members, meta = parts()
    for found_height, found_width in [(height // 2, width), (height, width // 2), (width, height), (2 * height, width)]:
        picture = np.full((found_height, found_width, colours), 90, np.uint8)
        data = simplejpeg.encode_jpeg(picture, 90, "GRAY" if colours == 1 else "RGB", "Gray" if colours == 1 else "420")
        changed = {f"{cue}mjpg": 5 * data, f"{cue}idx": record.pack_offsets(5 * [len(data)])}
        found = record.unpack(b"".join(record.pack("a_b", members | changed, meta)))
        read = {"": found.frames, "diff.": found.differences, "flow.": found.flow}[cue]
        with pytest.raises(FormatError, match=f"a_b.{cue}mjpg: frame 3 does not decode to {width}x{height}") as refused:
            read([3, 4])
        assert f"{found_width}x{found_height}" in str(refused.value) or f"{found_height}, {found_width}" in str(refused.value)


def h264(pictures: Sequence[np.ndarray], pix_fmt: str = "yuvj420p") -> list[bytes]:
    """A packet a picture, uint8 (H, W, 3), each after the one before it."""
    encoder = av.CodecContext.create("libx264", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.height, encoder.width, encoder.pix_fmt = *pictures[0].shape[:2], pix_fmt
    encoder.time_base, encoder.options = Fraction(1, 25), {"x264-params": "bframes=0:keyint=8:rc-lookahead=0"}
    frames = [av.VideoFrame.from_ndarray(picture).reformat(format=pix_fmt) for picture in pictures]
    return [bytes(packet) for frame in [*frames, None] for packet in encoder.encode(frame)]


def packets(members: list[bytes], cue: str = "") -> Record:
    """The sample 48x32 whose frames (and differences) are these packets, the first an I."""
    stream = {"h264": b"".join(members), "idx": record.pack_offsets([len(part) for part in members])}
    stream["kinds"] = b"I" + b"P" * (len(members) - 1)
    meta = {"width": 48, "height": 32, "video": "v", "frames": len(members), "codec": "h264", "cues": ["diff"]}
    stream |= {f"diff.{name}": data for name, data in stream.items()}
    return record.unpack(b"".join(record.pack("k", stream, meta)))


def test_an_h264_picture_of_another_kind_is_refused() -> None:
    pictures = list(np.random.default_rng(0).integers(0, 256, (4, 32, 48, 3), np.uint8))
    good, small = h264(pictures), h264([picture[:16, :32].copy() for picture in pictures])
    cut = [good[0], good[1][: len(good[1]) // 2], *good[2:]]
    for found, says in (
        (packets(good[:2] + small), "frame 2 does not decode to 48x32: a picture of 32x16"),  # changes midway
        (packets(h264(pictures, "yuv444p")), "frame 0 does not decode to 48x32: pixels are yuv444p"),
        (packets(h264(pictures, "yuv420p10le")), "pixels are yuv420p10le"),
        (packets(cut), "a damaged picture"),  # FFmpeg fills up what is missing
    ):
        for read, name in ((found.frames, "k.h264"), (found.differences, "k.diff.h264")):
            with pytest.raises(FormatError, match=f"{name}: .*{says}"):
                read([0, 1, 2, 3])
    assert packets(good[:2] + small).frames([0, 1]).shape == (2, 32, 48, 3)


def exact_rgb(y: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """JPEG's RGB of full-range planes 4:2:0, float64 (H, W, 3), colour interpolated."""
    u, v = (cv2.resize(c.astype(np.float64), y.shape[::-1], interpolation=cv2.INTER_LINEAR) - 128 for c in (u, v))
    return np.stack([y + 1.402 * v, y - 0.344136 * u - 0.714136 * v, y + 1.772 * u], -1).clip(0, 255)


def colourful(codec: str) -> tuple[list[np.ndarray], Record]:
    """Planes of a picture of soft blobs in all colours, and the sample that they were stored as, nearly without loss."""
    rng = np.random.default_rng(0)
    planes = [cv2.GaussianBlur(rng.integers(0, 256, side, np.uint8), (0, 0), 3) for side in ((96, 128), (48, 64), (48, 64))]
    planes = [cv2.normalize(plane, None, 60, 196, cv2.NORM_MINMAX) for plane in planes]
    encoder = JpegEncoder(100) if codec == "jpeg" else PacketEncoder(1)
    encoder.add(planes)
    meta = {"width": 128, "height": 96, "video": "v", "frames": 1, "codec": codec, "cues": []}
    return planes, record.unpack(b"".join(record.pack("k", encoder.members(), meta)))


@pytest.mark.parametrize("codec", list(record.CODECS))
def test_colours_are_read_without_a_drift(codec: str) -> None:
    planes, found = colourful(codec)
    error = found.frames([0])[0] - exact_rgb(*planes)
    assert np.abs(error.mean((0, 1))).max() < 0.2 and np.abs(error).mean() < 0.8


@pytest.mark.parametrize("quality", [50, 90, 100])
def test_a_jpeg_is_read_as_every_decoder_reads_it(quality: int) -> None:
    """Exact DCT, interpolated colour: libjpeg's defaults, which OpenCV's own copy of it has too."""
    rng, encoder = np.random.default_rng(quality), JpegEncoder(quality)
    encoder.add([cv2.GaussianBlur(rng.integers(0, 256, side, np.uint8), (0, 0), 2) for side in ((96, 127), (48, 64), (48, 64))])
    meta = {"width": 127, "height": 96, "video": "v", "frames": 1, "codec": "jpeg", "cues": []}
    found = record.unpack(b"".join(record.pack("k", encoder.members(), meta)))
    expected = cv2.imdecode(np.frombuffer(found.rgb.data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(found.frames([0])[0], expected)


def test_stored_flow_and_differences_do_not_drift() -> None:
    """Reading with libjpeg's fast DCT moved both components of flow by -0.03 pixels."""
    rng, flow, diff = np.random.default_rng(0), JpegEncoder(FLOW_QUALITY, "flow."), JpegEncoder(90, "diff.")
    fields, changes, scales = [], [], []
    for shift in np.linspace(-3, 3, 13):
        field = cv2.GaussianBlur(rng.standard_normal((32, 42, 2)), (0, 0), 3) + np.array([shift, -shift])
        levels, scale = record.flow_levels(field.astype(np.float32))
        flow.add([levels])
        changes.append(cv2.GaussianBlur(rng.integers(0, 256, (128, 168), np.uint8), (0, 0), 2))
        diff.add([changes[-1]])
        fields.append(field)
        scales.append(scale)
    members = flow.members() | diff.members() | {"flow.npy": record.pack_array(np.array(scales, "<f4"))}
    members |= {"mjpg": members["diff.mjpg"], "idx": members["diff.idx"]}
    meta = {"width": 168, "height": 128, "video": "v", "frames": 13, "codec": "jpeg", "cues": ["diff", "flow"]}
    found = record.unpack(b"".join(record.pack("k", members, meta)))
    assert np.abs((found.flow(range(13)) - fields).mean((0, 1, 2))).max() < 0.005
    assert abs((found.differences(range(13)) - np.array(changes, float)).mean()) < 0.05


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
