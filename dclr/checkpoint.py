"""Checkpoints: written whole or not at all, and read without pickle. A file that is no checkpoint is refused by its name.

Weights are read from what train_pretrain.py and dclr.export write, from the authors' checkpoints (``module.encoder_q.stem...``
with heads ``fvv, fvs, fvd, fsv, fdv``), from MoCo's and VideoMoCo's (``encoder_q.*``, ``fc``) and from plain state dicts of the
VideoResNet and I3D layouts (dclr/method/backbones). The network is recognised by names and shapes: the authors'
"r2plus1d_18" is recognised as an r2plus1d_10.
"""

from __future__ import annotations

import errno
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from dclr.data.clips import LEARNED, ClipConfig
from dclr.errors import InputError
from dclr.files import whole
from dclr.method.backbones import ARCHITECTURES, build
from dclr.method.backbones.layers import Backbone
from dclr.method.model import Encoder
from dclr.method.norm import Statistics
from dclr.method.objective import RINGS
from dclr.text import table

CHECKPOINT_VERSION = 1
OURS = "f_q."  # the trained encoder in our checkpoints
PREFIXES = ("module.", "encoder_q.", "backbone.")  # around the trunk's names in others'
FIRST = ("layer1.0.conv1.1.weight", "layer1.0.conv2.1.weight", "Conv3d_1a_7x7.bn.weight", "Conv3d_2b_1x1.bn.weight")  # width
AUTHORS_HEAD = re.compile(rf"^f({'|'.join(RINGS)})\.")
NO_WEIGHTS = re.compile(r"\.(num_batches_tracked|running_(mean|var)_[sd])$")  # of names that a trunk does without
Tensors = dict[str, torch.Tensor]


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write ``state`` (tensors and plain Python) under ``path``, whole or not at all; raises OSError."""
    with whole(path) as unfinished, unfinished.open("wb") as file:
        try:
            torch.save({"version": CHECKPOINT_VERSION, **state}, file)
        except RuntimeError as error:  # what torch makes of a disk that is full
            reason = error.__context__
            raise reason if isinstance(reason, OSError) else OSError(errno.EIO, str(error).splitlines()[0]) from None


def read(path: Path) -> Any:
    """Read what torch.save wrote to ``path``, onto the CPU. Only tensors and plain Python are read (``weights_only``).

    Raises InputError for a file that is missing or damaged, that claims to unpack to more bytes than it has, or that holds
    anything else, which the message names."""
    if not path.is_file():
        raise InputError(
            f"{path}: no such checkpoint; expected a file that train_pretrain.py wrote, such as runs/first/last.pt, or weights"
        )
    require_unpacked(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a hostile or damaged file makes the reader raise, the file is to blame
        other = re.search(r"GLOBAL (\S+)", str(error))
        if other:
            raise InputError(f"{path}: it holds {other[1]}, and only tensors are read: save its state_dict alone") from None
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(f"{path}: not a readable checkpoint ({reason})") from None


def require_unpacked(path: Path) -> None:
    """Raises InputError where a zip archive claims to unpack to more bytes than the file has. torch stores tensors unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            declared, there = sum(member.file_size for member in archive.infolist()), path.stat().st_size
    except Exception:  # none, or a damaged one: who reads it says so
        return
    if declared > there:
        raise InputError(f"{path}: {there} bytes that say they unpack to {declared}, expected a file of torch.save")


def load(path: Path) -> dict[str, Any]:
    """The whole state of a run of train_pretrain.py; raises InputError as :func:`read` does, and for any other file."""
    return _checked(path, read(path))


def _checked(path: Path, state: Any) -> dict[str, Any]:
    missing = {"version", "config", "model"} - set(state if isinstance(state, dict) else ())
    if missing:
        raise InputError(f"{path}: not a checkpoint of train_pretrain.py (it lacks {', '.join(sorted(missing))})")
    if not isinstance(state["config"], dict) or not isinstance(state["model"], dict):
        raise InputError(f"{path}: not a checkpoint of train_pretrain.py (its config and model are no tables)")
    if type(state["version"]) is not int or state["version"] != CHECKPOINT_VERSION:
        raise InputError(f"{path}: checkpoint version {state['version']!r}, this code reads version {CHECKPOINT_VERSION}")
    return state


