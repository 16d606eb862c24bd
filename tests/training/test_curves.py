"""A run's curves and pictures: what a disk that is full, or was for a while, leaves of them."""

import errno
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL, run
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import get_experiment, list_session_groups
from tensorboard.plugins.hparams.api_pb2 import GetExperimentRequest, ListSessionGroupsRequest, Status
from tensorboard.plugins.hparams.backend_context import Context

from dclr.errors import NOT_KEPT
from dclr.evaluation.result import events
from dclr.method import norm
from dclr.method.backbones import build
from dclr.method.model import DCLR
from dclr.method.views import normalise, to_clip
from dclr.pretraining import watch
from dclr.training import curves
from dclr.training.curves import Curves
from dclr.training.lines import LINES, read_lines


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


def test_the_knn_normalises_as_rgb_and_leaves_the_model_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step ends with the dynamic view in use: its running statistics are not those that RGB clips are tested with."""
    torch.manual_seed(0)
    model = DCLR(build("r2plus1d_10", 4), 8).train()
    colour, seen = torch.randint(256, (12, 1, 1, 1, 1, 3), dtype=torch.uint8), []
    videos = colour // 2 + torch.randint(128, (12, 1, 2, 32, 32, 3), dtype=torch.uint8)
    clips = normalise(to_clip(videos[:, 0]))
    for _ in range(20):  # what training leaves: statistics of each view, and the last view in use
        model.f_q.features({"v": clips, "d": 3 * clips + 1})

    def over_videos(setting: Any, samples_N: np.ndarray, clips: int, crops: int, title: str, found: Any) -> Any:
        features = torch.stack([found({"rgb": videos[n : n + 1]}) for n in samples_N]).numpy()
        seen.append(features)
        return features, samples_N

    monkeypatch.setattr(watch, "over_videos", over_videos)
    setting = SimpleNamespace(
        trunk=SimpleNamespace(module=model.f_q.backbone), train_N=np.arange(8), test_N=np.arange(6, 12), dtype=torch.float32,
        device=torch.device("cpu"), label=lambda samples_N: samples_N, classes=SimpleNamespace(known=8),
    )  # fmt: skip
    found = watch.online_knn(model, setting)  # type: ignore[arg-type]
    assert all(module.training for module in model.modules())
    norm.use_view(model.f_q, "v")
    plain = model.f_q.backbone.eval()
    with torch.no_grad():
        expected = plain(clips).mean((2, 3, 4)).numpy()
    assert (expected.std(0) > 0.01).any()
    np.testing.assert_allclose(seen[0], expected[:8], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen[1], expected[6:], rtol=1e-4, atol=1e-5)
    assert found["knn/top1"] == pytest.approx(2 / 6)  # the two that are in the gallery; labels 8 and above are in none


def test_lines_go_on_when_there_is_space_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    watched = Curves(tmp_path, 0, {})
    watched.log(1, {"loss": 0.5})
    with monkeypatch.context() as broken:
        broken.setattr(Path, "open", full)
        broken.setattr(curves.cv2, "imread", full)
        watched.log(2, {"loss": 0.25})
        watched.picture(2, "maps", lambda path: path.touch())
    watched.log(3, {"loss": 0.125})
    watched.close()
    assert [line["step"] for line in read_lines(tmp_path)] == [1, 3]
    assert capsys.readouterr().err.count("No space left") == 1
    with monkeypatch.context() as broken:
        broken.setattr(Path, "write_text", full)
        Curves(tmp_path, 1, {}).close()  # a resumed run that cannot drop what came after keeps what it has
    assert [line["step"] for line in read_lines(tmp_path)] == [1, 3]
    with (tmp_path / LINES).open("a") as file:  # cut by a full disk, and by a kill
        file.write('{"step": 4, "lo{"step": 5, "loss": 0}\n{"step": 6, "loss": 0}\n{"step": 7, "lo')
    assert [line["step"] for line in read_lines(tmp_path)] == [1, 3, 6]


def compared(runs: Path) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """What TensorBoard's HPARAMS tab shows of the runs in a folder: the settings, those that differ first, and for each run its
    settings and numbers by name."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(runs)).Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(runs))))
    ask = RequestContext(), context, ""
    experiment = get_experiment.Handler(*ask, GetExperimentRequest()).run()
    request = ListSessionGroupsRequest(slice_size=100, allowed_statuses=[Status.STATUS_SUCCESS])
    groups = list_session_groups.Handler(*ask, request).run().session_groups
    return [one.name for one in experiment.hparam_infos if one.differs], {
        group.name: {name: getattr(value, value.WhichOneof("kind")) for name, value in group.hparams.items()}
        | {one.name.tag: one.value for one in group.metric_values}
        for group in groups
    }


def test_runs_are_compared_by_settings_and_final_numbers(tmp_path: Path) -> None:
    """Those of the last start, where a run was resumed with others: pretrainings and evaluations in one table."""
    first = {"mode": "pretraining", "lr": 0.5, "epochs": 1, "cos": True, "split": ["a", "b"], "queue": None, "out": "x"}
    for lr in (0.5, 0.25):
        out = tmp_path / f"lr{lr}"
        out.mkdir()
        for epochs, after in ((1, 0), (2, 20)):
            time.sleep(1.01)  # TensorBoard reads the files of a folder by their names, which begin with seconds
            watched = Curves(out, after, first | {"lr": lr, "epochs": epochs})
            for step in range(after + 1, after + 21):
                watched.log(step, {"loss/total": step * lr, "contrast/top1_vv": step / 40, "contrast/top5_vv": 0.5})
            watched.log(after + 20, {"knn/top1": epochs / 4})
            watched.close()
    events(tmp_path / "knn", {"mode": "knn", "cpv": 20, "dropout": 0.5}, {"top1": 0.75})  # dropout is finetune's
    differ, found = compared(tmp_path)
    assert differ == ["lr", "mode"] and found.keys() == {"lr0.5", "lr0.25", "knn"}
    for lr in (0.5, 0.25):
        one = found[f"lr{lr}"]
        said = {"lr": lr, "epochs": 2, "split": "a, b", "queue": None, "out": None}
        assert {name: one.get(name) for name in first} == first | said
        assert {name: one[name] for name in one if name.startswith("at_end/")} == pytest.approx({
            "at_end/loss/total": 35.5 * lr, "at_end/contrast/top1_vv": 35.5 / 40, "at_end/knn/top1": 0.5,
        })  # fmt: skip
    assert found["knn"] == {"mode": "knn", "cpv": 20, "result/top1": 0.75}


def test_every_setting_is_a_row_of_tensorboards_text(tmp_path: Path) -> None:
    Curves(tmp_path, 0, {"lr": 0.5, "split": ("a", "b|c"), "queue": None}).close()
    (text,) = EventAccumulator(str(tmp_path)).Reload().Tensors("settings/text_summary")
    rows = text.tensor_proto.string_val[0].decode().splitlines()
    assert rows == ["| setting | value |", "|---|---|", "| lr | 0.5 |", "| split | a, b&#124;c |", "| queue | None |"]
