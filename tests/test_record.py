"""One sample's bytes <-> arrays, for both codecs, and what hostile bytes meet."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import simplejpeg

from dclr import cues, record
from dclr.cues import CUES, FLOW_QUALITY, flow_levels
from dclr.data.manifest import ShardSet
from dclr.record import FormatError, Record, SampleMeta, glance
from preprocess.transcode import JpegEncoder, PacketEncoder


def parts(codec: str = "jpeg", frames: int = 5) -> tuple[dict, SampleMeta]:
    """Members and meta of a sample whose frame i is uniformly 40 i, with differences 128 + i, flow (i, -i) and energies i."""
    encoder = JpegEncoder if codec == "jpeg" else PacketEncoder
    quality = {"jpeg": 90, "h264": 10}[codec]
    rgb, diff, flow = encoder(quality), encoder(quality, "diff."), JpegEncoder(90, "flow.")
    scales = []
    for i in range(frames):
        rgb.add([np.full((16, 24), 40 * i % 256, np.uint8), *np.full((2, 8, 12), 128, np.uint8)])
        diff.add([np.full((16, 24), 128 + i, np.uint8)])
        levels, scale = flow_levels(np.full((4, 6, 2), (i, -i), np.float32))
        flow.add([levels])
        scales.append(scale)
    members = rgb.members() | diff.members() | flow.members()
    members["flow.npy"] = record.pack_array(np.array(scales, "<f4"))
    members["energy.npy"] = record.pack_array(np.arange(frames, dtype="<f4"))
    members["grid.npy"] = record.pack_array(np.ones((frames, 8, 8), "<f2"))
    return members, SampleMeta("a/b.avi", frames, 24, 16, codec, tuple(CUES))


def sample(codec: str = "jpeg", frames: int = 5) -> bytes:
    return b"".join(record.pack("a_b", *parts(codec, frames)))


@pytest.mark.parametrize("codec", list(record.CODECS))
def test_any_frame_in_any_order_with_its_cues(codec: str) -> None:
    found = record.unpack(sample(codec))
    assert found.key == "a_b" and len(found) == 5
    frames = found.frames([4, 0, 4, 2])
    assert frames.shape == (4, 16, 24, 3)
    assert [f.mean() for f in frames] == pytest.approx([160, 0, 160, 80], abs=1.5)
    assert [d.mean() for d in found.pictures("diff", [1, 3])] == pytest.approx([129, 131], abs=0.5)
    flow = found.vectors("flow", [0, 4, 2])
    assert flow.shape == (3, 4, 6, 2)
    np.testing.assert_allclose(flow.mean((1, 2)), [(0, 0), (4, -4), (2, -2)], atol=0.1)
    np.testing.assert_array_equal(found.array("energy"), [0, 1, 2, 3, 4])
    assert found.array("grid").shape == (5, 8, 8)
    with pytest.raises(IndexError, match="of 5"):
        found.frames([5])


@pytest.mark.parametrize("codec", list(record.CODECS))
def test_members_are_adjacent_and_in_the_specified_order(codec: str) -> None:
    with tarfile.open(fileobj=io.BytesIO(sample(codec) + bytes(1024))) as tar:
        assert tar.getnames() == [f"a_b.{extension}" for extension in record.member_names(codec, CUES)]
        assert {(m.mtime, m.uid, m.mode) for m in tar.getmembers()} == {(0, 0, 0o644)}


def noise(frames: int, codec: str) -> Record:
    """A sample of moving blobs, so that pictures depend on those before them."""
    rng, encoder = np.random.default_rng(0), JpegEncoder(90) if codec == "jpeg" else PacketEncoder(20)
    canvas = cv2.GaussianBlur(rng.integers(0, 256, (48, 200), np.uint8), (9, 9), 3)
    for i in range(frames):
        encoder.add([canvas[:, 2 * i : 2 * i + 64], *np.full((2, 24, 32), 128, np.uint8)])
    meta = SampleMeta("v", frames, 64, 48, codec, ())
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


@pytest.mark.parametrize("stored", [(), ("diff",), ("flow",), ("energy",), ("diff", "energy")])
def test_a_cue_that_is_not_stored_is_said_to_be_missing(stored: tuple[str, ...]) -> None:
    members, meta = parts()
    found = record.unpack(b"".join(record.pack("k", members, replace(meta, cues=stored))))
    assert set(found.streams) == set(stored) - {"energy"}
    for cue, read in (("diff", found.pictures), ("flow", found.vectors), ("energy", lambda *_: found.array("grid"))):
        if cue in stored:
            assert len(read(cue, [1])) in (1, 5)
        else:
            with pytest.raises(FormatError, match=f"no cue '{cue}'.*--cues {cue}"):
                read(cue, [1])


def test_flow_is_at_most_half_a_level_off() -> None:
    rng = np.random.default_rng(0)
    for reach in (0.01, 0.5, 5, 60):
        flow = rng.uniform(-reach, reach, (32, 42, 2)).astype(np.float32)
        levels, scale = flow_levels(flow)
        assert levels.shape == (64, 42) and levels.dtype == np.uint8 and scale == max(1 / 16, np.abs(flow).max() / 127)
        back = cues.flow_pixels(levels[None], np.array([scale], np.float32))[0]
        assert np.abs(back - flow).max() <= scale / 2 + 1e-5
    assert flow_levels(np.zeros((4, 4, 2), np.float32))[0].tolist() == [[128] * 4] * 8


def test_luma_difference_is_half_the_change_around_128() -> None:
    luma = np.array([[0, 255, 10, 10, 10, 13]], np.uint8)
    previous = np.array([[255, 0, 10, 12, 9, 10]], np.uint8)
    x = luma.astype(float) - previous
    expected = np.clip(np.round(x / 2) + 128, 0, 255)
    np.testing.assert_array_equal(cues.luma_difference(luma, previous), expected)
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


def said(**changes: object) -> bytes:
    """The sample whose KEY.json has these fields changed."""
    return rewritten({"json": json.dumps(json.loads(parts()[1].dumps()) | changes).encode()})


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
        (said(video=None), "video is None"),
        (rewritten({"json": b"[]"}), "a_b.json: expected object, got array"),
        (rewritten({}, [tarfile.TarInfo("../../etc/passwd")]), "unexpected tar member"),
        (rewritten({}, [tarfile.TarInfo("other.json")]), "unexpected tar member"),
        (said(version=1), "version 1"),
        (rewritten({"kinds": b"bbbbb"}, codec="h264"), "expected 5 letters"),
        (rewritten({"kinds": b"IPPPb"}, codec="h264"), "no b last"),
        (rewritten({"kinds": b"IPP"}, codec="h264"), "expected 5 letters"),
        (rewritten({"kinds": None}, codec="h264"), "expected"),
        (rewritten({"grid.npy": announcing(5)}), "expected float16"),
        (rewritten({"flow.idx": np.arange(3, dtype="<u8").tobytes()}), "flow.idx"),
        (said(cues=["diff", "taste"]), "cues are"),
        (said(cues="diff"), "cues are"),
        (said(width=10**9), "width"),
        (said(width=0), "width"),
    ],
)  # fmt: skip
def test_hostile_bytes_are_refused_by_name(damaged: bytes, says: str) -> None:
    with pytest.raises(FormatError, match=says):
        record.unpack(damaged)


SOURCE = {"path": "a/b.avi", "width": 320, "height": 240, "first": 0}


@pytest.mark.parametrize(
    ("field", "wrong", "says"),
    [
        ("version", 2.5, "format version 2.5"),
        ("codec", "realvideo", "codec is 'realvideo', expected one of jpeg, h264"),
        ("codec", ["jpeg"], "codec is ['jpeg'], expected one of jpeg, h264"),
        ("cues", ["diff", ["flow"]], "cues are ['diff', ['flow']], expected some of diff, flow, energy"),
        ("cues", None, "cues are None"),
        ("frames", True, "frames is True, expected 1..1099511627776"),
        ("frames", 10**30, "frames is 1000"),
        ("width", 24.0, "width is 24.0, expected 1..4096"),
        ("fps", -1, "fps is -1, expected frames a second, or 0"),
        ("fps", float("nan"), "JSON is malformed"),
        ("fps", float("inf"), "JSON is malformed"),
        ("fps", "25", "fps is '25'"),
        ("label", -1, "label is -1, expected a number of a class, or null"),
        ("class", 3, "class is 3, expected a name, or null"),
        ("labels", [3], "labels are [3], expected a number of a class for each kind of label"),
        ("labels", {"action": "walk"}, "labels are {'action': 'walk'}"),
        ("splits", "train", "splits are 'train', expected names of splits"),
        ("splits", [1], "splits are [1]"),
        ("cuts", "4", "cuts are '4', expected ascending numbers of frames, 1..4"),
        ("cuts", [2, 2], "cuts are [2, 2]"),
        ("cuts", [0], "cuts are [0]"),
        ("cuts", [5], "cuts are [5]"),
        ("cuts", [1.0], "cuts are [1.0]"),
        ("source", "a.avi", "source is 'a.avi', expected a table"),
        ("source", {}, "source's path is None, expected a text"),
        ("source", SOURCE | {"width": 0}, "source's width is 0"),
        ("source", SOURCE | {"first": -1}, "source's first is -1"),
        (
            "source",
            SOURCE | {"content": "ab" * 15 + "xy"},
            "source's content is 'abababababababababababababababxy', expected 32",
        ),
        ("source", SOURCE | {"content": 5}, "source's content is 5, expected 32 hex digits"),
        ("source", SOURCE | {"rate": ["measured"]}, "source's rate is ['measured'], expected one of measured, contradictory"),
        ("source", SOURCE | {"sar": "4/3"}, "source's sar is '4/3', expected a ratio, such as 4:3"),
        ("source", SOURCE | {"sar": [4, 3]}, "source's sar is [4, 3]"),
        ("source", SOURCE | {"rotation": 360}, "source's rotation is 360, expected degrees, 0 up to 360"),
        ("source", SOURCE | {"rotation": True}, "source's rotation is True"),
        ("source", SOURCE | {"mirror": 1}, "source's mirror is 1, expected true or false"),
        ("source", SOURCE | {"interlaced": "yes"}, "source's interlaced is 'yes', expected true or false"),
        ("source", SOURCE | {"fps": -1}, "source's fps is -1, expected frames a second, or 0"),
        ("source", SOURCE | {"fps": "60"}, "source's fps is '60'"),
        ("source", SOURCE | {"transfer": "SDR"}, "source's transfer is 'SDR', expected one of PQ, HLG"),
        ("video", "\ud800", "JSON is malformed"),
        ("splits", ["\udfff"], "JSON is malformed"),
        ("video", 200 * "x", None),
        ("codec", 200 * "x", "codec is '" + 70 * "x"),
    ],
)
def test_each_field_of_the_json_is_checked(field: str, wrong: object, says: str | None) -> None:
    if says is None:
        assert getattr(record.unpack(said(**{field: wrong})).meta, field) == wrong
        return
    with pytest.raises(FormatError) as refused:
        record.unpack(said(**{field: wrong}))
    message = str(refused.value)
    assert message.startswith(f"a_b.json: {says}") and len(message) < 220 and "\n" not in message


def test_the_json_is_read_as_it_was_written() -> None:
    """Also one without the fields that not every set has, and one with fields that this version does not know."""
    _, least = parts()
    source = record.Source("a/b.avi", 320, 240, 7, "measured", "0123456789abcdef" * 2)
    full = replace(
        least, fps=29.97, label=3, class_name="日本語", labels={"action": 3}, splits=("train01",),
        source=source, cuts=(2, 4),
    )  # fmt: skip
    for meta in (least, full):
        assert SampleMeta.loads(meta.dumps()) == meta
    plain = json.loads(replace(full, source=replace(source, rate=None, content=None)).dumps())["source"]
    assert plain == {"path": "a/b.avi", "width": 320, "height": 240, "first": 7}
    unusual = replace(source, sar="4:3", rotation=45.5, mirror=True, interlaced=True)
    assert SampleMeta.loads(replace(full, source=unusual).dumps()).source == unusual
    assert unusual.traits == ("non-square pixels", "odd rotation", "interlaced")
    assert [replace(source, transfer=one).traits for one in record.HDR] == [("PQ",), ("HLG",)]
    assert source.traits == replace(source, rotation=270, mirror=True).traits == ()
    assert "cuts" not in json.loads(least.dumps())
    for own, repeats in ((None, False), (0.0, True), (29.97, False), (15.0, True)):  # 25 where it does not say
        timed = replace(full, fps=30.0, source=replace(source, fps=own))
        assert SampleMeta.loads(timed.dumps()) == timed and timed.traits == (record.REPEATED,) * repeats
    table = json.loads(full.dumps())
    assert (table["version"], table["class"], table["splits"], table["source"]["rate"]) == (
        2,
        "日本語",
        ["train01"],
        "measured",
    )
    assert SampleMeta.loads(json.dumps(table | {"weather": "rain"}).encode()) == full
    bare = {name: table[name] for name in ("version", "video", "frames", "width", "height", "codec", "cues")}
    assert SampleMeta.loads(json.dumps(bare).encode()) == least
    with pytest.raises(FormatError, match="width is 0"):
        replace(full, width=0)


def test_a_frame_of_another_size_does_not_decode() -> None:
    big = JpegEncoder(90)
    big.add(list(np.zeros((1, 64, 64), np.uint8)))
    meta = SampleMeta("v", 1, 16, 16, "jpeg", ())
    with pytest.raises(FormatError, match="frame 0 does not decode to 16x16"):
        record.unpack(b"".join(record.pack("k", big.members(), meta))).frames([0])
    members, meta = parts("h264")
    with pytest.raises(FormatError, match="frame 2 does not decode to 12x8"):
        record.unpack(b"".join(record.pack("k", members, replace(meta, width=12, height=8, cues=())))).frames([2])


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
        read = partial(found.pictures, cue[:-1]) if cue else found.frames
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
    meta = SampleMeta("v", len(members), 48, 32, "h264", ("diff",))
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
        for read, name in ((found.frames, "k.h264"), (partial(found.pictures, "diff"), "k.diff.h264")):
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
    meta = SampleMeta("v", 1, 128, 96, codec, ())
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
    meta = SampleMeta("v", 1, 127, 96, "jpeg", ())
    found = record.unpack(b"".join(record.pack("k", encoder.members(), meta)))
    expected = cv2.imdecode(np.frombuffer(found.rgb.data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(found.frames([0])[0], expected)


def test_stored_flow_and_differences_do_not_drift() -> None:
    """Reading with libjpeg's fast DCT moved both components of flow by -0.03 pixels."""
    rng, flow, diff = np.random.default_rng(0), JpegEncoder(FLOW_QUALITY, "flow."), JpegEncoder(90, "diff.")
    fields, changes, scales = [], [], []
    for shift in np.linspace(-3, 3, 13):
        field = cv2.GaussianBlur(rng.standard_normal((32, 42, 2)), (0, 0), 3) + np.array([shift, -shift])
        levels, scale = flow_levels(field.astype(np.float32))
        flow.add([levels])
        changes.append(cv2.GaussianBlur(rng.integers(0, 256, (128, 168), np.uint8), (0, 0), 2))
        diff.add([changes[-1]])
        fields.append(field)
        scales.append(scale)
    members = flow.members() | diff.members() | {"flow.npy": record.pack_array(np.array(scales, "<f4"))}
    members |= {"mjpg": members["diff.mjpg"], "idx": members["diff.idx"]}
    meta = SampleMeta("v", 13, 168, 128, "jpeg", ("diff", "flow"))
    found = record.unpack(b"".join(record.pack("k", members, meta)))
    assert np.abs((found.vectors("flow", range(13)) - fields).mean((0, 1, 2))).max() < 0.005
    assert abs((found.pictures("diff", range(13)) - np.array(changes, float)).mean()) < 0.05


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
        list(record.pack("a.b", *parts()))


def test_what_is_no_sample_gives_no_middle_frame(synthetic_set: Path) -> None:
    shards = ShardSet(synthetic_set)
    name, offset, size = shards.where(0)
    data = bytearray((synthetic_set / name).read_bytes()[offset : offset + size])

    def read(start: int, length: int) -> bytes:
        return bytes(data[start : start + length])

    assert glance(read, size).frames([shards.frames_N[0] // 2]).shape[0] == 1
    for spoil in (slice(0, 100), slice(size - 9000, size), slice(124, 136)):
        kept, data[spoil] = data[spoil], b"7" * (spoil.stop - spoil.start)
        with pytest.raises(FormatError):
            glance(read, size)
        data[spoil] = kept
