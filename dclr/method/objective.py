"""What is trained, without torch: the views and the lines of the loss, the BatchNorm statistics, the queue's length.

dclr/method/model.py, dclr/method/norm.py and dclr/method/queue.py compute it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dclr.cues import DYNAMICS
from dclr.errors import InputError
from dclr.method.backbones import ARCHITECTURES
from dclr.settings import MANY, again, check_values, setting

if TYPE_CHECKING:
    import torch

    from dclr.method.losses import Form


def _form(name: str) -> Form:
    """A form of dclr/method/losses.py, which is imported where it is computed."""

    def form(*given: Any) -> torch.Tensor:
        from dclr.method import losses

        return getattr(losses, name)(*given)

    return form


RINGS = ("vv", "sv", "dv", "vs", "vd")  # the embeddings, see dclr/method/model.py
FORMS: dict[str, Form] = {"mil": _form("mil"), "masked": _form("masked"), "mean-log": _form("mean_log")}  # of the contrast
TARGETS = ("sum", "equal", "raw")  # of the alignment
ALIGNED = ("query", "key")  # clip, whose maps of s and d are the target
BN_MODES = ("sync", "shuffle", "local")  # of BatchNorm's statistics: over which videos
BN_VIEWS = ("split", "shared")  # and over which views
HEADS = ("torch", "authors")  # how their first weights are drawn
CLIPS = ("other", "same")  # of the video, whose motion is the dynamic key
QUEUE = 10**9  # the most entries of a queue
MINERS = {"both": 0, "s": 0, "d": 0, "energy": 1, "flow": 2}  # what mines: channels of its stored cue


def _teacher(does: str) -> Any:
    return setting(
        None, f"momentum of an encoder of its own, by which {does}", metavar="M", least=0, most=1, before=None,
        derived="f_k does that",
    )  # fmt: skip


@dataclass(frozen=True)
class Method:
    """What is trained. The default is DCLR; each field is one line of the loss (docs/method.md, "Baseline and ablations").

    ``views`` are those that are forwarded: ``"vd"`` is DCLR without the static view, ``"v"`` MoCo-v2. ``mined`` is k (0: the
    own key is the only positive), ``alignment`` its weight (0: without), ``decoupling`` whether maps weight the RGB features
    (else they are 1), ``loss`` and ``align_target`` one of :data:`FORMS` and :data:`TARGETS`, ``align_maps`` the clip whose
    maps are the target, ``symmetric`` whether the clips are also swapped and the losses averaged. ``seed`` is that of the
    shuffled keys and of ``masked``.
    ``mine_by`` says what mines: s and d each for its own embeddings, one of them for all, or a stored cue in the place of d.
    ``flow_weight`` above 0 also predicts the query clip's stored flow from F(v). ``dynamic_key`` says whose motion vd and dv
    meet: the other clip's, or the query clip's own. ``in_batch`` says that the queue takes a batch's keys before its contrasts,
    not after: then the other videos of the batch are negatives too, or mined. ``static_momentum`` is that of an encoder which
    passes s in the place of f_k, ``dynamic_momentum`` of one for d, ``mining_momentum`` of the one that mines; None: f_k does.
    Raises InputError for what is no method.
    """

    views: str = "vsd"
    mined: int = setting(5, "positives that each contrast mines from other videos; 0: none", metavar="K", least=0, most=QUEUE)
    alignment: float = 0.1
    decoupling: bool = True
    loss: str = setting(
        "mil", "form of the contrasts: mil, masked (mil without the own key at random), mean-log", choices=FORMS
    )
    align_target: str = setting(
        "sum", "what A(v) is aligned to: the sum of A(s) and A(d), equal (each first N), raw (nothing is N)", choices=TARGETS
    )
    align_maps: str = setting("query", "the clip whose A(s) and A(d) are that target", choices=ALIGNED, before="query")
    symmetric: bool = setting(False, "also train with the two clips swapped, for 1.7 times the work")
    momentum: float = setting(
        0.999, "momentum by which f_k follows f_q; 1: it stays as drawn", metavar="M", least=0, most=1, before=0.999
    )
    static_momentum: float | None = _teacher("s has keys and maps")
    dynamic_momentum: float | None = _teacher("d has keys and maps")
    mining_momentum: float | None = _teacher("positives are mined")
    temperature: float = setting(0.07, "temperature of the contrasts", metavar="T", above=0, most=1000, before=0.07)
    in_batch: bool = setting(
        False, "a batch's keys enter the queue before its contrasts, so that they are negatives; not after", before=False
    )
    mine_by: str = setting(
        "both",
        "what mines: s and d each for itself, one of them, or a stored cue for d",
        choices=MINERS,
        before="both",
    )
    mining_temperature: float = setting(
        0.07, "temperature of the cosines that mine; 1: the authors' plain cosine", metavar="T", above=0, most=1000,
        before=0.07,
    )  # fmt: skip
    dim: int = setting(128, "dimensions of an embedding", metavar="N", least=1, most=65_536, before=128)
    static_weight: float = setting(1.0, "weight of the contrasts vs and sv", metavar="W", least=0, most=1e6, before=1.0)
    dynamic_weight: float = setting(1.0, "weight of the contrasts vd and dv", metavar="W", least=0, most=1e6, before=1.0)
    flow_weight: float = setting(
        0.0, "weight of predicting the clip's stored flow; 0: it is not predicted", metavar="W", least=0,
        most=1e6, before=0.0,
    )  # fmt: skip
    dynamic_key: str = setting(
        "other", "the clip whose motion vd and dv meet: the other one, or the same", choices=CLIPS, before="other"
    )
    head_init: str = setting(
        "torch", "how weights of the heads are drawn: as torch does, or the authors' N(0, 0.01)", choices=HEADS, before="torch"
    )
    seed: int = 0

    def __post_init__(self) -> None:
        check_values(self)
        if self.views not in ("vsd", "vs", "vd", "v"):
            raise InputError(f"views {self.views!r}: expected vsd, vs, vd or v")
        if self.alignment < 0:
            raise InputError(f"a weight of alignment of {self.alignment}: expected 0 or more")
        if self.views == "v" and self.mined:
            raise InputError(f"mined {self.mined} with views 'v': positives are mined by s or d, expected 0")
        if self.mined and self.mine_by in ("s", "d") and self.mine_by not in self.views:
            raise InputError(f"--mine-by {self.mine_by}: that view is left out; expected both, or another view or cue")

        if self.flow_weight and self.cue not in (None, "flow"):
            raise InputError(f"--mine-by {self.cue} with --flow-weight: a clip has one stored cue, expected flow")

    def weight(self, contrast: str) -> float:
        """What one of the embeddings' contrasts counts in the loss."""
        return {"s": self.static_weight, "d": self.dynamic_weight}.get(contrast.strip("v"), 1.0)

    @property
    def embeddings(self) -> tuple[str, ...]:
        """Those that the views allow, such as vv, vs, sv."""
        return tuple(name for name in RINGS if set(name) <= set(self.views))

    @property
    def momenta(self) -> dict[str, float | None]:
        """The momentum of the encoder that passes each view, and m: of the one that mines. None: it is f_k."""
        given = {"v": None, "s": self.static_momentum, "d": self.dynamic_momentum, "m": self.mining_momentum}
        return {who: given[who] for who in self.views + "m" * (self.mined > 0)}

    def follower(self, who: str) -> str:
        """The first of :attr:`momenta` with the same one: they share an encoder, and that of v is f_k."""
        return next(first for first, momentum in self.momenta.items() if momentum == self.momenta[who])

    @property
    def inputs(self) -> str:
        """The views, and c where the method needs the :attr:`stored` cue."""
        return self.views + "c" * (self.stored is not None)

    @property
    def stored(self) -> str | None:
        """The stored cue that mines or is predicted, if any."""
        return "flow" if self.flow_weight else self.cue

    @property
    def cue(self) -> str | None:
        """The stored cue that mines in the place of d, if any."""
        return self.mine_by if self.mined and MINERS[self.mine_by] else None

    @property
    def mining(self) -> dict[str, str]:
        """What mines (views, c the cue), each with the ring that it looks at: a view's is its embedding's, or m and the view
        where another encoder mines."""
        if not self.mined:
            return {}
        by = self.views[1:].replace("d", "") + "c" if self.cue else self.views[1:] if self.mine_by == "both" else self.mine_by
        own = {one: one != "c" and self.follower(one) == self.follower("m") for one in by}
        return {one: "c" if one == "c" else f"{one}v" if own[one] else f"m{one}" for one in by}

    def mined_by(self, contrast: str) -> list[str]:
        """Which of :attr:`mining` mine the positives of one of the embeddings' contrasts."""
        wanted = contrast.replace("d", "c") if self.cue else contrast
        return [one for one in self.mining if one in wanted or contrast == "vv" or self.mine_by in ("s", "d")]

    @property
    def rings(self) -> tuple[str, ...]:
        """Those of the queue."""
        return tuple(dict.fromkeys((*self.embeddings, *self.mining.values())))


