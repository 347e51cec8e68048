"""The training loop and what it needs: optimizer, schedule, precision, checkpoints."""

from segkit.errors import CheckpointError, RanksError
from segkit.training.checkpoint import load_state, read_checkpoint, save_state, write_results
from segkit.training.distributed import Ranks, ranks_of_torchrun, share_batch_norms
from segkit.training.ema import create_ema
from segkit.training.evaluation import Evaluation, evaluate
from segkit.training.loop import EpochReport, fit, train_one_epoch
from segkit.training.memory import keep_memory, release_memory
from segkit.training.optim import autocast, create_optimizer, create_scaler
from segkit.training.random_state import make_deterministic, seed_all
from segkit.training.schedule import Schedule, create_scheduler
from segkit.training.signals import Interrupted, StopSignals
from segkit.training.state import TrainState

__all__ = [
    "CheckpointError",
    "EpochReport",
    "Evaluation",
    "Interrupted",
    "Ranks",
    "RanksError",
    "Schedule",
    "StopSignals",
    "TrainState",
    "autocast",
    "create_ema",
    "create_optimizer",
    "create_scaler",
    "create_scheduler",
    "evaluate",
    "fit",
    "keep_memory",
    "load_state",
    "make_deterministic",
    "ranks_of_torchrun",
    "read_checkpoint",
    "release_memory",
    "save_state",
    "seed_all",
    "share_batch_norms",
    "train_one_epoch",
    "write_results",
]
