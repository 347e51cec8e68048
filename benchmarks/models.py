"""Speed and memory of our models against segmentation_models_pytorch (SMP) with the same backbone and decoder.

Both sides run in one process, in turn; the figures are medians, and ratios of medians to SMP's eager mode.

    pip install segmentation-models-pytorch
    python benchmarks/models.py                 # forward at batch 1 and 4, and the training step
    python benchmarks/models.py --fast          # the fast path for inference as well: minutes of compiling
    python benchmarks/models.py --memory        # peak memory, each figure from a process of its own
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

import segkit
from segkit.models.optimized import optimize

CLASSES = 12
CASES = ("deeplabv3plus/resnext50_32x4d", "fpn/tf_efficientnet_b4", "unet/resnext50_32x4d")
LAST, FIRST = torch.channels_last, torch.contiguous_format


def ours(case: str) -> nn.Module:
    """Our model with SMP's decoder settings."""
    name, backbone = case.split("/")
    options = {
        "deeplabv3plus": {"atrous_rates": (12, 24, 36), "aspp_refine": True, "fuse_convs": 1, "dropout": 0.5},
        "fpn": {},
        "unet": {},
    }[name]
    align = {} if name == "unet" else {"align_corners": True}
    return segkit.create_model(name, backbone=backbone, num_classes=CLASSES, **options, **align)


def peer(case: str) -> nn.Module:
    """SMP's model on the same timm backbone."""
    name, backbone = case.split("/")
    architecture = {"deeplabv3plus": smp.DeepLabV3Plus, "fpn": smp.FPN, "unet": smp.Unet}[name]
    return architecture(encoder_name=f"tu-{backbone}", encoder_weights=None, classes=CLASSES)


def interleave(calls: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Median seconds of each call; the calls take turns, after a round that is not counted."""
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
        print(f"  {name:<34} {1000 * seconds:8.0f} ms  {seconds / medians[base]:6.2f} x")
    sys.stdout.flush()


def forward_call(model: nn.Module, images: torch.Tensor, memory_format: torch.memory_format) -> Callable[[], object]:
    model = model.eval().to(memory_format=memory_format)
    images = images.to(memory_format=memory_format)

    @torch.inference_mode()
    def call() -> object:
        return model(images)

    return call


def training_call(model: nn.Module, memory_format: torch.memory_format) -> Callable[[], object]:
    model = model.train().to(memory_format=memory_format)
    images = torch.randn(8, 3, 256, 256).to(memory_format=memory_format)
    target = torch.randint(CLASSES, (8, 256, 256))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def call() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), target).backward()
        optimizer.step()

    return call


def measure_eager(case: str, runs: int) -> None:
    for batch in (1, 4):
        images = torch.randn(batch, 3, 512, 512)
        calls = {
            "SMP": forward_call(peer(case), images, FIRST),
            "segkit": forward_call(ours(case), images, FIRST),
            "SMP, channels last": forward_call(peer(case), images, LAST),
            "segkit, channels last": forward_call(ours(case), images, LAST),
        }
        show(f"{case}  forward, 512 x 512, batch {batch}", interleave(calls, runs), "SMP")
    calls = {
        "SMP": training_call(peer(case), FIRST),
        "segkit": training_call(ours(case), FIRST),
        "SMP, channels last": training_call(peer(case), LAST),
        "segkit, channels last": training_call(ours(case), LAST),
    }
    show(f"{case}  training step, 256 x 256, batch 8", interleave(calls, runs), "SMP")


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def same_calls(model: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """What `optimize` calls, done to another library's model."""
    compiled = torch.compile(model.eval().to(dtype=dtype, memory_format=LAST))

    def call(images: Tensor) -> Tensor:
        with torch.no_grad(), torch._inductor.config.patch(freezing=True):
            return compiled(images.to(dtype=dtype, memory_format=LAST)).float()

    return call


def measure_fast(case: str, runs: int) -> None:
    images = torch.randn(1, 3, 512, 512)
    model, other = ours(case).eval(), peer(case).eval()
    frozen, half = same_calls(peer(case), torch.float32), same_calls(peer(case), torch.bfloat16)
    calls = {
        "SMP": forward_call(other, images, FIRST),
        "SMP, same calls": lambda: frozen(images),
        "SMP, same calls, bf16": lambda: half(images),
    }
    fast, fast_half = optimize(model), optimize(model, dtype=torch.bfloat16)
    calls |= {"segkit.optimize": lambda: fast(images), "segkit.optimize, bf16": lambda: fast_half(images)}
    compile_time = timed(calls["segkit.optimize"])
    medians = interleave(calls, runs)
    show(f"{case}  fast path, 512 x 512, batch 1", medians, "SMP")
    with torch.inference_mode():
        expected, got = model(images), fast(images)
    saved = medians["SMP"] - medians["segkit.optimize"]
    print(f"  largest difference {(got - expected).abs().max() / expected.abs().max():.1e} of the largest logit")
    print(f"  compiling took {compile_time:.0f} s, paid after {compile_time / saved:.0f} images")


def measure_memory(case: str) -> None:
    for work in ("forward", "train"):
        for side in ("SMP", "segkit"):
            command = [sys.executable, __file__, "--peak-of", case, side, work]
            megabytes = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            print(f"{case}  {work:8} {side:8} peak {int(megabytes):6} MB", flush=True)


def peak_of(case: str, side: str, work: str) -> int:
    """Peak memory of this process in MB, less what it had before the model was built."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = peer(case) if side == "SMP" else ours(case)
    images = torch.randn(4, 3, 512, 512)
    call = forward_call(model, images, FIRST) if work == "forward" else training_call(model, FIRST)
    for _ in range(3):
        call()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--peak-of", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        print(peak_of(*args.peak_of))
        return
    for case in args.cases:
        if args.memory:
            measure_memory(case)
        elif args.fast:
            measure_fast(case, args.runs)
        else:
            measure_eager(case, args.runs)


if __name__ == "__main__":
    main()
