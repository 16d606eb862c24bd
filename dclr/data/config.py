"""What is read and how, as the command lines of training and evaluation say it; without torch."""

from __future__ import annotations

from dataclasses import dataclass

from dclr.settings import setting

ON_ERROR = ("stop", "skip")


@dataclass(frozen=True, kw_only=True)
class Shards:
    """The set that is read."""

    title = "data"
    shards: str = setting(
        help="what python -m preprocess made: a folder, s3://, gs://, az://, hf:// or http(s)://", metavar="SET", place=True
    )


@dataclass(frozen=True, kw_only=True)
class Reading:
    """By how many processes it is read, what is kept of it here, and what becomes of damage."""

    title = "data"
    workers: int = setting(1, "loader processes of each rank", short="-j", least=0, free=True)
    cache: str | None = setting(
        None, "keep what came over the network on this machine's disk, for all its ranks", metavar="DIR", place=True, free=True
    )
    cache_size: float = setting(100.0, "size of that cache", metavar="GB", free=True)
    on_error: str = setting(
        "stop", "a video that cannot be read: stop, or skip (training takes another, a result names it)", choices=ON_ERROR
    )
    max_skipped: float = setting(1.0, "of the videos, above which skip stops", metavar="PERCENT", least=0, most=100)
