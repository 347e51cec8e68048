"""Measure on a GPU all that segkit says about GPUs, in one command and within a given time.

Runs the other benchmarks one after another: the whole inference against a script on SMP and ttach, where the CRF of an
image runs, our losses against torch's and SMP's, and training steps against a plain script on SMP, in mixed precision
and channels last. Each has a share of the time and ends there; what it printed until then stays. Nothing is
downloaded: models have random weights or are trained for a few steps, and without --data the photographs are drawn.
Lines appear as they come, and also go to a file.

    python benchmarks/gpu.py --minutes 7
    python benchmarks/gpu.py --minutes 7 --data facade/train.json
    python benchmarks/gpu.py --device cpu --quick         # to try this program; its figures mean nothing
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Timer
from typing import NamedTuple, TextIO

import torch

import segkit
from segkit.console import table


class Part(NamedTuple):
    """A part of the measurement.

    Attributes:
        name: Its name in the table.
        share: Its share of the time. What a part leaves goes to those after it.
        command: The file of the benchmark, and its arguments.
    """

    name: str
    share: float
    command: Sequence[str]


def parts(args: argparse.Namespace) -> list[Part]:
    """Return the parts in their order: what matters most comes first."""
    to, data = ["--device", args.device], ["--data", str(args.data)] if args.data else []
    inference = ["inference.py", *to, *data, "--cache", str(args.cache)]
    losses, training = (
        ["losses.py", *to, "--kinds", "ce", "dice", "ce + dice", "lovasz", "focal"],
        ["training_step.py", *to],
    )
    if args.quick:
        tiny = ["--backbone", "resnet18", "--size", "64", "--batch", "2", "--steps", "2", "--rounds", "1"]
        return [
            Part(
                "inference",
                0.4,
                [
                    *(*inference, "--small", "--side", "128", "--steps", "1", "--photographs", "2", "--workers", "1"),
                    *("--sides", "script, CRF in a pool", "segkit"),
                ],
            ),
            Part("CRF", 0.1, ["infer_device.py", *to, "--images", "2", "--side", "32", "--workers", "1", "--small"]),
            Part("losses", 0.2, [*losses, "--batch", "1", "--size", "64", "--runs", "1"]),
            Part("training, bf16", 0.2, [*training, *tiny, "--amp", "bf16"]),
        ]
    sides = ["--sides", "script, CRF in a pool", "script", "segkit", "segkit, bf16"]
    minutes = ["--minutes", f"{0.3 * args.minutes:.2f}"]
    return [
        Part(
            "inference",
            0.42,
            [
                *inference,
                "--workers",
                str(args.workers),
                "--photographs",
                "160",
                "--lot",
                "20",
                "--steps",
                "100",
                *minutes,
                *sides,
            ],
        ),
        Part("losses, batches of 4", 0.08, [*losses, "--runs", "30"]),
        Part("losses, batches of 16", 0.1, [*losses, "--batch", "16", "--runs", "20"]),
        Part("training, bf16", 0.13, [*training, "--amp", "bf16", "--rounds", "5"]),
        Part("training, fp32", 0.13, [*training, "--rounds", "3", "--steps", "10"]),
        Part("CRF", 0.14, ["infer_device.py", *to, "--images", "64", "--workers", str(args.workers)]),
    ]


def run(part: Part, seconds: float, log: TextIO) -> str:
    """Run a part for at most so many seconds, copy its lines to the log, and return how it ended."""
    file, *arguments = part.command
    command = [sys.executable, "-u", str(Path(__file__).with_name(file)), *arguments]
    tell(f"\n== {part.name}, at most {seconds:.0f} s: {file} {' '.join(arguments)}", log)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True
    )
    is_over = Event()

    def stop() -> None:
        is_over.set()
        os.killpg(process.pid, signal.SIGKILL)  # with its own processes, which would keep its output open

    guard = Timer(seconds, stop)
    guard.start()
    try:
        for line in process.stdout:
            tell(line.rstrip(), log)
        code = process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        guard.cancel()
    if is_over.is_set():
        return "its time was over"
    return "done" if code == 0 else f"failed, exit code {code}"


def tell(line: str, log: TextIO) -> None:
    print(line, flush=True)
    log.write(f"{line}\n")
    log.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=7, help="time for all parts")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--data", type=Path, help="COCO JSON of photographs of 512 x 512 pixels")
    parser.add_argument("--workers", type=int, default=16, help="processes of the CRFs on the CPU")
    parser.add_argument("--quick", action="store_true", help="small models and few rounds, to try this program")
    parser.add_argument("--cache", type=Path, default=Path("gpu-benchmark"), help="keeps models and scenes")
    parser.add_argument("--out", type=Path, default=Path("gpu.txt"), help="also gets all lines")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA GPU; --device cpu --quick tries this program")
    begun, rows, todo = time.perf_counter(), [], parts(args)
    with args.out.open("w") as log:
        where = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
        tell(f"segkit {segkit.__version__}, torch {torch.__version__}, {where}", log)
        for number, part in enumerate(todo):
            left = 60 * args.minutes - (time.perf_counter() - begun)
            seconds = left * part.share / sum(later.share for later in todo[number:])
            started = time.perf_counter()
            state = run(part, seconds, log)
            rows.append([part.name, f"{time.perf_counter() - started:.0f} s", state])
        tell("\n" + "\n".join(table(["part", "time", "state"], rows)), log)
    if any(state.startswith("failed") for *_, state in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
