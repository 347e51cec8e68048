"""Single steps of a model without batch norms, whose gradients over the parts of a batch add up to the batch's."""

from pathlib import Path

import torch
from torch import nn

from helpers.tiny_training import CPU, NAMES
from segkit.losses import create_loss
from segkit.models.preprocessing import Preprocessing
from segkit.training import (
    Ranks,
    Trainer,
    TrainOptions,
    TrainState,
    autocast,
    create_optimizer,
    create_scaler,
    create_scheduler,
)


class NormFree(nn.Module):
    """Two convolutions: no statistics of the batch, so that the parts of a batch can be added up."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, len(NAMES), 1)
        self.preprocessing = Preprocessing((0.5,) * 3, (0.2,) * 3)

    def forward(self, images):
        return self.last(self.first(images).relu())


def norm_free_state(*, lr=0.1, optimizer="sgd", amp="off", steps=1):
    torch.manual_seed(0)
    model = NormFree()
    optimizer = create_optimizer(model, optimizer, lr=lr)
    return TrainState(
        model,
        optimizer,
        create_scheduler(optimizer, "constant", epochs=1, steps_per_epoch=steps),
        create_scaler(CPU, amp),
    )


def batches(*sizes, seed=0):
    """Random batches in which the share of ignored pixels differs from image to image."""
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (sum(sizes), 3, 8, 8), generator=random, dtype=torch.uint8)
    target = torch.randint(3, (sum(sizes), 8, 8), generator=random, dtype=torch.uint8)
    for i, one in enumerate(target):
        one[: 7 * i // sum(sizes)] = 255
    return list(zip(images.split(list(sizes)), target.split(list(sizes)), strict=True))


def learn(state, data, loss="ce", *, amp="off", ranks=Ranks(), stop=None, **options):  # noqa: B008 - is frozen
    """Train on the batches `data`, and return the mean loss."""
    loss_fn = loss if isinstance(loss, nn.Module) else create_loss(loss)
    options = TrainOptions(epochs=1, **options)
    trainer = Trainer(state, loss_fn, Path(), options, device=CPU, autocast=autocast(CPU, amp), ranks=ranks, stop=stop)
    return trainer.train_one_epoch(data)


def weights(state):
    return torch.cat([p.detach().flatten() for p in state.model.parameters()])