@dataclass(frozen=True)
class Statistics:
    """Over what BatchNorm's statistics are taken (dclr/method/norm.py says what these mean): ``mode`` one of :data:`BN_MODES`,
    ``groups`` of each process, ``views`` split or shared. Raises InputError for what is none of that."""

    mode: str = setting(
        "sync", "BatchNorm's statistics: of all processes' videos, of a group with keys shuffled, of a group", choices=BN_MODES
    )
    groups: int = 1
    views: str = setting("split", "statistics of each of the views v, s and d, or of all together", choices=BN_VIEWS)

    def __post_init__(self) -> None:
        if self.mode not in BN_MODES or self.views not in BN_VIEWS:
            raise InputError(
                f"--bn {self.mode}, --bn-views {self.views}: expected {', '.join(BN_MODES)}; {' or '.join(BN_VIEWS)}"
            )
        if self.groups < 1 or (self.mode == "sync" and self.groups > 1):
            raise InputError(f"--bn-groups {self.groups}: expected 1 or more groups of --bn shuffle or local; sync has one")


def default_length(videos: int, batch: int) -> int:
    """The largest multiple of the batch not above min(2048, videos / 2), at least one batch: it fills in the first epoch."""
    return max(batch, min(2048, videos // 2) // batch * batch)


@dataclass(frozen=True, kw_only=True)
class Network:
    title = "network"
    arch: str = setting(
        "r2plus1d_10", "the network; r2plus1d_10 is the authors'", short="-a", metavar="ARCH", choices=ARCHITECTURES
    )
    width: int = setting(64, "channels of the first stage", metavar="N", least=1, most=65_536)
    dynamic: str = setting(
        "rgbdiff", "dynamic view: the clip's difference, the stored one (cue), or the stored flow", choices=DYNAMICS
    )
    queue: int | None = setting(
        None, "negatives of a contrast, at least a batch", metavar="N", least=1, most=QUEUE,
        derived="half of the videos and 2048 at most, in whole batches: the first epoch fills it",
    )  # fmt: skip
    bn: str = again(Statistics, "mode")
    bn_groups: int | None = setting(
        None, "groups of each process's batch, for --bn shuffle or local", metavar="N", least=1, most=MANY,
        derived="2 for --bn shuffle on one process, else 1",
    )  # fmt: skip
    bn_views: str = again(Statistics, "views")
