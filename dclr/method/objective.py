"""What is trained, without torch: the views and the lines of the loss, the BatchNorm statistics, the queue's length.

dclr/method/model.py, dclr/method/norm.py and dclr/method/queue.py compute it.
"""

from __future__ import annotations

from dataclasses import dataclass

from dclr.errors import InputError
from dclr.method.backbones import ARCHITECTURES
from dclr.settings import again, check_values, setting

RINGS = ("vv", "sv", "dv", "vs", "vd")  # the embeddings, see dclr/method/model.py
FORMS = ("mil", "masked", "mean-log")  # of the contrast
TARGETS = ("sum", "equal")  # of the alignment
MODES = ("sync", "shuffle", "local")  # of BatchNorm's statistics: over which videos
BN_VIEWS = ("split", "shared")  # and over which views
DYNAMICS = {"rgbdiff": None, "cue": "diff", "flow": "flow"}  # dynamic view -> the stored cue that it is made of


@dataclass(frozen=True)
class Method:
    """What is trained. The default is DCLR; each field is one line of the loss (docs/method.md, "Baseline and ablations").

    ``views`` are those that are forwarded: ``"vd"`` is DCLR without the static view, ``"v"`` MoCo-v2. ``mined`` is k (0: the
    own key is the only positive), ``alignment`` its weight (0: without), ``decoupling`` whether maps weight the RGB features
    (else they are 1), ``loss`` and ``align_target`` one of :data:`FORMS` and :data:`TARGETS`, ``symmetric``
    whether the clips are also swapped and the losses averaged. ``seed`` is that of the shuffled keys and of ``masked``. Raises
    InputError for what is no method.
    """

    views: str = "vsd"
    mined: int = setting(5, "positives mined from other videos", metavar="K", least=0)
    alignment: float = 0.1
    decoupling: bool = True
    loss: str = setting("mil", "contrast: mil, masked (own key left out at random) or mean-log", choices=FORMS)
    align_target: str = setting("sum", "of the maps A(s), A(d): sum, or equal (each with mean 1 first)", choices=TARGETS)
    symmetric: bool = setting(False, "also with the two clips swapped; twice the work")
    seed: int = 0

    def __post_init__(self) -> None:
        check_values(self)
        if self.views not in ("vsd", "vs", "vd", "v"):
            raise InputError(f"views {self.views!r}: expected vsd, vs, vd or v")
        if self.alignment < 0:
            raise InputError(f"a weight of alignment of {self.alignment}: expected 0 or more")
        if self.views == "v" and self.mined:
            raise InputError(f"mined {self.mined} with views 'v': positives are mined by s or d, expected 0")

    @property
    def embeddings(self) -> tuple[str, ...]:
        """Those that the views allow, such as vv, vs, sv."""
        return tuple(name for name in RINGS if set(name) <= set(self.views))


@dataclass(frozen=True)
class Statistics:
    """Over what BatchNorm's statistics are taken (dclr/method/norm.py says what these mean): ``mode`` one of :data:`MODES`,
    ``groups`` of each process, ``views`` split or shared. Raises InputError for what is none of that."""

    mode: str = setting("sync", "BatchNorm statistics over all videos (sync), or a group: shuffle, local", choices=MODES)
    groups: int = 1
    views: str = setting("split", "statistics for each of v, s, d (split), or of all together (shared)", choices=BN_VIEWS)

    def __post_init__(self) -> None:
        if self.mode not in MODES or self.views not in BN_VIEWS:
            raise InputError(f"--bn {self.mode}, --bn-views {self.views}: expected {', '.join(MODES)}; {' or '.join(BN_VIEWS)}")
        if self.groups < 1 or (self.mode == "sync" and self.groups > 1):
            raise InputError(f"--bn-groups {self.groups}: expected 1 or more groups of --bn shuffle or local; sync has one")


def default_length(videos: int, batch: int) -> int:
    """The largest multiple of the batch not above min(2048, videos / 2), at least one batch: it fills in the first epoch."""
    return max(batch, min(2048, videos // 2) // batch * batch)


@dataclass(frozen=True, kw_only=True)
class Network:
    title = "model"
    arch: str = setting(
        "r2plus1d_10",
        "r2plus1d_10 (the authors' network), r2plus1d_18, r3d_18, mc3_18 or i3d",
        short="-a",
        metavar="ARCH",
        choices=tuple(ARCHITECTURES),
    )
    width: int = setting(64, "channels of the first stage", least=1)
    dynamic: str = setting("rgbdiff", "dynamic view: rgbdiff, cue (stored difference), flow", choices=tuple(DYNAMICS))
    queue: int | None = setting(None, "negatives; by default fills within the first epoch, 2048 at most")
    bn: str = again(Statistics, "mode")
    bn_groups: int | None = setting(None, "groups of each process's batch, by default 2 for shuffle on one process", least=1)
    bn_views: str = again(Statistics, "views")
