"""The set in a browser: what the server answers over HTTP, and what Chromium makes of the page."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import simplejpeg
from browser import browser, needs_chromium
from conftest import REPOSITORY, needs, refuse
from servers import FileServer, free_port, serving

from dclr.data.manifest import Entry, ShardSet, pack_columns, publish, read_index
from dclr.record import FormatError
from dclr.storage import open_folder
from preprocess import browse
from preprocess.browse import ON_A_PAGE, Catalogue, Server
from preprocess.preview import flow_colours

Get = Callable[..., tuple[int, dict[str, str], bytes]]
SCRIPT = "<img src=x onerror=alert(1)>"


@contextmanager
def served(place: Path | str, host: str = "127.0.0.1") -> Iterator[Get]:
    """A server in this process; gives ``get(path, header=...) -> (status, headers, body)``."""
    with Server(socket.AF_INET, (host, 0), Catalogue(ShardSet(place, keep_damaged=True)), host) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def get(path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

        try:
            yield get
        finally:
            server.shutdown()


@pytest.fixture(scope="module")
def get(synthetic_set: Path) -> Iterator[Get]:
    with served(synthetic_set) as asked:
        yield asked


@pytest.fixture
def copied(synthetic_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(synthetic_set, tmp_path / "copy", ignore=shutil.ignore_patterns("videos")))


def table(answer: tuple[int, dict[str, str], bytes]) -> dict[str, Any]:
    status, _, body = answer
    assert status == 200, body
    return dict(json.loads(body))


def found(get: Get, **query: object) -> list[int]:
    """The samples of all pages."""
    samples, page = list[int](), 0
    while True:
        asked = "&".join(f"{name}={quote(str(value))}" for name, value in query.items())
        answer = table(get(f"/samples?{asked}&page={page}"))
        assert answer["first"] == len(samples) and len(answer["rows"]) <= ON_A_PAGE
        samples += [row["sample"] for row in answer["rows"]]
        if len(samples) >= answer["found"]:
            assert len(samples) == answer["found"]
            return samples
        page += 1


def preview(get: Get, sample: int, layers: str = "frames", most: int = 8) -> tuple[dict[str, Any], dict[str, list[bytes]]]:
    """A preview's table, and the JPEGs of each layer."""
    status, headers, body = get(f"/preview/{sample}/{layers}/{most}")
    assert status == 200, body
    (length,) = struct.unpack_from("<I", body)
    said, at, pictures = json.loads(body[4 : 4 + length]), 4 + length, dict[str, list[bytes]]()
    assert ("immutable" in headers["Cache-Control"]) == ("error" not in said)
    for name, layer in said.get("layers", {}).items():
        for size in layer["sizes"]:
            pictures.setdefault(name, []).append(body[at : at + size])
            at += size
    assert at == len(body)
    return said, pictures


def changed(out: Path, change: Callable[[Entry], Entry] = lambda entry: entry, **manifest: Any) -> None:
    """Say something else of the samples in the indexes, and in the manifest; the tars stay."""
    folder, shards = open_folder(out), ShardSet(out)
    entries = [change(entry) for shard in shards.tars for entry in read_index(folder, shard.index_name)[1]]
    index = pack_columns(entries, list(shards.manifest.splits), list(shards.classes))
    publish(folder, index, replace(shards.manifest, index_sha256=sha256(index).hexdigest(), **manifest))


def test_the_command_prints_its_address_and_ctrl_c_ends_it_quietly(synthetic_set: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "preprocess", "browse", str(synthetic_set), "--port", "0"],
        cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        said = process.stdout.readline()
        assert said.startswith(f"{synthetic_set}: 96 samples at http://127.0.0.1:"), process.stderr.read()
        connection = http.client.HTTPConnection(said.split("http://")[1].split("/")[0], timeout=30)
        connection.request("GET", "/samples")
        assert json.loads(connection.getresponse().read())["found"] == 96
        process.send_signal(signal.SIGINT)  # while the connection stands
        assert (*process.communicate(timeout=20), process.returncode) == ("", "", 0)
    finally:
        process.kill()


