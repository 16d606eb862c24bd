"""What is trained on: which videos of a set, and several sets as one. The index alone says; no tar is opened."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dclr.data.config import Choice
from dclr.data.manifest import Names, ShardSet
from dclr.errors import InputError
from dclr.record import DEFAULT_FPS, SLOWER

TRAIN, TESTS = "train", ("test", "val")  # how the splits of a fold are called, before the fold's number
SHOWN_PAIRS = 5
SAME_FILE, SAME_PACKETS = "of the same file", "the same packets"


def select(sets: Sequence[ShardSet], splits: Sequence[str]) -> list[np.ndarray]:
    """The samples of each set in any of these splits that it has. Raises InputError for a split that none of them has, and for
    a set without any of these."""
    if len(sets) == 1:
        return [sets[0].select(splits)]
    there = {split for one in sets for split in one.splits}
    if absent := [split for split in splits if split not in there]:
        raise InputError(f"no split {absent[0]!r} in any of {', '.join(map(str, sets))}; they have: {', '.join(sorted(there))}")
    return [one.select([split for split in splits if split in one.splits] or splits) for one in sets]


def choose(shards: ShardSet, samples_N: np.ndarray, choice: Choice) -> np.ndarray:
    """Those of ``samples_N`` that ``choice`` takes, in their order.

    A share counts the videos of ``samples_N``, segments of one together: the first in the order of their ids, which are hashes.
    So a smaller share is a part of a larger one, and one share is the same whatever else is asked for.

    Raises InputError where none is left, or the index does not hold what decides.
    """
    if not choice.chosen_by:
        return samples_N
    motion_N, seconds_N, video_N = shards.motion_N[samples_N], shards.seconds_N[samples_N], shards.video_N[samples_N]
    if choice.by_motion and np.isnan(motion_N).any():
        cues = shards.manifest.options.get("cues", [])
        raise InputError(
            f"{choice.chosen_by}: the index of {shards} does not say how much moves in its videos: "
            + (
                f"python -m preprocess merge {shards} adds that"
                if "energy" in cues
                else f"python -m preprocess add-cues {shards} --cues energy adds that"
            )
        )
    ids = np.unique(video_N)
    taken_N = video_N <= ids[max(1, round(choice.share * len(ids))) - 1]
    taken_N &= seconds_N >= choice.min_seconds
    if choice.min_motion is not None:
        taken_N &= motion_N >= choice.min_motion
    if choice.max_motion is not None:
        taken_N &= motion_N <= choice.max_motion
    if not taken_N.any():
        moving = f" and their motion is {motion_N.min():g} to {motion_N.max():g}" if choice.by_motion else ""
        raise InputError(
            f"{choice.chosen_by} leaves none of {len(samples_N)} videos of {shards}: "
            f"they last {seconds_N.min():.3g} to {seconds_N.max():.3g} seconds{moving}; choose wider limits"
        )
    return samples_N[taken_N]


@dataclass(frozen=True, eq=False)
class Selection:
    """What a training reads: in each of ``sets`` the samples ``chosen_S`` of ``every_S``, which are all of its splits; and what
    is chosen of all, as ``samples_N`` of ``shards``."""

    sets: Sequence[ShardSet]
    every_S: Sequence[np.ndarray]
    chosen_S: Sequence[np.ndarray]
    shards: ShardSet
    samples_N: np.ndarray

    @classmethod
    def of(cls, sets: Sequence[ShardSet], splits: Sequence[str], choice: Choice) -> Selection:
        """Raises InputError as :func:`select`, :func:`choose` and :class:`JoinedSets` do."""
        every_S = select(sets, splits)
        chosen_S = [choose(one, every_N, choice) for one, every_N in zip(sets, every_S, strict=True)]
        shards = sets[0] if len(sets) == 1 else JoinedSets(sets)
        return cls(sets, every_S, chosen_S, shards, shards.numbers(chosen_S))


class JoinedSets(ShardSet):
    """Several sets as one to train on: the numbers of samples and shards run on from set to set. Raises InputError for the same
    set twice.

    Each video keeps an id of its own, also where two sets have one path: ids of set s of S leave the rest s when divided by S.
    Classes of the same name are one. It has no splits: :meth:`numbers` takes what is selected in each set.
    """

    def __init__(self, sets: Sequence[ShardSet]):
        for number, one in enumerate(sets):
            if one.digest in [other.digest for other in sets[:number]]:
                raise InputError(f"--shards {one}: the same set twice; name it once")
        self.roots = [one.root for one in sets]
        self.first_S = np.cumsum([0, *map(len, sets[:-1])])
        self.digest = hashlib.sha256(" ".join(one.digest for one in sets).encode()).hexdigest()
        self.damaged = [said for one in sets for said in one.damaged]
        self.tars = tuple(tar for one in sets for tar in one.tars)
        self.keys = Names.joined([one.keys for one in sets])
        for column in ("offset_N", "size_N", "frames_N", "fps_N", "crc32_N", "cuts_N"):
            setattr(self, column, np.concatenate([getattr(one, column) for one in sets]))
        before = np.cumsum([0, *(len(one.tars) for one in sets[:-1])])
        self.shard_N = np.concatenate([one.shard_N + first for one, first in zip(sets, before, strict=True)])
        self.video_N = np.concatenate([one.video_N // len(sets) * len(sets) + number for number, one in enumerate(sets)])
        self.classes = {}
        for kind, names in [item for one in sets for item in one.classes.items()]:
            known = self.classes.setdefault(kind, [])
            known += [name for name in names if name not in set(known)]
        self.labels = {kind: np.concatenate([self._renumbered(one, kind) for one in sets]) for kind in self.classes}

    def _renumbered(self, one: ShardSet, kind: str) -> np.ndarray:
        """The labels of a set as numbers of the joined classes, -1 where it has none."""
        names, label_N = one.classes.get(kind, []), one.labels.get(kind, np.full(len(one), -1))
        number = {name: at for at, name in enumerate(self.classes[kind])}
        table = np.array([*(number[name] for name in names), -1])
        return table[np.where((label_N >= 0) & (label_N < len(names)), label_N, -1)]


def same_videos(shards: ShardSet, train_N: np.ndarray, test_N: np.ndarray) -> dict[str, list[tuple[str, str]]]:
    """The keys of a training and a test sample for each video that is in both, by what they have in common."""
    seen, found = set[tuple[int, int]](), dict[str, list[tuple[str, str]]]()
    for what, column_N in ((SAME_FILE, shards.path_N), (SAME_PACKETS, shards.content_N)):
        _, at_N, at_M = np.intersect1d(column_N[train_N], column_N[test_N], return_indices=True)
        pairs = list(zip(train_N[at_N].tolist(), test_N[at_M].tolist(), strict=True))
        fresh = [pair for pair in pairs if column_N[pair[0]] >= 0 and pair not in seen]
        seen.update(fresh)
        if fresh:
            found[what] = [(shards.keys[one], shards.keys[other]) for one, other in fresh]
    return found


def leaks(shards: ShardSet, train: Sequence[str], test: Sequence[str], train_N: np.ndarray, test_N: np.ndarray) -> list[str]:
    """A warning for each way in which videos are both in a training and a test split."""
    lines = []
    for what, pairs in same_videos(shards, train_N, test_N).items():
        named = ", ".join(f"{one} and {other}" for one, other in pairs[:SHOWN_PAIRS])
        more = f" and {len(pairs) - SHOWN_PAIRS} more" if len(pairs) > SHOWN_PAIRS else ""
        lines.append(f"warning: {len(pairs)} videos are in {','.join(train)} and in {','.join(test)} ({what}): {named}{more}")
    return lines


def pace_warnings(shards: ShardSet, samples_N: np.ndarray, clip_fps: float) -> list[str]:
    """A warning where videos do not say how many frames a second they have, and one where they have fewer than a clip."""
    rate_N, lines = shards.fps_N[samples_N], []
    for what, which_N in (
        (f"do not say how many frames a second they have, and count as {DEFAULT_FPS}", rate_N <= 0),
        ("are slower, and clips show frames of theirs twice", (rate_N > 0) & (rate_N < SLOWER * clip_fps)),
    ):
        keys = [shards.keys[number] for number in samples_N[which_N][:SHOWN_PAIRS]]
        more = f" and {which_N.sum() - SHOWN_PAIRS} more" if which_N.sum() > SHOWN_PAIRS else ""
        if keys:
            lines.append(f"warning: --clip-fps {clip_fps:g}: {which_N.sum()} videos {what}: {', '.join(keys)}{more}")
    return lines


def folds(splits: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The pairs of a training and a test split of one fold among these, by their names.

    >>> list(folds(["test01", "train01", "train02", "val"]))
    [('train01', 'test01')]
    """
    for split in splits:
        if split.startswith(TRAIN):
            for test in TESTS:
                if (other := test + split.removeprefix(TRAIN)) in splits:
                    yield split, other
