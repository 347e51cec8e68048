"""The training loop and its parts: optimizer, schedule, precision, checkpoints."""

from segkit.errors import CheckpointError, Interrupted, RanksError
from segkit.training.checkpoint import checkpoint_bytes, load_state, read_checkpoint, save_state, write_results
from segkit.training.distributed import Ranks, ranks_of_torchrun, share_batch_norms
from segkit.training.interrupt import StopSignals, save_signal_ignored
from segkit.training.memory import keep_memory, release_memory
from segkit.training.optim import autocast, check_optimizer, create_ema, create_optimizer, create_scaler
from segkit.training.schedule import Schedule, create_scheduler
from segkit.training.state import TrainState, make_deterministic, seed_all
from segkit.training.trackers import Tracking
from segkit.training.trainer import EpochReport, Trainer, TrainOptions
from segkit.training.validation import Precision, Validation, validate

__all__ = [
    "CheckpointError",
    "EpochReport",
    "Interrupted",
    "Precision",
    "Ranks",
    "RanksError",
    "Schedule",
    "StopSignals",
    "Tracking",
    "TrainOptions",
    "TrainState",
    "Trainer",
    "Validation",
    "autocast",
    "check_optimizer",
    "checkpoint_bytes",
    "create_ema",
    "create_optimizer",
    "create_scaler",
    "create_scheduler",
    "keep_memory",
    "load_state",
    "make_deterministic",
    "ranks_of_torchrun",
    "read_checkpoint",
    "release_memory",
    "save_signal_ignored",
    "save_state",
    "seed_all",
    "share_batch_norms",
    "validate",
    "write_results",
]
