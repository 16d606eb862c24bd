"""One step of the method: what follows what, what has a gradient, what is masked."""

import copy

import pytest
import torch

from dclr import losses, norm
from dclr.model import DCLR, MOMENTUM, Encoder

VIDEOS = torch.arange(4)


def views(seed: int, batch: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(batch, 3, 4, 16, 16, generator=generator) for name in "vsd"}


@pytest.fixture
def model() -> DCLR:
    torch.manual_seed(0)
    return DCLR("r2plus1d_10", 4, queue_length=8).train()


def step(model: DCLR, number: int) -> object:
    output = model(views(2 * number), views(2 * number + 1), VIDEOS + 4 * number)
    model.zero_grad()
    output.total.backward()
    model.queue.enqueue(output.keys, output.video)
    return output


def test_embeddings_are_unit_and_decoupled_by_mean_one_maps() -> None:
    torch.manual_seed(0)
    encoder, clips = Encoder("r2plus1d_10", 4), views(0)
    embedded, raw = encoder.embed(clips)
    assert set(embedded) == {"vv", "vs", "vd", "sv", "dv"}
    for e in embedded.values():
        assert e.shape == (4, 128)
        torch.testing.assert_close(e.norm(dim=1), torch.ones(4))
    features = encoder.features(clips["v"], "v")
    weighted = (features * losses.mean_one(raw["s"]).unsqueeze(1)).mean((2, 3, 4))
    torch.testing.assert_close(embedded["vs"], torch.nn.functional.normalize(encoder.heads["vs"](weighted), dim=1))


def test_the_key_encoder_follows_parameters_and_keeps_its_own_statistics(model: DCLR) -> None:
    with torch.no_grad():
        for p in model.f_q.parameters():
            p.add_(1.0)
    before = copy.deepcopy(model.f_k.state_dict())
    model.follow()
    for name, p in model.f_k.named_parameters():
        torch.testing.assert_close(p, before[name] + (1 - MOMENTUM))
    for name, b in model.f_k.named_buffers():
        assert torch.equal(b, before[name])


def test_only_the_query_encoder_has_gradients_and_all_of_it(model: DCLR) -> None:
    step(model, 0)
    step(model, 1)
    assert all(p.grad is None for p in model.f_k.parameters())
    without = [name for name, p in model.f_q.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert not without


def test_fault_7_mining_waits_until_every_entry_is_valid(model: DCLR) -> None:
    outputs = [step(model, number) for number in range(4)]
    assert [float(o.stats["queue_fill"]) for o in outputs] == [0, 0.5, 1, 1]  # type: ignore[attr-defined]
    assert [float(o.stats["mined"]) for o in outputs] == [0, 0, 5, 5]  # type: ignore[attr-defined]
    first = outputs[0].terms  # type: ignore[attr-defined]
    assert all(float(first[f"L_{name}"]) == 0 for name in ("vv", "vs", "vd", "sv", "dv")) and float(first["align"]) > 0


def test_a_videos_own_entries_are_neither_negatives_nor_positives(model: DCLR) -> None:
    """Full queue of entries of the batch's own videos only: every contrast is exactly 0."""
    same = torch.zeros(4, dtype=torch.int64)
    for _ in range(2):
        output = model(views(0), views(1), same)
        model.queue.enqueue(output.keys, output.video)
    assert bool(model.queue.valid_K.all())
    output = model(views(2), views(3), same)
    assert [float(output.terms[f"L_{name}"]) for name in ("vv", "vs", "vd", "sv", "dv")] == [0] * 5
    assert all(float(value) > 0 for name, value in model(views(2), views(3), same + 1).terms.items())


def test_fault_8_the_extra_pass_updates_no_statistics(model: DCLR) -> None:
    """One step moves f_k's statistics exactly as one pass over the key clip does."""
    expected = copy.deepcopy(model.f_k)
    with torch.no_grad():
        expected.embed(views(1))
    model(views(0), views(1), VIDEOS)
    for (name, found), (_, wanted) in zip(model.f_k.named_buffers(), expected.named_buffers(), strict=True):
        torch.testing.assert_close(found, wanted, msg=name)


def test_fault_9_maps_and_features_come_from_the_same_updated_encoder(model: DCLR) -> None:
    with torch.no_grad():
        for p in model.f_q.parameters():
            p.add_(torch.randn_like(p), alpha=0.5)
    updated = copy.deepcopy(model)
    updated.follow()
    with torch.no_grad():
        keys, _ = updated.f_k.embed(views(1))
    output = model(views(0), views(1), VIDEOS)
    for ring, found in output.keys.items():
        torch.testing.assert_close(found, keys[ring])


def test_fault_5_each_view_has_its_own_statistics(model: DCLR) -> None:
    """RGB statistics are what a plain BatchNorm that sees RGB alone would have."""
    plain = torch.nn.BatchNorm3d(3)
    layer = norm.ViewBatchNorm(3)
    clips = {"v": torch.randn(8, 3, 2, 4, 4) + 5, "s": torch.randn(8, 3, 2, 4, 4) - 3, "d": torch.randn(8, 3, 2, 4, 4) * 9}
    for name, clip in clips.items():
        norm.use_view(layer, name)
        out = layer(clip)
        assert abs(float(out.detach().mean())) < 1e-4
    plain(clips["v"])
    torch.testing.assert_close(layer.running_mean, plain.running_mean)
    torch.testing.assert_close(layer.running_var, plain.running_var)
    assert float(layer.running_mean_s.mean()) < -0.2 < 0.4 < float(layer.running_mean.mean())  # type: ignore[operator]


def test_bfloat16_is_close_to_float32() -> None:
    torch.manual_seed(0)
    exact = DCLR("r2plus1d_10", 8, queue_length=4).train()
    rough = copy.deepcopy(exact)
    rough.precision = torch.bfloat16
    for _ in range(2):
        outputs = [m(views(0), views(1), VIDEOS) for m in (exact, rough)]
        for m, output in zip((exact, rough), outputs, strict=True):
            m.queue.enqueue(output.keys, output.video + 100)
    assert outputs[1].total.dtype == torch.float32
    torch.testing.assert_close(outputs[1].total, outputs[0].total, rtol=0.1, atol=0.1)
