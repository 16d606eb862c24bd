"""Checkpoints: written whole or not at all, and read without pickle. A file that is no checkpoint is refused by its name.

Weights are read from what train_pretrain.py and dclr.export write, from the authors' checkpoints (``module.encoder_q.stem...``
with heads ``fvv, fvs, fvd, fsv, fdv``), from MoCo's and VideoMoCo's (``encoder_q.*``, ``fc``) and from plain state dicts of the
VideoResNet and I3D layouts (dclr/method/backbones), whatever wraps their names; and from a folder that dclr.export wrote. The
network is recognised by names and shapes: the authors' "r2plus1d_18" is recognised as an r2plus1d_10. What is loaded takes
clips in our pixels, whatever pixels it learned from (dclr/method/pixels.py).
"""

from __future__ import annotations

import errno
import hashlib
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from dclr.data.clips import LEARNED, ClipConfig
from dclr.errors import InputError
from dclr.files import whole
from dclr.method.backbones import ARCHITECTURES, build
from dclr.method.backbones.layers import Backbone, fronted
from dclr.method.model import Encoder
from dclr.method.norm import Statistics
from dclr.method.objective import RINGS
from dclr.method.pixels import IMAGENET, PUBLISHED, InputPixels, PixelSettings, recorded
from dclr.parse import from_json, parsing, read_whole, require_small
from dclr.text import plain, table

CHECKPOINT_VERSION = 1
NO_TENSORS = {  # without tensors in them
    "version", "config", "classes", "stored", "kind", "state_version", "loader", "scaler", "revision",
}  # fmt: skip
OURS = "f_q."  # the trained encoder in our checkpoints
TABLES = ("state_dict", "model", "model_state_dict", "model_state")  # around the tensors in others'
PREFIXES = ("_orig_mod.", "module.", "model.", "encoder_q.", "backbone.")  # around the trunk's names in others'
MOST_WRAPPED = 8  # tables and names in one another
WEIGHTS = "model.safetensors"  # of a folder that dclr.export wrote, and beside it
FOLDER_SAID = ("config.json", "preprocessing.json")  # what it says of itself
MAX_SAID = 1 << 24  # bytes of each
MAX_PIXELS = 1 << 28  # of a clip that a file says that its network takes
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # of weights; of others torch cannot say what is finite
NO_FILES = {  # beginnings of what downloads leave in the place of weights, and the way out
    b"<!doctype html": "an HTML page, not weights: its server answered with a page; download the file itself",
    b"<html": "an HTML page, not weights: its server answered with a page; download the file itself",
    b"<?xml": "an XML page, not weights: its server answered with an error or a list; download the file itself",
    b"version https://git-lfs": "a git-lfs pointer, not the weights themselves: git lfs pull in its repository fetches them",
}
KEPT_BESIDE = ("heads.", "fc.", "norm.")  # a trunk that has a name: our heads, and the classifier of a finetuning
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
    """Read what torch.save wrote to ``path``, onto the CPU. Only tensors and plain Python are read (``weights_only``). Tensors
    are mapped: what is not used takes no memory.

    Raises InputError for a file that is missing or damaged, that claims more bytes than it has, or that holds anything else,
    which the message names."""
    if not path.is_file():
        raise InputError(
            f"{path}: no such checkpoint; expected a file that train_pretrain.py wrote, such as runs/first/last.pt, or weights"
        )
    require_file(path)
    require_unpacked(path)
    with path.open("rb") as file:
        mapped = file.read(4) == b"PK\x03\x04"  # torch's test; before 1.6 it wrote another format
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # whatever a hostile or damaged file makes the reader raise, the file is to blame
        other = re.search(r"GLOBAL (\S+)", str(error))
        if other:
            raise InputError(f"{path}: it holds {other[1]}, and only tensors are read: save its state_dict alone") from None
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        if reason.startswith("Weights only load failed"):  # torch's advice is to read pickled code
            reason = "neither a file of torch.save, or a damaged one, nor safetensors"
        raise InputError(f"{path}: not a readable checkpoint ({plain(reason, 200)})") from None
    with parsing(str(path), "a readable checkpoint"):
        require_small(state)
        _require_held(path, state)
    return state


