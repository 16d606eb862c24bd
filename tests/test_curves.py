"""A run's curves and pictures: what a disk that is full, or was for a while, leaves of them."""

import errno
import os
from pathlib import Path

import pytest
from conftest import SMALL, run

from dclr.errors import NOT_KEPT
from dclr.pretraining import watch
from dclr.training.curves import LINES, Curves, read_lines


def test_a_full_disk_costs_curves_and_pictures_and_not_the_run(synthetic_set: Path, tmp_path: Path) -> None:
    """From the start of the training no file of the process can take a byte; at its end it says that nothing is kept."""
    script, out = tmp_path / "full.py", tmp_path / "run"
    script.write_text(
        "import resource, tempfile\n"
        "import train_pretrain\n"
        "from dclr import errors\nfrom dclr.pretraining import pretrain\n"
        "tempfile.gettempdir()  # tried by writing there: that disk is another one\n"
        "train = pretrain._train\n"
        "def full(*args):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "    return train(*args)\n"
        "pretrain._train = full\n"
        "with errors.exit_on_input_error():\n"
        "    train_pretrain.main()\n"
    )
    common = ("--shards", synthetic_set, "--split", "train", *SMALL, "-b", "16", "--queue", "16", "--epochs", "2")
    done = run(script, *common, "--out", out)
    assert done.returncode == NOT_KEPT, done.stderr
    assert done.stderr.count(f"warning: {out}: ") == 1 and "what cannot be written there is left out" in done.stderr
    assert done.stderr.count("warning: the checkpoint of step") == 2 and "that is kept is none" in done.stderr
    assert not any(path.stat().st_size for path in out.iterdir())


def test_lines_go_on_when_there_is_space_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    watched = Curves(tmp_path, 0)
    watched.log(1, {"loss": 0.5})
    with monkeypatch.context() as broken:
        broken.setattr(Path, "open", full)
        broken.setattr(watch.cv2, "imread", full)
        watched.log(2, {"loss": 0.25})
        watched.picture(2, "maps", lambda path: path.touch())
    watched.log(3, {"loss": 0.125})
    watched.close()
    assert [line["step"] for line in read_lines(tmp_path)] == [1, 3]
    assert capsys.readouterr().err.count("No space left") == 1
    with monkeypatch.context() as broken:
        broken.setattr(Path, "write_text", full)
        Curves(tmp_path, 1).close()  # a resumed run that cannot drop what came after keeps what it has
    assert [line["step"] for line in read_lines(tmp_path)] == [1, 3]
    with (tmp_path / LINES).open("a") as file:  # cut by a full disk, and by a kill
        file.write('{"step": 4, "lo{"step": 5, "loss": 0}\n{"step": 6, "loss": 0}\n{"step": 7, "lo')
    assert [line["step"] for line in read_lines(tmp_path)] == [1, 3, 6]
