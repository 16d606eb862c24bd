"""Weights of every layout load, all of them or not at all; what else a file may be is refused by name."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, refuse, succeed
from safetensors.torch import save_file
from torch import nn

from dclr.checkpoint import load, load_encoder, load_trunk, save
from dclr.errors import InputError
from dclr.method.backbones import ARCHITECTURES, build
from dclr.method.norm import Statistics, ViewBatchNorm
from dclr.method.pixels import IMAGENET, SYMMETRIC, TORCHVISION, InputPixels, PixelSettings
from dclr.method.views import normalise, rgb_difference

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's on 0..255, as mmaction2 writes them
HEADS = ("fvv", "fvs", "fvd", "fsv", "fdv")


def learned(module: nn.Module) -> nn.Module:
    """With BatchNorm statistics that are not those of a new network."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm3d):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
    return module.eval()


def own(colours_BCTHW: torch.Tensor, pixels: InputPixels) -> torch.Tensor:
    """RGB colours in 0..1 as a network of these pixels was trained to see them."""
    mean, std = (torch.tensor(some).view(3, 1, 1, 1) for some in (pixels.mean, pixels.std))
    return ((colours_BCTHW if pixels.order == "rgb" else colours_BCTHW.flip(1)) - mean) / std


def head(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, 512), nn.ReLU(), nn.Linear(512, 128))


