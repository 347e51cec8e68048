"""Measure speed and memory of segkit's metrics against torchmetrics, SMP and the formula of mmseg.

All sides take turns in one process; the figures are medians, and ratios of medians to torchmetrics. The formula of
mmseg, three histograms per image, is written out here, because mmseg cannot be installed next to a current torch. SMP
is segmentation_models_pytorch.

    pip install torchmetrics segmentation-models-pytorch
    python benchmarks/metrics.py                # update from labels and from logits, and all metrics of segkit
    python benchmarks/metrics.py --memory       # peak memory, each figure from a separate process
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from segmentation_models_pytorch.metrics import get_stats
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from segkit.metrics import BoundaryIoU, CalibrationError, ConfusionMatrix, PerImageConfusion, bootstrap_interval

CLASSES, IGNORED = 12, 255
CASES = ("labels 1x1024x1024 uint8", "labels 1x1024x1024 int64", "logits 4x512x512", "logits 8x512x512")
LAST = torch.channels_last


def example(case: str) -> tuple[Tensor, Tensor]:
    """Return prediction and target: blobs instead of noise, because in real maps neighbours are mostly equal."""
    kind, size, *dtype = case.split()
    n, height, width = map(int, size.split("x"))
    random = torch.Generator().manual_seed(0)
    coarse = torch.randn(n, CLASSES, height // 16, width // 16, generator=random)
    logits = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    target = (logits + 0.5 * torch.randn(logits.shape, generator=random)).argmax(1)
    target[torch.rand(target.shape, generator=random) < 0.05] = IGNORED
    if kind == "logits":
        return logits, target
    dtype = getattr(torch, dtype[0])
    return logits.argmax(1).to(dtype), target.to(dtype)


def plain_example(case: str) -> tuple[Tensor, Tensor]:
    """Return the same sizes and types, made without temporary arrays that would hide the peak."""
    kind, size, *dtype = case.split()
    n, height, width = map(int, size.split("x"))
    if kind == "logits":
        return torch.randn(n, CLASSES, height, width), torch.zeros(n, height, width, dtype=torch.int64)
    dtype = getattr(torch, dtype[0])
    return torch.ones(n, height, width, dtype=dtype), torch.zeros(n, height, width, dtype=dtype)


def mmseg_formula(prediction: Tensor, target: Tensor) -> list[Tensor]:
    """Return intersection and areas per image: three float histograms over the pixels that are not ignored."""
    labels = prediction.argmax(1) if prediction.ndim > target.ndim else prediction
    counts = []
    for one, truth in zip(labels, target, strict=True):
        one, truth = one[truth != IGNORED], truth[truth != IGNORED]
        for part in (one[one == truth], one, truth):
            counts.append(torch.histc(part.float(), bins=CLASSES, min=0, max=CLASSES - 1))
    return counts


def smp_stats(prediction: Tensor, target: Tensor) -> object:
    labels = prediction.argmax(1) if prediction.ndim > target.ndim else prediction
    return get_stats(labels.long(), target.long(), mode="multiclass", ignore_index=IGNORED, num_classes=CLASSES)


def sides(prediction: Tensor, target: Tensor) -> dict[str, Callable[[], object]]:
    checked = MulticlassConfusionMatrix(CLASSES, ignore_index=IGNORED)
    unchecked = MulticlassConfusionMatrix(CLASSES, ignore_index=IGNORED, validate_args=False)
    ours = ConfusionMatrix(CLASSES)
    return {
        "torchmetrics": lambda: checked.update(prediction, target),
        "torchmetrics, no validation": lambda: unchecked.update(prediction, target),
        "SMP get_stats": lambda: smp_stats(prediction, target),
        "mmseg's formula": lambda: mmseg_formula(prediction, target),
        "segkit ConfusionMatrix": lambda: ours.update(prediction, target),
    }


def others(prediction: Tensor, target: Tensor) -> dict[str, Callable[[], object]]:
    """Return calls of all metrics of segkit, and of torch's softmax and argmax for comparison."""
    last = prediction.to(memory_format=LAST)
    confusion = ConfusionMatrix(CLASSES)
    calls = {
        "torch softmax": lambda: prediction.softmax(1),
        "torch argmax": lambda: prediction.argmax(1),
        "ConfusionMatrix": lambda: confusion.update(prediction, target),
        "ConfusionMatrix, channels last": lambda: confusion.update(last, target),
    }
    for metric in (PerImageConfusion(CLASSES), BoundaryIoU(CLASSES), CalibrationError(CLASSES)):
        calls[type(metric).__name__] = lambda metric=metric: metric.update(prediction, target)
    images = PerImageConfusion(CLASSES)
    images.counts = torch.randint(1000, (1000, CLASSES + 2, CLASSES + 1), dtype=torch.int32)
    calls["bootstrap_interval, 1000 images"] = lambda: bootstrap_interval(images)
    return calls


def interleave(calls: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Return the median seconds of each call; the calls take turns, and the first round does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for counted in (False, *[True] * runs):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if counted:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def show(title: str, medians: dict[str, float], base: str) -> None:
    print(f"\n{title}")
    for name, seconds in medians.items():
        print(f"  {name:<34} {1000 * seconds:8.2f} ms  {seconds / medians[base]:6.3f} x")
    sys.stdout.flush()


def measure_memory(case: str) -> None:
    for side in sides(*plain_example(case)):
        command = [sys.executable, __file__, "--peak-of", case, side]
        megabytes = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(f"{case:<26} {side:<30} peak {int(megabytes):5} MB", flush=True)


def peak_of(case: str, side: str) -> int:
    """Return the peak memory of this process in MB, minus the memory before the call."""
    prediction, target = plain_example(case)
    call = sides(prediction, target)[side]
    small = tuple(x[..., :8, :8].contiguous() for x in (prediction, target))
    sides(*small)[side]()  # loads everything that is loaded on first use
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3):
        call()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=CASES, help="kind, size and type of the prediction")
    parser.add_argument("--runs", type=int, default=9, help="timed rounds")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead of time")
    parser.add_argument("--peak-of", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        print(peak_of(*args.peak_of))
        return
    for case in args.cases:
        if args.memory:
            measure_memory(case)
        else:
            show(f"{case}, {CLASSES} classes", interleave(sides(*example(case)), args.runs), "torchmetrics")
    if not args.memory:
        show("logits 4x512x512, all of segkit", interleave(others(*example(CASES[2])), args.runs), "torch softmax")


if __name__ == "__main__":
    main()
