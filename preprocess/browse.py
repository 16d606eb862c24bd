"""A shard set in a browser: pages of samples that play, with their motion cues drawn over them. Read only.

At start the index alone is read. Filters, search and order work on its columns; a sample's bytes are read when its preview is
asked for. A preview is JSON that says what is in it (before it its length, uint32 little-endian), and then JPEGs back to back:
frames as the shard stores them (of H.264 encoded here), and cues in colours. browse.html plays them.

Everything in a set is hostile: the page shows texts as texts, a URL holds numbers of samples and never a path, and answers are
bounded. A web page elsewhere cannot read the set through a name that leads to this machine (DNS rebinding).
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import re
import socket
import socketserver
import struct
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import cv2
import numpy as np
import simplejpeg

from dclr.cues import CUES, STILL
from dclr.data.clips import cue_entries
from dclr.data.manifest import FAILURES, Names, ShardSet
from dclr.errors import InputError
from dclr.parse import from_json, parsing
from dclr.record import DEFAULT_FPS, Record
from dclr.storage import Folder
from dclr.text import plain, public
from preprocess.plan import Failure
from preprocess.preview import at_most, flow_colours, wheel

PAGE = Path(__file__).with_suffix(".html")
ON_A_PAGE = 24  # samples, or failures
PIXELS = 1 << 24  # of the pictures of one kind in a preview: they are decoded here and in the browser
PREVIEW_BYTES = 1 << 26
FAILURES_READ = 1 << 28  # bytes of failures.jsonl
MOST_NAMED = 5000  # classes that the page lists by name
MOST_WORDS = 8  # of a search
MOST_CUTS = 500  # of a sample, that are drawn
CURVE_POINTS = 400
LONGEST_TEXT = 300  # letters of anything
AT_ONCE = 4  # previews that are made
BRIGHTER, DARKER, MOVING = (0.85, 0.2, 0.1), (0.1, 0.35, 0.9), (0.9, 0.3, 0)  # colours of a change, and of energy
NEARLY_ALL = 0.995  # of the places of a sample have less than the full colour
LEAST_FULL = 16  # grey levels that have their full colour: noise stays pale
ORDERS: dict[str, Callable[[ShardSet], np.ndarray]] = {  # samples with the least come first
    "as stored": lambda shards: np.arange(len(shards)),
    "mixed": lambda shards: np.random.default_rng(0).permutation(len(shards)),
    "most motion": lambda shards: -shards.motion_N,
    "least motion": lambda shards: shards.motion_N,
    "longest": lambda shards: -shards.seconds_N,
    "shortest": lambda shards: shards.seconds_N,
    "most cuts": lambda shards: -shards.cuts_N,
}
SERVED_POLICY = (
    "default-src 'none'; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
LOOPBACK = frozenset(["localhost", "127.0.0.1", "::1"])


def serve(folder: Folder, host: str, port: int) -> None:
    """Serve a set until Ctrl-C. Raises InputError where there is none, or the address cannot be listened on."""
    catalogue = Catalogue(ShardSet(folder, keep_damaged=True))
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        server = Server(family, address, catalogue, host)
    except OSError as error:
        raise InputError(
            f"--host {plain(host, 80)} --port {port}: {error.strerror}; expected an address of this machine and a free port, "
            "which --port 0 finds"
        ) from None
    with server, suppress(KeyboardInterrupt):
        for line in catalogue.shards.damaged:
            print(f"warning: {public(line)}", file=sys.stderr)
        if not server.names:
            print("warning: whoever reaches this machine can look at the set", file=sys.stderr)
        print(f"{folder}: {len(catalogue.shards)} samples at {server.url} (Ctrl-C ends)", flush=True)
        server.serve_forever()


class Catalogue:
    """A set as a page asks for it: what it is, its samples page by page, previews, failures. Answers are tables for JSON."""

    def __init__(self, shards: ShardSet):
        self.shards, self.seconds_N = shards, shards.seconds_N
        self.splits = {split: np.isin(np.arange(len(shards)), shards.select([split])) for split in shards.splits}
        self.kinds = {  # kind of label -> class names
            kind: [plain(name, LONGEST_TEXT) for name in names] for kind, names in shards.classes.items()
        }
        self.chosen = lru_cache(maxsize=8)(self._chosen)  # a page after another asks for the same

    @cached_property
    def overview(self) -> dict[str, Any]:
        """The set as a whole."""
        shards, manifest = self.shards, self.shards.manifest
        options = manifest.options
        return {
            "place": plain(str(shards), LONGEST_TEXT),
            "digest": shards.digest[:16],
            "said": [
                f"{len(shards):,} samples of {len(np.unique(shards.video_N)):,} videos in {len(shards.tars):,} shards",
                f"{self.seconds_N.sum() / 3600:.2f} hours, {shards.size_N.sum() / 1e9:.2f} GB",
                plain(f"short side {options['size']}, {options.get('codec')} at {options.get('quality')}", LONGEST_TEXT),
            ],
            "layers": [cue for cue in options.get("cues", []) if CUES[cue].picture or cue == "energy"],
            "splits": [{"name": plain(s, LONGEST_TEXT), "samples": int(of_N.sum())} for s, of_N in self.splits.items()],
            "kinds": [self._classes(kind) for kind in self.kinds],
            "orders": list(ORDERS),
            "damaged": [plain(public(line), LONGEST_TEXT) for line in shards.damaged[:ON_A_PAGE]],
            "wheel": "data:image/png;base64," + base64.b64encode(cv2.imencode(".png", wheel(96)[..., ::-1])[1]).decode(),
        }

    def _classes(self, kind: str) -> dict[str, Any]:
        label_N, names = self.shards.labels[kind], self.kinds[kind]
        counts = np.bincount(label_N[(label_N >= 0) & (label_N < len(names))], minlength=len(names))
        listed = [[number, names[number], int(counts[number])] for number in np.flatnonzero(counts)[:MOST_NAMED].tolist()]
        return {"name": plain(kind), "classes": listed, "without": int((label_N < 0).sum())}

    def samples(self, query: Mapping[str, str]) -> dict[str, Any]:
        """The page ``page``, or the last one, of the samples in the split numbered ``split``, of the class ``class``
        (KIND:NUMBER), whose key or class has each word of ``search`` in it, by the order numbered ``order``; what is not given
        does not choose.

        Raises InputError for what does not exist."""
        chosen = self.chosen(*(query.get(name, "") for name in ("split", "class", "search", "order")))
        first = beginning(query, len(chosen))
        rows = [self._row(sample) for sample in chosen[first : first + ON_A_PAGE].tolist()]
        return {"found": len(chosen), "first": first, "page": first // ON_A_PAGE, "rows": rows}

    def _row(self, sample: int) -> dict[str, Any]:
        shards, motion = self.shards, float(self.shards.motion_N[sample])
        labels = [(names, int(shards.labels[kind][sample])) for kind, names in self.kinds.items()]
        return {
            "sample": sample,
            "key": plain(shards.keys[sample], LONGEST_TEXT),
            "classes": [names[label] for names, label in labels if 0 <= label < len(names)],
            "splits": [plain(split) for split, of_N in self.splits.items() if of_N[sample]],
            "frames": int(shards.frames_N[sample]),
            "seconds": round(float(self.seconds_N[sample]), 2),
            "motion": None if np.isnan(motion) else round(motion, 2),
            "cuts": int(shards.cuts_N[sample]),
        }

    def _chosen(self, split: str, label: str, search: str, order: str) -> np.ndarray:
        """Samples, int64 (n,)."""
        shards, kept_N = self.shards, np.ones(len(self.shards), bool)
        try:
            if split:
                kept_N &= [*self.splits.values()][number(split)]
            if label:
                kind, _, of = label.partition(":")
                label_N = shards.labels[[*self.kinds][number(kind)]]
                kept_N &= label_N < 0 if of == "none" else label_N == number(of)
            by_N = [*ORDERS.values()][number(order)](shards)
        except IndexError:
            raise InputError("no such split, kind of label or order, expected one that the page offers") from None
        for word in words(search):
            kept_N &= self._with(word)
        chosen = np.flatnonzero(kept_N)
        return chosen[np.argsort(by_N[chosen], kind="stable")]

    def _with(self, word: str) -> np.ndarray:
        """Samples with the word in their key or class: bool (N,)."""
        found_N = self.shards.keys.containing(word)
        for kind, names in self.kinds.items():
            of_C = np.array([*(word.lower() in name.lower() for name in names), False])  # the last: no class
            label_N = self.shards.labels[kind]
            found_N |= of_C[np.where((label_N >= 0) & (label_N < len(names)), label_N, len(names))]
        return found_N

    def failures(self, query: Mapping[str, str]) -> dict[str, Any]:
        """The page ``page`` of what is not in the set, of the lines with each word of ``search`` in them."""
        kept = np.ones(len(self._lines), bool)
        for word in words(query.get("search", "")):
            kept &= self._lines.containing(word)
        found = np.flatnonzero(kept)
        first = beginning(query, len(found))
        lines = [self._lines[at] for at in found[first : first + ON_A_PAGE].tolist()]
        note = f"the first {FAILURES_READ >> 20} MB of {FAILURES}" if self._bytes > FAILURES_READ else ""
        rows = [_failure(line) for line in lines]
        return {"found": len(found), "first": first, "page": first // ON_A_PAGE, "rows": rows, "note": note}

    @cached_property
    def _bytes(self) -> int:
        return self.shards.root.size(FAILURES) or 0

    @cached_property
    def _lines(self) -> Names:
        read = min(self._bytes, FAILURES_READ)
        blob = np.frombuffer(self.shards.root.read(FAILURES, 0, read) if read else b"", np.uint8)
        ends = np.flatnonzero(blob == ord("\n")) + 1
        return Names(blob, np.union1d(ends, [read]) if read else ends)  # the last line may lack its end

    def preview(self, sample: int, layers: Sequence[str], most: int) -> bytes:
        """At most ``most`` evenly spaced frames of a sample, and the same of cues: as this module says at its top.

        A sample that cannot be read is a preview with ``error`` in it alone."""
        try:
            table, pictures = self._preview(self.shards.read(sample), layers, most)
            table["details"] += [["in the set", "{}, byte {:,}, {:,} bytes".format(*self.shards.where(sample))]]
        except Exception as error:  # one sample's damage costs no other
            said = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            table, pictures = {"error": plain(public(said), 2 * LONGEST_TEXT)}, []
        head = json.dumps(table).encode()
        return b"".join([struct.pack("<I", len(head)), head, *pictures])

    def _preview(self, record: Record, layers: Sequence[str], most: int) -> tuple[dict[str, Any], list[bytes]]:
        height, width = record.size
        stride = -(-len(record) // max(1, min(most, PIXELS // (height * width))))
        at = np.arange(0, len(record), stride)
        made = {layer: drawn(record, layer, at) for layer in layers}
        pictures = [picture for parts, _ in made.values() for picture in parts]
        if sum(map(len, pictures)) > PREVIEW_BYTES:
            raise InputError(f"{record.key}: its pictures are too large to show; choose fewer cues")
        energy_N = np.nan_to_num(record.arrays.get("energy", np.zeros(0)), posinf=0, neginf=0)
        if len(energy_N):  # two shots are no motion
            energy_N = energy_N[cue_entries(np.arange(len(record)), len(record), record.meta.cuts)]
        table = {
            "frames": len(record),
            "fps": record.meta.fps or DEFAULT_FPS,
            "stride": stride,
            "layers": {layer: {"sizes": [*map(len, parts)], "full": full} for layer, (parts, full) in made.items()},
            "cuts": record.meta.cuts[:MOST_CUTS],
            "energy": [round(float(level), 3) for level in at_most(energy_N, CURVE_POINTS)],
            "details": details(record),
        }
        return table, pictures


def number(text: str) -> int:
    """A number of a URL, 0 where it is empty; raises InputError."""
    if not re.fullmatch(r"[0-9]{0,9}", text):
        raise InputError(f"{plain(repr(text))}: expected a number")
    return int(text or 0)


def beginning(query: Mapping[str, str], found: int) -> int:
    """The first of what is ``found`` that the query's page shows; a page behind the last one is the last. Raises InputError."""
    return ON_A_PAGE * min(number(query.get("page", "")), max(0, found - 1) // ON_A_PAGE)


def words(search: str) -> list[str]:
    """Those of a search, which are looked for one after another; raises InputError for too many."""
    found = search.split()
    if len(found) > MOST_WORDS:
        raise InputError(f"{len(found)} words to search for, expected at most {MOST_WORDS}")
    return found


def drawn(record: Record, layer: str, at: np.ndarray) -> tuple[list[bytes], str]:
    """JPEGs of the frames ``at``, or of a cue there in colours on white, where nothing moves; and what has the full colour."""
    if layer == "frames":
        pictures = record.frames(at)  # so what no trainer reads is an error here too
        stored = record.meta.codec == "jpeg"
        return [bytes(record.rgb.part(frame)) if stored else _jpeg(pictures[row]) for row, frame in enumerate(at)], ""
    if layer in record.streams and CUES[layer].vectors:
        flow = record.vectors(layer, at)
        full = max(1e-6, float(np.quantile(np.linalg.norm(flow, axis=-1), NEARLY_ALL)))
        return [_jpeg(picture) for picture in flow_colours(flow / full)], f"{full:.2g} pixels a frame"
    if layer == "energy":
        grid_n88 = np.clip(np.nan_to_num(record.array("grid")[at].astype(np.float32), posinf=0), 0, None)
        full = max(1e-6, float(np.quantile(grid_n88, NEARLY_ALL)))
        table = _on_white(np.linspace(0, 1, 256), MOVING)
        levels = np.rint(np.minimum(grid_n88 / full, 1) * 255).astype(np.uint8)
        levels = levels.repeat(8, axis=1).repeat(8, axis=2)  # a cell is a block of JPEG, which keeps its colour
        said = f"{full:.2g} grey levels"
    else:
        levels = record.pictures(layer, at)
        change = np.arange(256) - STILL  # half of it, in grey levels
        size = np.abs(change).astype(np.uint8)
        full = max(LEAST_FULL, float(np.quantile(size[levels], NEARLY_ALL)))
        strength = np.minimum(size / full, 1)
        table = np.where(change[:, None] > 0, _on_white(strength, BRIGHTER), _on_white(strength, DARKER))
        said = f"{2 * full:.0f} grey levels"
    return [_jpeg(table[picture]) for picture in levels], said


def _on_white(strength_n: np.ndarray, colour: tuple[float, float, float]) -> np.ndarray:
    """uint8 (n, 3)."""
    return np.rint(255 * (1 - strength_n[:, None] * (1 - np.array(colour)))).astype(np.uint8)


def _jpeg(picture_HW3: np.ndarray) -> bytes:
    data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(picture_HW3), 92, colorsubsampling="444")
    return data


