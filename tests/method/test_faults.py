"""What the published code gets wrong (docs/method.md): a test for each of the crashes and of the 13 silent faults.

Each would fail if its fault came back. The whole step is held against a slow version in test_reference.py.
"""

import copy
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY, succeed

import train_pretrain
from dclr.data import clips
from dclr.data.clips import ClipConfig
from dclr.data.config import Choice
from dclr.data.loader import TrainLoader
from dclr.data.manifest import ShardSet
from dclr.data.plan import Permutations, Plan
from dclr.method import losses, norm, views
from dclr.method.backbones import ARCHITECTURES, build
from dclr.method.model import DCLR, Output
from dclr.method.objective import BN_MODES, FORMS, RINGS, Method
from dclr.method.pixels import PixelSettings
from dclr.method.queue import Queue
from dclr.pretraining.config import Levers, PretrainConfig

CLIP = ClipConfig(frames=8, stride=2, size=32, cue="diff")
CONTRASTS = ("vv", "vs", "vd", "sv", "dv")
VIDEOS = torch.arange(4)


def make(queue: int = 8, **statistics: object) -> DCLR:
    torch.manual_seed(0)
    return DCLR(build("r2plus1d_10", 4), queue, statistics=norm.Statistics(**statistics)).train()  # type: ignore[arg-type]


def views_of(seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(4, 3, 4, 16, 16, generator=draw) for name in "vsd"}


def step(model: DCLR, number: int) -> Output:
    output = model(views_of(2 * number), views_of(2 * number + 1), VIDEOS + 4 * number, number)
    model.zero_grad()
    output.total.backward()
    model.enqueue([output])
    return output


# --- cannot run


def test_crash_4_of_5_values_are_unpacked() -> None:
    """A step gives five losses, and five keys to enqueue."""
    output = step(make(), 0)
    assert {f"L_{name}" for name in CONTRASTS} < set(output.terms) and set(output.keys[0]) == set(RINGS)


def test_crash_a_function_that_does_not_exist_reads_the_label(synthetic_set: Path) -> None:
    shards = ShardSet(synthetic_set)
    batch = next(iter(TrainLoader(shards, shards.select(["train"]), CLIP, clips=1, batch=8, seed=0, kind="scene")))
    assert batch["label"].tolist() == shards.labels["scene"][batch["sample"]].tolist() and batch["label"].min() >= 0


def test_crash_an_embedding_is_subtracted_from_a_map() -> None:
    """Alignment compares maps with maps, whatever their size."""
    query, still, moving = (torch.rand(3, 2, 5, 4) for _ in range(3))
    goal = (still + moving) / (still + moving).mean((1, 2, 3), keepdim=True)
    expected = (query / query.mean((1, 2, 3), keepdim=True) - goal).square().mean()
    torch.testing.assert_close(losses.alignment(query, [still, moving]), expected, rtol=1e-4, atol=1e-5)


def test_crash_there_is_no_evaluation_script(checkpoint: Path, synthetic_set: Path, tmp_path: Path) -> None:
    common = ("--shards", synthetic_set, "--train-split", "train", "--test-split", "test", "--label", "scene", "-j", "0")
    clip = ("-cpv", "1", "--test-clips", "1", "--pretrained", checkpoint, "--out", tmp_path / "out")
    assert "top1" in succeed("train_eval.py", "linear", *common, *clip)


def test_crash_a_batch_of_40_does_not_divide_2048() -> None:
    queue = Queue(2048, dimensions=2)
    for number in range(53):
        videos = torch.arange(40 * number, 40 * number + 40)
        queue.enqueue({ring: videos[:, None].expand(40, 2).float() for ring in RINGS}, videos)
    assert sorted(queue.video_K.tolist()) == list(range(53 * 40 - 2048, 53 * 40)) and int(queue.cursor) == 53 * 40 - 2048


def test_crash_one_device_and_the_cpu(checkpoint: Path) -> None:
    """The fixture's run: ``python train_pretrain.py`` in one process, without a GPU."""
    assert checkpoint.is_file()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_crash_512_2_7_7_is_hard_coded(arch: str) -> None:
    model = DCLR(build(arch, 4), queue_length=4)
    q, k = ({name: torch.randn(2, 3, 5, 40, 33) for name in "vsd"} for _ in "qk")
    output = model(q, k, VIDEOS[:2])
    output.total.backward()
    assert torch.isfinite(output.total) and {len(e) for e in output.keys[0].values()} == {2}


