"""Settings: said once as a field, and what is made of it: parser, help, --config, config.yaml, checks, resume."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REAL, REPOSITORY, needs_real_data, refuse, run, succeed

import preprocess.__main__ as launcher
import preprocess.run
import train_eval
import train_pretrain
from dclr.data.clips import ClipConfig
from dclr.data.config import Choice
from dclr.errors import InputError
from dclr.evaluation.config import ALL, EvalConfig, Extraction, Prediction, Repeats, config_of, evaluation, others
from dclr.evaluation.modes import MODES
from dclr.method.objective import Method, Statistics
from dclr.method.pixels import PixelSettings
from dclr.pretraining.config import PretrainConfig
from dclr.settings import (
    Flag,
    Parser,
    again,
    as_table,
    check_values,
    completed,
    differences,
    flag,
    flags,
    free,
    from_flags,
    range_of,
    setting,
)
from dclr.training.config import PRECISIONS
from preprocess.datasets import DATASETS
from preprocess.synthetic import Drawing
from preprocess.transcode import Options

LISTINGS = tuple(launcher.listing(DATASETS[name]) for name in ("ucf101", "csv"))
COLUMNS = tuple(settings for dataset in DATASETS.values() if (settings := dataset.settings))
LAUNCHER = (launcher.Tolerance, launcher.Making, launcher.Selecting, *LISTINGS, *COLUMNS, launcher.Retrying)
LOOKING = (launcher.Verifying, launcher.Describing, launcher.Previewing)
NUMBERED = (config_of(ALL), Extraction, Prediction, launcher.Waiting, launcher.Browsing)
EVERY = (PretrainConfig, EvalConfig, Repeats, Options, preprocess.run.How, Drawing, *LAUNCHER, *LOOKING)
NEEDED = {"mode": "linear", "train_split": ("a",), "test_split": ("b",)}  # by EvalConfig, which a command line says otherwise
# what fits to the change of one setting, where the others' defaults do not
BESIDE: dict[str, dict[str, Any]] = {
    "bn_groups": {"bn": "local"}, "early_stop": {"val": 0.1}, "stabilise": {"cues": ("diff",)},
    "mean": {"std": (1.0, 1.0, 1.0)}, "std": {"mean": (0.5, 0.5, 0.5)},
}  # fmt: skip
# config.yaml of a run that was made when every setting was written by hand
KEPT = """
{shards: shards/mine, out: runs/mine, split: [train01, train02], arch: r3d_18, width: 8, frames: 4, stride: 1, size: 32,
 min_scale: 0.5, flip: 0.0, sample_motion: true, dynamic: cue, objective: dclr, without: [static, mining], mined: 3,
 loss: masked, align_target: equal, symmetric: true, bn: shuffle, bn_groups: 2, bn_views: shared, queue: null, batch: 16,
 accumulate: 2, checkpoint_gradients: true, epochs: 7, lr: 1.0e-05, schedule: [], cos: true, warmup: 1.0, scale_lr: true,
 wd: 0.0, decay_weights_only: true, clip_grad: 1.0, seed: 5, precision: fp32, workers: 0, last_batch: wrap, cache: null,
 cache_size: 1.0, on_error: skip, max_skipped: 2.0, knn_split: [], knn_every: 3, resume: auto, keep: 1, milestone: 2,
 save_minutes: 5.0}