def test_an_address_that_cannot_be_listened_on_is_a_users_mistake(synthetic_set: Path) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        port = taken.getsockname()[1]
        said = refuse("-m", "preprocess", "browse", synthetic_set, "--port", port)
        assert f"--port {port}" in said and "--port 0 finds" in said
    assert "--host 192.0.2.1" in refuse("-m", "preprocess", "browse", synthetic_set, "--host", "192.0.2.1")
    assert "--port 65536" in refuse("-m", "preprocess", "browse", synthetic_set, "--port", "65536")


def test_the_set_is_said_as_it_is(get: Get, synthetic_set: Path) -> None:
    shards, said = ShardSet(synthetic_set), table(get("/set"))
    assert said["said"][0] == f"96 samples of 96 videos in {len(shards.tars)} shards"
    assert said["layers"] == ["diff", "flow", "energy"] and said["damaged"] == []
    assert {split["name"]: split["samples"] for split in said["splits"]} == {"train": 64, "test": 32}
    kinds = {kind["name"]: kind for kind in said["kinds"]}
    assert list(kinds) == list(shards.classes)
    for name, kind in kinds.items():
        for number, text, count in kind["classes"]:
            assert text == shards.classes[name][number] and count == (shards.labels[name] == number).sum()
        assert sum(count for *_, count in kind["classes"]) + kind["without"] == 96


def test_filters_search_and_order_choose_what_the_columns_say(get: Get, synthetic_set: Path) -> None:
    shards = ShardSet(synthetic_set)
    assert found(get) == list(range(96))
    splits = shards.splits
    for number, split in enumerate(splits):
        assert found(get, split=number) == shards.select([split]).tolist()
    motions = shards.labels["motion"]
    kind = list(shards.classes).index("motion")
    for label in range(3):
        assert found(get, **{"class": f"{kind}:{label}"}) == np.flatnonzero(motions == label).tolist()
    assert found(get, **{"class": f"{kind}:none"}) == []
    name = shards.classes["motion"][2]
    chosen = np.intersect1d(shards.select(["test"]), np.flatnonzero(motions == 2)).tolist()
    assert chosen and found(get, split=splits.index("test"), **{"class": f"{kind}:2"}) == chosen
    key = shards.keys[77]
    assert found(get, search=key[3:].upper()) == [n for n in range(96) if key[3:] in shards.keys[n]]
    scenes = shards.classes["scene"]
    wanted = [n for n in range(96) if any(name in text for text in (shards.keys[n], shards.classes["motion"][motions[n]]))]
    assert found(get, search=name) == wanted
    both = [n for n in wanted if scenes[1] in (scenes[shards.labels["scene"][n]], *shards.keys[n].split("_"))]
    assert both and found(get, search=f" {scenes[1]}  {name} ") == both
    orders = table(get("/set"))["orders"]
    most, longest = (found(get, order=orders.index(order)) for order in ("most motion", "longest"))
    assert np.all(np.diff(shards.motion_N[most]) <= 0) and np.all(np.diff(shards.seconds_N[longest]) <= 0)
    mixed = found(get, order=orders.index("mixed"))
    assert mixed != sorted(mixed) == list(range(96)) and found(get, order=orders.index("mixed")) == mixed


def test_a_row_says_what_the_index_says(get: Get, synthetic_set: Path) -> None:
    shards = ShardSet(synthetic_set)
    row = table(get("/samples?page=2"))["rows"][5]
    sample = 2 * ON_A_PAGE + 5
    assert (row["sample"], row["key"], row["frames"]) == (sample, shards.keys[sample], shards.frames_N[sample])
    assert row["motion"] == round(float(shards.motion_N[sample]), 2) and row["cuts"] == shards.cuts_N[sample]
    assert row["classes"] == [names[shards.labels[kind][sample]] for kind, names in shards.classes.items()]
    assert row["splits"] == [split for split in shards.splits if sample in shards.select([split])]


