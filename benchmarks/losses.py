"""Speed and memory of our losses, forward and backward, against SMP, pytorch-toolbelt, kornia and torch.

All take turns in one process; the figures are medians, and ratios of medians to SMP's (to torch's for the
cross entropy). Memory is the peak of a process of its own, less what it had with the logits in place, in
units of the logits.

    pip install segmentation-models-pytorch pytorch-toolbelt kornia
    python benchmarks/losses.py                      # (4, 12, 512, 512)
    python benchmarks/losses.py --batch 8
    python benchmarks/losses.py --memory
    python benchmarks/losses.py --device cuda
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import kornia.losses
import pytorch_toolbelt.losses
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor

from segkit import losses

CLASSES, SIZE = 12, 512
LossFunction = Callable[[Tensor, Tensor], Tensor]


def table() -> dict[str, dict[str, LossFunction]]:
    """For each kind of loss: who computes it; the first is what the others are compared with."""
    theirs, belt = smp.losses, pytorch_toolbelt.losses
    kornia_options = {"average": "macro"}
    ce, dice = losses.create_loss("ce", label_smoothing=0.1), losses.DiceLoss()
    return {
        "ce, smoothing 0.1": {
            "torch": lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1, ignore_index=255),
            "SMP": theirs.SoftCrossEntropyLoss(smooth_factor=0.1, ignore_index=255),
            "toolbelt": belt.SoftCrossEntropyLoss(smooth_factor=0.1, ignore_index=255),
            "segkit": ce,
        },
        "ce": {
            "torch": lambda z, y: F.cross_entropy(z, y, ignore_index=255),
            "segkit": losses.CrossEntropyLoss(),
        },
        "dice": {
            "SMP": theirs.DiceLoss("multiclass", ignore_index=255),
            "toolbelt": belt.DiceLoss("multiclass", ignore_index=255),
            "kornia": lambda z, y: kornia.losses.dice_loss(z, y, **kornia_options, ignore_index=255),
            "segkit": dice,
        },
        "jaccard": {
            "SMP": theirs.JaccardLoss("multiclass", ignore_index=255),
            "segkit": losses.JaccardLoss(),
        },
        "tversky": {
            "SMP": theirs.TverskyLoss("multiclass", ignore_index=255),
            "kornia": lambda z, y: kornia.losses.tversky_loss(z, y, alpha=0.5, beta=0.5, ignore_index=255),
            "segkit": losses.TverskyLoss(),
        },
        "focal": {
            "SMP": theirs.FocalLoss("multiclass", ignore_index=255),
            "toolbelt": belt.CrossEntropyFocalLoss(ignore_index=255),
            "kornia": lambda z, y: kornia.losses.focal_loss(
                z, y, alpha=None, gamma=2.0, reduction="mean", ignore_index=255
            ),
            "segkit": losses.FocalLoss(),
        },
        "lovasz": {
            "SMP": theirs.LovaszLoss("multiclass", ignore_index=255),
            "toolbelt": belt.LovaszLoss(ignore=255),
            "segkit": losses.LovaszLoss(),
        },
        "ce + dice": {
            "SMP": _sum_of(
                theirs.SoftCrossEntropyLoss(smooth_factor=0.1, ignore_index=255),
                theirs.DiceLoss("multiclass", ignore_index=255),
            ),
            "segkit, ce alone": ce,
            "segkit, dice alone": dice,
            "segkit": losses.create_loss({"ce": 0.6, "dice": 0.4}, label_smoothing=0.1),
        },
        "bce, a sigmoid per class": {
            "torch, one-hot": lambda z, y: F.binary_cross_entropy_with_logits(
                z, F.one_hot(y.clamp(max=CLASSES - 1), CLASSES).movedim(-1, 1).float()
            ),
            "segkit": losses.BCELoss(),
        },
        "ohem": {"segkit, ce": losses.CrossEntropyLoss(), "segkit": losses.OHEMLoss()},
        "mcc": {"segkit, dice": losses.DiceLoss(), "segkit": losses.MCCLoss()},
    }


def _sum_of(*terms: LossFunction) -> LossFunction:
    return lambda z, y: sum(term(z, y) for term in terms)


def example(batch: int, ignored: float, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Logits, and labels in blobs of 32 x 32 pixels; a share of the pixels is 255."""
    torch.manual_seed(0)
    coarse = torch.randint(CLASSES, (batch, size // 32, size // 32))
    target = coarse.repeat_interleave(32, 1).repeat_interleave(32, 2)
    logits = torch.randn(batch, CLASSES, size, size)
    for image, labels in zip(logits, target, strict=True):  # one by one, so that no copy raises the peak
        image.scatter_add_(0, labels.unsqueeze(0), torch.full((1, size, size), 2.0))
    target[torch.rand(target.shape) < ignored] = 255
    return logits.requires_grad_(), target


def step(loss: LossFunction, logits: Tensor, target: Tensor) -> None:
    logits.grad = None
    loss(logits, target).backward()


def measure(kinds: list[str], batch: int, ignored: float, runs: int, device: str) -> None:
    logits, target = example(batch, ignored)
    logits, target = logits.detach().to(device).requires_grad_(), target.to(device)
    for kind in kinds:
        times: dict[str, list[float]] = {name: [] for name in table()[kind]}
        for counted in (False, *[True] * runs):
            for name, loss in table()[kind].items():
                started = time.perf_counter()
                step(loss, logits, target)
                if device == "cuda":
                    torch.cuda.synchronize()
                if counted:
                    times[name].append(time.perf_counter() - started)
        medians = {name: statistics.median(values) for name, values in times.items()}
        first = next(iter(medians.values()))
        print(f"\n{kind}  {tuple(logits.shape)}, forward and backward")
        for name, seconds in medians.items():
            print(f"  {name:<20} {1000 * seconds:8.1f} ms  {seconds / first:6.2f} x", flush=True)


def measure_memory(kinds: list[str], batch: int) -> None:
    for kind in kinds:
        for name in table()[kind]:
            command = [sys.executable, __file__, "--batch", str(batch), "--peak-of", kind, name]
            peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"{kind:<26} {name:<20} {peak:5.2f} x the logits", flush=True)


def peak_of(kind: str, name: str, batch: int) -> float:
    """Peak memory of a step beyond the inputs, in units of the logits."""
    loss = table()[kind][name]
    step(loss, *example(1, 0.05, size=64))  # whatever libraries load on first use
    logits, target = example(batch, 0.05)
    before = _resident()
    step(loss, logits, target)
    return (_peak() - before) / (logits.numel() * logits.element_size())


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=list(table()), choices=list(table()))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--ignored", type=float, default=0.05, help="share of the pixels that is ignored")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--peak-of", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cuda" and args.memory:
        parser.error("--memory measures on the CPU")
    torch.set_num_threads(args.threads)
    if args.peak_of:
        print(peak_of(*args.peak_of, args.batch))
    elif args.memory:
        measure_memory(args.kinds, args.batch)
    else:
        measure(args.kinds, args.batch, args.ignored, args.runs, args.device)


if __name__ == "__main__":
    main()
