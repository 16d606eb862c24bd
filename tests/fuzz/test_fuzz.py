"""A few executions of every target, the same each time; make fuzz runs a million."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutate import mutated
from targets import CORPUS, TARGETS, execute

from dclr.errors import InputError

EXAMPLES = {"record": 1000, "index": 1000, "plan": 1000, "lists": 500, "checkpoint": 150, "config": 400}  # a few seconds each
ACCEPTED = {"lists": {"diving48-Diving48_test.json", "diving48-Diving48_vocab.json"}}  # beside others: not read themselves


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_kept_is_read(target: str, scratch: Path) -> None:
    """Else its changes would all be refused at the first byte. What make fuzz has found is refused."""
    for path in sorted((CORPUS / target).iterdir()):
        execute(target, path.read_bytes(), scratch)
        if not path.name.startswith("found-") and path.name not in ACCEPTED.get(target, ()):
            assert any(reads(reader, path.read_bytes(), scratch) for reader in TARGETS[target]), path


def reads(reader: object, data: bytes, scratch: Path) -> bool:
    try:
        reader(data, scratch)
    except InputError:
        return False
    return True


@pytest.mark.parametrize("target", TARGETS)
def test_hostile_bytes_raise_nothing_but_input_errors(target: str, scratch: Path) -> None:
    files = sorted((CORPUS / target).iterdir())

    @settings(max_examples=EXAMPLES[target])
    @given(st.sampled_from(files), st.integers(0, 2**32))
    def run(path: Path, seed: int) -> None:
        execute(target, mutated(path.read_bytes(), Random(seed)), scratch)

    run()


def test_the_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in CORPUS.rglob("*")) < 200_000