# --- silently wrong


def test_fault_1_alignment_has_a_gradient_on_the_query_side_only() -> None:
    query, static, dynamic = (torch.rand(2, 2, 3, 3, dtype=torch.float64).requires_grad_() for _ in range(3))
    losses.alignment(query, [static, dynamic]).backward()
    assert query.grad is not None and query.grad.abs().sum() > 0
    assert static.grad is None and dynamic.grad is None
    assert torch.autograd.gradcheck(lambda q: losses.alignment(q, [static.detach(), dynamic.detach()]), (query,))


def test_fault_2_shuffled_keys_meet_their_own_maps() -> None:
    """Where BatchNorm lets no video see another, sending the keys round changes nothing of any of them."""
    plain, shuffled = make(), make(mode="shuffle", groups=2)
    for model in (plain, shuffled):
        model.f_k.eval()
    for number in range(3):
        [expected], [found] = (model.keys(views_of(0), views_of(1), number) for model in (plain, shuffled))
        for one, other in zip(expected, found, strict=True):
            assert one.keys() == other.keys() and one
            for name in one:
                torch.testing.assert_close(other[name], one[name])


def test_fault_3_the_static_view_and_the_cue_have_the_clips_crop_and_flip(synthetic_set: Path) -> None:
    record = ShardSet(synthetic_set).read(0)
    config = ClipConfig(frames=8, stride=1, size=32, min_scale=0.5, cue="diff")
    mirrored = []
    for epoch in range(8):
        drawn = clips.train_clips(record, config, 1, seed=0, epoch=epoch)
        drawn["colours"][...] = (1, 1, 1, 0, 0, 1, 2, 3, 0, 0)  # v and s may differ in colour, and in nothing else
        batch = {name: torch.from_numpy(np.asarray(x))[None] for name, x in drawn.items()}
        made = views.make_views(batch, 0, "cue", torch.device("cpu"))
        still = int(drawn["still"][0])
        torch.testing.assert_close(made["s"], made["v"][:, :, still : still + 1].expand_as(made["s"]))
        luma = drawn["rgb"][0].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        moved, cue = np.diff(luma, axis=0), made["d"][0, 0, 1:].numpy()
        assert np.corrcoef(moved.ravel(), cue.ravel())[0, 1] > 0.9
        mirrored.append(np.corrcoef(moved[:, :, ::-1].ravel(), cue.ravel())[0, 1])
    assert min(mirrored) < 0.3  # so a flip of one without the other would show


def test_fault_4_the_difference_does_not_wrap() -> None:
    v = torch.randn(2, 3, 5, 4, 4)
    d = views.rgb_difference(v)
    torch.testing.assert_close(d[:, :, 0], d[:, :, 1])
    for t in range(1, 5):
        torch.testing.assert_close(d[:, :, t], v[:, :, t] - v[:, :, t - 1])


