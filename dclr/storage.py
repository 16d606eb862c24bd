"""A folder on this machine, in object storage or behind a web server, with the few operations that shards need.

Anything with ``://`` goes through fsspec; :data:`STORES` are those with a package and variables of their own. Credentials come
from the usual environment, never from a flag or a file of ours. docs/extending.md says what a store of one's own must do.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import stat
import tempfile
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast
from uuid import uuid4

from dclr.errors import InputError, Unreachable, make_folder
from dclr.errors import place as as_place
from dclr.parse import require_size
from dclr.patience import MINUTES, Wait
from dclr.text import public

T = TypeVar("T")


class Store(NamedTuple):
    """A kind of place: the extra of this package that installs what reads it, and what decides whether it answers."""

    extra: str
    check: str


S3 = Store("s3", "AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL")
GOOGLE = Store("gs", "GOOGLE_APPLICATION_CREDENTIALS")
AZURE = Store("az", "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_CONNECTION_STRING")
HUGGING_FACE = Store("hf", "HF_TOKEN")
WEB = Store("http", "that the server runs")
STORES = {  # by the word before ://
    "s3": S3,
    "s3a": S3,
    "gs": GOOGLE,
    "gcs": GOOGLE,
    "az": AZURE,
    "abfs": AZURE,
    "abfss": AZURE,
    "hf": HUGGING_FACE,
    "http": WEB,
    "https": WEB,
}
EXPECTED = "expected a folder, s3://, gs://, az://, hf:// or http(s)://"
_REPOSITORY, _INSIDE = "a source repository holds no videos and no shards", "it is a place inside another one"
REFUSED = {  # what fsspec knows and nothing here can use
    "file": "a path needs no scheme",
    "local": "a path needs no scheme",
    "memory": "each process has a memory of its own",
    "data": "it holds one file",
    **dict.fromkeys(("github", "gist", "git", "jupyter", "jlab"), _REPOSITORY),
    **dict.fromkeys(("dir", "zip", "tar", "libarchive", "reference", "generic", "dask"), _INSIDE),
    **dict.fromkeys(("cached", "blockcache", "filecache", "simplecache"), "it keeps copies of another place: name that"),
}
WHOLE_BYTES = 2 * 10**9  # bytes of a file that is read whole: the index of ten million samples
LISTING = 4  # tries of each request for a listing
OUTWARDS = "a link that leads out of the folder; --follow-links takes it"
FOLLOWED = 8  # times that one link to a folder is followed


class Folder:
    """A place for whole files, named relative to it with ``/``. Local here; :class:`RemoteFolder` is the same elsewhere.

    What is written appears whole or not at all: :meth:`write` and :meth:`put` never leave half a file under its name.

    Attributes:
        patience: minutes for which a store that does not answer is waited for; a folder here always answers.
        links: whether links may lead out of it.
    """

    def __init__(self, place: str, patience: float = MINUTES):
        self.place, self.patience, self.links = place, patience, True

    def __str__(self) -> str:
        return public(self.place)

    def _path(self, name: str) -> str:
        return f"{self.place.rstrip('/')}/{name}" if name else self.place

    def files(self) -> dict[str, int]:
        """Relative path -> bytes of every file below; empty where there is no such folder."""
        return self.listing()[0]

    def listing(self) -> tuple[dict[str, int], dict[str, str]]:
        """:meth:`files`, and path -> reason of everything else: what cannot be read, empty folders, pipes, links in a circle.
        The path of a folder ends with ``/``.

        Links are followed, to folders too, and out of this one where :attr:`links` says so. A link to a folder that it lies in
        is not followed. A link that is met again through other links is followed :data:`FOLLOWED` times at most, so that links
        among each other end.
        """
        files, others, followed = dict[str, int](), dict[str, str](), Counter[tuple[int, int]]()
        folders: list[tuple[str, frozenset[tuple[int, int]]]] = []  # with those above, by device and number
        if os.path.exists(self.place):
            top = os.stat(self.place)
            folders.append(("", frozenset([(top.st_dev, top.st_ino)])))
        while folders:
            prefix, above = folders.pop()
            try:
                with os.scandir(Path(self.place, prefix)) as scan:
                    entries = sorted(scan, key=lambda entry: entry.name, reverse=True)
            except OSError as error:
                others[prefix or self.place] = f"cannot be read ({error.strerror})"
                continue
            if prefix and not entries:
                others[prefix] = "an empty folder"
            for entry in entries:
                path = prefix + entry.name
                try:
                    found = entry.stat()
                    link = entry.stat(follow_symlinks=False) if entry.is_symlink() else None
                except OSError as error:
                    others[path] = f"cannot be read ({error.strerror})"
                    continue
                number = found.st_dev, found.st_ino
                if link is not None and self._outside(path):
                    others[path] = OUTWARDS
                elif stat.S_ISREG(found.st_mode):
                    files[path] = found.st_size
                elif not stat.S_ISDIR(found.st_mode):
                    others[path] = "a pipe, a socket or a device"
                elif number in above or (link is not None and followed[link.st_dev, link.st_ino] == FOLLOWED):
                    others[f"{path}/"] = "a link in a circle"
                else:
                    folders.append((f"{path}/", above | {number}))
                    if link is not None:
                        followed[link.st_dev, link.st_ino] += 1
        return files, others

    def _outside(self, name: str) -> bool:
        """Whether a file lies outside, behind links that may not lead there."""
        return not self.links and not Path(os.path.realpath(Path(self.place, name))).is_relative_to(
            os.path.realpath(self.place)
        )

    def top(self) -> set[str]:
        """Names of the files and folders directly in this one, empty folders included."""
        return set(os.listdir(self.place)) if os.path.isdir(self.place) else set()

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where it is not there."""
        path = Path(self.place, name)
        return path.stat().st_size if path.is_file() else None

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """The bytes of a file, or ``size`` of them from ``start`` on; raises FileNotFoundError."""
        with Path(self.place, name).open("rb") as file:
            file.seek(start)
            there = os.fstat(file.fileno()).st_size - start
            return file.read(-1 if size is None else max(0, min(size, there)))  # so much memory is taken before it is read

    def read_whole(self, name: str, most: int, what: str) -> bytes:
        """A file of at most ``most`` bytes. Of a larger one nothing is read; InputError names it. Raises FileNotFoundError."""
        require_size(str(self._path(name)), self.size(name) or 0, most, what)
        return self.read(name)

    def address(self, name: str) -> str:
        """What :meth:`local` finds a file of the listing by in any process."""
        return name

    def absent(self, name: str) -> str | None:
        """Why this machine does not find a file of the listing, with its host, or may not read it; None where it may. A store
        is the same from every machine and is not asked."""
        if self._outside(name):
            return OUTWARDS
        try:
            os.stat(path := Path(self.place, name).absolute())
        except OSError as error:
            return f"{socket.gethostname()}: {path}: {error.strerror}"
        return None

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """Yield a path of this machine that holds the file. Of a remote folder that is a copy, deleted afterwards."""
        yield Path(self.place, name).absolute()  # a relative one may look like a URL

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder of this machine to make files in that :meth:`put` can take."""
        make_folder(Path(self.place))
        yield Path(self.place)

    def put(self, name: str, file: Path) -> None:
        """Give a finished file of :meth:`staging` its final name, after it is synced to disk."""
        with file.open("rb") as written:
            os.fsync(written.fileno())
        file.replace(Path(self.place, name))
        folder = os.open(self.place, os.O_RDONLY)
        os.fsync(folder)  # the name itself
        os.close(folder)

    def write(self, name: str, data: bytes) -> None:
        """Put ``data`` under ``name``: a reader or a crash sees the old file or the new one, never half."""
        with self.staging() as folder:
            unfinished = folder / f".{name}.{uuid4().hex}.tmp"  # parts of a run write the same plan side by side
            try:
                unfinished.write_bytes(data)
                self.put(name, unfinished)
            except BaseException as error:
                unfinished.unlink(missing_ok=True)
                if isinstance(error, OSError) and error.errno:
                    raise OSError(error.errno, error.strerror, self._path(name)) from None
                raise

    def remove(self, name: str) -> None:
        """Delete a file, or a folder with all in it; nothing where it is not there."""
        path = Path(self.place, name)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def free(self) -> int | None:
        """Bytes that can still be written here; None where the place does not say."""
        at = Path(self.place).absolute()
        while not at.exists():
            at = at.parent
        return shutil.disk_usage(at).free


class RemoteFolder(Folder):
    """A prefix in object storage, or a web server's folder, which can only be read. An object is replaced in one piece, so a
    write is whole or absent there too.

    What may pass, such as a failure of the network, is waited for (:mod:`dclr.patience`). Every operation raises Unreachable
    where that takes longer than ``patience``, and InputError naming the file for what does not pass.

    Attributes:
        lease: the object by which a run holds this set while it writes (:mod:`dclr.lease`), relative to it; "" without.
        guard: what raises InputError where that run may not write any more. Where the folder was sent to another process, what
            the lease is there for may be written.
    """

    lease = ""
    guard: Callable[[], None] | None = None

    @property
    def store(self) -> Store:
        """The kind of place. Of one that is not in :data:`STORES`, fsspec names the package."""
        scheme = self.place.partition("://")[0]
        return STORES.get(scheme, Store("", f"what fsspec needs for {scheme}"))

    @property
    def listable(self) -> bool:
        """Whether the place can say which files it has: a web server cannot."""
        return self.store is not WEB

    @property
    def dated(self) -> bool:
        """Whether :meth:`modified` is known, and objects may be written every few seconds."""
        from fsspec import AbstractFileSystem

        return self.store is not HUGGING_FACE and type(self._system).modified is not AbstractFileSystem.modified

    @cached_property
    def _system(self) -> Any:
        """The file system. It is made at its first use, so that a folder can be sent to another process."""
        return self._made()

    def _made(self, tries: int = 1) -> Any:
        """A file system that tries each of its requests so often: :class:`Wait` repeats a whole operation."""
        options: dict[str, Any] = {
            "skip_instance_cache": True
        }  # a kept one would go on to the endpoint that the environment named
        if self.store is S3:
            connections = {"connect_timeout": 20, "read_timeout": 60, "max_pool_connections": 64}
            options["config_kwargs"] = {"retries": {"total_max_attempts": tries}, **connections}
        with self._asked():
            import fsspec

            if not self.listable:
                import aiohttp

                timeout = aiohttp.ClientTimeout(total=None, sock_connect=20, sock_read=60)
                whole = {"Accept-Encoding": "identity"}  # a server that packs what it sends answers no byte ranges
                options["client_kwargs"] = {"timeout": timeout, "headers": whole, "response_class": _bounded()}
            system = fsspec.core.url_to_fs(self.place, use_listings_cache=False, **options)[0]
            if self.store is S3:
                system.retries = 1
            return system

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.place, "patience": self.patience, "lease": self.lease}

    def _may_write(self) -> None:
        if self.guard:
            self.guard()
        elif self.lease and self.size(self.lease) is None:
            raise InputError(f"{self}: the run that makes this set has ended or lost its lock; start it again")

    @contextmanager
    def _asked(self, name: str = "") -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except Unreachable as error:
            raise Unreachable(f"{error}; check the name and {self.store.check}") from None
        except ImportError as error:
            extra = f"; for this place: pip install 'dclr[{self.store.extra}]'" if self.store.extra else ""
            raise InputError(f"{self}: {error}{extra}") from None
        except Exception as error:  # a store has many ways to say no
            said = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(public(f"{self._path(name)}: {said}; check the name and {self.store.check}")) from None

    def _patiently(self, ask: Callable[[], T], name: str = "", part: object = "") -> T:
        """What ``ask`` gives, which may raise ValueError for an answer that should be asked for again."""
        wait = Wait(public(self._path(name)), self.patience, part)
        while True:
            try:
                given = ask()
            except Exception as error:
                failed = error
            else:
                wait.over()
                return given
            wait.after(failed)

    def _path(self, name: str) -> str:
        """The path of a file. The query of a web server's URL, such as a signature for the whole folder, follows the name."""
        place, mark, query = (self.place, "", "") if self.listable else self.place.partition("?")
        return (f"{place.rstrip('/')}/{name}" if name else place) + mark + query

    def listing(self) -> tuple[dict[str, int], dict[str, str]]:
        if not self.listable:
            raise InputError(
                f"{self}: a web server cannot say what it holds; only train_pretrain.py and train_eval.py read sets there"
            )
        with self._asked():
            base = self._system._strip_protocol(self.place).rstrip("/") + "/"
            with suppress(FileNotFoundError):
                # of S3's many requests for a large listing one may fail, and none before it is asked again for that
                system = self._made(LISTING) if self.store is S3 else self._system
                found = self._patiently(lambda: system.find(self.place, detail=True))
                files = {path.removeprefix(base): int(info["size"]) for path, info in found.items() if path.startswith(base)}
                markers = [path for path in files if not path or path.endswith("/")]  # objects that consoles make of folders
                for marker in markers:
                    del files[marker]
                paths = [*sorted(files), ""]
                empty = (marker for marker in markers if not paths[bisect(paths, marker, hi=len(files))].startswith(marker))
                return files, dict.fromkeys(filter(None, empty), "an empty folder")
        return {}, {}

    def top(self) -> set[str]:
        return {name.partition("/")[0] for name in self.files()}

    def size(self, name: str) -> int | None:
        with self._asked(), suppress(FileNotFoundError):
            return self._patiently(lambda: self._system.size(self._path(name)), name)
        return None

    def modified(self, name: str) -> datetime | None:
        """When a file was written, by the store's clock; None where it is not there."""
        with self._asked(), suppress(FileNotFoundError):
            return cast(datetime, self._patiently(lambda: self._system.modified(self._path(name)), name))
        return None

    def read(self, name: str, start: int = 0, size: int | None = None, check: Callable[[bytes], object] | None = None) -> bytes:
        """As :meth:`Folder.read`; ``check`` may raise ValueError for an answer that should be asked for again."""
        part = {} if not start and size is None else {"start": start, "end": None if size is None else start + size}

        def ask() -> bytes:
            data: bytes = self._system.cat_file(self._path(name), **part)
            if size is not None and len(data) < size:
                raise ValueError(f"{len(data)} bytes found from byte {start} on, {size} expected")
            if check is not None and (size is None or len(data) == size):
                check(data)
            return data

        with self._asked(name), suppress(FileNotFoundError):
            data = self._patiently(ask, name, start)
            where = public(self._path(name))
            if size is not None and len(data) > size:
                raise InputError(
                    f"{where}: the server sends whole files where byte ranges are asked for; use one that knows ranges"
                )
            if len(data) > WHOLE_BYTES:
                raise InputError(
                    f"{where}: above {WHOLE_BYTES / 1e9:.0f} GB, or without an end; expected a file of a shard set"
                )
            return data
        raise FileNotFoundError(errno.ENOENT, "no such file", public(self._path(name)))

    def read_whole(self, name: str, most: int, what: str) -> bytes:
        if self.listable:
            return super().read_whole(name, most, what)
        data = self.read(name)  # of which a web server's answer has a bound; to ask for the size is a request, or two
        require_size(public(self._path(name)), len(data), most, what)
        return data

    def absent(self, name: str) -> None:
        return None

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="dclr-") as folder:
            path = Path(folder, "file" + Path(name).suffix)
            with self._asked(name):
                self._patiently(lambda: self._system.get_file(self._path(name), str(path)), name)
            yield path

    @contextmanager
    def staging(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="dclr-") as folder:
            yield Path(folder)

    def put(self, name: str, file: Path) -> None:
        self._may_write()
        with self._asked(name):
            self._patiently(lambda: self._system.put_file(str(file), self._path(name)), name)
        file.unlink()

    def write(self, name: str, data: bytes) -> None:
        self._may_write()
        with self._asked(name):
            self._patiently(lambda: self._system.pipe_file(self._path(name), data), name)

    def remove(self, name: str) -> None:
        self._may_write()
        with self._asked(), suppress(FileNotFoundError):
            self._patiently(lambda: self._system.rm(self._path(name), recursive=True), name)

    def free(self) -> None:
        return None


