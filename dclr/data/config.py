"""What is read and how, as the command lines of training and evaluation say it; without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from dclr.errors import InputError
from dclr.patience import MINUTES
from dclr.settings import flag, setting
from dclr.text import plain

ON_ERROR = ("stop", "skip")
STALL = 5.0  # minutes, unless --stall-minutes says otherwise


@dataclass(frozen=True, kw_only=True)
class Shards:
    """The sets that are read, and how much of each is seen."""

    title = "data"
    shards: tuple[str, ...] = setting(
        help="sets that python -m preprocess made: folders, s3://, gs://, az://, hf:// or http(s)://", metavar="SET", place=True
    )
    weights: tuple[float, ...] = setting(
        (), "of several sets, the share of each in what is seen", metavar="SHARE", above=0, most=1e9, before=(),
        derived="by their numbers of videos",
    )  # fmt: skip


def share(text: str) -> float:
    """``"25%"`` or ``"0.25"`` -> 0.25; raises InputError.

    >>> share("25%")
    0.25
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*(%?)", text.strip())
    if not match:
        raise InputError(f"{plain(repr(text), 80)}: expected a share of the videos, such as 25%")
    return float(match[1]) / (100 if match[2] else 1)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which videos of the splits are trained on."""

    title = "data"
    min_motion: float | None = setting(
        None, "train on videos with at least this mean motion energy, in grey levels", metavar="ENERGY", least=0, most=255,
        before=None, derived="no limit",
    )  # fmt: skip
    max_motion: float | None = setting(
        None, "train on videos with at most this mean motion energy", metavar="ENERGY", least=0, most=255, before=None,
        derived="no limit",
    )  # fmt: skip
    min_seconds: float = setting(
        0.0, "train on videos of at least this length", metavar="SECONDS", least=0, most=1e6, before=0.0
    )
    share: float = setting(
        1.0, "train on this share of the videos, such as 25%; a larger share has those of a smaller one", above=0, most=1,
        read=share, before=1.0,
    )  # fmt: skip

    @property
    def chosen_by(self) -> str:
        """The flags that choose, as the command line has them; empty where all videos are taken."""
        given = {one.name: getattr(self, one.name) for one in fields(Choice) if getattr(self, one.name) != one.default}
        return " ".join(f"{flag(name)} {value:g}" for name, value in given.items())

    @property
    def by_motion(self) -> bool:
        return self.min_motion is not None or self.max_motion is not None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """By how many processes it is read, what is kept of it here, and what becomes of damage."""

    title = "loading"
    workers: int = setting(
        1, "loader processes of each rank; 0: the training's own process loads", short="-j", metavar="N", least=0, most=10_000,
        free=True,
    )  # fmt: skip
    cache: str | None = setting(
        None, "folder of this machine that keeps what came over the network, for all its ranks", metavar="DIR", place=True,
        free=True, derived="nothing is kept",
    )  # fmt: skip
    cache_size: float = setting(100.0, "most gigabytes (10^9 bytes) in that cache", metavar="GB", least=0, most=1e6, free=True)
    patience: float = setting(
        MINUTES, "minutes for which a store that does not answer is waited for", metavar="MINUTES", least=0, most=1e6,
        free=True, before=MINUTES,
    )  # fmt: skip
    stall_minutes: float = setting(
        STALL, "minutes after which a run ends whose loader processes are stopped or hang", metavar="MINUTES", above=0,
        most=1e6, free=True, before=STALL,
    )  # fmt: skip
    on_error: str = setting(
        "stop", "at a video that cannot be read: stop, or skip (training takes another, a result names it)", choices=ON_ERROR
    )
    max_skipped: float = setting(
        1.0, "percent of the videos above which --on-error skip stops too", metavar="PERCENT", least=0, most=100
    )
