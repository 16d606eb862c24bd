"""The members of tars as the files of a folder, read where they lie: no tar is unpacked.

The member K.mp4 of 00000.tar is the file 00000/K.mp4. Unpacking 00000.tar into a folder of its name puts it there, and so do
video2dataset and img2dataset where they write files.
"""

from __future__ import annotations

import posixpath
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from dclr.bars import bar
from dclr.errors import InputError, Unreachable
from dclr.patience import threads
from dclr.record import BLOCK
from dclr.storage import Folder, RemoteFolder
from dclr.text import plain
from preprocess.datasets.lists import inside
from preprocess.found import HIDDEN, no_video, suffix_of
from preprocess.transcode import part_of

TEXTS = (".json", ".cls")  # members that are read while they are listed
MOST = 1 << 22  # bytes of such a text, and of a header
MEMBERS = 1_000_000  # of a tar
LISTED = 16  # tars at a time
LOCAL_READ, REMOTE_READ = 1 << 12, 1 << 16  # least bytes of a read: a header, or all that lies between two videos
FETCHED = 1 << 26  # bytes of one request for a video
ADDRESS = re.compile(r"(.+)\[(\d+):(\d+)\]", re.S)
IN_NO_TAR = "in no tar"
COMPRESSED = "a compressed tar, whose members cannot be read one by one: gunzip it"
OUTSIDE = "a name that leaves the tar, or is no text"
NO_FILE = "a link, a device or a file with holes"
CUT = "cut off by the end of its tar"
TWICE = "in the tars once more: the last one is taken"


class Member(NamedTuple):
    """Where a file lies in a tar."""

    tar: str
    offset: int
    size: int


@dataclass
class Look:
    """What a tar holds: path -> member, path -> what was read of a text, name -> why something is not taken."""

    members: dict[str, Member] = field(default_factory=dict)
    texts: dict[str, Any] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)


class TarFolder(Folder):
    """The tars of a folder, as if each were unpacked into a folder of its name.

    :meth:`listing` lists the members. A copy in another process knows none of them: there :meth:`local` takes what
    :meth:`address` gave here, so that a worker holds its own task and not the set.

    Args:
        folder: where the tars lie, on this machine or elsewhere.
        read: path and bytes of a member of :data:`TEXTS`, unless it is above :data:`MOST` bytes -> what ``texts`` keeps of it.
    """

    def __init__(self, folder: Folder, read: Callable[[str, bytes], Any] | None = None):
        super().__init__(folder.place)
        self._folder, self._read = folder, read
        self._members: dict[str, Member] = {}
        self.texts: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.place, "_folder": self._folder}

    def listing(self) -> tuple[dict[str, int], dict[str, str]]:
        """As :meth:`Folder.listing`, of the members. One that is not taken is told as ``TAR: NAME``."""
        found, others = self._folder.listing()
        tars = [path for path in sorted(found) if suffix_of(path) == ".tar" and no_video(path) != HIDDEN]
        for path in sorted(found.keys() - set(tars)):
            compressed = re.search(r"\.(tgz|tar\.(gz|bz2|xz|zst))\Z", path, re.I)
            others[path] = COMPRESSED if compressed else no_video(path) or IN_NO_TAR
        self._members, self.texts = {}, {}
        with threads(LISTED) as pool:
            looks = pool.map(self._look, tars, [found[tar] for tar in tars])
            for look in bar(looks, "listing", len(tars), unit="tar", leave=False):
                for path in look.members.keys() & self._members.keys():
                    others[f"{self._members[path].tar}: {path}"] = TWICE
                self._members |= look.members
                self.texts |= look.texts
                others |= look.others
        return {path: member.size for path, member in self._members.items()}, others

    def _look(self, tar: str, size: int) -> Look:
        look, ahead = Look(), REMOTE_READ if isinstance(self._folder, RemoteFolder) else LOCAL_READ
        file = Ranges(partial(self._folder.read, tar), size, ahead)
        try:
            for header in headers(file):
                path, name = posixpath.normpath(f"{posixpath.splitext(tar)[0]}/{header.name}"), f"{tar}: {header.name}"
                if header.isdir():
                    continue
                if not inside(header.name):
                    look.others[name] = OUTSIDE
                elif header.offset_data + header.size > size:
                    look.others[name] = CUT
                elif header.isreg() and not header.issparse():
                    if path in look.members:
                        look.others[name] = TWICE
                    look.members[path] = Member(tar, header.offset_data, header.size)
                    if self._read and suffix_of(path) in TEXTS and header.size <= MOST:
                        look.texts[path] = self._read(path, file.at(header.offset_data, header.size))
                else:
                    look.others[name] = NO_FILE
        except OSError as error:
            look.others[tar] = f"cannot be read ({error.strerror})"
        except (InputError, Unreachable):  # the store's
            raise
        except Exception as error:  # a hostile header may make tarfile raise anything
            look.others[tar] = f"damaged ({plain(str(error), 100)}): what stands before that is taken"
        return look

    def tar(self, name: str) -> str:
        """The tar that a member lies in."""
        return self._members[name].tar

    def address(self, name: str) -> str:
        tar, offset, size = self._members[name]
        return f"{tar}[{offset}:{size}]"

    def absent(self, name: str) -> str | None:
        return self._folder.absent(_member(name).tar)

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """A place in a tar of this machine, for FFmpeg alone; of a tar elsewhere a copy of the member, deleted afterwards.
        ``name`` is an :meth:`address`."""
        tar, offset, size = _member(name)
        if not isinstance(self._folder, RemoteFolder):
            with self._folder.local(tar) as path:
                yield part_of(path, offset, size)
            return
        with tempfile.TemporaryDirectory(prefix="dclr-") as folder:
            copy = Path(folder, "file")
            with copy.open("wb") as file:
                for start in range(offset, offset + size, FETCHED):
                    file.write(self._folder.read(tar, start, min(FETCHED, offset + size - start)))
            yield copy


