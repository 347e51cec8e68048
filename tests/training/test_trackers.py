"""Loggers are optional, and their errors stop no training."""

import builtins
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from segkit.training.trackers import Tracking

PICTURE = np.zeros((4, 6, 3), np.uint8)
NAN = float("nan")
ROWS = [{"epoch": e, "train_loss": 1 / e, "miou": 0.1 * e, "lr": 1e-3, "iou/can": NAN, "time": 1.0} for e in (1, 2, 3)]


@pytest.fixture
def tensorboard(monkeypatch):
    """A stand-in for torch.utils.tensorboard; `broken` names the calls that raise."""
    made = SimpleNamespace(calls=[], broken=())

    class SummaryWriter:
        def __init__(self, folder, purge_step=None):
            self._called("open", folder.name, purge_step)

        def __getattr__(self, name):
            return lambda *args, **options: self._called(name, *args)

        def _called(self, *call):
            made.calls.append(call)
            if call[0] in made.broken or "all" in made.broken:
                raise RuntimeError(f"{call[0]} is broken\nmore")

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return made


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for W&B with an account; stores the arguments of init, and the rows by step."""
    made = SimpleNamespace(options=None, rows={}, finished=0, account=True, step=0, fails=None)

    class Run:
        id = "abc123"

        @property
        def step(self):
            return made.step

        def log(self, values, step):
            made.rows.setdefault(step, {}).update(values)

        def finish(self):
            made.finished += 1

    def init(**options):
        if made.fails:
            raise made.fails
        made.options = options
        return Run()

    module = ModuleType("wandb")
    module.init, module.Image, module.login = init, lambda pixels: pixels.shape, lambda prompt: made.account
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in ("WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(builtins, "input", lambda *args: pytest.fail("W&B asked for something"))
    return made


def log_all(tracking, rows=ROWS):
    with tracking:
        for row in rows:
            tracking.log(row)
        tracking.show({"worst": PICTURE}, 3)


def test_tensorboard_gets_every_number_and_the_pictures(tensorboard, tmp_path):
    log_all(Tracking(["tensorboard"], tmp_path))
    scalars = [call[1:] for call in tensorboard.calls if call[0] == "add_scalar"]
    assert scalars == [(k, row[k], row["epoch"]) for row in ROWS for k in ("train_loss", "miou", "lr", "time")]
    assert tensorboard.calls[0] == ("open", "tensorboard", None)
    assert [call[1] for call in tensorboard.calls if call[0] == "add_image"] == ["worst"]
    assert tensorboard.calls[-1] == ("close",)


def test_a_resumed_run_logs_every_epoch_exactly_once(tensorboard, tmp_path):
    log_all(Tracking(["tensorboard"], tmp_path, history=ROWS[:2]), ROWS[2:])
    assert tensorboard.calls[0] == ("open", "tensorboard", 1)
    assert [call[3] for call in tensorboard.calls if call[:2] == ("add_scalar", "miou")] == [1, 2, 3]


@pytest.mark.parametrize("broken", [("open",), ("add_scalar",), ("add_image",), ("close",), ("all",)])
def test_a_logger_that_raises_is_reported_in_one_line_and_not_used_again(tensorboard, tmp_path, caplog, broken):
    tensorboard.broken = broken
    log_all(Tracking(["tensorboard"], tmp_path))
    (record,) = caplog.records
    assert record.getMessage().endswith("is broken; training continues")
    assert "\n" not in record.getMessage()
    assert len([call for call in tensorboard.calls if call[0] in broken]) <= 1


def test_a_failing_logger_does_not_affect_the_others(tensorboard, wandb, tmp_path):
    tensorboard.broken = ("all",)
    log_all(Tracking(["tensorboard", "wandb"], tmp_path))
    assert sorted(wandb.rows) == [1, 2, 3]
    assert wandb.rows[3]["worst"] == PICTURE.shape
    assert wandb.finished == 1


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_reported_with_the_command_that_installs_it(tmp_path, monkeypatch, caplog, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    log_all(Tracking([name], tmp_path))
    (record,) = caplog.records
    assert record.getMessage().endswith(f"to use it: pip install {name}")


def test_a_resumed_wandb_run_keeps_its_id_and_continues_after_its_last_step(wandb, tmp_path):
    log_all(Tracking(["wandb"], tmp_path, {"lr": "0.1"}), ROWS[:2])
    assert wandb.options["id"] is None
    assert wandb.options["config"] == {"lr": "0.1"}
    wandb.rows.clear()
    wandb.step = 2  # the second epoch did not reach the server
    log_all(Tracking(["wandb"], tmp_path, history=ROWS[:2]), ROWS[2:])
    assert (wandb.options["id"], wandb.options["resume"]) == ("abc123", "allow")
    assert sorted(wandb.rows) == [2, 3]


@pytest.mark.parametrize(
    ("account", "variable", "mode"),
    [(True, None, "online"), (False, None, "offline"), (False, "online", "offline"), (False, "disabled", "disabled")],
)
def test_wandb_never_asks_for_an_account(wandb, tmp_path, monkeypatch, caplog, account, variable, mode):
    wandb.account = account
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    log_all(Tracking(["wandb"], tmp_path))
    assert wandb.options["mode"] == mode
    assert len(caplog.records) == (mode == "offline")


def test_wandb_without_network_is_off(wandb, tmp_path, caplog):
    wandb.fails = ConnectionError("no route to host")
    log_all(Tracking(["wandb"], tmp_path))
    assert [record.getMessage() for record in caplog.records] == [
        "`log=wandb` is off: no route to host; training continues"
    ]


def test_an_unknown_logger_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"unknown logger 'comet'.*Known: tensorboard, wandb"):
        Tracking(["comet"], tmp_path)