def test_fault_5_rgb_is_normalised_by_rgb() -> None:
    """A statistic for each view; evaluation uses that of RGB, which is what a network that saw RGB alone would have."""
    plain, layer = torch.nn.BatchNorm3d(3), norm.ViewBatchNorm(torch.nn.BatchNorm3d(3), norm.Statistics())
    seen = {"v": torch.randn(8, 3, 2, 4, 4) + 5, "s": torch.randn(8, 3, 2, 4, 4) - 3, "d": torch.randn(8, 3, 2, 4, 4) * 9}
    plain(seen["v"])
    for name, clip in seen.items():
        norm.use_view(layer, name)
        assert abs(float(layer(clip).detach().mean())) < 1e-4
    norm.use_view(layer, "v")
    torch.testing.assert_close(layer.eval()(seen["v"]), plain.eval()(seen["v"]))
    model = make()  # and the encoder does so: the first layer's statistics of each view are of that view alone
    clips_of = {name: torch.randn(4, 3, 4, 16, 16) * scale for name, scale in (("v", 1), ("s", 5), ("d", 0.2))}
    model.f_q(clips_of)
    first = model.f_q.backbone.stem[1]
    for name, clip in clips_of.items():
        alone = torch.nn.BatchNorm3d(first.num_features)
        alone(model.f_q.backbone.stem[0](clip))
        suffix = "" if name == "v" else f"_{name}"
        torch.testing.assert_close(getattr(first, f"running_mean{suffix}"), alone.running_mean)
        torch.testing.assert_close(getattr(first, f"running_var{suffix}"), alone.running_var)
    mixed = norm.ViewBatchNorm(torch.nn.BatchNorm3d(3), norm.Statistics(views="shared"))
    mixed(torch.cat(list(seen.values())))
    norm.reestimate(mixed, [seen["v"]] * 2)  # the other way out: RGB alone, before the evaluation
    batch = seen["v"].transpose(0, 1).flatten(1)
    torch.testing.assert_close(mixed.running_mean, batch.mean(1))
    torch.testing.assert_close(mixed.running_var, batch.var(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
def test_fault_6_half_precision_stays_finite(dtype: torch.dtype, form: str) -> None:
    """A query far from its key and close to the queue: exp overflows and the share underflows in half precision."""
    query = F.normalize(torch.randn(2, 8, generator=torch.Generator().manual_seed(0)), dim=1).to(dtype)
    allowed = torch.ones(2, 2, dtype=torch.bool)
    loss = losses.contrast(*losses.logits(query, -query, query), allowed, torch.zeros_like(allowed), FORMS[form])
    assert loss.dtype == torch.float32 and torch.isfinite(loss) and loss > 20


def test_fault_7_nothing_is_mined_from_noise_and_no_step_is_thrown_away() -> None:
    """Positives are mined once every entry is a key; until then the loss is that of the keys there are, never of noise."""
    model = make()
    outputs = [step(model, number) for number in range(4)]
    assert [float(o.stats["queue_fill"]) for o in outputs] == [0, 0.5, 1, 1]
    assert [float(o.stats["mined"]) for o in outputs] == [0, 0, 5, 5]
    assert all(float(outputs[0].terms[f"L_{name}"]) == 0 for name in CONTRASTS) and float(outputs[0].terms["align"]) > 0
    assert all(float(outputs[1].terms[f"L_{name}"]) > 0 for name in CONTRASTS)


@pytest.mark.parametrize("mode", BN_MODES)
@pytest.mark.parametrize("of_views", ["split", "shared"])
def test_fault_8_the_extra_pass_is_shuffled_and_updates_no_statistics(mode: str, of_views: str) -> None:
    """One step moves f_k's statistics exactly as one pass over the (shuffled) key clips does, and the extra pass sees the
    groups that the keys see: what it says of a video is what f_k says where those are together."""
    groups = 1 if mode == "sync" else 2
    model = make(mode=mode, groups=groups, views=of_views).double()
    model.follow()
    q, k = ({name: view.double() for name, view in views_of(number).items()} for number in (0, 1))
    expected = copy.deepcopy(model.f_k)
    order = clips.generator("shuffle", 0, 0).permutation(4) if mode == "shuffle" else np.arange(4)
    assert mode != "shuffle" or set(order[:2]) not in ({0, 1}, {2, 3})  # or it could not be told from no shuffling
    with torch.no_grad():
        expected({name: view[order] for name, view in k.items()})
        [(_, extra, maps, _)] = model.keys(q, k, 0)
        for n in np.split(order, groups):
            together, raw = expected({name: q[name][n] for name in "sd"}, track=False) if groups == 1 else alone(expected, q, n)
            for name, found in (extra | maps).items():
                torch.testing.assert_close(found[n], (together | raw)[name])
    for (name, found), (_, wanted) in zip(model.f_k.named_buffers(), expected.named_buffers(), strict=True):
        torch.testing.assert_close(found, wanted, msg=name)


def alone(encoder: torch.nn.Module, q: dict[str, torch.Tensor], n: np.ndarray) -> tuple[dict, dict]:
    """What ``encoder`` says of the s and d of these videos as a batch of their own."""
    one = copy.deepcopy(encoder)
    for layer in one.modules():
        if isinstance(layer, norm.ViewBatchNorm):
            layer.statistics = norm.Statistics("local", 1, layer.statistics.views)
    return one({name: q[name][n] for name in "sd"}, track=False)


def test_fault_9_maps_and_features_come_from_the_same_updated_encoder() -> None:
    model = make()
    with torch.no_grad():
        for p in model.f_q.parameters():
            p.add_(torch.randn_like(p), alpha=0.5)
    updated = copy.deepcopy(model)
    updated.follow()
    with torch.no_grad():
        keys, _ = updated.f_k(views_of(1))
    output = model(views_of(0), views_of(1), VIDEOS)
    for ring, found in output.keys[0].items():
        torch.testing.assert_close(found, keys[ring])


def test_fault_10_no_flag_is_dead_and_blur_is_drawn_for_every_clip(synthetic_set: Path) -> None:
    parser = train_pretrain.parser()
    flags = {action.dest for action in parser._actions} - {"help", "config"}
    assert flags == set(PretrainConfig.__dataclass_fields__)
    code = "".join(path.read_text() for path in (REPOSITORY / "dclr" / "pretraining").glob("*.py"))
    code = re.sub(r"def __post_init__.*?\n    @property", "", code, flags=re.S)  # to check a flag is not to use it
    levers = set(Levers.__dataclass_fields__) & set(Method.__dataclass_fields__)  # these go to Method by their names
    pixels = set(PixelSettings.__dataclass_fields__)  # config.pixels() has them
    choices = set(Choice.__dataclass_fields__)  # what they choose is chosen in evaluations too
    assert not [flag for flag in flags - levers - choices - pixels if not re.search(rf"\b(config|self)\.{flag}\b", code)]
    chosen = (REPOSITORY / "dclr" / "data" / "sets.py").read_text()
    assert not [flag for flag in choices if not re.search(rf"\bchoice\.{flag}\b", chosen)]
    method = (REPOSITORY / "dclr" / "method" / "model.py").read_text() + (REPOSITORY / "dclr/method/objective.py").read_text()
    assert not [flag for flag in levers if not re.search(rf"\b(method|self)\.{flag}\b", method)]
    shards = ShardSet(synthetic_set)
    batch = next(iter(TrainLoader(shards, shards.select(["train"]), CLIP, clips=2, batch=64, seed=0)))
    sigma = batch["colours"][..., 9].flatten()  # of v and s of two clips of 64 videos
    drawn = sigma[sigma > 0]
    assert 90 < len(drawn) < 166 and len(drawn.unique()) == len(drawn)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_fault_11_the_ranks_split_one_order(world: int) -> None:
    """No video twice in a batch, each exactly once in an epoch, on any number of ranks."""
    plan = Plan(Permutations(np.arange(120), np.zeros(120, np.int64), seed=0), batch=12)
    seen = [plan.rows(at, rank, world)[1] for at in range(plan.steps) for rank in range(world)]
    assert sorted(np.concatenate(seen).tolist()) == list(range(120))


def test_fault_12_the_seed_reaches_every_worker(synthetic_set: Path) -> None:
    def drawn(seed: int, workers: int) -> dict[tuple[int, str], torch.Tensor]:
        """What is drawn for each video in each of two epochs: (clips, v and s, draws)."""
        shards = ShardSet(synthetic_set)
        loader = TrainLoader(shards, shards.select(["train"]), CLIP, clips=2, batch=8, seed=seed, epochs=2, workers=workers)
        found = {}
        for number, batch in enumerate(itertools.chain(loader, loader)):
            found |= {(number // 8, key): colours for key, colours in zip(batch["key"], batch["colours"], strict=True)}
        return found

    one, two, other = drawn(0, 0), drawn(0, 2), drawn(1, 2)
    assert list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)
    assert list(one) != list(other) and not any(torch.equal(one[name], other[name]) for name in one)
    draws = torch.stack([*one.values(), *other.values()]).flatten(0, 2)
    blurred = draws[draws[:, 9] > 0, 9]  # no two of them come from one generator in two places
    assert len(blurred) > 400 and len(blurred.unique()) == len(blurred)


@pytest.mark.parametrize("total", [1, 2, 7, 14, 15, 40])
def test_fault_13_a_short_video_is_looped_and_never_continued(total: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        start = clips.random_start(total, CLIP, rng)
        indices = clips.frame_indices(start, total, CLIP)
        np.testing.assert_array_equal(indices, (start + 2 * np.arange(8)) % total)
        assert total < CLIP.span or np.all(np.diff(indices) == 2)
