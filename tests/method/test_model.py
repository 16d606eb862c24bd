"""One step of the method: what follows what, what has a gradient, what is masked."""

import copy
from dataclasses import replace

import pytest
import torch

from dclr.errors import InputError
from dclr.method import losses
from dclr.method.backbones import build
from dclr.method.model import DCLR, Encoder, Method

VIDEOS = torch.arange(4)


def views(seed: int, batch: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(batch, 3, 4, 16, 16, generator=generator) for name in "vsd"}


@pytest.fixture
def model() -> DCLR:
    torch.manual_seed(0)
    return DCLR(build("r2plus1d_10", 4), queue_length=8).train()


def step(model: DCLR, number: int) -> object:
    output = model(views(2 * number), views(2 * number + 1), VIDEOS + 4 * number)
    model.zero_grad()
    output.total.backward()
    model.enqueue([output])
    return output


def test_embeddings_are_unit_and_decoupled_by_mean_one_maps() -> None:
    torch.manual_seed(0)
    encoder, clips = Encoder(build("r2plus1d_10", 4)), views(0)
    embedded, raw = encoder(clips)
    assert set(embedded) == {"vv", "vs", "vd", "sv", "dv"}
    for e in embedded.values():
        assert e.shape == (4, 128)
        torch.testing.assert_close(e.norm(dim=1), torch.ones(4))
    features = encoder.features(clips)["v"]
    weighted = (features * losses.mean_one(raw["s"]).unsqueeze(1)).mean((2, 3, 4))
    torch.testing.assert_close(embedded["vs"], torch.nn.functional.normalize(encoder.heads["vs"](weighted), dim=1))


def test_the_key_encoder_follows_parameters_and_keeps_its_own_statistics(model: DCLR) -> None:
    with torch.no_grad():
        for p in model.f_q.parameters():
            p.add_(1.0)
    before = copy.deepcopy(model.f_k.state_dict())
    model.follow()
    for name, p in model.f_k.named_parameters():
        torch.testing.assert_close(p, before[name] + (1 - Method.momentum))
    for name, b in model.f_k.named_buffers():
        assert torch.equal(b, before[name])


@pytest.mark.parametrize(
    ("given", "copies", "rings"),
    [
        ({}, "", ()),
        ({"static_momentum": 0.5}, "s", ("ms",)),
        ({"static_momentum": 0.5, "dynamic_momentum": 0.5, "mining_momentum": 0.5}, "s", ()),
        ({"static_momentum": 0.5, "mining_momentum": 0.5}, "s", ("md",)),
        ({"mining_momentum": 0.5}, "m", ("ms", "md")),
        ({"mining_momentum": 0.5, "mined": 0}, "", ()),
        ({"mining_momentum": 0.5, "static_momentum": 0.1, "views": "vd"}, "m", ("md",)),
    ],
)
def test_there_is_a_copy_for_each_momentum_and_a_ring_for_each_view_that_is_mined_by_another(
    given: dict, copies: str, rings: tuple[str, ...]
) -> None:
    model = DCLR(build("r2plus1d_10", 4), 8, Method(**given))
    assert "".join(model.followers) == copies and model.queue.rings == (*model.method.embeddings, *rings)
    assert not any(p.requires_grad for name, p in model.named_parameters() if not name.startswith("f_q"))