def details(record: Record) -> list[list[str]]:
    """What ``KEY.json`` says, in words."""
    meta, source = record.meta, record.meta.source
    said = {
        "class": meta.class_name or "",
        "labels": ", ".join(f"{kind} {label}" for kind, label in meta.labels.items()),
        "splits": ", ".join(meta.splits),
        "stored": f"{meta.width} x {meta.height}, {meta.frames} frames, {meta.fps:g} a second, {meta.codec}",
        "cues": ", ".join(meta.cues) or "none",
        "from stored frames": ", ".join(meta.from_stored),
        "cuts": ", ".join(map(str, meta.cuts[:MOST_CUTS])),
        "video": meta.video,
        "source": f"{source.path}, {source.width} x {source.height}, from frame {source.first} on" if source else "",
        "its traits": ", ".join([*meta.traits, *([f"rate {source.rate}"] if source and source.rate else [])]),
    }
    return [[name, plain(text, LONGEST_TEXT)] for name, text in said.items() if text]


def _failure(line: str) -> list[str]:
    """Path, stage and reason of a line of failures.jsonl."""
    try:
        with parsing(plain(line, 80), "a failure"):
            failure = from_json(line, Failure)
        said = [failure.path, failure.stage, failure.reason]
    except InputError as error:
        said = ["", "", str(error)]
    return [plain(public(text), LONGEST_TEXT) for text in said]


