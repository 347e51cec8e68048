"""Measure speed and memory of segkit's models against SMP's with the same backbone and decoder settings.

Both sides take turns in one process; the figures are medians, and ratios of medians to SMP in eager mode. SMP is
segmentation_models_pytorch.

    pip install segmentation-models-pytorch
    python benchmarks/models.py                 # forward at batch 1 and 4, and the training step
    python benchmarks/models.py --fast          # `optimize`, the fast path for inference: compiles for minutes
    python benchmarks/models.py --memory        # peak memory, each figure from a separate process
    python benchmarks/models.py --device cuda   # larger batches; float32 with torch's defaults, and bf16
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
from segkit.models import optimize

CLASSES = 12
BF16 = torch.bfloat16
CASES = ("deeplabv3plus/resnext50_32x4d", "fpn/tf_efficientnet_b4", "unet/resnext50_32x4d")
LAST, FIRST = torch.channels_last, torch.contiguous_format


def ours(case: str) -> nn.Module:
    """Return segkit's model with SMP's decoder settings."""
    name, backbone = case.split("/")
    options = {
        "deeplabv3plus": {"atrous_rates": (12, 24, 36), "aspp_refine": True, "fuse_convs": 1, "dropout": 0.5},
        "fpn": {},
        "unet": {},
    }[name]
    align = {} if name == "unet" else {"align_corners": True}
    return segkit.create_model(name, backbone=backbone, num_classes=CLASSES, **options, **align)


def peer(case: str) -> nn.Module:
    """Return SMP's model on the same timm backbone."""
    name, backbone = case.split("/")
    architecture = {"deeplabv3plus": smp.DeepLabV3Plus, "fpn": smp.FPN, "unet": smp.Unet}[name]
    return architecture(encoder_name=f"tu-{backbone}", encoder_weights=None, classes=CLASSES)


def interleave(calls: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Return the median seconds of each call; the calls take turns, and the first round does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for counted in (False, *[True] * runs):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            if counted:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def show(title: str, medians: dict[str, float], base: str) -> None:
    print(f"\n{title}")
    for name, seconds in medians.items():
        print(f"  {name:<34} {1000 * seconds:8.1f} ms  {seconds / medians[base]:6.2f} x")
    sys.stdout.flush()


def forward_call(
    model: nn.Module, images: torch.Tensor, memory_format: torch.memory_format, bf16: bool = False
) -> Callable[[], object]:
    model = model.eval().to(images.device, memory_format=memory_format)
    images = images.to(memory_format=memory_format)

    @torch.inference_mode()
    @torch.autocast(images.device.type, BF16, enabled=bf16)
    def call() -> object:
        return model(images)

    return call


def training_call(
    model: nn.Module, images: torch.Tensor, memory_format: torch.memory_format, bf16: bool = False
) -> Callable[[], object]:
    model = model.train().to(images.device, memory_format=memory_format)
    images = images.to(memory_format=memory_format)
    target = torch.randint(CLASSES, (len(images), *images.shape[2:]), device=images.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def call() -> None:
        optimizer.zero_grad()
        with torch.autocast(images.device.type, BF16, enabled=bf16):
            logits = model(images)
        nn.functional.cross_entropy(logits.float(), target).backward()
        optimizer.step()

    return call


def measure_eager(case: str, runs: int, device: str) -> None:
    sides = {
        "SMP": (peer, FIRST, False),
        "segkit": (ours, FIRST, False),
        "SMP, channels last": (peer, LAST, False),
        "segkit, channels last": (ours, LAST, False),
    }
    work = [(forward_call, (1, 512)), (forward_call, (4, 512)), (training_call, (8, 256))]
    if device == "cuda":
        sides |= {"SMP, channels last, bf16": (peer, LAST, True), "segkit, channels last, bf16": (ours, LAST, True)}
        work = [(forward_call, (1, 512)), (forward_call, (16, 512)), (training_call, (16, 512))]
    for kind, (batch, size) in work:
        images = torch.randn(batch, 3, size, size, device=device)
        calls = {name: kind(build(case), images, *options) for name, (build, *options) in sides.items()}
        title = "forward" if kind is forward_call else "training step"
        show(f"{case}  {title}, {size} x {size}, batch {batch}", interleave(calls, runs), "SMP")


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def same_calls(model: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Treat another library's model as `optimize` treats ours: channels last, compiled, with frozen weights."""
    compiled = torch.compile(model.eval().to(dtype=dtype, memory_format=LAST))

    def call(images: Tensor) -> Tensor:
        with torch.no_grad(), torch._inductor.config.patch(freezing=True):
            return compiled(images.to(dtype=dtype, memory_format=LAST)).float()

    return call


def measure_fast(case: str, runs: int) -> None:
    images = torch.randn(1, 3, 512, 512)
    model, other = ours(case).eval(), peer(case).eval()
    frozen, half = same_calls(peer(case), torch.float32), same_calls(peer(case), BF16)
    calls = {
        "SMP": forward_call(other, images, FIRST),
        "SMP, same calls": lambda: frozen(images),
        "SMP, same calls, bf16": lambda: half(images),
    }
    fast, fast_half = optimize(model), optimize(model, dtype=BF16)
    calls |= {"segkit.optimize": lambda: fast(images), "segkit.optimize, bf16": lambda: fast_half(images)}
    compile_time = timed(calls["segkit.optimize"])
    medians = interleave(calls, runs)
    show(f"{case}  fast path, 512 x 512, batch 1", medians, "SMP")
    with torch.inference_mode():
        expected, got = model(images), fast(images)
    saved = medians["SMP"] - medians["segkit.optimize"]
    print(f"  largest difference {(got - expected).abs().max() / expected.abs().max():.1e} of the largest logit")
    print(f"  compiling took {compile_time:.0f} s, which pays off after {compile_time / saved:.0f} images")


def measure_memory(case: str) -> None:
    for work in ("forward", "train"):
        for side in ("SMP", "segkit"):
            command = [sys.executable, __file__, "--peak-of", case, side, work]
            megabytes = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            print(f"{case}  {work:8} {side:8} peak {int(megabytes):6} MB", flush=True)


def peak_of(case: str, side: str, work: str) -> int:
    """Return the peak memory of this process in MB, minus the memory before the model was built."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = peer(case) if side == "SMP" else ours(case)
    batch, size, kind = (4, 512, forward_call) if work == "forward" else (8, 256, training_call)
    call = kind(model, torch.randn(batch, 3, size, size), FIRST)
    for _ in range(3):
        call()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=CASES, help="decoder/backbone")
    parser.add_argument("--runs", type=int, default=7, help="timed rounds")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch on the CPU")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--fast", action="store_true", help="measure the fast path for inference")
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead of time")
    parser.add_argument("--peak-of", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cuda" and (args.fast or args.memory):
        parser.error("--fast and --memory run only on the CPU")
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
            measure_eager(case, args.runs, args.device)


if __name__ == "__main__":
    main()
