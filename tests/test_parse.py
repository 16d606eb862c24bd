"""What hostile files make a parser raise becomes one error that names the file."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from conftest import REAL, needs_real_data

from dclr import parse
from dclr.data.manifest import ShardSet, parse_columns, read_index
from dclr.errors import InputError
from dclr.parse import MAX_DEPTH, from_json, parsing, read_whole, require_small
from dclr.record import FormatError, unpack
from dclr.storage import open_folder

HOSTILE = REAL / "reports/hostile"


@pytest.mark.parametrize(
    "wrong",
    [
        KeyError("x"),
        RecursionError(),
        OverflowError("too large"),
        MemoryError(),
        UnicodeEncodeError("a", "b", 0, 1, "c"),
        OSError("no number"),
    ],
)
def test_whatever_a_parser_raises_is_one_line_with_the_file(wrong: Exception) -> None:
    says = rf"^a\.npy: not an array \({type(wrong).__name__}.*\); copy it again$"
    with pytest.raises(FormatError, match=says), parsing("a.npy", "an array", "copy it again", FormatError):
        raise wrong


def test_its_own_errors_and_the_machines_pass() -> None:
    for raised in (InputError("said well already"), OSError(errno.EIO, "a broken disk")):
        with pytest.raises(type(raised)) as passed, parsing("a.npy", "an array"):
            raise raised
        assert passed.value is raised


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"a": [1, "x"]}', "expected int, got str"),
        (b'{"a": [1.5]}', "expected int, got float"),
        (b'{"a": [NaN]}', "malformed"),
        (b'{"a": [1e999]}', "out of range"),
        (b'{"\\ud800": []}', "surrogate"),
        (b"\xff", "malformed"),
        (b"", "truncated"),
    ],
)
def test_json_is_read_by_its_declared_types(text: bytes, says: str) -> None:
    with pytest.raises(InputError, match=f"^x.json: not a table .*{says}"), parsing("x.json", "a table"):
        from_json(text, dict[str, list[int]])
    assert from_json(b'{"a": [1]}', dict[str, list[int]]) == {"a": [1]}


def test_json_as_python_writes_it_has_nan() -> None:
    assert str(from_json(b'{"a": NaN}', dict[str, float], nan=True)) == "{'a': nan}"
    with (
        pytest.raises(InputError, match=r"x.json: not a table \(\[...\]: expected int, got str\)"),
        parsing("x.json", "a table"),
    ):
        from_json(b'{"a": "b"}', dict[str, int], nan=True)


def test_a_file_is_read_whole_only_where_it_is_small(tmp_path: Path) -> None:
    """The size alone refuses it: a file of 10 GB is none on the disk, and a device says that it has no size."""
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(10**10)
    for read in (
        lambda: read_whole(tmp_path / "manifest.json", 100, "a manifest"),
        lambda: open_folder(tmp_path).read_whole("manifest.json", 100, "a manifest"),
    ):
        with pytest.raises(InputError, match=r"manifest.json: 10000000000 bytes, expected a manifest of at most 100$"):
            read()
    with pytest.raises(InputError, match="10000000000 bytes, expected a shard set's manifest of at most 67108864"):
        ShardSet(tmp_path)
    with pytest.raises(InputError, match="/dev/zero: more than 100 bytes, expected a recipe of at most so many"):
        read_whole(Path("/dev/zero"), 100, "a recipe")
    (tmp_path / "small").write_bytes(b"ab")
    assert read_whole(tmp_path / "small", 2, "letters") == open_folder(tmp_path).read_whole("small", 2, "letters") == b"ab"
    assert open_folder(tmp_path).read("small", 1, 10**18) == b"b"  # no memory of that size is taken


def test_few_lists_in_many_places_are_many_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parse, "MAX_VALUES", 1000)
    bomb: object = "x"
    for _ in range(30):
        bomb = [bomb] * 30
    circle: list[object] = []
    circle.append(circle)
    deep: object = 0
    for _ in range(MAX_DEPTH + 1):
        deep = {"a": deep}
    for large in (bomb, circle, deep, [0] * 1001, ["x" * 10**6] * 20, [1 << 10**8]):
        with pytest.raises(ValueError, match="lists and tables of more than"):
            require_small(large)
    require_small({"a": [1, "b", (None, 2.5)], 3: {}})


def index(path: Path) -> object:
    return read_index(open_folder(path.parent), path.name)


def columns(path: Path) -> object:
    return parse_columns(path.read_bytes(), 12, 2, 1, path.name)


def opened(path: Path) -> object:
    """A set with this manifest and an empty index, which it says is right."""
    with TemporaryDirectory() as folder:
        Path(folder, "manifest.json").write_bytes(path.read_bytes())
        Path(folder, "index.npz").touch()
        return ShardSet(folder, keep_damaged=True)


READERS: dict[str, Callable[[Path], object]] = {
    "man-*.json": opened,
    "index-*.jsonl": index,
    "index-*.npz": columns,
    "record-*.bin": lambda path: unpack(path.read_bytes()),
}


@needs_real_data
@pytest.mark.parametrize("names", READERS)
def test_files_that_raised_something_else_before(names: str) -> None:
    files = sorted(HOSTILE.glob(names))
    assert files
    for path in files:
        with pytest.raises(InputError) as refused:
            READERS[names](path)
        assert "\n" not in str(refused.value)