@pytest.fixture(scope="module")
def authors(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, nn.ModuleDict]:
    """A checkpoint as the authors' training script writes it, of their network "r2plus1d_18", and what is in it."""
    torch.manual_seed(0)
    trunk, heads = learned(build("r2plus1d_10")), nn.ModuleDict({name: head(512) for name in HEADS})
    state = {}
    for encoder, source in (("encoder_q", trunk), ("encoder_k", build("r2plus1d_10"))):
        state |= {f"module.{encoder}.{name}": x for name, x in source.state_dict().items()}
        state |= {f"module.{encoder}.{name}": x for name, x in heads.state_dict().items()}
    state |= {"module.queue": torch.randn(128, 2048), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    optimiser = torch.optim.SGD(trunk.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    path = tmp_path_factory.mktemp("authors") / "checkpoint_0199.pth.tar"
    torch.save({"epoch": 200, "arch": "r2plus1d_18", "state_dict": state, "optimizer": optimiser.state_dict()}, path)
    return path, trunk, heads


def test_the_authors_embeddings_and_maps_are_theirs(authors: tuple[Path, nn.Module, nn.ModuleDict]) -> None:
    path, trunk, heads = authors
    encoder = load_encoder(path)
    assert not encoder.training
    v, s, d = (torch.randn(2, 3, 8, 48, 48) for _ in "vsd")
    with torch.no_grad():
        found, its_map = encoder.embed(v, s, d), encoder.map(s)
        features = {name: trunk(x) for name, x in zip("vsd", (v, s, d), strict=True)}

    def weight(of: str) -> torch.Tensor:
        """Their activation map: the sum over channels, scaled so that it sums to the number of its places."""
        flat = features[of].sum(1).flatten(1)
        return (flat / flat.sum(1, keepdim=True) * flat.shape[1]).view_as(features[of][:, 0])

    def embedded(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(heads[name](F.adaptive_avg_pool3d(x, 1).flatten(1)), dim=1)

    torch.testing.assert_close(its_map, weight("s"), rtol=1e-4, atol=1e-5)
    expected = {
        "vv": embedded("fvv", features["v"]),
        "vs": embedded("fvs", features["v"] * weight("s").unsqueeze(1)),
        "vd": embedded("fvd", features["v"] * weight("d").unsqueeze(1)),
        "sv": embedded("fsv", features["s"]),
        "dv": embedded("fdv", features["d"]),
    }
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_the_authors_checkpoint_is_evaluated(
    authors: tuple[Path, nn.Module, nn.ModuleDict], synthetic_set: Path, tmp_path: Path
) -> None:
    common = ("--shards", synthetic_set, "--train-split", "train", "--test-split", "test", "--label", "scene", "-j", "0")
    small = ("-cs", "32", "-fpc", "4", "-cpv", "1", "--test-clips", "1", "--out", tmp_path / "out")
    said = succeed("train_eval.py", "linear", *common, *small, "--pretrained", authors[0])
    rows = [line.split() for line in said.splitlines()[1:6]]
    assert rows[0] == ["tensors", "r2plus1d_10", "of", "width", "64"] and rows[2][:2] == ["matched", "105"]
    assert rows[3][:2] == ["missing", "0"] and rows[4][0] == "unexpected"
    assert {"heads.vv,", "heads.vs,"} <= set(rows[4]) and int(rows[4][1]) > 20 and "top1" in said  # f_k, beside the heads


def test_a_run_loads_as_it_was_saved(checkpoint: Path) -> None:
    trunk, encoder = load_trunk(checkpoint), load_encoder(checkpoint)
    saved = load(checkpoint)["model"]
    assert (trunk.arch, trunk.width, trunk.clip) == ("r2plus1d_10", 4, {"frames": 4, "stride": 2, "size": 32})
    assert "r2plus1d_10 of width 4" in trunk.matched and "beside the trunk: heads.vv, heads.sv" in trunk.matched
    state = encoder.state_dict()
    assert set(state) == {name.removeprefix("f_q.") for name in saved if name.startswith("f_q.")}
    assert all(torch.equal(state[name], saved[f"f_q.{name}"]) for name in state)
    assert encoder.statistics.views == "split"
    assert torch.equal(trunk.module.state_dict()["stem.1.running_var"], saved["f_q.backbone.stem.1.running_var"])


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_weights_of_the_published_layouts_load_strictly(arch: str, tmp_path: Path) -> None:
    """Bare, as half types, with a classifier, without BatchNorm's counters (older torch)."""
    trunk = learned(build(arch, 8))
    state = {name: x.half() if x.is_floating_point() else x for name, x in trunk.state_dict().items()}
    classifier = "logits.conv3d" if arch == "i3d" else "fc"
    state = {name: x for name, x in state.items() if "num_batches" not in name}
    torch.save(
        state | {f"{classifier}.weight": torch.zeros(400, 64), f"{classifier}.bias": torch.zeros(400)}, tmp_path / "w.pth"
    )
    found = load_trunk(tmp_path / "w.pth")
    assert (found.arch, found.width, found.clip) == (arch, 8, {}) and f"beside the trunk: {classifier[:2]}" in found.matched
    assert f"{arch} of width 8" in found.matched and f"matched     {len(state)} " in found.matched
    for name, x in state.items():
        assert torch.equal(found.module.state_dict()[name], x.float())


@pytest.mark.parametrize("prefix", ["module.encoder_q.", "encoder_q.", "module.", "backbone.", "module.encoder_q.backbone."])
def test_moco_style_files_load_their_trunk(prefix: str, tmp_path: Path) -> None:
    trunk = learned(build("r3d_18", 4))
    state = {f"{prefix}{name}": x for name, x in trunk.state_dict().items()} | {f"{prefix}fc.0.weight": torch.zeros(512, 32)}
    beside = prefix.replace("_q", "_k") if "_q" in prefix else "other."
    other = {f"{beside}{name}": x + 1 for name, x in trunk.state_dict().items()}
    torch.save({"state_dict": state | other, "epoch": 3}, tmp_path / "moco.pth.tar")
    found = load_trunk(tmp_path / "moco.pth.tar")
    assert found.arch == "r3d_18" and "beside the trunk: fc" in found.matched
    colours = torch.rand(1, 3, 8, 32, 32)
    clip = normalise(colours)
    encoder = load_encoder(tmp_path / "moco.pth.tar")
    pixels = IMAGENET if "encoder_q" in prefix else TORCHVISION
    with torch.no_grad():
        torch.testing.assert_close(found.module(clip), trunk(own(colours, pixels)))
        assert encoder.map(clip).mean() == pytest.approx(1, abs=1e-3)
        with pytest.raises(InputError, match="this encoder has the heads none"):
            encoder.embed(clip, clip, clip)


@pytest.mark.parametrize(
    ("arch", "told", "pixels"),
    [
        ("r3d_18", PixelSettings(), TORCHVISION),
        ("mc3_18", PixelSettings(), TORCHVISION),
        ("r2plus1d_18", PixelSettings(), TORCHVISION),
        ("i3d", PixelSettings(), SYMMETRIC),
        ("r3d_18", PixelSettings(mean=MEAN, std=STD), IMAGENET),
        ("r3d_18", PixelSettings(order="bgr"), InputPixels(TORCHVISION.mean, TORCHVISION.std, "bgr")),
        ("i3d", PixelSettings(mean=(0, 51, 153), std=(51, 51, 51), order="bgr"), InputPixels((0, 0.2, 0.6), (0.2,) * 3, "bgr")),
    ],
)  # fmt: skip
def test_other_peoples_networks_see_their_own_pixels(
    arch: str, told: PixelSettings, pixels: InputPixels, tmp_path: Path
) -> None:
    """Behind our normalisation, in every view: what is still too, and the difference of two frames is that of their pixels."""
    plain = learned(build(arch, 4))
    torch.save(plain.state_dict(), tmp_path / "w.pth")
    trunk, encoder = load_trunk(tmp_path / "w.pth", told), load_encoder(tmp_path / "w.pth", told)
    assert f"pixels: {trunk.module.pixels}" in trunk.matched and trunk.module.pixels.order == pixels.order
    assert torch.tensor([trunk.module.pixels.mean, trunk.module.pixels.std]).allclose(torch.tensor([pixels.mean, pixels.std]))
    assert list(trunk.module.state_dict()) == list(plain.state_dict())
    colours = torch.rand(2, 3, 4, 32, 32)
    v = normalise(colours)
    views = {"v": v, "s": v[:, :, :1].expand(-1, -1, 4, -1, -1), "d": rgb_difference(v)}
    theirs = own(colours, pixels)
    with torch.no_grad():
        expected = {
            "v": plain(theirs),
            "s": plain(theirs[:, :, :1].expand(-1, -1, 4, -1, -1)),
            "d": plain(rgb_difference(theirs)),
        }
        close = {"rtol": 1e-5, "atol": 1e-5 * float(max(map(torch.max, expected.values())))}
        torch.testing.assert_close(trunk.module(v), expected["v"], **close)
        torch.testing.assert_close(encoder.backbone(v), expected["v"], **close)
        for statistics in ("shared", "split"):  # of the views together, or each by itself
            encoder.statistics = Statistics(views=statistics)
            for name, found in encoder.features(views).items():
                torch.testing.assert_close(found, expected[name], **close)


@pytest.mark.parametrize(
    ("wrapped", "table"),
    [
        ("_orig_mod.", ()),
        ("module.module.", ("model",)),
        ("model.", ("state_dict",)),
        ("module._orig_mod.model.backbone.", ("state_dict", "model")),
        ("model.encoder_q.", ("model_state",)),
    ],
)
def test_wrapped_weights_are_unwrapped(wrapped: str, table: tuple[str, ...], tmp_path: Path) -> None:
    trunk = build("r2plus1d_10", 2)
    state: Any = {f"{wrapped}{name}": x for name, x in trunk.state_dict().items()} | {"model.queue": torch.zeros(3)}
    for name in table:
        state = {name: state, "epoch": 3}
    torch.save(state, tmp_path / "w.pth")
    found = load_trunk(tmp_path / "w.pth")
    assert all(torch.equal(x, found.module.state_dict()[name]) for name, x in trunk.state_dict().items())


def test_what_is_no_file_of_weights_is_named_as_what_it_is(tmp_path: Path) -> None:
    pages = {
        "<!DOCTYPE html>\n<html>sign in</html>": "it is an HTML page, not weights",
        "\n<HTML><body>404</body>": "it is an HTML page, not weights",
        '<?xml version="1.0"?><Error><Code>NoSuchKey</Code>': "it is an XML page, not weights",
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 132735423\n": "it is a git-lfs pointer",
    }
    for text, what in pages.items():
        for name in ("w.pth", "w.safetensors"):
            (tmp_path / name).write_text(text)
            with pytest.raises(InputError, match=what):
                load_trunk(tmp_path / name)


def test_pixels_that_are_none_and_those_that_contradict_the_file_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    for more, says in (
        ({"mean": (0.5, 0.5), "std": (1, 1)}, "--mean 0.5,0.5: expected three numbers"),
        ({"mean": (0.5, 0.5, 0.5)}, "expected both or neither"),
        ({"mean": (0, 0, 0), "std": (0, 1, 1)}, "--std 0: expected above 0 to 255"),
        ({"order": "gbr"}, "--order gbr: expected one of rgb, bgr"),
    ):
        with pytest.raises(InputError, match=says):
            PixelSettings(**more)
    with pytest.raises(InputError, match=r"it says its pixels are mean 0\.485,0\.456,0\.406, .* RGB: leave --mean, --std and"):
        load_trunk(checkpoint, PixelSettings(order="bgr"))
    assert load_trunk(checkpoint, PixelSettings(mean=MEAN, std=STD)).module.pixels == IMAGENET
    model = {f"f_q.backbone.{name}": x for name, x in build("r3d_18", 2).state_dict().items()}
    for mean in ([0.5], [0.5, 0.5, float("nan")], "[" * 10**5, [10**400] * 3):
        save(tmp_path / "a.pt", {"config": {"arch": "r3d_18", "mean": mean, "std": [1, 1, 1]}, "model": model})
        with pytest.raises(InputError, match="what it says of its pixels is not readable"):
            load_trunk(tmp_path / "a.pt")


def test_the_baselines_checkpoint_has_one_head(synthetic_set: Path, tmp_path: Path) -> None:
    more = ("-b", "16", "--epochs", "1", "--objective", "moco", "--bn", "shuffle", "--bn-views", "shared")
    succeed("train_pretrain.py", "--shards", synthetic_set, "--split", "train", *SMALL, *more, "--out", tmp_path / "run")
    encoder = load_encoder(tmp_path / "run" / "last.pt")
    assert list(encoder.heads) == ["vv"] and encoder.statistics.views == "shared"
    assert not any(name.endswith("_s") for name, _ in encoder.named_buffers())
    assert any(isinstance(layer, ViewBatchNorm) for layer in encoder.modules())


def test_what_does_not_match_is_named(tmp_path: Path) -> None:
    def refused(state: Any) -> str:
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(InputError) as caught:
            load_trunk(tmp_path / "w.pth")
        return str(caught.value)

    state = build("r2plus1d_18", 4).state_dict()
    short = {name: x for name, x in state.items() if name != "layer3.1.conv2.1.bias"}
    said = refused(short)
    assert "of 185 tensors match r2plus1d_18 of width 4; the first mismatch is layer3.1.conv2.1.bias: found nothing" in said
    assert "184 of" in said and said.endswith("expected (16,)")
    assert "the first mismatch is stem.0.weight: found (2, 3, 1, 5, 5), expected (2, 3, 1, 7, 7)" in refused(
        state | {"stem.0.weight": torch.zeros(2, 3, 1, 5, 5)}
    )
    assert "layer4.2.conv1.0.0.weight: found (3,), expected nothing" in refused(
        state | {"layer4.2.conv1.0.0.weight": torch.ones(3)}
    )
    assert "no trunk of r2plus1d_10, " in refused({"conv1.weight": torch.zeros(64, 3, 7, 7)})
    spoiled = state["layer2.0.conv1.1.weight"] * float("nan")
    assert "layer2.0.conv1.1.weight is not finite" in refused(state | {"layer2.0.conv1.1.weight": spoiled})
    assert "is no plain tensor" in refused(state | {"stem.0.weight": state["stem.0.weight"].to_sparse()})
    assert "'lr' is a float, and only tensors are read" in refused(state | {"lr": 0.1})
    assert "it holds no weights by name (a list)" in refused([torch.zeros(1)])
    assert "it holds no weights by name (a dict)" in refused({})
    assert "argparse.Namespace, and only tensors are read: save its state_dict alone" in refused(
        {"state_dict": state, "args": argparse.Namespace(lr=1)}
    )
    assert "stem.0.weight holds int64, expected floating point" in refused(
        state | {"stem.0.weight": state["stem.0.weight"].long()}
    )
    assert "claims" in refused({name: torch.zeros(()).expand(x.shape) for name, x in state.items()})
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load_trunk(tmp_path / "bad.safetensors")


def written_out(depth: int) -> Any:
    """A list of a few bytes in a file, and of 10 ** ``depth`` letters written out."""
    value: Any = "x"
    for _ in range(depth):
        value = [value] * 10
    return value


def test_an_edited_checkpoint_is_refused_by_name_before_memory_is_taken(tmp_path: Path) -> None:
    model = {f"f_q.backbone.{name}": x for name, x in build("r3d_18", 1).state_dict().items()}
    first = "f_q.backbone.stem.0.weight"
    said = {"arch": "r3d_18", "frames": 4, "stride": 2, "size": 16}

    def edited(config: dict[Any, Any] | None = None, **tensors: Any) -> dict[str, Any]:
        return {"config": said if config is None else config, "model": model | {first: tensors.get("first", model[first])}}

    huge = torch.zeros(1).expand(10**9, 512)
    for state, says in (
        (edited(first=torch.zeros(1, 3, 3, 7)), r"the first mismatch is stem.0.weight: found \(1, 3, 3, 7\), expected"),
        (edited(first=model[first].to(torch.float8_e4m3fn)), "stem.0.weight holds float8_e4m3fn, expected floating point"),
        (edited(first=torch.zeros(1).expand_as(model[first])), rf"model.{first} claims \d+ bytes, and the file has 4 for it"),
        (edited() | {"optimiser": {"state": {0: {"exp_avg": huge}}}}, "optimiser.state.0.exp_avg claims 2048000000000 bytes"),
        (edited(said | {"frames": 10**9}), "clips is not readable: frames 1000000000: expected 1 to 10000"),
        (edited(said | {"size": 10**5}), "clips is not readable: "),
        (edited(said | {"frames": 10**4, "size": 4096}), "clips is not readable: frames and size are 167772160000 pixels"),
        (edited(said | {"arch": written_out(12)}), "lists and tables of more than"),
        (edited(said | {"mean": torch.zeros(3)}), "config.mean is a tensor, expected plain values"),
        (edited({3: 4}), "its config has 3, expected names"),
        ({"config": said, "model": {3: torch.zeros(3)}}, "its model has 3, expected names"),
        ({"config": said, "model": {first: torch.zeros(3)}}, "no trunk of .* its first tensors are stem.0.weight"),
    ):
        save(tmp_path / "w.pt", state)
        with pytest.raises(InputError, match=rf"w.pt: .*{says}") as refused:
            load_trunk(tmp_path / "w.pt")
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 600
    save(tmp_path / "w.pt", edited())
    assert load_trunk(tmp_path / "w.pt").width == 1


def resident() -> int:
    """Bytes of memory that this process has and no file holds."""
    return int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) << 10


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
def test_what_is_not_wanted_of_a_file_of_weights_takes_no_memory(tmp_path: Path) -> None:
    """A hole in a file is 2 GB that cost nobody anything."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 29], "data_offsets": [0, 1 << 31]}}).encode()
    with (tmp_path / "w.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + (1 << 31))
    before = resident()
    with pytest.raises(InputError, match="no trunk of"):
        load_trunk(tmp_path / "w.safetensors")
    assert resident() - before < 200 << 20


def test_metadata_of_safetensors_is_as_hostile(tmp_path: Path) -> None:
    trunk = {name: x for name, x in build("r3d_18", 1).state_dict().items() if x.is_floating_point()}
    for said, says in (
        ({"frames": "1000000000"}, "what it says of its clips is not readable"),
        ({"architecture": "r9d"}, "it says its network is 'r9d'"),
        ({"mean": "[" * 9999, "std": "1"}, "what it says of its pixels is not readable"),
    ):
        save_file(trunk, tmp_path / "w.safetensors", said)
        with pytest.raises(InputError, match=says):
            load_trunk(tmp_path / "w.safetensors")


def test_heads_of_another_shape_are_refused(authors: tuple[Path, nn.Module, nn.ModuleDict], tmp_path: Path) -> None:
    state = torch.load(authors[0], weights_only=True)["state_dict"]
    name = "module.encoder_q.fvd"

    def refused(change: dict[str, torch.Tensor | None]) -> str:
        torch.save({"state_dict": {n: x for n, x in (state | change).items() if x is not None}}, tmp_path / "w.pth")
        with pytest.raises(InputError) as caught:
            load_encoder(tmp_path / "w.pth")
        return str(caught.value)

    assert "heads.vd.4.weight" in refused({f"{name}.4.weight": torch.zeros(128, 128)})
    assert "heads.vd.2.weight is nothing, expected (128, 512)" in refused({f"{name}.2.weight": None})
    assert "heads.vd.0.weight holds int64" in refused({f"{name}.0.weight": torch.zeros(512, 512, dtype=torch.int64)})
    assert "heads.vd.0.weight is (512, 64)" in refused({f"{name}.0.weight": torch.zeros(512, 64)})
    assert "claims" in refused({f"{name}.2.weight": torch.zeros(1).expand(10**9, 512)})


def test_a_checkpoint_of_another_version_or_architecture_is_refused(tmp_path: Path) -> None:
    model = {f"f_q.backbone.{name}": x for name, x in build("r3d_18", 4).state_dict().items()}
    save(tmp_path / "a.pt", {"config": {"arch": "mc3_18"}, "model": model})
    with pytest.raises(InputError, match=r"match mc3_18 of width 4; the first mismatch is layer2.0.conv1.0.weight"):
        load_trunk(tmp_path / "a.pt")
    save(tmp_path / "b.pt", {"config": {"arch": "r3d_18", "frames": "many"}, "model": model})
    with pytest.raises(InputError, match="what it says of its clips is not readable"):
        load_trunk(tmp_path / "b.pt")
    save(tmp_path / "e.pt", {"config": {"arch": ["r3d_18"]}, "model": model})
    with pytest.raises(InputError, match=r"it says its network is \['r3d_18'\]"):
        load_trunk(tmp_path / "e.pt")
    for frames in (-3, float("inf")):
        save(tmp_path / "f.pt", {"config": {"arch": "r3d_18", "frames": frames}, "model": model})
        with pytest.raises(InputError, match="what it says of its clips is not readable"):
            load_trunk(tmp_path / "f.pt")
    save(tmp_path / "c.pt", {"config": 3, "model": model})
    with pytest.raises(InputError, match="its config and model are no tables"):
        load_trunk(tmp_path / "c.pt")
    torch.save({"version": 99, "config": {}, "model": {}}, tmp_path / "d.pt")
    with pytest.raises(InputError, match="checkpoint version 99"):
        load_encoder(tmp_path / "d.pt")


def test_files_that_are_no_checkpoints_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no weights")
    out = ("--shards", tmp_path, "--train-split", "a", "--test-split", "b", "--out", tmp_path / "out")
    assert "not a readable checkpoint" in refuse("train_eval.py", "linear", *out, "--pretrained", tmp_path / "text.pt")
    assert "no such checkpoint" in refuse("train_eval.py", "linear", *out, "--pretrained", tmp_path / "none.pt")


def test_an_edited_checkpoint_is_not_resumed_from(checkpoint: Path, synthetic_set: Path, tmp_path: Path) -> None:
    made = load(checkpoint)
    del made["version"]
    name = "f_q.backbone.stem.0.weight"
    run = ("train_pretrain.py", "--shards", synthetic_set, "--split", "train", *SMALL, "-b", "8", "--epochs", "2")
    for edits, says in (
        ({"step": 10**6, "loader": made["loader"] | {"step": 10**6}}, "it is of step 1000000, of 16 that it says"),
        ({"config": made["config"] | {"batch": "many"}}, "(--batch 8|not the state of a pretraining)"),
        ({"model": made["model"] | {name: torch.zeros(2)}}, rf"\({name} is float32 \(2,\), expected float32 \(.*\)\)"),
    ):
        save(tmp_path / "edited.pt", made | edits)
        said = refuse(*run, "--out", tmp_path / "out", "--resume", tmp_path / "edited.pt")
        assert re.search(says, said), said