def test_what_a_url_must_not_say_is_refused(get: Get) -> None:
    for query in ("page=-1", "page=x", "split=9", "split=-1", "class=7:0", "class=0:x", "order=99", "search=" + "+a" * 9):
        status, _, body = get(f"/samples?{query}")
        assert status == 400 and json.loads(body)["error"], query
    outside = ("/manifest.json", "/../manifest.json", "/%2e%2e/manifest.json", "//etc/passwd", "/preview/..%2f0/frames/8")
    no_preview = ("96/frames/8", "-1/frames/8", "0/sound/8", "0/frames/8/../../x", "0/frames/8888")
    for path in (*outside, *(f"/preview/{rest}" for rest in no_preview)):
        assert get(path)[0] == 404, path
    assert get("/set", method="POST")[0] == 501


def test_a_page_behind_the_last_is_the_last_and_head_has_no_body(get: Get) -> None:
    last = table(get("/samples?page=99"))
    assert (last["page"], last["first"], len(last["rows"])) == (3, 72, 24) and last["rows"][-1]["sample"] == 95
    assert table(get("/samples?page=99&search=nothing+at+all"))["page"] == 0
    status, headers, body = get("/set", method="HEAD")
    assert (status, body, headers["Content-Length"]) == (200, b"", str(len(get("/set")[2])))