@dataclass(frozen=True)
class Trunk:
    """A backbone to evaluate: the ``module``, its ``arch`` and ``width``, the ``clip`` (frames, stride or clip_fps, size) that
    it learned on (empty where the file does not say), and ``matched``, a table of what was found in the file."""

    module: Backbone
    arch: str
    width: int
    clip: dict[str, Any]
    matched: str = "random weights"


def load_trunk(path: Path) -> Trunk:
    """The trunk in ``path``, in evaluation mode, every tensor of it matched; its BatchNorm statistics are those of RGB clips.

    Raises InputError for a file as :func:`read` does, and for one that does not hold a whole trunk, naming the first mismatch.
    """
    return _trunk(path, *_weights(path))


def load_encoder(path: Path | str) -> Encoder:
    """The trained encoder in ``path``, in evaluation mode; use its :meth:`Encoder.embed` and :meth:`Encoder.map`.

    It has the heads that the file has: all five from our checkpoints and the authors', none from other trunks. Raises
    InputError as :func:`load_trunk` does."""
    path = Path(path)
    tensors, config, aside = _weights(path)
    trunk = _trunk(path, tensors, config, aside)
    heads = tuple(ring for ring in RINGS if any(name.startswith(f"heads.{ring}.") for name in tensors))
    last = tensors.get(f"heads.{heads[0]}.2.weight") if heads else None
    dimensions = 128 if last is None or last.dim() != 2 else len(last)
    split = any(name.endswith("running_mean_s") for name in tensors)
    encoder = Encoder(trunk.module, heads, Statistics(views="split" if split else "shared"), dimensions)
    state = encoder.state_dict()
    strange = [n for n in tensors if n.startswith("heads.") and n not in state]
    if strange:
        raise InputError(f"{path}: {strange[0]} is {_shape(tensors[strange[0]])}, expected heads of two layers, .0 and .2")
    _check_values(path, tensors, [n for n in state if n.startswith("heads.") and n in tensors])
    for name, own in state.items():
        found = tensors.get(name.removeprefix("backbone."))
        if found is not None and found.shape == own.shape:
            state[name] = found
        elif not name.endswith("num_batches_tracked"):
            raise InputError(f"{path}: {name} is {_shape(found)}, expected {_shape(own)}")
    encoder.load_state_dict(state)
    return encoder.eval()