def _require_held(path: Path, state: Any) -> None:
    """Raises InputError where tensors claim more bytes than the file has."""
    held, there = dict[int, int](), path.stat().st_size
    for name, value in _tensors(state, ""):
        if value.layout != torch.strided or value.is_nested or value.is_meta:
            continue  # whoever takes tensors wants plain ones
        claimed, storage = value.numel() * value.element_size(), value.untyped_storage()
        if claimed > storage.nbytes():  # one number said to fill a tensor that no memory holds
            where = plain(name, 80)
            raise InputError(f"{path}: {where} claims {claimed} bytes, and the file has {storage.nbytes()} for it")
        held[storage.data_ptr()] = storage.nbytes()
        if (claimed := sum(held.values())) > there:
            raise InputError(f"{path}: its tensors up to {plain(name, 80)} claim {claimed} bytes, and the file has {there}")


def _tensors(value: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in nested tables and lists, with their places."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inside in value.items():
            yield from _tensors(inside, f"{name}.{plain(str(key), 80)}".lstrip("."))
    elif isinstance(value, list | tuple):
        for number, inside in enumerate(value):
            yield from _tensors(inside, f"{name}.{number}".lstrip("."))


def require_file(path: Path) -> None:
    """Raises InputError for a page or a pointer that lies where weights should, naming it as what it is."""
    with path.open("rb") as file:
        begins = file.read(256).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for beginning, what in NO_FILES.items():
        if begins.startswith(beginning):
            raise InputError(f"{path}: it is {what}")


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
    for name in NO_TENSORS & state.keys():
        if where := next((where for where, _ in _tensors(state[name], name)), None):
            raise InputError(f"{path}: {where} is a tensor, expected plain values")
    if type(state["version"]) is not int or state["version"] != CHECKPOINT_VERSION:
        found = plain(repr(state["version"]), 80)
        raise InputError(f"{path}: checkpoint version {found}, this code reads version {CHECKPOINT_VERSION}")
    for name in ("config", "model"):
        if odd := [key for key in state[name] if not isinstance(key, str)]:
            raise InputError(f"{path}: its {name} has {plain(repr(odd[0]), 80)}, expected names")
    return state


@dataclass(frozen=True)
class Trunk:
    """A backbone to evaluate: the ``module``, its ``arch`` and ``width``, the ``clip`` (frames, stride or clip_fps, size) that
    it learned on (empty where the file does not say), and ``matched``, a table of what was found in the file and a line with
    the pixels that it learned from.

    ``module`` takes clips in our pixels; its ``pixels`` are its own. ``classes`` are those that a finetuned file names, and
    ``head`` what it classifies by: ``fc.weight`` and so on. ``config`` is what the file says of how it was made,
    and ``stored`` how the frames were stored that a finetuned one was tested on."""

    module: Backbone
    arch: str
    width: int
    clip: dict[str, Any]
    matched: str = "random weights"
    classes: list[str] = field(default_factory=list)
    head: Tensors = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    stored: dict[str, Any] = field(default_factory=dict)


def load_trunk(path: Path | str, pixels: PixelSettings | None = None) -> Trunk:
    """The trunk in ``path``, in evaluation mode, every tensor of it matched; its BatchNorm statistics are those of RGB clips.

    ``pixels`` are those that it learned from, for a file that does not say it. Raises InputError for a file as :func:`read`
    does, for one that does not hold a whole trunk, naming the first mismatch, and for one that says other pixels.
    """
    path = Path(path)
    return _trunk(path, _weights(path), pixels or PixelSettings())


def load_encoder(path: Path | str, pixels: PixelSettings | None = None) -> Encoder:
    """The trained encoder in ``path``, in evaluation mode; use its :meth:`Encoder.embed` and :meth:`Encoder.map`.

    It takes clips in our pixels (:func:`dclr.method.views.normalise`), whatever it learned from: ``pixels``, for a file that
    does not say it. It has the heads that the file has: all five from our checkpoints and the authors', none from other trunks.
    Raises InputError as :func:`load_trunk` does."""
    path = Path(path)
    weights = _weights(path)
    trunk, tensors = _trunk(path, weights, pixels or PixelSettings()), weights.tensors
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


def random_trunk(arch: str, width: int, seed: int, pixels: InputPixels = IMAGENET) -> Trunk:
    """The same trunk with random weights: the baseline of every evaluation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Trunk(fronted(build(arch, width), pixels), arch, width, {})


def digest(path: Path) -> str:
    """The sha256 of the weights in a file or in a folder that dclr.export wrote."""
    with (path / WEIGHTS if path.is_dir() else path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Weights:
    """The encoder's ``tensors`` by the trunk's names; the ``config``, what the file says of the network and its clips, maybe
    nothing; the names of the tensors that lie beside the encoder (``aside``); whether they are the trained one of a pair
    (``paired``), as MoCo's are; the ``classes`` that it names; and how the frames were
    ``stored`` that it was tested on."""

    tensors: Tensors
    config: dict[str, Any]
    aside: list[str]
    paired: bool
    classes: list[str]
    stored: dict[str, Any]


def _folder(path: Path) -> dict[str, Any]:
    """What a folder that dclr.export wrote says of its network."""
    said: dict[str, Any] = {}
    for name in FOLDER_SAID:
        if (path / name).is_file():  # else the weights may say it, or are in a layout that is recognised
            with parsing(str(path / name), "what dclr.export writes"):
                said |= from_json(read_whole(path / name, MAX_SAID, "a table"), dict)
    return said


def _weights(path: Path) -> Weights:
    """What is in a file, or in a folder that dclr.export wrote; raises InputError for what is no table of plain tensors."""
    config, said, classes, stored = dict[str, Any](), dict[str, Any](), list[str](), dict[str, Any]()
    if path.is_dir():
        if not (path / WEIGHTS).is_file():
            raise InputError(f"{path}: a folder without {WEIGHTS}: name one that dclr.export wrote, or a file, such as last.pt")
        said, path = _folder(path), path / WEIGHTS
    if path.suffix == ".safetensors" and path.is_file():
        require_file(path)
        with parsing(str(path), "a readable safetensors file"), safe_open(path, "pt") as file:
            state: Any = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # mapped
            config = dict(file.metadata() or {})
    else:
        state = read(path)
    if isinstance(state, dict) and {"version", "config", "model"} <= set(state):
        config, weights = _checked(path, state)["config"], state["model"]
        classes, stored = state.get("classes", []), state.get("stored", {})
        ours = {name.removeprefix(OURS): x for name, x in weights.items() if str(name).startswith(OURS)}
        state = ours or weights  # train_eval.py finetune writes its classifier as it is
    for _ in range(MOST_WRAPPED):
        state = next((state[name] for name in TABLES if isinstance(state, dict) and isinstance(state.get(name), dict)), state)
    if not isinstance(state, dict) or not state:
        raise InputError(f"{path}: it holds no weights by name (a {type(state).__name__})")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise InputError(
                f"{path}: {plain(repr(name), 200)} is a {type(value).__name__}, and only tensors are read: save its state_dict "
                "alone"
            )
        if value.layout != torch.strided or value.is_nested or value.is_meta or value.is_quantized:
            raise InputError(f"{path}: {name} is no plain tensor (layout {value.layout}): save its state_dict on the CPU")
    config |= said
    classes = said.get("classes", classes)
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise InputError(f"{path}: its classes are no list of names")
    state, aside, paired = _unwrapped(state)
    tensors = {AUTHORS_HEAD.sub(r"heads.\1.", name): value for name, value in state.items()}
    return Weights(tensors, config, aside, paired, classes, stored if isinstance(stored, dict) else {})


def _unwrapped(state: Tensors) -> tuple[Tensors, list[str], bool]:
    """The encoder's tensors without what others put before their names, the names of those that lie beside it, and whether it
    is one of a pair."""
    aside: list[str] = []
    paired = False
    for prefix in PREFIXES * MOST_WRAPPED:
        if any(name in state for name in FIRST):
            break
        inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if inside:  # what lies beside it is another encoder, or queues; ours has heads or a classifier there
            kept = {name: value for name, value in state.items() if name.startswith(KEPT_BESIDE)}
            aside += [name for name in state if not name.startswith((prefix, *KEPT_BESIDE))]
            state, paired = kept | inside, paired or prefix == "encoder_q."
    return state, aside, paired


def _pixels(path: Path, arch: str, found: Weights, told: PixelSettings) -> tuple[InputPixels, str]:
    """The pixels that a network learned from, and who says so."""
    config = found.config
    try:
        its = recorded(config)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{path}: what it says of its pixels is not readable: {error}") from None
    why = "as the file says"
    if its is None:
        if found.paired or any(config.get(name) is not None for name in LEARNED):
            its, why = IMAGENET, "ImageNet's, as DCLR and MoCo have"  # a checkpoint of before this was recorded
        else:
            its, why = PUBLISHED.get(arch, (IMAGENET, "ImageNet's, a guess"))
        why = f"{why}; --mean, --std and --order say otherwise"
        if told.mean or told.order:
            its, why = told.pixels(its), "as given"
    elif told.pixels(its) != its:
        raise InputError(f"{path}: it says its pixels are {its}: leave --mean, --std and --order out")
    return its, f"{its} ({why})"


def _trunk(path: Path, found: Weights, told: PixelSettings) -> Trunk:
    tensors, config = found.tensors, found.config
    width = next((len(tensors[name]) for name in FIRST if name in tensors and tensors[name].dim() == 1), 0)
    said = config.get("arch", config.get("architecture"))
    if said is not None and said not in list(ARCHITECTURES):
        found_arch = plain(repr(said), 80)
        raise InputError(f"{path}: it says its network is {found_arch}, expected one of {', '.join(ARCHITECTURES)}")
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
        if (count := ClipConfig(**clip).frames * ClipConfig(**clip).size ** 2) > MAX_PIXELS:
            raise InputError(f"frames and size are {count} pixels, expected at most {MAX_PIXELS}")
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InputError(f"{path}: what it says of its clips is not readable: {str(error).removeprefix('--')}") from None
    pixels, seen = _pixels(path, best, found, told)
    head = {n: tensors[n] for n in rest if n.startswith(("fc.", "norm.")) and found.classes}
    rest += found.aside
    beside = ", ".join(dict.fromkeys(_group(n) for n in rest)) or "nothing"
    rows = [
        ["tensors", "", f"{best} of width {width}"],
        ["matched", str(len(wanted)), "all of the trunk"],
        ["missing", "0", "nothing of the trunk"],
        ["unexpected", str(len(rest)), f"beside the trunk: {beside}"],
    ]
    matched = f"{table(rows)}\npixels: {seen}"
    return Trunk(fronted(module, pixels).eval(), best, width, clip, matched, found.classes, head, config, found.stored)


def _group(name: str) -> str:
    """What a tensor beside the trunk belongs to: a head, a classifier, another encoder."""
    parts = name.split(".")
    return ".".join(parts[: 2 if parts[0] in ("heads", "module") else 1])


def _check_values(path: Path, tensors: Tensors, names: Iterable[str]) -> None:
    for name in names:
        if tensors[name].dtype not in FLOATS:
            raise InputError(f"{path}: {name} holds {str(tensors[name].dtype)[6:]}, expected floating point")
        if not torch.isfinite(tensors[name]).all():
            raise InputError(f"{path}: {name} is not finite everywhere: the training that made it had diverged")


def _shape(tensor: torch.Tensor | None) -> str:
    return "nothing" if tensor is None else str(tuple(tensor.shape))
