"""Small, hostile changes of a file: of its bytes, or of what its format holds, with the checksums made right again."""

from __future__ import annotations

import io
import json
import random
import tarfile
import zipfile
from typing import Any

import torch

from dclr import record

NUMBERS = (-1, 0, 1, 2**31, 10**9, 10**18, 2**63, 10**400, -0.5, 1e308, float("nan"), float("inf"))
TEXTS = (
    "",
    " ",
    "a",
    "\ud800",
    "\0",
    "../../etc/passwd",
    "a\nb",
    "x" * 5000,
    "é" * 300,
    "5",
    "nan",
    "[" * 3000,
    "s3://u:p@h/?k",
)
TOKENS = tuple(
    token.encode(errors="surrogatepass")
    for token in (*TEXTS, "1e999", "-", "999999999999999999999", "null", "true", "{}", "[]", '"', ",", "\t", "\r", ": ", "&a ",
                  "*a", "!!python/object:os.system", "<<: ", "0x" + "f" * 5000, "1:1:1", "2020-99-99", "- - - ", "? ")
)  # fmt: skip


def mutated(data: bytes, draw: random.Random) -> bytes:
    """``data`` with one to four changes."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        data = _once(data, draw)
    return data


def _once(data: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.3:
        return _bytes(data, draw)
    try:
        if data.startswith(b"PK"):
            return _state(data, draw) if b"/data.pkl" in data and draw.random() < 0.5 else _zip(data, draw)
        if data[257:262] == b"ustar":
            return _tar(data, draw)
        if data[8:9] == b"{":
            size = int.from_bytes(data[:8], "little")
            head = _json(data[8 : 8 + size], draw)
            return len(head).to_bytes(8, "little") + head + data[8 + size :]
        if data[:1] in b"{[":
            return _json(data, draw)
    except Exception:  # it is no longer of that format
        pass
    return _text(data, draw)


def _bytes(data: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(data) + 1)
    end = min(len(data), start + draw.choice((0, 1, 1, 4, 30)))
    new = draw.choice(
        (b"", bytes([draw.randrange(256)]), draw.randbytes(end - start), data[start:end] * 2, draw.choice(TOKENS))
    )
    return data[:start] if draw.random() < 0.05 else data[:start] + new + data[end:]


def _text(data: bytes, draw: random.Random) -> bytes:
    """A value of a line, or a line, is another one."""
    lines = data.split(b"\n")
    at = draw.randrange(len(lines))
    mark = next((mark for mark in (b": ", b",", b" ", b"\t") if mark in lines[at]), b": ")
    parts = lines[at].split(mark)
    parts[draw.randrange(len(parts))] = draw.choice(TOKENS)
    lines[at] = draw.choice((mark.join(parts), draw.choice(lines), draw.choice(TOKENS)))
    return b"\n".join(lines)


def _json(data: bytes, draw: random.Random) -> bytes:
    """One of its lines, or all of it, with another value somewhere."""
    try:
        return json.dumps(_other(json.loads(data), draw)).encode()
    except ValueError:
        lines = data.split(b"\n")
        at = draw.randrange(len(lines))
        lines[at] = json.dumps(_other(json.loads(lines[at]), draw)).encode()
        return b"\n".join(lines)


def _value(draw: random.Random) -> Any:
    return draw.choice((None, True, [], {}, draw.choice(NUMBERS), draw.choice(TEXTS), [draw.choice(NUMBERS)] * 3, {"a": [1]}))


def _other(value: Any, draw: random.Random, other: Any = _value) -> Any:
    """The value, or one inside it, exchanged, left out or there twice."""
    if not isinstance(value, dict | list) or not value or draw.random() < 0.1:
        return other(draw)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    changed, key = value.copy(), draw.choice(keys)
    match draw.randrange(8):
        case 0:
            del changed[key]
        case 1 if isinstance(value, dict):
            changed[draw.choice(TEXTS)] = changed.pop(key)
        case 1:
            changed.append(value[key])
        case 2:
            changed[key] = other(draw)
        case _:
            changed[key] = _other(value[key], draw, other)
    return changed


def _zip(data: bytes, draw: random.Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        contents = {name: archive.read(name) for name in names}
    chosen, out = draw.choice(names), io.BytesIO()
    contents[chosen] = _bytes(contents[chosen], draw)
    packed = draw.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,))
    with zipfile.ZipFile(out, "w", packed) as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), contents[name], packed)
    return out.getvalue()


def _tar(data: bytes, draw: random.Random) -> bytes:
    contents = {name: bytes(member) for name, member in record.members(data).items()}
    key, chosen = contents.pop("key").decode(), draw.choice(list(contents))
    change = _json if chosen == "json" else _bytes
    contents[chosen] = change(contents[chosen], draw)
    pieces = []
    for name, member in contents.items():
        info = tarfile.TarInfo(f"{key}.{name}")
        info.size = len(member)
        pieces += [info.tobuf(tarfile.USTAR_FORMAT), member, bytes(-len(member) % record.BLOCK)]
    return b"".join(pieces)


def _tensor(draw: random.Random) -> Any:
    """What may lie in a state in the place of a tensor or of a number."""
    shape = draw.choice(((), (1,), (2,), (2, 2), (8, 3, 3, 3, 3), (0,)))
    kinds = (torch.float32, torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn)
    tensor = torch.ones(shape).to(draw.choice(kinds))
    return draw.choice((
        tensor, tensor, tensor, torch.full(shape, float("nan")), torch.zeros(()).expand(10**9, 512),
        torch.zeros(2, 2).to_sparse(), {0: tensor}, {(1,): 1}, [[tensor]], set(), _value(draw), _value(draw), _value(draw),
    ))  # fmt: skip


def _state(data: bytes, draw: random.Random) -> bytes:
    out = io.BytesIO()
    torch.save(_other(torch.load(io.BytesIO(data), weights_only=True), draw, _tensor), out)
    return out.getvalue()
