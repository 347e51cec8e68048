"""Time the ways to run a trained model on a CPU: torch, `optimize`, onnxruntime in float32 and in int8.

SMP (segmentation_models_pytorch) runs beside them, in torch and exported to onnxruntime alike; all take turns in one
process. The figures are medians of several runs, and ratios of medians to segkit's model in torch. `first` is the time
from the model or its file to the first result: compiling for `optimize`, opening the file for onnxruntime.

    pip install segmentation-models-pytorch onnx onnxruntime onnxscript
    python benchmarks/engines.py --threads 1
    python benchmarks/engines.py --threads 1 --cases fpn/tf_efficientnet_b4 --batches 1 --sizes 512 --skip optimize
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from models import CASES, interleave, ours, peer
from torch import Tensor, nn

import segkit
from segkit.models import export_onnx, optimize
from segkit.models.onnx_model import import_onnxruntime
from segkit.models.quantize import quantize_onnx

WAYS = ("SMP", "SMP, onnxruntime", "segkit", "optimize", "onnxruntime", "onnxruntime, int8")


def export_peer(model: nn.Module, file: Path) -> None:
    """Export SMP's model with the calls that segkit uses: any batch, height and width."""
    axes = {0: torch.export.Dim.DYNAMIC, 2: 32 * torch.export.Dim("h"), 3: 32 * torch.export.Dim("w")}
    images = torch.randn(2, 3, 128, 160)
    torch.onnx.export(
        model, (images,), file, dynamo=True, input_names=["images"], output_names=["logits"], dynamic_shapes=(axes,),
        external_data=False, verbose=False,
    )  # fmt: skip


def run_by_onnxruntime(file: Path) -> Callable[[Tensor], object]:
    """Open a file with onnxruntime's defaults and as many threads as torch has."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.numpy()})


def started_ways(case: str, skipped: list[str], folder: Path, images: Tensor) -> dict[str, Callable[[Tensor], object]]:
    """Return the ways to run the model, after a first result of each; print the time to it."""
    model, other = ours(case).eval(), peer(case).eval()
    calibration = [torch.randn(1, 3, 256, 256) for _ in range(2)]  # only the speed counts here
    files = {name: folder / f"{number}.onnx" for number, name in enumerate(WAYS)}
    makers = {
        "SMP": lambda: other,
        "SMP, onnxruntime": lambda: run_by_onnxruntime(files["SMP, onnxruntime"]),
        "segkit": lambda: model,
        "optimize": lambda: optimize(model),
        "onnxruntime": lambda: segkit.load_model(files["onnxruntime"]),
        "onnxruntime, int8": lambda: segkit.load_model(files["onnxruntime, int8"]),
    }
    exports = {
        "SMP, onnxruntime": lambda file: export_peer(other, file),
        "onnxruntime": lambda file: export_onnx(model, file),
        "onnxruntime, int8": lambda file: quantize_onnx(files["onnxruntime"], file, calibration),
    }
    ways = {}
    for name in WAYS:
        if name in skipped:
            continue
        if name in exports:
            began = time.perf_counter()
            exports[name](files[name])
            print(f"  {name}: file of {files[name].stat().st_size / 1e6:.0f} MB, written in "
                  f"{time.perf_counter() - began:.0f} s")  # fmt: skip
        began = time.perf_counter()
        ways[name] = makers[name]()
        ways[name](images)
        print(f"  {name}: first result after {time.perf_counter() - began:.1f} s", flush=True)
    return ways


@torch.inference_mode()
def measure(case: str, args: argparse.Namespace, folder: Path) -> None:
    print(f"\n{case}, {torch.get_num_threads()} threads")
    ways = started_ways(case, args.skip, folder, torch.randn(1, 3, args.sizes[0], args.sizes[0]))
    for size in args.sizes:
        for batch in args.batches:
            images = torch.randn(batch, 3, size, size)
            calls = {name: partial(way, images) for name, way in ways.items()}
            medians = interleave(calls, args.runs)
            print(f"\n  batch {batch}, {size} x {size}")
            for name, seconds in medians.items():
                print(f"    {name:<18} {1000 * seconds:8.0f} ms  {seconds / medians['segkit']:5.2f} x")
            sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=CASES, help="decoder/backbone")
    parser.add_argument("--sizes", nargs="+", type=int, default=[512, 1024])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip", nargs="+", default=[], choices=WAYS)
    args = parser.parse_args()
    if "segkit" in args.skip:
        parser.error("segkit is what the others are compared with")
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        for case in args.cases:
            measure(case, args, Path(folder))


if __name__ == "__main__":
    main()