def test_only_the_query_encoder_has_gradients_and_all_of_it(model: DCLR) -> None:
    step(model, 0)
    step(model, 1)
    assert all(p.grad is None for p in model.f_k.parameters())
    without = [name for name, p in model.f_q.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert not without


def test_a_videos_own_entries_are_neither_negatives_nor_positives(model: DCLR) -> None:
    """Full queue of entries of the batch's own videos only: every contrast is exactly 0."""
    same = torch.zeros(4, dtype=torch.int64)
    for _ in range(2):
        output = model(views(0), views(1), same)
        model.enqueue([output])
    assert bool(model.queue.valid_K.all())
    output = model(views(2), views(3), same)
    assert [float(output.terms[f"L_{name}"]) for name in ("vv", "vs", "vd", "sv", "dv")] == [0] * 5
    assert all(float(value) > 0 for name, value in model(views(2), views(3), same + 1).terms.items())


def test_bfloat16_is_close_to_float32() -> None:
    torch.manual_seed(0)
    exact = DCLR(build("r2plus1d_10", 8), queue_length=4).train()
    rough = copy.deepcopy(exact)
    rough.precision = torch.bfloat16
    for _ in range(2):
        outputs = [m(views(0), views(1), VIDEOS) for m in (exact, rough)]
        for m, output in zip((exact, rough), outputs, strict=True):
            m.enqueue([replace(output, video=output.video + 100)])
    assert outputs[1].total.dtype == torch.float32
    torch.testing.assert_close(outputs[1].total, outputs[0].total, rtol=0.1, atol=0.1)


def test_top_n_is_the_share_of_queries_with_fewer_than_n_better_entries(model: DCLR, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry as good as the own key counts as better; one of the own video, or an empty one, does not count."""
    keys = torch.nn.functional.normalize(torch.randn(7, 128), dim=1)
    model.queue.enqueue({ring: keys for ring in model.queue.rings}, torch.tensor([3, 11, 12, 13, 14, 15, 16]))
    queue = torch.full((4, 8), -1.0)
    queue[1, 1], queue[2, 1:5], queue[3, 1:6] = 0, 1, 1  # 0, 1, 4 and 5 better ones
    queue[3, 0] = queue[:, 7] = 2
    monkeypatch.setattr(losses, "logits", lambda *_: (torch.zeros(4, 1), queue))
    stats = model(views(0), views(1), VIDEOS).stats
    for ab in ("vv", "vs", "vd", "sv", "dv"):
        assert (float(stats[f"top1_{ab}"]), float(stats[f"top5_{ab}"])) == (1 / 4, 3 / 4)
    assert float(stats["queue_fill"]) == 7 / 8 and float(stats["mined"]) == 0


def test_embed_and_map_are_the_encoders_own() -> None:
    """What a user calls after load_encoder: the maps of s and d of the same encoder weight F(v)."""
    torch.manual_seed(0)
    encoder, clips = Encoder(build("r2plus1d_10", 4)).eval(), views(0)
    found = encoder.embed(clips["v"], clips["s"], clips["d"])
    expected, raw = encoder(clips)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for name in "vsd":
        torch.testing.assert_close(encoder.map(clips[name], name), losses.mean_one(raw[name]))
        torch.testing.assert_close(encoder.map(clips[name], name).mean((1, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
    with pytest.raises(InputError, match=r"heads vv: embed needs vv, sv"):
        Encoder(build("r2plus1d_10", 4), ("vv",)).embed(*clips.values())


def test_the_baseline_forwards_rgb_alone() -> None:
    torch.manual_seed(0)
    model = DCLR(build("r2plus1d_10", 4), 8, Method(views="v", mined=0))
    only = [{"v": views(seed)["v"]} for seed in (0, 1)]
    output = model(*only, VIDEOS)
    output.total.backward()
    assert set(output.terms) == {"L_vv"} and model.queue.rings == ("vv",) and set(model.f_q.heads) == {"vv"}
    assert all(p.grad is not None for p in model.f_q.parameters())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"views": "sd"}, "expected vsd, vs, vd or v"),
        ({"views": "v"}, "mined 5 with views 'v'"),
        ({"mined": -1}, "--mined -1"),
        ({"loss": "nce"}, "--loss nce: expected one of mil, masked, mean-log"),
        ({"align_target": "max"}, "--align-target max: expected one of sum, equal, raw"),
    ],
)
def test_methods_that_are_none_are_refused(wrong: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Method(**wrong)