def test_a_preview_holds_the_frames_as_they_are_stored(get: Get, synthetic_set: Path) -> None:
    record = ShardSet(synthetic_set).read(5)
    said, pictures = preview(get, 5, most=8)
    assert said["stride"] == -(-len(record) // 8) and said["frames"] == len(record) and said["fps"] == record.meta.fps
    at = range(0, len(record), said["stride"])
    assert pictures == {"frames": [bytes(record.rgb.part(frame)) for frame in at]}
    np.testing.assert_allclose(said["energy"], record.array("energy"), atol=1e-3)
    assert dict(said["details"])["source"].startswith(record.meta.source.path)
    assert preview(get, 5, most=999)[0]["stride"] == 1


def test_of_h264_a_preview_holds_jpegs_of_the_frames(h264_set: Path) -> None:
    record = ShardSet(h264_set).read(3)
    with served(h264_set) as get:
        said, pictures = preview(get, 3, most=10)
    at = np.arange(0, len(record), said["stride"])
    shown = np.stack([simplejpeg.decode_jpeg(picture) for picture in pictures["frames"]]).astype(float)
    assert shown.shape == (len(at), *record.size, 3)
    assert np.abs(shown - record.frames(at)).mean() < 3


def test_cues_are_colours_on_white(get: Get, synthetic_set: Path) -> None:
    record = ShardSet(synthetic_set).read(5)
    said, pictures = preview(get, 5, "diff,flow,energy", most=100)
    shown = {name: np.stack([*map(simplejpeg.decode_jpeg, parts)]).astype(float) for name, parts in pictures.items()}
    every = np.arange(len(record))
    diff, redder = record.pictures("diff", every).astype(float) - 128, shown["diff"][..., 0] - shown["diff"][..., 2]
    assert redder[diff > 20].min() > 0 > redder[diff < -20].max() and shown["diff"][diff == 0].mean() > 245
    flow, full = record.vectors("flow", every), float(said["layers"]["flow"]["full"].split()[0])
    assert full == pytest.approx(np.quantile(np.linalg.norm(flow, axis=-1), 0.995), rel=0.06)
    assert np.abs(shown["flow"] - flow_colours(flow / full)).mean() < 6
    grid, orange = record.array("grid").astype(float), 255 - shown["energy"][:, 4::8, 4::8, 2]
    assert orange.shape == grid.shape
    full = float(said["layers"]["energy"]["full"].split()[0])
    np.testing.assert_allclose(orange, 255 * np.minimum(grid / full, 1), atol=9)


def test_what_is_large_is_shown_in_fewer_pictures(get: Get, synthetic_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = ShardSet(synthetic_set).read(5)
    height, width = record.size
    monkeypatch.setattr(browse, "PIXELS", 4 * height * width)
    said, pictures = preview(get, 5, most=100)
    assert said["stride"] == -(-len(record) // 4) and 1 < len(pictures["frames"]) <= 4
    monkeypatch.setattr(browse, "PIXELS", 1)
    assert len(preview(get, 5, most=100)[1]["frames"]) == 1
    monkeypatch.setattr(browse, "PREVIEW_BYTES", 10)
    assert "too large" in preview(get, 5)[0]["error"]


def test_cuts_are_marked_and_are_no_motion(synthetic_set: Path) -> None:
    record = ShardSet(synthetic_set).read(5)
    energy = np.ones(len(record), np.float32)
    energy[20], energy[21] = 99, 3
    spliced = replace(record, meta=replace(record.meta, cuts=(20,)), arrays={**record.arrays, "energy": energy})
    said, _ = Catalogue(ShardSet(synthetic_set))._preview(spliced, ["frames"], 8)
    assert said["cuts"] == (20,) and said["energy"][19:23] == [1, 3, 3, 1]


def test_a_damaged_sample_is_its_own_error_and_no_other(copied: Path) -> None:
    shards = ShardSet(copied)
    name, offset, _ = shards.where(7)
    with (copied / name).open("r+b") as tar:  # one of its frames
        tar.seek(offset + 512 + int(shards.read(7).rgb.offsets[20]) + 650)
        tar.write(bytes(100))
    last = shards.tars[-1].name
    (copied / last).unlink()
    with served(copied) as get:
        assert last in table(get("/set"))["damaged"][0]
        with pytest.raises(FormatError) as error:
            shards.read(7).frames(np.arange(30))
        said = preview(get, 7, most=99)[0]["error"]
        assert shards.keys[7] in said and "frame 20 does not decode" in said and str(error.value)[:60] == said[:60]
        assert last in preview(get, 95)[0]["error"]
        assert "error" not in preview(get, 6)[0] and "error" not in preview(get, 8)[0]
        assert len(found(get)) == 96


def test_a_sample_without_the_cue_says_which_it_has(h264_set: Path) -> None:
    with served(h264_set) as get:
        assert "no cue 'flow'" in preview(get, 0, "frames,flow")[0]["error"]
        assert table(get("/set"))["layers"] == ["diff", "energy"]


def test_a_name_that_leads_here_from_elsewhere_is_refused(get: Get, synthetic_set: Path) -> None:
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "localhost@evil.example", "[", "192.168.0.1"):
        for path in ("/", "/set", "/samples", "/preview/0/frames/8"):
            status, _, body = get(path, Host=host)
            assert status == 403 and b"http://127.0.0.1:" in body, (host, path)
    for host in ("localhost", "LOCALHOST:9000", "127.0.0.1:1", "[::1]:8000"):  # a tunnel has a port of its own
        assert get("/set", Host=host)[0] == 200, host
    with served(synthetic_set, "0.0.0.0") as asked:  # it cannot know its names
        assert asked("/set", Host="gpu7.lab.example")[0] == 200


def test_headers_let_no_other_page_in(get: Get) -> None:
    for path in ("/", "/set", "/preview/0/frames/8", "/nothing"):
        headers = get(path)[1]
        assert "default-src 'none'" in headers["Content-Security-Policy"] and "unsafe" not in headers["Content-Security-Policy"]
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin" and headers["X-Content-Type-Options"] == "nosniff"


def test_a_hostile_manifest_and_failures_are_texts_of_bounded_length(copied: Path) -> None:
    names = [SCRIPT, "a\nb\u202e", "x" * 10**6, *map(str, range(browse.MOST_NAMED + 50))]
    options = {"size": 32, "codec": SCRIPT, "quality": ["deep"] * 10**5, "cues": ["diff", "flow", "energy"]}
    shards = ShardSet(copied)
    classes = {SCRIPT if n == 0 else kind: names if n == 0 else [] for n, kind in enumerate(shards.classes)}
    table_of = json.loads((copied / "manifest.json").read_text()) | {"options": options, "classes": classes}
    (copied / "manifest.json").write_text(json.dumps(table_of))
    failure = {"path": SCRIPT, "stage": "open", "seconds": 1, "reason": "https://me:word@host/a?key=word " + "y" * 10**5}
    lines = [*map(json.dumps, [failure, {"path": 3}, [], "no"]), "{broken", "[" * 10**5, ""]
    (copied / "failures.jsonl").write_text("\n".join(lines))
    with served(copied) as get:
        _, headers, body = get("/set")
        assert headers["Content-Type"] == "application/json" and len(body) < 10**6
        kind = table(get("/set"))["kinds"][0]
        assert kind["classes"][0][1] == SCRIPT and all(len(text) <= 300 for _, text, _ in kind["classes"])
        rows = table(get("/samples"))["rows"]
        assert len(rows) == ON_A_PAGE and all(len(row["classes"]) == 1 for row in rows)
        rows = table(get("/failures"))["rows"]
        assert len(rows) == 6 and rows[0][0] == SCRIPT and len(rows[0][2]) == 300 and "word" not in rows[0][2]
        assert all(row[:2] == ["", ""] and "not a failure" in row[2] and len(row[2]) < 300 for row in rows[1:])
        assert found(get, search="onerror") == np.flatnonzero(ShardSet(copied).labels[SCRIPT] == 0).tolist()


def test_failures_are_paged_and_searched(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = ("open", "missing")
    lines = [{"path": f"a/{n}.avi", "stage": stages[n % 2], "seconds": 0, "reason": f"because {n}"} for n in range(60)]
    (copied / "failures.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with served(copied) as get:
        last = table(get("/failures?page=9"))
        assert (last["found"], last["first"], len(last["rows"])) == (60, 48, 12)
        assert last["rows"][-1] == ["a/59.avi", "missing", "because 59"]
        assert last["note"] == ""
        assert table(get("/failures?search=MISSING+59"))["rows"] == [["a/59.avi", "missing", "because 59"]]
    monkeypatch.setattr(browse, "FAILURES_READ", 1 << 10)  # as many of more lines
    with served(copied) as get:
        some = table(get("/failures"))
        assert 10 < some["found"] < 30 and some["note"] and some["rows"][0] == ["a/0.avi", "open", "because 0"]
        assert "not a failure" in some["rows"][-1][2]  # cut off


def test_a_set_without_failures_and_labels_opens(copied: Path) -> None:
    (copied / "failures.jsonl").unlink()
    changed(copied, lambda entry: replace(entry, label=None, labels={}))
    with served(copied) as get:
        assert table(get("/failures")) == {"found": 0, "first": 0, "page": 0, "rows": [], "note": ""}
        assert table(get("/samples"))["rows"][0]["classes"] == []
        assert found(get, **{"class": "0:none"}) == list(range(96))


@needs("s3fs", "moto")
def test_a_set_in_a_store_gives_the_same_previews(bucket: str, unreliable: Any, synthetic_set: Path, get: Get) -> None:
    files = ("manifest.json", "index.npz", "failures.jsonl", *(shard.name for shard in ShardSet(synthetic_set).tars))
    place, remote = f"s3://{bucket}/set", open_folder(f"s3://{bucket}/set")
    for name in files:
        remote.write(name, (synthetic_set / name).read_bytes())
    with served(place) as asked:
        before = sum(unreliable.sent.values())
        assert table(asked("/samples?page=1")) == table(get("/samples?page=1"))
        assert sum(unreliable.sent.values()) == before  # the index is here
        assert preview(asked, 30, "frames,flow") == preview(get, 30, "frames,flow")
        size = ShardSet(synthetic_set).size_N[30]
        assert size <= sum(unreliable.sent.values()) - before < size + 5000
        remote.remove(ShardSet(synthetic_set).tars[0].name)
        assert "shard is missing" in preview(asked, 0)[0]["error"]
        assert "error" not in preview(asked, 95)[0]


@needs("aiohttp")
def test_what_is_secret_in_the_sets_address_is_on_no_page(copied: Path) -> None:
    word = "pa55w0rd"

    class Signed(FileServer):
        def answer(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            self.path, _, query = self.path.partition("?")
            return super().answer(body) if query == f"sign={word}" else (403, {}, b"")

    (copied / ShardSet(copied).tars[0].name).unlink()
    with serving(Signed, folder=copied) as (_, port), served(f"http://me:{word}@127.0.0.1:{port}?sign={word}") as get:
        for path in ("/set", "/samples", "/failures", "/preview/0/frames/8", "/preview/95/frames/8", "/samples?split=x"):
            assert word not in str(get(path)), path
        assert f"http://127.0.0.1:{port}" in table(get("/set"))["place"]
        assert "error" in preview(get, 0)[0] and "error" not in preview(get, 95)[0]


@needs_chromium
def test_the_page_in_a_browser(copied: Path, tmp_path: Path) -> None:
    """Samples play, a class, a search and a page change what is shown, a damaged one costs only its card; what a set says is
    never markup, and nothing is asked for elsewhere."""
    motions = ["left", SCRIPT, *ShardSet(copied).classes["motion"][2:]]
    changed(copied, classes={**ShardSet(copied).classes, "motion": motions})
    name, offset, _ = ShardSet(copied).where(1)
    with (copied / name).open("r+b") as tar:
        tar.seek(offset)
        tar.write(b"no tar")
    shards = ShardSet(copied)
    kind, scripted = list(shards.classes).index("motion"), np.flatnonzero(shards.labels["motion"] == 1)
    server = Server(socket.AF_INET, ("127.0.0.1", 0), Catalogue(shards), "127.0.0.1")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with server, browser(tmp_path / "profile") as tab:
        tab.ask("Page.navigate", url=server.url)
        tab.wait("document.querySelectorAll('.card').length", ON_A_PAGE)
        tab.wait("document.querySelectorAll('.card')[1].querySelector('.error')?.textContent.includes('not a tar header')")
        tab.wait("document.querySelectorAll('.card')[0].player.shown > 2")  # it plays
        colours = "new Set(document.querySelector('canvas').getContext('2d').getImageData(0, 0, 32, 32).data).size > 40"
        tab.wait(colours)
        tab.press(" ")
        tab.wait("document.getElementById('play').textContent", "Play")
        keys = "[...document.querySelectorAll('.card .key')].map((key) => key.textContent).join()"
        tab.press("ArrowRight")
        tab.wait(keys, ",".join(shards.keys[n] for n in range(ON_A_PAGE, 2 * ON_A_PAGE)))
        choose = "choice['{}'].value = '{}'; choice['{}'].dispatchEvent(new Event('input', {{ bubbles: true }}))"
        tab.value(choose.format("class", f"{kind}:1", "class"))
        tab.wait(keys, ",".join(shards.keys[n] for n in scripted[:ON_A_PAGE]))
        assert SCRIPT in tab.value("document.querySelector('.card .said').textContent")
        wanted = scripted[-1]
        tab.value(choose.format("search", shards.keys[wanted], "search"))
        tab.wait(keys, shards.keys[wanted])
        tab.value("document.querySelector('[value=flow]').click()")
        tab.wait("document.querySelector('.full').textContent.endsWith('pixels a frame')")
        tab.value("document.querySelector('.card').click()")
        tab.wait("document.querySelectorAll('#one[open] figure').length === 4 && opened.shown >= 0")
        frame = tab.value("opened.frame")
        tab.press("ArrowRight")
        tab.wait("opened.frame", frame + 1)
        assert tab.value("location.hash").startswith(f"#search={shards.keys[wanted]}&class={kind}%3A1&layer=flow")
        assert tab.value("document.querySelectorAll('main img, dialog img').length") == 0
        assert tab.complaints == []
        assert len(tab.requests) > 10 and all(url.startswith((server.url, "data:image/")) for url in tab.requests)
        server.shutdown()
