"""The training loop and what it needs: optimizer, schedule, precision, checkpoints."""

from segkit.training.checkpoint import load_state, save_state, write_results
from segkit.training.loop import EpochReport, Evaluation, evaluate, fit, train_one_epoch
from segkit.training.optim import autocast, create_optimizer, create_scheduler
from segkit.training.state import TrainState

__all__ = [
    "EpochReport",
    "Evaluation",
    "TrainState",
    "autocast",
    "create_optimizer",
    "create_scheduler",
    "evaluate",
    "fit",
    "load_state",
    "save_state",
    "train_one_epoch",
    "write_results",
]