"""
OPTIONS = """mode shards out train_split test_split pretrained arch width precise_bn label frames stride size features average
    head bn probe probe_lr val patience shots draws cpv test_clips crops batch epochs lr schedule wd dropout min_scale flip seed
    clip_fps cross_cuts precision deterministic optimiser workers cache cache_size on_error max_skipped save_minutes force"""


def other(one: Flag) -> Any:
    """Another value than the default that the setting may have."""
    said, default = one.said, one.default
    if one.kind is bool:
        return not default
    if said.choices:
        rest = [choice for choice in said.choices if choice != default and (choice,) != default]
        return (rest[0],) if one.many else rest[0]
    value: Any = "other"
    if one.kind in (int, float):
        base = 0 if default in (None, ()) or isinstance(default, tuple) else default
        value = one.kind(base / 2) or one.kind(min(64, said.most or 0.25))
    if one.kind is Path:
        return Path("other.png")
    if one.kind.__name__ == "Folder":
        return one.read("other")
    if one.said.read is preprocess.run.part:
        return (1, 2)
    if one.field.name in ("mean", "std"):
        return (value,) * 3  # a channel
    return (value,) if one.many else value


def changed(settings: type, name: str, value: Any) -> Any:
    """The dataclass with another default of one setting."""
    annotation = next(field.type for field in fields(settings) if field.name == name)
    made = make_dataclass(
        settings.__name__, [(name, annotation, again(settings, name, value))], bases=(settings,), frozen=True,
        namespace={"__module__": settings.__module__},
    )  # fmt: skip
    made.__module__ = settings.__module__  # where its annotations are read
    return made


@pytest.mark.parametrize(
    ("settings", "name"),
    [(part, name) for part in EVERY for name, one in flags(part).items() if not one.required],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_default_that_is_changed_in_its_field_is_the_command_lines(settings: type, name: str) -> None:
    value = other(flags(settings)[name])
    assert value != flags(settings)[name].default
    part = changed(settings, name, value)
    parser = Parser(prog="x").add(part)
    needed = {need: "x" if one.kind is str else ("x",) for need, one in flags(part).items() if one.required}
    needed |= {need: value for need, value in NEEDED.items() if need in part.__dataclass_fields__ and need != name}
    beside = {need: said for need, said in BESIDE.get(name, {}).items() if need in part.__dataclass_fields__}
    assert getattr(from_flags(part, parser.given([]), **needed | beside), name) == value
    shown = " ".join(parser.format_help().split())
    if value is not True and value != flags(settings)[name].default:
        assert f"default: {flags(part)[name].text(value)})" in shown


@pytest.mark.parametrize("name", [name for name, one in flags(PretrainConfig).items() if not one.required])
def test_the_launcher_has_the_defaults_of_its_fields(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = BESIDE.get(name, {})
    part = changed(PretrainConfig, name, value := other(flags(PretrainConfig)[name]))
    begun: list[PretrainConfig] = []
    monkeypatch.setattr("dclr.pretraining.config.PretrainConfig", part)
    monkeypatch.setattr("dclr.pretraining.pretrain.pretrain", begun.append)
    monkeypatch.setattr("train_pretrain.settle", lambda: None)  # it would change this process
    more = [
        text
        for said, one in beside.items()
        for text in (flag(said), ",".join(map(str, one)) if isinstance(one, tuple) else str(one))
    ]
    monkeypatch.setattr(sys, "argv", ["train_pretrain.py", "--shards", "s", "--split", "a", "--out", "o", *more])
    train_pretrain.main()
    assert [getattr(config, name) for config in begun] == [value]


def test_parts_that_are_used_elsewhere_have_one_default_too() -> None:
    config = PretrainConfig(shards="s", out="o", split=("a",))
    assert (config.clip, config.method, config.statistics(1)) == (ClipConfig(), Method(), Statistics())
    assert EvalConfig(shards="s", out="o", pretrained="x", **NEEDED).clip({}) == ClipConfig()  # type: ignore[arg-type]


def test_a_resumed_run_may_change_what_it_could_change() -> None:
    from dclr.evaluation import finetune
    from dclr.evaluation.repeat import HELD

    aside = {"out", "workers", "cache", "cache_size", "patience", "stall_minutes", "save_minutes", "deterministic"}
    assert free(PretrainConfig) == aside | {"epochs", "resume", "keep", "milestone", "knn_split", "knn_every"}
    assert {"epochs", "shards", "pretrained"} == HELD and aside | {"baseline", "features", "force"} | HELD == finetune.FREE


LISTS = [(part, name) for part in EVERY for name, one in flags(part).items() if one.many and not one.said.place]


@pytest.mark.parametrize(("part", "name"), LISTS, ids=lambda value: value if isinstance(value, str) else value.__name__)
def test_every_list_is_said_in_the_same_ways(part: type, name: str) -> None:
    one, parser = flags(part)[name], Parser(prog="x").add(part)
    first, second = list(one.said.choices)[:2] if one.said.choices else ("1", "2")
    expected = {name: (one.kind(first), one.kind(second))}
    for words in ([first, second], [f"{first},{second}"], [f"{first},", second], [f" {first} ,{second},"]):
        assert parser.given([flag(name), *words]) == expected, words
    assert parser.given([flag(name), one.text(expected[name])]) == expected
    if one.said.nargs == "*":
        assert parser.given([flag(name)]) == parser.given([flag(name), "none"]) == parser.given([flag(name), ""]) == {name: ()}
        assert parser.given([flag(name), one.text(())]) == {name: ()}
    else:
        with pytest.raises(InputError, match=rf"argument {flag(name)}: expected at least one argument"):
            parser.given([flag(name)])


def test_a_comma_in_a_path_is_a_part_of_it() -> None:
    parser = Parser(prog="x").add(PretrainConfig)
    assert parser.given(["--shards", "a,b", "http://host/c?sign=1,2"]) == {"shards": ("a,b", "http://host/c?sign=1,2")}


def test_the_lists_are_those_that_users_know() -> None:
    assert {"split", "without", "schedule", "knn_split", "train_split", "shots", "folds", "seeds", "cues", "label_column"} <= {
        name for _, name in LISTS
    }


def test_the_authors_short_flags_are_there() -> None:
    short = {one.said.short: name for name, one in (flags(PretrainConfig) | flags(EvalConfig)).items() if one.said.short}
    assert short == {"-a": "arch", "-b": "batch", "-j": "workers", "-fpc": "frames", "-cs": "size", "-cpv": "cpv"}
    words = ["-a", "r3d_18", "-b", "8", "-j", "3", "-fpc", "4", "-cs", "32", "--shards", "s", "--split", "a", "--out", "o"]
    config = from_flags(PretrainConfig, train_pretrain.parser().given(words))
    assert (config.arch, config.batch, config.workers, config.frames, config.size) == ("r3d_18", 8, 3, 4, 32)


def test_precisions_are_those_that_the_hardware_is_asked_for() -> None:
    from dclr.hardware import DTYPES

    assert set(PRECISIONS) == {"auto", *DTYPES}


HELP = """
import contextlib, io, json, sys
sys.argv = sys.argv[1:]
launch, found = __import__(sys.argv[0], fromlist=["main"]), []
for words in json.loads(sys.argv[1]):
    sys.argv = [launch.__name__, *words, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        launch.main()
    found.append(said.getvalue())
assert "torch" not in sys.modules, "torch was imported"
print(json.dumps(found))
"""
HELPED: dict[str, dict[str, dict[str, Flag]]] = {
    "train_pretrain": {"": flags(PretrainConfig)},
    "train_eval": {
        "": {},
        **{
            mode: {name: one for name, one in (flags(EvalConfig) | flags(Repeats)).items() if name not in others(mode)}
            for mode in (*MODES, ALL)
        },
    },
    "preprocess.__main__": {
        "": {},
        **{
            command: launcher.parser()._subparsers._group_actions[0].choices[command].flags  # type: ignore[union-attr,index]
            for command in launcher.parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
        },
    },
}


@pytest.mark.parametrize("module", HELPED)
def test_help_is_made_of_the_fields_without_torch(module: str) -> None:
    words = [[command] if command else [] for command in HELPED[module]]
    done = subprocess.run(
        [sys.executable, "-c", HELP, module, json.dumps(words)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    for text, (command, said) in zip(json.loads(done.stdout), HELPED[module].items(), strict=True):
        found = "".join(text.split())
        assert set(re.findall(r"(?<![-\w])--([a-z][a-z-]+)", text)) >= {flag(name)[2:] for name in said}, command
        for name, one in said.items():
            assert "".join(one.help().replace("%%", "%").split()) in found, (command, name)
            assert not one.title or f"\n{one.title}:\n" in text
    modes = json.loads(done.stdout)[0]
    assert all(command in modes for command in HELPED[module])


@pytest.mark.parametrize(
    ("mode", "has", "lacks"),
    [
        ("linear", {"probe", "features", "val"}, {"lr", "epochs", "shots", "early-stop", "save-minutes"}),
        ("knn", {"features", "batch", "seeds"}, {"lr", "probe", "val", "average", "draws"}),
        ("fewshot", {"shots", "draws"}, {"lr", "probe"}),
        ("finetune", {"lr", "epochs", "val", "early-stop", "dropout"}, {"features", "probe", "shots"}),
        ("all", {flag(name)[2:] for name in flags(EvalConfig)}, set()),
    ],
)
def test_a_mode_has_its_own_flags_and_refuses_others(mode: str, has: set[str], lacks: set[str], tmp_path: Path) -> None:
    text = succeed("train_eval.py", mode, "--help")
    shown = set(re.findall(r"^  .*?--([a-z-]+)", text, re.M))
    assert has <= shown and not lacks & shown
    for name in lacks:
        assert f"--{name} is no flag of train_eval.py {mode}" in refuse("train_eval.py", mode, f"--{name}", "1")
        (tmp_path / "c.yaml").write_text(f"{name.replace('-', '_')}: 1")
        said = refuse("train_eval.py", mode, "--config", tmp_path / "c.yaml")
        assert f"c.yaml: '{name.replace('-', '_')}' is no flag of train_eval.py {mode}" in said


def test_the_modes_are_listed() -> None:
    said = succeed("train_eval.py", "--help")
    assert all(f"    {mode}" in said and one.help.split()[0] in said for mode, one in MODES.items()) and "    all" in said
    assert all(set(one.settings) <= set(flags(EvalConfig)) for one in MODES.values())


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("train_pretrain.py", "--lr", "fast"), "argument --lr: 'fast': expected a number, above 0 to 1000"),
        (("train_pretrain.py", "--rl", "1"), "unrecognized arguments: --rl 1"),
        (("train_pretrain.py", "--lr", "1"), "are required: --shards, --split, --out; --help says what there is"),
        (("-m", "preprocess", "stats", "A", "B"), "unrecognized arguments: B; python -m preprocess stats --help says"),
        (("train_pretrain.py", "--split", ","), "argument --split: it is empty, expected at least one value"),
        (("train_pretrain.py", "--schedule", "1,x"), "argument --schedule: 'x': expected a whole number, 0 to 1000000"),
        (("train_eval.py", "guess"), "invalid choice: 'guess'"),
        (("train_eval.py",), "the following arguments are required: MODE"),
        (("-m", "preprocess", "synthetic", "--out", "x", "--segment", "1"), "--segment is no flag of python"),
        (("-m", "preprocess", "synthetic", "--out", "x", "--codec", "gif"), "--codec gif: expected one of jpeg, h264"),
        (("-m", "preprocess", "preview", "x", "--out", "x.png", "--videos", "0"), "--videos 0: expected 1 to 1000"),
    ],
)  # fmt: skip
def test_a_mistake_in_flags_is_one_line(command: tuple[str, ...], says: str) -> None:
    done = run(*command)
    assert done.returncode == 2 and says in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr


def given(parser: Callable[[], Parser], text: str, folder: Path, *words: str) -> dict[str, Any]:
    (folder / "c.yaml").write_text(text)
    return parser().given([*words, "--config", str(folder / "c.yaml")])


def test_a_run_that_was_made_before_starts_again_from_its_file(tmp_path: Path) -> None:
    config = from_flags(PretrainConfig, given(train_pretrain.parser, KEPT, tmp_path))
    kept, table = yaml.safe_load(KEPT), as_table(config)
    assert {name: table[name] for name in kept} == kept and set(table) > set(kept)  # what is newer has its default
    config.check_resumed(kept, [64], 1)
    later = given(train_pretrain.parser, KEPT, tmp_path, "--lr", "0.5", "--knn-split", "")
    assert from_flags(PretrainConfig, later).lr == 0.5 and from_flags(PretrainConfig, later).knn_split == ()
    assert (
        config.symmetric
        and not from_flags(PretrainConfig, given(train_pretrain.parser, KEPT, tmp_path, "--no-symmetric")).symmetric
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr: 1e-5", {"lr": 1e-5}),  # a text to YAML
        ("lr: 1", {"lr": 1.0}),
        ("split: 'a,b'", {"split": ("a", "b")}),
        ("split: [a, b]", {"split": ("a", "b")}),
        ("schedule: 5", {"schedule": (5,)}),
        ("{schedule: [], without: [], symmetric: false}", {"schedule": (), "without": (), "symmetric": False}),
        ("{queue: null, cache: null, lr: null}", {"queue": None, "cache": None}),
        ("{}", {}),
    ],
)
def test_a_file_says_what_flags_say(text: str, expected: dict[str, Any], tmp_path: Path) -> None:
    assert given(train_pretrain.parser, text, tmp_path) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("symmetric: 1", "argument --symmetric: invalid bool value: 1"),
        ("cache: true", "argument --cache: invalid str value: True"),
        ("epochs: 1.5", "argument --epochs: '1.5': expected a whole number, 1 to 1000000"),
        ("lr: [1, 2]", r"argument --lr: invalid float value: \[1, 2\]"),
        ("schedule: [a]", r"argument --schedule: 'a': expected a whole number, 0 to 1000000"),
        ("split: []", "argument --split: it is empty"),
        ("1: 2", "1 is no flag of"),
        ("cue: diff", "'cue' is no flag of"),
        ("out: 2024-13-45", "not a readable YAML file"),
        ("[" * 20_000, "not a readable YAML file"),
        ("lr: " + "1" * 5_000, "not a readable YAML file"),
        ("split: &a [x, x]\nlr: [*a, *a]", "not a readable YAML file .*it refers to .a, expected each value where it belongs"),
        ("lr: [[[[[1]]]]]", "not a readable YAML file .*lists and tables in one another"),
        ("lr: 0x" + "f" * 9_000, "not a readable YAML file"),
        ("lr: 1" + ":1" * 9_000 + ".5", "not a readable YAML file"),
    ],
)
def test_a_file_that_cannot_be_meant_is_one_line(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"--config .*c.yaml: {says}") as caught:
        given(train_pretrain.parser, text, tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_device_is_no_recipe() -> None:
    """It has no end and says that it has no bytes."""
    assert refuse("train_pretrain.py", "--config", "/dev/zero").startswith("error: /dev/zero: more than 65536 bytes, expected")


@needs_real_data
def test_a_recipe_of_brackets_is_one_line() -> None:
    hostile = REAL / "reports/hostile/yaml-nest.yaml"
    assert "yaml-nest.yaml: not a readable YAML file" in refuse("train_pretrain.py", "--config", hostile)


def test_an_evaluation_takes_a_file_and_flags_beside_it_win(tmp_path: Path) -> None:
    text = "{shards: s, pretrained: x.pt, folds: [1, 2], seeds: 7, probe_lr: [1.0, 2.0], val: 0.1, average: logits, out: o}"
    (config,), repeats = evaluation(given(train_eval.parser, text, tmp_path, "linear", "--average", "probabilities"))
    assert (config.probe_lr, config.val, config.average, config.mode) == ((1.0, 2.0), 0.1, "probabilities", "linear")
    assert (config.train_split, config.test_split) == (("train01",), ("test01",)) and repeats == Repeats(
        folds=(1, 2), seeds=(7,)
    )
    assert [one.mode for one in evaluation(given(train_eval.parser, text, tmp_path, ALL))[0]] == list(MODES)
    with pytest.raises(InputError, match="in the place of both"):
        evaluation(given(train_eval.parser, text, tmp_path, "linear", "--test-split", "a"))


def test_preprocess_takes_a_file_and_makes_the_same_set(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("{size: 32, cues: [energy], videos: 8, workers: 1, shard_size: 9, seed: 1}")
    flagged = ("--size", "32", "--cues", "energy", "--videos", "8", "--workers", "1")
    succeed("-m", "preprocess", "synthetic", "--out", tmp_path / "a", *flagged)
    succeed(
        "-m", "preprocess", "synthetic", "--config", tmp_path / "c.yaml", "--seed", "0", "--shard-size", "256", "--out",
        tmp_path / "b",
    )  # fmt: skip
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.*") if path.name != "plan.json"} for name in "ab"
    )
    assert one == two and "manifest.json" in one
    (tmp_path / "c.yaml").write_text("lr: 1")
    said = refuse("-m", "preprocess", "synthetic", "--config", tmp_path / "c.yaml")
    assert "c.yaml: 'lr' is no flag of python -m preprocess synthetic" in said


@dataclass(frozen=True, kw_only=True)
class Older:
    """Settings of which ``newer`` came later: before, runs did 1, and today's default is 2."""

    lr: float = setting(0.1)
    newer: int = setting(2, most=10, before=1)
    place: str | None = setting(None, place=True)
    aside: int = setting(3, free=True)


def test_a_table_from_before_a_setting_means_what_runs_did_then(tmp_path: Path) -> None:
    def parser() -> Parser:
        return Parser().add(Older)

    assert completed(Older, {"lr": 0.1}) == {"lr": 0.1, "newer": 1} and completed(Older, {"newer": 5}) == {"newer": 5}
    assert list(differences(Older(), {"lr": 0.1, "place": None})) == [("newer", "2", "1")]
    assert list(differences(Older(newer=1, aside=9), {"lr": 0.2, "place": None})) == [("lr", "0.1", "0.2")]
    assert from_flags(Older, given(parser, "{lr: 0.1, place: null, aside: 3}", tmp_path)) == Older(newer=1)  # a run's own
    assert from_flags(Older, given(parser, "lr: 0.1", tmp_path)) == Older()  # a recipe
    assert from_flags(Older, given(parser, "{lr: 0.1, place: null, aside: 3, newer: 7}", tmp_path)) == Older(newer=7)


def test_a_checkpoint_that_lacks_a_setting_is_resumed_as_it_was_made() -> None:
    made = {name: value for name, value in yaml.safe_load(KEPT).items() if name not in ("warmup", "clip_grad")}
    config = from_flags(
        PretrainConfig, made | {"split": ("train01", "train02"), "without": ("static", "mining"), "schedule": ()}
    )
    config.check_resumed(made, [64], 1)
    with pytest.raises(InputError, match=r"--clip-grad 1\.0: the run in runs/mine was made with 0\.0"):
        from_flags(PretrainConfig, vars(config), clip_grad=1.0).check_resumed(made, [64], 1)
    with pytest.raises(InputError, match=r"--split train01: .* was made with train01,train02; give that again"):
        from_flags(PretrainConfig, vars(config), split=("train01",)).check_resumed(made, [64], 1)
    with pytest.raises(InputError, match=r"--momentum-end 1\.0: .* was made without it; leave it out to resume it"):
        from_flags(PretrainConfig, vars(config), momentum_end=1.0).check_resumed(made, [64], 1)


def test_what_was_left_open_counts_as_what_it_came_to() -> None:
    """Of the queue's length, BatchNorm's groups and the shares of sets, whether the run said them or the resumed one does."""
    small: dict[str, Any] = {"shards": ("a", "b"), "split": ("train",), "out": "runs/mine", "batch": 8}
    open_, said = PretrainConfig(**small), PretrainConfig(**small, queue=48, weights=(2.0, 1.0))
    for ours, saved in ((open_, said), (said, open_)):
        ours.check_resumed(saved.as_dict(), [64, 32], 1)
    with pytest.raises(InputError, match=r"--queue 40: the run in runs/mine was made with 48; give that again"):
        replace(said, queue=40).check_resumed(open_.as_dict(), [64, 32], 1)
    with pytest.raises(InputError, match=r"--queue 48: the run in runs/mine was made with 40; give that again"):
        open_.check_resumed(replace(said, queue=40).as_dict(), [64, 32], 1)
    with pytest.raises(InputError, match=r"--weights 1.0,1.0: the run in runs/mine was made with 2,1"):
        replace(open_, weights=(1.0, 1.0)).check_resumed(open_.as_dict(), [64, 32], 1)
    shuffled = replace(open_, bn="shuffle")
    replace(shuffled, bn_groups=2).check_resumed(shuffled.as_dict(), [64, 32], 1)
    with pytest.raises(InputError, match=r"--bn-groups 2: the run in runs/mine was made with 1"):
        replace(shuffled, bn_groups=2).check_resumed(shuffled.as_dict(), [64, 32], 2)


def test_a_newer_setting_says_what_runs_did_before_it() -> None:
    """The tables of today, by which a setting that is added is told: it must say ``before``."""
    for settings, names in ((PretrainConfig, set(yaml.safe_load(KEPT))), (EvalConfig, set(OPTIONS.split()))):
        assert names <= set(settings.__dataclass_fields__)
        newer = {name: one for name, one in flags(settings).items() if name not in names}
        assert all(one.said.before is not ... for one in newer.values()), newer


def test_what_a_result_keeps_is_what_it_kept() -> None:
    since = {*flags(Choice), *flags(PixelSettings), "baseline", "early_stop", "stall_minutes"}
    assert set(as_table(EvalConfig(shards="s", out="o", pretrained="x", **NEEDED))) == set(OPTIONS.split()) | since  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"lr": float("nan")}, "--lr nan: expected a finite number"),
        ({"newer": 2**31}, "--newer 2147483648: expected at most 10"),
        ({"place": " "}, "--place ' ': it is empty"),
    ],
)
def test_values_are_checked_by_their_fields(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_values(Older(**wrong))


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (part, name)
        for part in (*EVERY, *NUMBERED)
        for name, one in flags(part).items()
        if one.kind in (int, float) and not one.said.choices
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_number_has_one_range_and_what_is_outside_is_refused(part: type, name: str) -> None:
    one = flags(part)[name]
    said = one.said
    low, high = (said.above if said.least is None else said.least), (said.below if said.most is None else said.most)
    assert math.isfinite(low) and math.isfinite(high) and low < high
    outside = [low if said.least is None else low - 1, high if said.most is None else high + 1]
    outside += [math.nan, math.inf, -math.inf] if one.kind is float else []
    needed = {need: "x" if other.kind is str else ("x",) for need, other in flags(part).items() if other.required}
    every = {one.name for one in fields(part)}
    needed |= {need: "x" for need in ("mode", "shards") if need in every and need not in needed}
    for value in outside:
        with pytest.raises(InputError) as refused:
            part(**needed | {name: (value,) if one.many else value})
        assert str(refused.value) == f"{flag(name)} {value}: expected {range_of(said)}"
    assert said.read or f"({one.range}; default" in one.help() or len(one.range) > 24


@pytest.mark.parametrize("text", ["1_0", " 1", "\u0661", "1\uff10", "0x10", "1e5e5", ""])
def test_a_number_is_written_in_plain_digits(text: str) -> None:
    for name in ("epochs", "lr"):
        with pytest.raises(InputError, match=f"argument --{name}: .*: expected a (whole )?number, "):
            Parser(prog="x").add(PretrainConfig).given([f"--{name}={text}"])
    with pytest.raises(InputError, match=r"argument --part: .*: expected I/N in digits with I from 1 to N"):
        Parser(prog="x").add(preprocess.run.How).given([f"--part={text}/9"])


def test_secrets_of_a_place_are_not_kept() -> None:
    assert as_table(Older(place="https://me:pw@host/set?sig=pw"))["place"] == "https://host/set"