def random_trunk(arch: str, width: int, seed: int) -> Trunk:
    """The same trunk with random weights: the baseline of every evaluation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Trunk(build(arch, width), arch, width, {})


def _weights(path: Path) -> tuple[Tensors, dict[str, Any], list[str]]:
    """The encoder's tensors by the trunk's names, what the file says of the network and its clips (maybe nothing), and the
    names of the tensors that lie beside the encoder."""
    config: dict[str, Any] = {}
    if path.suffix == ".safetensors" and path.is_file():
        try:
            with safe_open(path, "pt") as file:
                state: Any = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                config = dict(file.metadata() or {})
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"{path}: not a readable safetensors file ({error})") from None
    else:
        state = read(path)
    if isinstance(state, dict) and {"version", "config", "model"} <= set(state):
        config, weights = _checked(path, state)["config"], state["model"]
        ours = {name.removeprefix(OURS): x for name, x in weights.items() if str(name).startswith(OURS)}
        state = ours or weights  # train_eval.py finetune writes its classifier as it is
    elif isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not state:
        raise InputError(f"{path}: it holds no weights by name (a {type(state).__name__})")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise InputError(
                f"{path}: {name!r} is a {type(value).__name__}, and only tensors are read: save its state_dict alone"
            )
        if value.layout != torch.strided or value.is_nested or value.is_meta or value.is_quantized:
            raise InputError(f"{path}: {name} is no plain tensor (layout {value.layout}): save its state_dict on the CPU")
        claimed, held = value.numel() * value.element_size(), value.untyped_storage().nbytes()
        if claimed > held:  # one number said to fill a tensor that no memory holds
            raise InputError(f"{path}: {name} claims {claimed} bytes, and the file has {held} for it")
    aside: list[str] = []
    for prefix in PREFIXES:
        inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if inside:  # what lies beside it is another encoder, or queues; ours has the heads there
            heads = {name: value for name, value in state.items() if name.startswith("heads.")}
            aside += [name for name in state if not name.startswith((prefix, "heads."))]
            state = inside | heads
    return {AUTHORS_HEAD.sub(r"heads.\1.", name): value for name, value in state.items()}, config, aside


def _trunk(path: Path, tensors: Tensors, config: Mapping[str, Any], aside: Sequence[str]) -> Trunk:
    width = next((len(tensors[name]) for name in FIRST if name in tensors and tensors[name].dim() == 1), 0)
    said = config.get("arch", config.get("architecture"))
    if said is not None and said not in list(ARCHITECTURES):
        raise InputError(f"{path}: it says its network is {said!r}, expected one of {', '.join(ARCHITECTURES)}")
    if not width and said is not None and re.fullmatch("[0-9]{1,5}", str(config.get("width"))):  # of a network with other names
        width = int(config["width"])
    best, wanted, wrong = "", Tensors(), ["?"]
    for arch in ARCHITECTURES if said is None else [said]:
        if not width:
            break
        with torch.device("meta"):
            names = {n: x for n, x in build(arch, width).state_dict().items() if not NO_WEIGHTS.search(n)}
        bad = [n for n, x in names.items() if n not in tensors or tensors[n].shape != x.shape]
        if not best or len(names) - len(bad) > len(wanted) - len(wrong):
            best, wanted, wrong = arch, names, bad
    if not best:
        known = ", ".join(ARCHITECTURES)
        raise InputError(f"{path}: no trunk of {known} in it; its first tensors are {', '.join(list(tensors)[:3])}")
    tops = {name.split(".")[0] for name in wanted}
    rest = [n for n in tensors if n not in wanted and not NO_WEIGHTS.search(n)]
    wrong += [n for n in rest if n.split(".")[0] in tops]
    if wrong:
        first, expected = wrong[0], wanted.get(wrong[0])
        raise InputError(
            f"{path}: {len(wanted) - sum(n in wanted for n in wrong)} of {len(wanted)} tensors match {best} of width {width}; "
            f"the first mismatch is {first}: found {_shape(tensors.get(first))}, expected {_shape(expected)}"
        )
    _check_values(path, tensors, wanted)
    module = build(best, width)
    module.load_state_dict({name: tensors[name] for name in wanted}, strict=False)  # all of them: checked above
    try:
        clip: dict[str, Any] = {name: kind(config[name]) for name, kind in LEARNED.items() if config.get(name) is not None}
        ClipConfig(**clip)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InputError(f"{path}: what it says of its clips is not readable: {str(error).removeprefix('--')}") from None
    rest += aside
    beside = ", ".join(dict.fromkeys(_group(n) for n in rest)) or "nothing"
    rows = [
        ["tensors", "", f"{best} of width {width}"],
        ["matched", str(len(wanted)), "all of the trunk"],
        ["missing", "0", "a classifier is trained anew"],
        ["unexpected", str(len(rest)), f"left aside: {beside}"],
    ]
    return Trunk(module.eval(), best, width, clip, table(rows))


def _group(name: str) -> str:
    """What a tensor that is left aside belongs to: a head, a classifier, another encoder."""
    parts = name.split(".")
    return ".".join(parts[: 2 if parts[0] in ("heads", "module") else 1])


def _check_values(path: Path, tensors: Tensors, names: Iterable[str]) -> None:
    for name in names:
        if not tensors[name].is_floating_point():
            raise InputError(f"{path}: {name} holds {str(tensors[name].dtype)[6:]}, expected floating point")
        if not torch.isfinite(tensors[name]).all():
            raise InputError(f"{path}: {name} is not finite everywhere: the training that made it had diverged")


def _shape(tensor: torch.Tensor | None) -> str:
    return "nothing" if tensor is None else str(tuple(tensor.shape))
