"""Validation mIoU after the same wall time: a plain SMP + albumentations script, and train.py with a recipe.

Both start from the same backbone weights and see the same images; the script draws its masks beforehand, out of
its time. They train side by side, each on a core of its own, so that whatever else the machine does slows both.
An epoch of each is timed first; then segkit gets as many epochs as fit into the time of the script's. Every
validation image is scored at its full size after each epoch, and the best epoch counts, on both sides.

    python benchmarks/accuracy.py --data facade/train.json --val facade/val.json --pretrained lite0.safetensors
    python benchmarks/accuracy.py ... --ablation      # train.py alone, with one ingredient of the recipe changed each
    python benchmarks/accuracy.py ... --speed         # training steps a second at equal work

Results are appended to benchmarks/accuracy.csv.
"""

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import segmentation_models_pytorch as smp
import torch
from albumentations.pytorch import ToTensorV2
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset

from segkit.data import CocoSegmentation
from segkit.metrics import ConfusionMatrix

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "accuracy.csv"
ARCHITECTURES = {"fpn": "FPN", "deeplabv3plus": "DeepLabV3Plus", "unet": "Unet"}
LR = 1e-3
# Each changes one thing of the recipe.
ABLATION = {
    "recipe": [],
    "without class weights": ["--class-weights", "none"],
    "without rare crops": ["--rare-crops", "0"],
    "without the average": ["--ema", "0"],
    "batches of 16": ["--batch-size", "16"],
    "copy-paste of rare classes": ["--mix", "copy-paste"],
    "stronger augmentation": ["--augment", "standard"],
    "cross entropy alone": ["--loss", "ce=1"],
    "half the decoder": ["--decoder", "pyramid_channels=128", "channels=64"],
}


class Photographs(Dataset):
    """The script's data: photographs and masks that are PNG files."""

    def __init__(self, data: CocoSegmentation, masks: Path, transform: A.Compose) -> None:
        self.paths = [item.path for item in data.items]
        self.masks = [masks / f"{i}.png" for i in range(len(self.paths))]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = cv2.cvtColor(cv2.imread(str(self.paths[index])), cv2.COLOR_BGR2RGB)
        mask = cv2.imread(str(self.masks[index]), cv2.IMREAD_UNCHANGED)
        result = self.transform(image=image, mask=mask)
        return result["image"], result["mask"].long()


class Script:
    """The plain script: AdamW, one cycle, 0.6 cross entropy + 0.4 Dice, flips, brightness, random resized crops."""

    def __init__(self, args: argparse.Namespace, masks: Path) -> None:
        torch.manual_seed(args.seed)
        data = [CocoSegmentation(path) for path in (args.data, args.val)]
        normalise = [A.Normalize(mean=(0.5,) * 3, std=(0.5,) * 3), ToTensorV2()]
        augment = [
            A.RandomResizedCrop(size=(args.crop, args.crop)),
            A.HorizontalFlip(p=0.5),
            A.RandomBrightnessContrast(p=0.5),
        ]
        self.train_set = Photographs(data[0], masks / "train", A.Compose([*augment, *normalise]))
        self.val_set = Photographs(data[1], masks / "val", A.Compose(normalise))
        self.class_names = data[0].class_names
        self.loader = DataLoader(
            self.train_set, 16, shuffle=True, drop_last=True, num_workers=1, persistent_workers=True
        )
        self.val_loader = DataLoader(self.val_set, 8, num_workers=1, persistent_workers=True)
        self.model = getattr(smp, ARCHITECTURES[args.model])(
            f"tu-{args.backbone}", encoder_weights=None, classes=len(self.class_names)
        )
        missing, _ = self.model.encoder.model.load_state_dict(load_file(args.pretrained), strict=False)
        if missing:  # the file holds the classifier too, the encoder all but that
            raise ValueError(f"{args.pretrained} has no {missing[0]}")
        self.optimizer = torch.optim.AdamW(self.model.parameters(), LR)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, LR, epochs=args.epochs, steps_per_epoch=len(self.loader)
        )
        self.cross_entropy, self.dice = torch.nn.CrossEntropyLoss(), smp.losses.DiceLoss("multiclass")

    def step(self, images: torch.Tensor, target: torch.Tensor) -> None:
        logits = self.model(images)
        loss = 0.6 * self.cross_entropy(logits, target) + 0.4 * self.dice(logits, target)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def epoch(self) -> float:
        """Trains an epoch; gives the validation mIoU."""
        self.model.train()
        for images, target in self.loader:
            self.step(images, target)
            self.schedule.step()
        self.model.eval()
        confusion = ConfusionMatrix(len(self.class_names))
        with torch.inference_mode():
            for images, target in self.val_loader:
                confusion.update(self.model(images), target)
        return confusion.compute().miou


