"""Configurations: from the command line, from a recipe, from a run's own file."""

import re
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, refuse, succeed

import train_pretrain
from dclr.checkpoint import load
from dclr.errors import InputError
from dclr.method.objective import Method
from dclr.pretraining.config import PretrainConfig
from dclr.settings import from_flags

RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))


def parsed(path: Path, *more: str) -> dict:
    return train_pretrain.parser().given(["--config", str(path), *more])


def test_there_are_recipes() -> None:
    assert [path.stem for path in RECIPES] == ["authors", "dclr", "kinetics400", "lab", "ucf101"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_parses_and_starts(recipe: Path, synthetic_set: Path, tmp_path: Path) -> None:
    table = yaml.safe_load(recipe.read_text())
    args = parsed(recipe)
    assert args == {name: tuple(value) if isinstance(value, list) else value for name, value in table.items()}
    few = ("-b", "16", "--epochs", "2", "--queue", "16", "--precision", "fp32", "-j", "0", "--split", "train", "--width", "4")
    few = (*few, "--warmup", "1") if "warmup" in table else few
    small = ("-fpc", "4", "-cs", "32", "--shards", synthetic_set, "--out", tmp_path / "run")
    succeed("train_pretrain.py", "--config", recipe, *small, *few, "--schedule")
    kept = load(tmp_path / "run" / "last.pt")["config"]
    assert kept["arch"] == table["arch"] and kept["lr"] == table["lr"] and kept["epochs"] == 2  # flags win over the recipe


def test_a_recipe_is_the_config_of_its_name_and_flags_beside_it_win(tmp_path: Path) -> None:
    given = train_pretrain.parser().given
    assert given(["--recipe", "authors"]) == parsed(REPOSITORY / "recipes" / "authors.yaml")
    assert given(["--lr", "0.5", "--recipe", "authors"])["lr"] == 0.5
    (tmp_path / "mine.yaml").write_text("momentum: 0.9\nsplit: a")
    both = given(["--recipe", "authors", "--config", str(tmp_path / "mine.yaml")])  # of two the later wins
    assert both == given(["--recipe", "authors"]) | {"momentum": 0.9, "split": ("a",)}
    said = refuse("train_pretrain.py", "--recipe", "moco")
    assert "--recipe: moco: expected one of authors, dclr, kinetics400, lab, ucf101" in said


def test_ours_and_the_authors_recipe_say_the_same_settings_and_the_method_where_they_differ() -> None:
    theirs, ours = (yaml.safe_load((REPOSITORY / "recipes" / f"{name}.yaml").read_text()) for name in ("authors", "dclr"))
    assert list(theirs) == list(ours)
    rows = re.findall(r"^\| `--([\w-]+)` \| (\S+) \| (\S+) \|", (REPOSITORY / "docs" / "method.md").read_text(), re.M)
    table = {name.replace("-", "_"): (yaml.safe_load(a), yaml.safe_load(b)) for name, a, b in rows}
    assert table == {name: (theirs[name], ours[name]) for name in theirs if theirs[name] != ours[name]}


def test_a_run_is_made_again_from_its_own_file(checkpoint: Path, tmp_path: Path) -> None:
    again = ("--config", checkpoint.parent / "config.yaml", "--out", tmp_path / "again")
    succeed("train_pretrain.py", *again)
    one, two = load(checkpoint), load(tmp_path / "again" / "last.pt")
    assert {**one["config"], "out": ""} == {**two["config"], "out": ""}
    assert all(one["model"][name].equal(two["model"][name]) for name in one["model"])


def test_every_field_survives_the_way_through_a_file(tmp_path: Path) -> None:
    config = PretrainConfig(
        shards="a b", out="o", split=("x", "y"), without=("static", "mining"), symmetric=True, schedule=(), queue=None, lr=1e-5
    )
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config.as_dict()))
    assert from_flags(PretrainConfig, parsed(tmp_path / "c.yaml")) == config


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, Method()),
        ({"seed": 3}, Method(seed=3)),
        ({"mined": 2}, Method(mined=2)),
        ({"without": ("static",)}, Method(views="vd")),
        ({"without": ("dynamic",)}, Method(views="vs")),
        ({"without": ("static", "dynamic")}, Method(views="v", mined=0)),
        ({"without": ("decoupling",)}, Method(decoupling=False)),
        ({"without": ("mining",)}, Method(mined=0)),
        ({"without": ("alignment",)}, Method(alignment=0)),
        ({"objective": "moco"}, Method(views="v", mined=0)),
        ({"objective": "moco", "symmetric": True}, Method(views="v", mined=0, symmetric=True)),
        ({"loss": "masked"}, Method(loss="masked")),
        ({"loss": "mean-log"}, Method(loss="mean-log")),
        ({"align_target": "raw", "align_maps": "key"}, Method(align_target="raw", align_maps="key")),
        ({"symmetric": True}, Method(symmetric=True)),
    ],
)
def test_every_switch_is_a_field_of_the_method(flags: dict, expected: Method) -> None:
    assert PretrainConfig(shards="s", out="o", split=("train",), **flags).method == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mlp: true", "'mlp' is no flag"),
        ("- 1", "expected a table of flags"),
        ("lr: {a: 1}", "expected a plain value"),
        ("lr: [", "not a readable YAML file"),
        ("lr: !!python/object/apply:os.system [ls]", "not a readable YAML file"),
        ("a: " + "x" * 70000, "expected a recipe of at most"),
    ],
)
def test_files_that_are_no_configuration_are_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=says):
        parsed(tmp_path / "c.yaml")


def test_a_mistake_in_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("lr: fast")
    assert "argument --lr: 'fast': expected a number, above 0 to 1000" in refuse(
        "train_pretrain.py", "--config", tmp_path / "c.yaml"
    )
    assert "not a readable YAML file" in refuse("train_pretrain.py", "--config", tmp_path / "none.yaml")
