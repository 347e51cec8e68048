"""A training of one second: a small FPN on images drawn in memory, with augmentation, dropout and averaged weights."""

import csv
import os
import signal
import traceback
from contextlib import closing

import numpy as np
import torch

from segkit.data import SegmentationDataset, create_transform, train_loader, val_loader
from segkit.losses import create_loss
from segkit.models import create_model
from segkit.training import (
    Interrupted,
    Ranks,
    StopSignals,
    Trainer,
    TrainOptions,
    TrainState,
    autocast,
    create_ema,
    create_optimizer,
    create_scaler,
    create_scheduler,
    load_state,
    read_checkpoint,
    seed_all,
)
from segkit.training.checkpoint import match_best

CPU = torch.device("cpu")
NAMES = ("background", "square", "disc")


class Drawn(SegmentationDataset):
    """`count` images of 32 x 40 pixels; a bright square is class 1, a dark one class 2."""

    class_names = NAMES

    def __init__(self, count, seed=0):
        random = np.random.default_rng(seed)
        self.images = random.integers(90, 160, (count, 32, 40, 3), dtype=np.uint8)
        self.masks = np.zeros((count, 32, 40), dtype=np.uint8)
        for image, mask in zip(self.images, self.masks, strict=True):
            for label, value in ((1, 240), (2, 10)):
                top, left = random.integers(0, 20, 2)
                image[top : top + 10, left : left + 12], mask[top : top + 10, left : left + 12] = value, label

    def __len__(self):
        return len(self.images)

    def image(self, index):
        return self.images[index]

    def mask(self, index):
        return self.masks[index]


def build_state(
    *, epochs=2, steps=5, ema=0.9, lr=3e-3, schedule="cosine", amp="off", device=CPU, heads=(), **optimizer
):
    seed_all(0)
    options = {"class_names": NAMES, "pretrained": False, "pyramid_channels": 8, "channels": 8}
    model = create_model("fpn", backbone="test_resnet", **options, **dict.fromkeys(heads, True)).to(device)
    optimizer = create_optimizer(model, lr=lr, weight_decay=0.01, **optimizer)
    scheduler = create_scheduler(optimizer, schedule, epochs=epochs, steps_per_epoch=steps, warmup_epochs=0.5)
    return TrainState(model, optimizer, scheduler, create_scaler(device, amp), create_ema(model, ema))


def loaders(*, workers=0, batch_size=2, ranks=Ranks()):  # noqa: B008 - is frozen
    transform = create_transform("standard", crop=32)
    of_rank = {"rank": ranks.rank, "num_ranks": ranks.count}
    train = train_loader(Drawn(10), transform, batch_size=batch_size, workers=workers, **of_rank)
    return train, val_loader(Drawn(2, seed=1), workers=min(workers, 1), **of_rank)


class StopAfter(StopSignals):
    """Interrupts the training at its check number `count`, from 0, and at all later ones; None: never."""

    def __init__(self, count=None):
        super().__init__()
        self.count = count
        self.checks = 0

    def check(self):
        self.checks += 1
        if self.count is not None and self.checks > self.count:
            raise Interrupted(signal.SIGTERM)


def run(
    out,
    *,
    resume=False,
    stop_after=None,
    stop=None,
    epochs=2,
    workers=0,
    batch_size=2,
    state=None,
    ranks=Ranks(),  # noqa: B008 - is frozen
    loss_fn=None,
    device=CPU,
    amp="off",
    progress=iter,
    kind=Trainer,
    **options,
):
    """Train, or resume a training, and return the state.

    Args:
        out: The run folder.
        resume: Continue with the checkpoint in `out`.
        stop_after: Interrupt after so many checks of this call, see `StopAfter`.
        stop: Used instead of `StopAfter(stop_after)`.
        epochs, workers, batch_size, state, ranks, loss_fn, device, amp, progress: Of the training.
        kind: A subclass of Trainer.
        **options: Other TrainOptions.
    """
    out.mkdir(exist_ok=True)
    state = state or build_state(epochs=epochs)
    if resume:
        load_state(state, ranks.on_first(lambda: read_checkpoint(out)[0]), rank=ranks.rank)
        match_best(state, out, ranks)
    trainer = kind(
        state,
        loss_fn or create_loss({"ce": 0.6, "dice": 0.4}),
        out,
        TrainOptions(epochs=epochs, **{"clip_grad": 5.0, **options}),
        device=device,
        autocast=autocast(device, amp),
        ranks=ranks,
        stop=stop or StopAfter(stop_after),
        progress=progress,
    )
    train, val = loaders(workers=workers, batch_size=batch_size, ranks=ranks)
    with closing(train), closing(val):
        for _ in trainer.epochs(train, val):
            pass
    return state


def interrupted(out, stop_after, **options):
    try:
        run(out, stop_after=stop_after, **options)
    except Interrupted:
        return True
    return False


def forked(function):
    """Run `function` in a fork of this process; return its exit code, or the negative number of the signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outcome(out):
    """Return what must not depend on interruptions: the last checkpoint, the results and the best model."""
    content, _ = read_checkpoint(out)
    content = {key: value for key, value in content.items() if key not in ("seconds", "settings", "data")}
    content["history"] = [{k: v for k, v in row.items() if k != "time"} for row in content["history"]]
    rows = list(csv.DictReader((out / "results.csv").open()))
    return content, [{k: v for k, v in row.items() if k != "time"} for row in rows], _bytes(out / "best.safetensors")


def same(a, b):
    """Return whether nested values are equal, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def _bytes(path):
    return path.read_bytes()
