"""Protects training curves in other programs: they hear what our log hears, and never end a run."""

from __future__ import annotations

import importlib.machinery
import sys
import types

import pytest

from speedrun.cli.trackers import TRACKERS, check_trackers, open_trackers
from speedrun.config import RunConfig
from speedrun.errors import ConfigError
from speedrun.train.log import RunLog

RUN = RunConfig(name="test/tracked", seed=7)
ROW = {"step": 3, "train_nats": 2.5, "time": 1.0, "update_norm": {"matrix": 0.25, "head": 0.5}}
TOLD = ({"train_nats": 2.5, "update_norm/matrix": 0.25, "update_norm/head": 0.5}, 3)


class Service:
    """Stands in for wandb and trackio: `init` gives a run with `log` and `finish`."""

    def __init__(self, breaks_at: int = 99) -> None:
        self.settings: dict[str, object] = {}
        self.heard: list[tuple[dict[str, float], int]] = []
        self.is_finished = False
        self.breaks_at = breaks_at

    def init(self, **settings: object) -> Service:
        self.settings = settings
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        if len(self.heard) >= self.breaks_at:
            raise ConnectionError("the service is away")
        self.heard.append((values, step))

    def finish(self) -> None:
        self.is_finished = True


@pytest.fixture
def serve(monkeypatch):
    def serve(name: str, service: Service) -> Service:
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.init = service.init
        monkeypatch.setitem(sys.modules, name, module)
        return service

    return serve


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_service_hears_numbers_by_step_and_knows_the_recipe(serve, tmp_path, name):
    service = serve(name, Service())
    check_trackers([name])
    with open_trackers([name], RUN, tmp_path / "run-s7", pytest.fail) as tell:
        RunLog(on_metrics=tell).metrics(**ROW)
        assert not service.is_finished
    assert service.heard == [TOLD] and service.is_finished
    assert service.settings["name"] == "run-s7" and service.settings["resume"] == "allow"
    assert service.settings["config"]["optim.matrix_lr"] == RUN.optim.matrix_lr


def test_a_service_that_breaks_is_told_once_and_left_out(serve, tmp_path):
    broken, steady, said = serve("wandb", Service(1)), serve("trackio", Service()), []
    with open_trackers(["wandb", "trackio"], RUN, tmp_path, said.append) as tell:
        for _ in range(3):
            tell(ROW)
    assert said == ["wandb: ConnectionError: the service is away; the run goes on without it"]
    assert (len(broken.heard), len(steady.heard), steady.is_finished) == (1, 3, True)


def test_a_service_that_does_not_open_is_left_out(serve, tmp_path, monkeypatch):
    serve("wandb", Service())
    monkeypatch.setattr(sys.modules["wandb"], "init", lambda **_: 1 / 0)
    said = []
    with open_trackers(["wandb"], RUN, tmp_path, said.append) as tell:
        tell(ROW)
    assert len(said) == 1 and said[0].startswith("wandb: ZeroDivisionError: ")


def test_what_is_not_there_is_refused_before_the_run(monkeypatch):
    with pytest.raises(ConfigError, match="'mlflow' is unknown; expected one of"):
        check_trackers(["mlflow"])
    monkeypatch.setitem(TRACKERS, "no_such_package", TRACKERS["wandb"])
    with pytest.raises(ConfigError, match=r"pip install 'speedrun\[no_such_package\]'"):
        check_trackers(["no_such_package"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_leaves_events_that_tensorboard_reads(call, contest, tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ("--set", "train.max_steps=3", "--samples", 0, "--log-to", "tensorboard")
    done = call("run", "--track", contest.track, "--out", tmp_path, *words)
    assert done.code == 0, done.err
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    names = set(events.Tags()["scalars"])
    assert {"train_nats", "update_norm/matrix", "memory_bytes", "packed_bpb"} <= names
    assert [event.step for event in events.Scalars("train_nats")] == [1, 2, 3]
    assert not (folder / "submission" / "tensorboard").exists()
