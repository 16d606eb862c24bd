"""The embedded set: what its videos show, how they are planned, and the splits ``swapped`` and ``correlated``."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import refuse, succeed

from dclr.data.manifest import ShardSet
from preprocess.synthetic import HARD, LAB, MOTIONS, Drawing, DrawnVideo, World, encode, generator, hard, lab, plan

WORLDS = pytest.mark.parametrize("world", [HARD, LAB], ids=["hard", "lab"])
MEANS = [94.235, 142.773, 92.372, 121.942, 145.758, 116.649, 112.732, 114.109, 159.348, 139.616]
SETS = pytest.mark.parametrize("drawing", [Drawing(hard=True), Drawing()], ids=["hard", "lab"])


def render(world: World, p: DrawnVideo) -> tuple[np.ndarray, int]:
    return world.render(p.motion, p.scene, p.texture, p.seed)


def pairs(plans: list[DrawnVideo], of: str = "test", to: str = "swapped") -> list[tuple[DrawnVideo, DrawnVideo]]:
    """Each video of split ``of`` and that of ``to`` made of it, found by the number in their paths, in that order."""

    def numbered(split: str) -> dict[str, DrawnVideo]:
        return {Path(p.path).stem.rpartition("_")[2]: p for p in plans if p.path.startswith(f"{split}/")}

    first, second = numbered(of), numbered(to)
    assert set(first) == set(second)
    return [(first[number], second[number]) for number in sorted(first)]


@WORLDS
def test_every_instant_of_every_motion_has_the_same_places_and_sizes(world: World) -> None:
    """The object's colours are vivid, the background's are not: count vivid pixels by place, per motion class."""

    def vivid(motion: str) -> np.ndarray:
        total = np.zeros((2, 2))
        for i in range(60):
            texture = world.textures[i % len(world.textures)] if world.textures else ""
            frames, _ = world.render(motion, "clouds", texture, ("test", motion, i))
            some = frames[:: len(frames) // 4]
            spread = some.max(-1).astype(int) - some.min(-1) > 150
            h, w = spread.shape[1] // 2, spread.shape[2] // 2
            total += [
                [spread[:, :h, :w].mean(), spread[:, :h, w:].mean()],
                [spread[:, h:, :w].mean(), spread[:, h:, w:].mean()],
            ]
        return total / 60

    shares = {motion: vivid(motion) for motion in MOTIONS}
    areas = np.array([share.mean() for share in shares.values()])
    assert areas.min() > 0.02 and areas.max() / areas.min() < 1.5
    for share in shares.values():
        assert abs(share / share.sum() - 0.25).max() < 0.12


@SETS
def test_the_plan_of_the_embedded_set_is_balanced(drawing: Drawing) -> None:
    plans, world = plan(drawing), drawing.world
    sizes = {"train": 800, "test": 400} if drawing.hard else {"train": 1024, "fit": 819, "validation": 205, "test": 512}
    assert Counter(split for p in plans for split in p.splits) == sizes
    for split, count in sizes.items():
        some = [p for p in plans if split in p.splits]
        for kind, names in (("motion", MOTIONS), ("scene", world.scenes), ("texture", world.textures or [""])):
            found = Counter(getattr(p, kind) for p in some)
            assert set(found) == set(names) and max(found.values()) - min(found.values()) <= max(8, 0.25 * count / len(names))
    assert len({p.seed for p in plans}) == drawing.total  # no scene instance twice, so none in train and in test
    assert {p.path[-4:] for p in plans} == {".avi", ".mp4"}


def test_in_the_laboratory_motion_scene_and_texture_cross_in_full() -> None:
    for split, times in (("train", 2), ("test", 1)):
        cells = Counter((p.motion, p.scene, p.texture) for p in plan(Drawing()) if split in p.splits)
        assert len(cells) == 8**3 and set(cells.values()) == {times}


@WORLDS
@pytest.mark.parametrize("seed", [0, 1])
def test_the_object_of_a_swapped_video_is_where_it_was(world: World, seed: int) -> None:
    plans = plan(Drawing(videos=192, seed=seed, hard=world is HARD, swap_scenes=True))
    chosen = pairs(plans)[:: len(MOTIONS) + 1]
    assert {test.scene for test, _ in chosen} == set(world.scenes) and {test.motion for test, _ in chosen} == set(MOTIONS)
    plain = {"black": lambda h, w, rng: np.zeros((h, w, 3)), "white": lambda h, w, rng: np.full((h, w, 3), 255.0)}
    bare = replace(world, scenes=plain)
    for test, swapped in chosen:
        (here, rate), (there, other_rate) = render(world, test), render(world, swapped)
        assert here.shape == there.shape and rate == other_rate
        # Where the object is, black and white show none of themselves; these two draw nothing for the scene.
        black, white = (render(bare, replace(test, scene=scene))[0].astype(int) for scene in plain)
        shown = (white - black).max(-1)
        apart = abs(here.astype(int) - there).max(-1)
        assert (shown == 0).mean((1, 2)).min() > 0.01  # the object is in every frame
        assert apart[shown == 0].max() <= 1 and abs(here - black)[shown == 0].max() <= 1  # of rounding, while blending
        assert (apart[shown == 255] > 5).mean() > 0.8


@SETS
def test_the_plan_has_a_swapped_video_for_each_of_test(drawing: Drawing) -> None:
    plans = plan(replace(drawing, videos=1536, swap_scenes=True))
    found, replaced = pairs(plans), drawing.world.replaced
    assert len(found) == 512 and len({p.path for p in plans}) == len(plans) == 2048
    for test, swapped in found:
        assert (swapped.splits, swapped.motion, swapped.texture) == (("swapped",), test.motion, test.texture)
        assert swapped.scene == replaced[test.scene] != test.scene and swapped.path[-4:] == test.path[-4:]
        assert swapped.path.startswith(f"swapped/{swapped.motion}/{swapped.scene}_") and swapped.seed == test.seed
    assert set(replaced) == set(replaced.values()) == set(drawing.world.scenes)
    before, after = (Counter((p[n].motion, p[n].scene) for p in found) for n in (0, 1))
    assert before == after and set(before.values()) == {8}  # every motion over every scene equally often, as in test


def test_in_split_correlated_the_scene_tells_the_motion_as_often_as_asked() -> None:
    plans = plan(Drawing(correlate=0.95))
    found = pairs(plans, "train", "correlated")
    assert [p for p in plans if p.splits != ("correlated",)] == plan(Drawing()) and len(found) == 1024
    assert all((a.motion, a.texture, a.seed) == (b.motion, b.texture, b.seed) for a, b in found)
    belongs = dict(zip(MOTIONS, LAB.scenes, strict=True))
    assert 0.93 < np.mean([b.scene == belongs[b.motion] for _, b in found]) < 0.97
    assert 0.09 < np.mean([a.scene == belongs[a.motion] for a, _ in found]) < 0.16  # in train it tells nothing
    assert {b.scene for _, b in found if b.scene != belongs[b.motion]} == set(LAB.scenes)
    every = pairs(plan(Drawing(correlate=1)), "train", "correlated")
    assert all(b.scene == belongs[b.motion] for _, b in every)


@WORLDS
def test_a_background_has_not_the_colours_of_the_one_it_replaces(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    module, drawn = hard if world is HARD else lab, list[np.ndarray]()
    draw = module._colours
    monkeypatch.setattr(module, "_colours", lambda *given: drawn.append(draw(*given)) or drawn[-1])
    for test, swapped in pairs(plan(Drawing(videos=192, hard=world is HARD, swap_scenes=True))):
        drawn.clear()
        for p in (test, swapped):
            world.scenes[p.scene](8, 8, generator(*p.seed))
        assert not np.isin(*drawn).any()


@pytest.mark.parametrize(("videos", "seed", "digest"), [(24, 0, "96ed746573d29812"), (1200, 0, "9a80d1d034d8cec8")])
def test_the_hard_world_is_planned_as_it_was(videos: int, seed: int, digest: str) -> None:
    """The digests are those of the plans before there was another world."""
    drawing = Drawing(videos=videos, seed=seed, hard=True)
    plain = [(p.path, p.motion, p.scene, p.splits[0], p.seed) for p in plan(drawing)]
    assert hashlib.sha256(repr(plain).encode()).hexdigest()[:16] == digest
    assert [p for p in plan(replace(drawing, swap_scenes=True)) if p.splits != ("swapped",)] == plan(drawing)
    assert drawing.made_with() == {"videos": videos, "seed": seed}


def test_the_hard_world_looks_as_it_did() -> None:
    """Mean colours of ten videos, as they were drawn before there was another world."""
    means = [float(render(HARD, p)[0].mean()) for p in plan(Drawing(videos=192, hard=True))[::20]]
    assert means == pytest.approx(MEANS, abs=1e-3)


@pytest.mark.parametrize("name", ["a.avi", "a.mp4"])
def test_a_video_that_cannot_be_written_leaves_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()  # no file can take this name
    with pytest.raises(OSError, match=name):
        encode(np.zeros((20, 16, 16, 3), np.uint8), 25, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_set_with_swapped_scenes(tmp_path: Path) -> None:
    command = ("-m", "preprocess", "synthetic", "--hard", "--out", tmp_path / "s", "--videos", "24", "--size", "32")
    assert "splits: swapped 8, test 8, train 16" in succeed(*command, "--swap-scenes")
    manifest = json.loads((tmp_path / "s/manifest.json").read_text())
    assert manifest["splits"] == {"swapped": 8, "test": 8, "train": 16} and manifest["options"]["swap_scenes"] is True
    shards = ShardSet(tmp_path / "s")
    motion, scene = ([shards.labels[kind][shards.select([of])] for of in ("test", "swapped")] for kind in ("motion", "scene"))
    assert sorted(motion[0]) == sorted(motion[1]) == list(range(8))
    assert set(scene[0]) == {0} and set(scene[1]) == {list(HARD.scenes).index(HARD.replaced["stripes"])}
    assert len(set(shards.video_N.tolist())) == 32
    assert "a finished shard set is there already" in refuse(*command)  # its options are others


def test_a_set_of_the_laboratory(tmp_path: Path) -> None:
    command = ("-m", "preprocess", "synthetic", "--out", tmp_path / "s", "--videos", "96", "--size", "40")
    flags = ("--swap-scenes", "--correlate", "0.95")
    said = succeed(*command, *flags)
    assert "splits: correlated 64, fit 51, swapped 32, test 32, train 64, validation 13" in said
    shards = ShardSet(tmp_path / "s")
    classes = shards.manifest.classes
    assert {kind: len(names) for kind, names in classes.items()} == {"motion": 8, "scene": 8, "texture": 8}
    for i in range(0, 160, 23):
        split, motion, look = str(shards.read(i).meta.source.path).split("/")
        scene, texture, _ = look.split("_")
        assert [classes[kind][shards.labels[kind][i]] for kind in classes] == [motion, scene, texture]
        assert split in ("train", "test", "swapped", "correlated")
    assert "a finished shard set is there already" in refuse(*command, "--hard")
    assert "--correlate 2.0: expected above 0 to 1" in refuse(*command, "--correlate", "2")
