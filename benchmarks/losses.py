"""Speed and memory of our losses, forward and backward, against SMP, pytorch-toolbelt, kornia and torch.

All losses take turns in one process. The figures are medians, and ratios of medians to the first loss of a table, which
is SMP's or torch's. Packages that are not installed are skipped. Memory is the peak of a process, minus the memory that
it used with the logits in place, as a multiple of the logits.

    pip install segmentation-models-pytorch pytorch-toolbelt kornia
    python benchmarks/losses.py                      # (4, 12, 512, 512)
    python benchmarks/losses.py --batch 8
    python benchmarks/losses.py --beside 1           # next to a process that keeps a core busy
    python benchmarks/losses.py --memory
    python benchmarks/losses.py --device cuda --runs 50
"""

import argparse
import importlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from segkit import losses

CLASSES, SIZE = 12, 512
LossFunction = Callable[[Tensor, Tensor], Tensor]


def installed(name: str) -> ModuleType | None:
    """Return the module, or None if its package is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def table() -> dict[str, dict[str, LossFunction]]:
    """Return, for each kind of loss, who computes it; the others are compared with the first."""
    smp, belt, kornia = (
        installed(f"{name}.losses") for name in ("segmentation_models_pytorch", "pytorch_toolbelt", "kornia")
    )
    ce, dice = losses.create_loss("ce", label_smoothing=0.1), losses.DiceLoss()
    kinds = {
        "ce, smoothing 0.1": {
            "torch": lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1, ignore_index=255),
            "SMP": smp and smp.SoftCrossEntropyLoss(smooth_factor=0.1, ignore_index=255),
            "toolbelt": belt and belt.SoftCrossEntropyLoss(smooth_factor=0.1, ignore_index=255),
            "segkit": ce,
        },
        "ce": {
            "torch": lambda z, y: F.cross_entropy(z, y, ignore_index=255),
            "segkit": losses.CrossEntropyLoss(),
        },
        "dice": {
            "SMP": smp and smp.DiceLoss("multiclass", ignore_index=255),
            "toolbelt": belt and belt.DiceLoss("multiclass", ignore_index=255),
            "kornia": kornia and (lambda z, y: kornia.dice_loss(z, y, average="macro", ignore_index=255)),
            "segkit": dice,
        },
        "jaccard": {
            "SMP": smp and smp.JaccardLoss("multiclass", ignore_index=255),
            "segkit": losses.JaccardLoss(),
        },
        "tversky": {
            "SMP": smp and smp.TverskyLoss("multiclass", ignore_index=255),
            "kornia": kornia and (lambda z, y: kornia.tversky_loss(z, y, alpha=0.5, beta=0.5, ignore_index=255)),
            "segkit": losses.TverskyLoss(),
        },
        "focal": {
            "SMP": smp and smp.FocalLoss("multiclass", ignore_index=255),
            "toolbelt": belt and belt.CrossEntropyFocalLoss(ignore_index=255),
            "kornia": kornia
            and (lambda z, y: kornia.focal_loss(z, y, alpha=None, gamma=2.0, reduction="mean", ignore_index=255)),
            "segkit": losses.FocalLoss(),
        },
        "lovasz": {
            "SMP": smp and smp.LovaszLoss("multiclass", ignore_index=255),
            "toolbelt": belt and belt.LovaszLoss(ignore=255),
            "segkit": losses.LovaszLoss(),
        },
        "ce + dice": {
            "SMP": smp
            and _sum_of(
                smp.SoftCrossEntropyLoss(smooth_factor=0.1, ignore_index=255),
                smp.DiceLoss("multiclass", ignore_index=255),
            ),
            "segkit, only ce": ce,
            "segkit, only dice": dice,
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
    return {kind: {name: loss for name, loss in by.items() if loss is not None} for kind, by in kinds.items()}


def _sum_of(*terms: LossFunction) -> LossFunction:
    return lambda z, y: sum(term(z, y) for term in terms)


def example(batch: int, ignored: float, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Return logits, and labels in squares of 32 x 32 pixels; a share of the pixels is 255."""
    torch.manual_seed(0)
    coarse = torch.randint(CLASSES, (batch, size // 32, size // 32))
    target = coarse.repeat_interleave(32, 1).repeat_interleave(32, 2)
    logits = torch.randn(batch, CLASSES, size, size)
    for image, labels in zip(logits, target, strict=True):  # One by one, so that no copy raises the peak.
        image.scatter_add_(0, labels.unsqueeze(0), torch.full((1, size, size), 2.0))
    target[torch.rand(target.shape) < ignored] = 255
    return logits.requires_grad_(), target


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep `count` processes running that compute all the time, as the workers of a loader or another job do."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def step(loss: LossFunction, logits: Tensor, target: Tensor) -> None:
    logits.grad = None
    loss(logits, target).backward()


def measure(kinds: list[str], batch: int, size: int, ignored: float, runs: int, device: str) -> None:
    logits, target = example(batch, ignored, size)
    logits, target = logits.detach().to(device).requires_grad_(), target.to(device)
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {where}, {ignored:.0%} of the pixels ignored")
    for kind in kinds:
        competitors = table()[kind]
        times: dict[str, list[float]] = {name: [] for name in competitors}
        for counted in (*[False] * (1 if device == "cpu" else 5), *[True] * runs):
            for name, loss in competitors.items():
                started = time.perf_counter()
                step(loss, logits, target)
                if device == "cuda":
                    torch.cuda.synchronize()
                if counted:
                    times[name].append(time.perf_counter() - started)
        medians = {name: statistics.median(values) for name, values in times.items()}
        reference, first = next(iter(medians.items()))
        print(f"\n{kind}  {tuple(logits.shape)}, forward and backward, ratio to {reference}")
        for name, seconds in medians.items():
            print(f"  {name:<20} {1000 * seconds:8.2f} ms  {seconds / first:6.2f} x", flush=True)


def measure_memory(kinds: list[str], batch: int) -> None:
    for kind in kinds:
        for name in table()[kind]:
            command = [sys.executable, __file__, "--batch", str(batch), "--peak-of", kind, name]
            peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"{kind:<26} {name:<20} {peak:5.2f} x the logits", flush=True)


def peak_of(kind: str, name: str, batch: int) -> float:
    """Return the peak memory of a step in addition to the inputs, as a multiple of the logits."""
    loss = table()[kind][name]
    step(loss, *example(1, 0.05, size=64))  # Libraries load parts of themselves on first use.
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
    parser.add_argument("--size", type=int, default=SIZE, help="height and width in pixels, a multiple of 32")
    parser.add_argument("--ignored", type=float, default=0.05, help="share of the pixels that is ignored")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--beside", type=int, default=0, help="other processes that compute at the same time")
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
        with busy_processes(args.beside):
            print(f"{args.beside} busy processes next to this one")
            measure(args.kinds, args.batch, args.size, args.ignored, args.runs, args.device)


if __name__ == "__main__":
    main()