def _member(address: str) -> Member:
    match = ADDRESS.fullmatch(address)
    assert match, address
    return Member(match[1], int(match[2]), int(match[3]))


class Ranges:
    """A file as tarfile reads one, by ranges of at least ``ahead`` bytes. Raises ValueError where more than :data:`MOST` is
    wanted."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int, ahead: int):
        self._fetch, self._size, self._ahead = fetch, size, ahead
        self._position = self._start = 0
        self._data = b""

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        self._position = position

    def read(self, count: int) -> bytes:
        data = self.at(self._position, count)
        self._position += len(data)
        return data

    def at(self, start: int, count: int) -> bytes:
        """The bytes from ``start`` on, fewer at the file's end."""
        if start < 0 or not 0 <= count <= MOST:
            raise ValueError(f"{count} bytes of a header from byte {start} on")
        end = min(start + count, self._size)
        if start < self._start or end > self._start + len(self._data):
            wanted = min(max(count, self._ahead), self._size - start)
            self._start, self._data = start, self._fetch(start, wanted) if wanted > 0 else b""
        return self._data[start - self._start : max(end, start) - self._start]


def headers(file: Ranges) -> Iterator[tarfile.TarInfo]:
    """The header of each member. Raises ValueError or tarfile.TarError where they end before the tar does."""
    last = -1
    with tarfile.open(fileobj=cast(IO[bytes], file), mode="r:") as archive:
        for _ in range(MEMBERS):
            header = archive.next()
            cast(Any, archive).members.clear()  # it would keep them all
            if header is None:
                break
            if header.size < 0 or header.offset_data <= last:
                raise ValueError(f"a header with a size that cannot be, before byte {header.offset_data}")
            last = header.offset_data
            yield header
        else:
            raise ValueError(f"more than {MEMBERS} members")
        if file.at(archive.offset, BLOCK) != bytes(BLOCK):
            raise ValueError(f"neither a header nor the mark of the end at byte {archive.offset}")