def _bounded() -> type:
    """The class of a web server's answers: of a body that is longer than was asked for, or endless, one byte more is read."""
    import aiohttp

    class Bounded(aiohttp.ClientResponse):
        async def read(self) -> bytes:
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.request_info.headers.get("Range", ""))
            most = int(asked[2]) - int(asked[1]) + 1 if asked else WHOLE_BYTES
            pieces, held = list[bytes](), 0
            async for piece in self.content.iter_any():
                pieces.append(piece)
                if (held := held + len(piece)) > most:
                    self.close()
                    break
            return b"".join(pieces)[: most + 1]

    return Bounded


def open_folder(place: str | Path, patience: float = MINUTES) -> Folder:
    """The folder that a flag names: a path of this machine (``~`` expanded), or a place in a store, such as ``s3://bucket/prefix``,
    which is waited for so many minutes where it does not answer. Raises InputError where it is empty, a secret is in it, or it
    is one of :data:`REFUSED`."""
    text = as_place(str(place), "the folder")
    scheme, remote, rest = text.partition("://")
    if not remote:
        return Folder(text, patience)
    why = _INSIDE if "::" in scheme or re.search(r"::\w+://", rest) else REFUSED.get(scheme)
    if why:
        raise InputError(f"{public(text)}: {why}; {EXPECTED}")
    folder = RemoteFolder(text, patience)
    if folder.listable and public(text) != text:
        raise InputError(f"{public(text)}: expected a bucket and a prefix alone; credentials come from {folder.store.check}")
    return folder