class Server(socketserver.ThreadingTCPServer):
    """Listens at ``address``. On loopback it answers only to the names of this machine and to ``host``."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, family: int, address: Any, catalogue: Catalogue, host: str):
        self.address_family, self.catalogue, self.making = family, catalogue, threading.Semaphore(AT_ONCE)
        alone = ipaddress.ip_address(address[0].partition("%")[0]).is_loopback
        self.names = LOOPBACK | {host.lower()} if alone else frozenset[str]()  # of the Host header; none: any
        self.page = PAGE.read_bytes()
        hashes = {
            kind: base64.b64encode(hashlib.sha256(found[1]).digest()).decode()
            for kind in ("style", "script")
            if (found := re.search(rf"<{kind}>(.*?)</{kind}>".encode(), self.page, re.S))
        }
        self.policy = "; ".join([SERVED_POLICY, *(f"{kind}-src 'sha256-{digest}'" for kind, digest in hashes.items())])
        super().__init__(address, Handler)

    @property
    def url(self) -> str:
        host, port = str(self.server_address[0]), self.server_address[1]
        if host in ("0.0.0.0", "::"):
            host = socket.gethostname()
        return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):  # a browser that has turned the page
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD: the page, the set, pages of samples and of failures, previews."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "dclr", ""
    timeout = 60  # seconds that a connection may be idle
    wbufsize, disable_nagle_algorithm = -1, True  # an answer in one piece, at once
    server: Server

    def do_GET(self) -> None:
        known = self.server.names
        if known and not all(_name(host) in known for host in self.headers.get_all("Host") or [""]):
            return self._send(403, f"this address is not known here: open {self.server.url}\n".encode(), "text/plain")
        url = urlsplit(self.path)
        try:
            query = {name: values[-1] for name, values in parse_qs(url.query, max_num_fields=9).items()}
            self._answer(url.path, query)
        except (InputError, ValueError, PermissionError) as error:
            self._json({"error": plain(public(str(error)), LONGEST_TEXT)}, 400)

    do_HEAD = do_GET

    def _answer(self, path: str, query: Mapping[str, str]) -> None:
        catalogue = self.server.catalogue
        wanted = re.fullmatch(r"/preview/([0-9]{1,9})/([a-z0-9_,]{1,99})/([0-9]{1,3})", path)
        layers = [*dict.fromkeys(wanted[2].split(","))] if wanted else []
        if path == "/":
            self._send(200, self.server.page, "text/html; charset=utf-8")
        elif path == "/set":
            self._json(catalogue.overview)
        elif path == "/samples":
            self._json(catalogue.samples(query))
        elif path == "/failures":
            self._json(catalogue.failures(query))
        elif wanted and int(wanted[1]) < len(catalogue.shards) and {"frames", *CUES}.issuperset(layers):
            with self.server.making:
                data = catalogue.preview(int(wanted[1]), layers, int(wanted[3]))
            kept = "no-store" if data[4:13] == b'{"error":' else "private, max-age=86400, immutable"
            self._send(200, data, "application/octet-stream", kept)
        else:
            self._json({"error": "nothing is here"}, 404)

    def _json(self, table: Mapping[str, Any], status: int = 200) -> None:
        self._send(status, json.dumps(table).encode(), "application/json")

    def _send(self, status: int, data: bytes, kind: str, kept: str = "no-store") -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind, "Content-Length": str(len(data)), "Cache-Control": kept, "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": self.server.policy, "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
        }.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def _name(host: str) -> str | None:
    """The name in a Host header, without its port: a tunnel has another one."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
