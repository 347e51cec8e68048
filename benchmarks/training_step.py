"""Speed of `Trainer` against a plain loop that a person writes by hand: the same model, loss and optimizer.

The loops take turns in one process, each with its own copy of the model, on batches that are in memory already. The
figures are medians over the rounds. `plain` reads the loss after every step, as most loops do to print it; `plain,
never reads` lets the GPU run ahead of Python. `SMP script`, if SMP is installed, is a loop as people write it: SMP's
model and losses, torch's AdamW, the same precision and channels last. `Trainer` checks every loss and gradient before
it changes the weights.

    python benchmarks/training_step.py --device cuda --amp bf16
    python benchmarks/training_step.py --device cpu --backbone resnet18 --size 128 --batch 4 --steps 5
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from losses import installed
from torch import Tensor, nn

from segkit.losses import create_loss
from segkit.models import Segmenter, create_model
from segkit.training import (
    Trainer,
    TrainOptions,
    TrainState,
    autocast,
    create_optimizer,
    create_scaler,
    create_scheduler,
    seed_all,
)

CLASSES = 12
CLIP = 5.0
Batches = Sequence[tuple[Tensor, Tensor]]


def example(batch: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return random uint8 images (N, 3, H, W) and labels (N, H, W) in host memory, pinned for a GPU."""
    images = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8).to(memory_format=torch.channels_last)
    coarse = torch.randint(CLASSES, (batch, size // 32, size // 32), dtype=torch.uint8)
    target = coarse.repeat_interleave(32, 1).repeat_interleave(32, 2)
    return (images.pin_memory(), target.pin_memory()) if device.type == "cuda" else (images, target)


def plain_loop(
    model: Segmenter, loss_fn: nn.Module, device: torch.device, amp: str, *, reads_loss: bool
) -> Callable[[Batches], float]:
    """Return a function that trains on batches as most published scripts do, and returns the mean loss."""
    optimizer = create_optimizer(model, lr=1e-4, weight_decay=0.01)
    scaler, precision = create_scaler(device, amp), autocast(device, amp)
    model.train()

    def train(batches: Batches) -> float:
        total = 0.0
        for images, target in batches:
            images, target = images.to(device, non_blocking=True), target.to(device, non_blocking=True)
            with precision():
                logits = model(model.preprocessing(images))
            loss = loss_fn(logits.float(), target)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            scaler.step(optimizer)
            scaler.update()
            total += loss.item() if reads_loss else loss.detach()
        return float(total) / len(batches)

    return train


def trainer_loop(
    model: Segmenter, loss_fn: nn.Module, device: torch.device, amp: str, steps: int
) -> Callable[[Batches], float]:
    """Return `Trainer.train_one_epoch` for the same settings."""
    optimizer = create_optimizer(model, lr=1e-4, weight_decay=0.01)
    schedule = create_scheduler(optimizer, "constant", epochs=1, steps_per_epoch=steps)
    trainer = Trainer(
        TrainState(model, optimizer, schedule, create_scaler(device, amp)),
        loss_fn,
        Path(tempfile.gettempdir()),  # nothing is written
        TrainOptions(epochs=1, clip_grad=CLIP),
        device=device,
        autocast=autocast(device, amp),
    )
    return trainer.train_one_epoch


def smp_loop(options: argparse.Namespace, device: torch.device) -> Callable[[Batches], float]:
    """Return a function that trains SMP's model of the same name on batches, and returns the mean loss."""
    smp = installed("segmentation_models_pytorch")
    known = smp.encoders.encoders
    encoder = options.backbone if options.backbone in known else f"tu-{options.backbone}"
    architecture = {"fpn": "FPN", "deeplabv3plus": "DeepLabV3Plus", "unet": "Unet"}[options.model]
    model = getattr(smp, architecture)(encoder, encoder_weights=None, classes=CLASSES)
    model = model.to(device, memory_format=torch.channels_last).train()
    ce = smp.losses.SoftCrossEntropyLoss(smooth_factor=0.0, ignore_index=255)
    dice = smp.losses.DiceLoss("multiclass", ignore_index=255)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    scaler, precision = create_scaler(device, options.amp), autocast(device, options.amp)
    mean, std = (torch.tensor(x, device=device)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def train(batches: Batches) -> float:
        total = 0.0
        for images, target in batches:
            images = images.to(device, non_blocking=True).float().div(255).sub(mean).div(std)
            target = target.to(device, non_blocking=True).long()
            with precision():
                logits = model(images.contiguous(memory_format=torch.channels_last))
                loss = 0.6 * ce(logits, target) + 0.4 * dice(logits, target)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            scaler.step(optimizer)
            scaler.update()
            total += loss.item()
        return total / len(batches)

    return train


def measure(options: argparse.Namespace) -> None:
    device = torch.device(options.device)
    seed_all(0)
    model = create_model(options.model, backbone=options.backbone, num_classes=CLASSES, pretrained=False)
    model = model.to(device, memory_format=torch.channels_last)
    weights = dict(part.split("=") for part in options.loss)
    loss_fn = create_loss({name: float(weight) for name, weight in weights.items()}).to(device)
    loops = {
        "plain": plain_loop(copy.deepcopy(model), loss_fn, device, options.amp, reads_loss=True),
        "plain, never reads": plain_loop(copy.deepcopy(model), loss_fn, device, options.amp, reads_loss=False),
        "Trainer": trainer_loop(copy.deepcopy(model), loss_fn, device, options.amp, options.steps),
    }
    if installed("segmentation_models_pytorch"):
        loops["SMP script"] = smp_loop(options, device)
    batches = [example(options.batch, options.size, device)] * options.steps
    speeds: dict[str, list[float]] = {name: [] for name in loops}
    for is_counted in (False, *[True] * options.rounds):
        for name, train in loops.items():
            started = time.perf_counter()
            train(batches)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if is_counted:
                speeds[name].append(options.batch * options.steps / (time.perf_counter() - started))
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"torch {torch.__version__}, {where}, {options.model} {options.backbone}, batches of {options.batch} x "
        f"{options.size} x {options.size}, amp {options.amp}, {options.rounds} rounds of {options.steps} steps"
    )
    plain = statistics.median(speeds["plain"])
    for name, values in speeds.items():
        median = statistics.median(values)
        print(f"  {name:<20} {median:8.1f} images/s  {median / plain:5.3f} of plain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--model", default="fpn", help="architecture")
    parser.add_argument("--backbone", default="tf_efficientnet_b3", help="a backbone of timm")
    parser.add_argument("--loss", nargs="+", default=["ce=0.6", "dice=0.4"], help="losses and their weights")
    parser.add_argument("--amp", default="off", help="off, bf16, fp16 or auto")
    parser.add_argument("--batch", type=int, default=16, help="images in a batch")
    parser.add_argument("--size", type=int, default=512, help="height and width of the images, a multiple of 32")
    parser.add_argument("--steps", type=int, default=20, help="steps in a round")
    parser.add_argument("--rounds", type=int, default=9, help="rounds that are measured")
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