def run_script(args: argparse.Namespace, masks: Path) -> None:
    """What the script's own process does: trains, and prints a line of JSON for each epoch."""
    script, started = Script(args, masks), time.perf_counter()
    for _ in range(args.epochs):
        miou = script.epoch()
        print(json.dumps({"miou": miou, "seconds": time.perf_counter() - started}), flush=True)


def draw_masks(args: argparse.Namespace, folder: Path) -> None:
    for name, path in (("train", args.data), ("val", args.val)):
        data = CocoSegmentation(path)
        (folder / name).mkdir()
        for i in range(len(data)):
            cv2.imwrite(str(folder / name / f"{i}.png"), data.mask(i))


class Job:
    """A training in a process of its own, on one core."""

    def __init__(self, command: Sequence[object], core: int, log: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                list(map(str, command)),
                env=environment,
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: os.sched_setaffinity(0, {core}),
            )

    def wait(self) -> None:
        if self.process.wait():
            raise RuntimeError(f"a training failed:\n{self.log.read_text()[-3000:]}")


class ScriptJob(Job):
    def __init__(self, args: argparse.Namespace, epochs: int, seed: int, masks: Path, core: int, log: Path) -> None:
        options = [*sources(args), "--pretrained", args.pretrained, "--crop", args.crop]
        command = [sys.executable, __file__, *options, "--script", masks, "--epochs", epochs, "--seed", seed]
        super().__init__(command, core, log)

    def epochs(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


class SegkitJob(Job):
    def __init__(
        self,
        args: argparse.Namespace,
        epochs: int,
        seed: int,
        out: Path,
        core: int,
        log: Path,
        extra: Sequence[str] = (),
    ) -> None:
        self.out = out
        options = [*sources(args), "--pretrained", args.pretrained, "--crop", args.crop, "--recipe", args.recipe]
        command = [sys.executable, ROOT / "train.py", *options, "--epochs", epochs, "--seed", seed, "--workers", 1]
        super().__init__([*command, "--out", out, *extra], core, log)

    def epochs(self) -> list[dict[str, float]]:
        with (self.out / "results.csv").open() as file:
            rows = list(csv.DictReader(file))
        seconds, result = 0.0, []
        for row in rows:
            seconds += float(row["time"])
            scores = [float(row[key]) for key in ("miou", "ema_miou") if row.get(key)]
            result.append({"miou": max(scores, default=float("nan")), "seconds": seconds})
        return result


def sources(args: argparse.Namespace) -> list[object]:
    return ["--data", args.data, "--val", args.val, "--model", args.model, "--backbone", args.backbone]


def summary(job: ScriptJob | SegkitJob) -> dict[str, float]:
    epochs = job.epochs()
    best = float(np.nanmax([epoch["miou"] for epoch in epochs]))
    return {"epochs": len(epochs), "seconds": round(epochs[-1]["seconds"]), "miou": round(best, 4)}


def record(args: argparse.Namespace, side: str, seed: int, result: dict[str, float]) -> None:
    row = {
        "date": date.today(),
        "data": args.data.parent.name,
        "model": args.model,
        "side": side,
        "seed": seed,
        **result,
    }
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, row, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(*(f"{key} {value}" for key, value in row.items()), sep="  ", flush=True)


def compare(args: argparse.Namespace, masks: Path, work: Path) -> None:
    """Pairs of trainings with the same seed and the same wall time."""
    jobs = [ScriptJob(args, 1, 0, masks, 0, work / "a.log"), SegkitJob(args, 1, 0, work / "timed", 1, work / "b.log")]
    theirs, ours = timed(jobs)
    epochs = max(1, int(args.epochs * theirs / ours))
    print(f"an epoch takes {theirs:.0f} s and {ours:.0f} s: {args.epochs} epochs against {epochs}", flush=True)
    for seed in args.seeds:
        out = args.out / f"{args.data.parent.name}-{args.model}-{seed}"
        shutil.rmtree(out, ignore_errors=True)
        cores = (seed % 2, 1 - seed % 2)
        jobs = [
            ScriptJob(args, args.epochs, seed, masks, cores[0], work / f"script{seed}.log"),
            SegkitJob(args, epochs, seed, out, cores[1], work / f"segkit{seed}.log"),
        ]
        for job, side in zip(jobs, ("script", args.recipe), strict=True):
            job.wait()
            record(args, side, seed, summary(job))


def timed(jobs: Sequence[ScriptJob | SegkitJob]) -> Iterator[float]:
    for job in jobs:
        job.wait()
    return (job.epochs()[-1]["seconds"] for job in jobs)


def ablate(args: argparse.Namespace, work: Path) -> None:
    """The recipe with one ingredient changed each, two trainings at a time, in the time of `--epochs` of the recipe."""
    names = [name for name in ABLATION if not args.only or name in args.only]
    seconds = {}
    for stage in ("timed", "full"):
        for start in range(0, len(names), 2):
            jobs = {}
            for core, name in enumerate(names[start : start + 2]):
                epochs = 1 if stage == "timed" else max(1, int(args.epochs * seconds["recipe"] / seconds[name]))
                out = work / f"{stage}-{start + core}"
                jobs[name] = SegkitJob(args, epochs, args.seeds[0], out, core, work / "log.txt", ABLATION[name])
            for name, job in jobs.items():
                job.wait()
                if stage == "timed":
                    seconds[name] = job.epochs()[-1]["seconds"]
                else:
                    record(args, f"{args.recipe}: {name}", args.seeds[0], summary(job))


def measure_speed(args: argparse.Namespace, masks: Path) -> None:
    """Training steps a second on the same batches, in turn: the script's step, and train.py's with the same parts."""
    from segkit.losses import create_loss
    from segkit.models import create_model
    from segkit.training import create_optimizer, keep_memory

    args.epochs = 1
    script = Script(args, masks)
    batches = [batch for batch, _ in zip(script.loader, range(2), strict=False)]
    model = create_model(
        args.model, backbone=args.backbone, class_names=script.class_names, pretrained=str(args.pretrained)
    ).to(memory_format=torch.channels_last)
    loss_fn, optimizer = create_loss({"ce": 0.6, "dice": 0.4}), create_optimizer(model, lr=LR, weight_decay=0.01)

    def ours(images: torch.Tensor, target: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss_fn(model(images), target).backward()
        optimizer.step()

    seconds: dict[str, list[float]] = {"script": [], "segkit": []}
    for side, step in (("script", script.step), ("segkit", ours)):
        if side == "segkit":
            keep_memory()  # holds for the process: after the script's turn
        for run in range(args.runs + 1):
            started = time.perf_counter()
            for images, target in batches:
                step(images, target)
            if run:
                seconds[side].append((time.perf_counter() - started) / len(batches))
    theirs, own = (statistics.median(values) for values in seconds.values())
    print(f"{args.model}: the script {theirs:.2f} s a step, segkit {own:.2f} s: {theirs / own:.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="COCO JSON to train on")
    parser.add_argument("--val", type=Path, required=True, help="COCO JSON to score on")
    parser.add_argument(
        "--pretrained", type=Path, required=True, help="the backbone's weights, safetensors in timm's naming"
    )
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--model", default="fpn", choices=ARCHITECTURES)
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=6, help="of the script; segkit gets the same time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"), help="folder that keeps segkit's runs")
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--only", nargs="+", choices=ABLATION, help="of the ablation")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--script", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.script:
        run_script(args, args.script)
        return
    for name in ("data", "val", "pretrained", "out"):
        setattr(args, name, getattr(args, name).resolve())
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if args.ablation:
            ablate(args, work)
            return
        draw_masks(args, work)
        (measure_speed if args.speed else lambda a, m: compare(a, m, work))(args, work)


if __name__ == "__main__":
    main()
