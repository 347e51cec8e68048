"""Compare the validation mIoU of train.py and a recipe with a plain SMP + albumentations script, in the same wall time.

Both sides start from the same backbone weights and see the same images. Both train at the same time, each on one core,
so that other work on the machine slows down both. Short trainings of both sides are timed first; then segkit gets as
many epochs as fit into the time of the script's epochs. The time is the wall time of the whole process, including its
start and its report; the masks of both sides are drawn before it. Every validation image is scored at full size after
every second epoch and after the last one, and the best score counts, on both sides.

    python benchmarks/accuracy.py --data facade/train.json --val facade/val.json --pretrained lite0.safetensors
    python benchmarks/accuracy.py ... --options --class-weights sqrt     # the recipe with other settings of train.py
    python benchmarks/accuracy.py ... --ablation      # train.py only; each run changes one ingredient of the recipe
    python benchmarks/accuracy.py ... --recipe NAME --against fast --pretrained-against lite0.safetensors
                                                      # two recipes, each with its own model and crop
    python benchmarks/accuracy.py ... --ensemble RUN RUN    # what TTA and a second model add to runs that --out kept
    python benchmarks/accuracy.py ... --speed         # training steps per second at equal work

With `--own-epochs` nothing is timed first: the times are only as equal as the two numbers of epochs make them.

Results are appended to benchmarks/accuracy.csv. The recipe had two earlier forms: `fast 1` is `--batch-size 8
--class-weights sqrt --ema 0.99 --lr 1e-3 --backbone-lr-factor 1`, `fast 2` is `--class-weights none --lr 1e-3
--backbone-lr-factor 1`. Rows whose side begins with `by hand:` or `on a GPU:` come from searches around `fast 2`:
`train.py --recipe fast --class-weights none --lr 1e-3 --backbone-lr-factor 1 --seed 0` plus the options of the row.
The rows by hand used `--workers 1` on cores of different speed that were not always idle (on 2026-11-26 the cores were
half as fast), and validated every second to fifth epoch or only at the end. The rows on a GPU used bf16 and
torch 2.11, eight trainings at a time on one H200, and validated once or twice. If a row says `ended after` or `after`
N of more epochs, its score was read from a longer training. In the row of the waste with 12 epochs of the script in
2821 s, only the script's process ran (`--script MASKS`). `strong` was run by hand with `--workers 1 --seed 0`, next to
other trainings; for the facades it is the last row by hand, the one with its options. Each row is one seed: differences
of two or three points mean nothing.
"""

import argparse
import csv
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import albumentations as A
import cv2
import segmentation_models_pytorch as smp
import torch
from albumentations.pytorch import ToTensorV2
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset

from segkit import TTA, Predictor
from segkit.data import CocoSegmentation
from segkit.inference import segment_dataset
from segkit.metrics import ConfusionMatrix
from segkit.models import load_model

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "accuracy.csv"
ARCHITECTURES = {"fpn": "FPN", "deeplabv3plus": "DeepLabV3Plus", "unet": "Unet"}
LR = 1e-3
VAL_EVERY = 2  # epochs, as in the recipe
SCALES = (0.75, 1.0, 1.25)


class Change(NamedTuple):
    options: Sequence[str]
    changes_pace: bool = False


# Each entry changes one ingredient of the recipe; `changes_pace` marks changes of the time of an epoch.
ABLATION = {
    "recipe": Change([]),
    "without class weights": Change(["--class-weights", "none"]),
    "one learning rate": Change(["--lr", "1e-3", "--backbone-lr-factor", "1"]),
    "without rare crops": Change(["--rare-crops", "0"]),
    "batches of 8": Change(["--batch-size", "8"], changes_pace=True),
    "average of the weights": Change(["--ema", "0.99"], changes_pace=True),
    "copy-paste of rare classes": Change(["--mix", "copy-paste"], changes_pace=True),
    "stronger augmentation": Change(["--augment", "standard"]),
    "cross entropy only": Change(["--loss", "ce=1"]),
    "half the decoder": Change(["--decoder", "pyramid_channels=128", "channels=64"], changes_pace=True),
}


class Photographs(Dataset):
    """The script's data set: photographs, and their masks as PNG files."""

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
    """The plain script: AdamW, OneCycleLR, 0.6 cross entropy + 0.4 Dice, flips, brightness, random resized crops."""

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
        if missing:  # extra keys are fine: the file also holds the classifier, which the encoder does not have
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

    def train(self) -> None:
        """Train one epoch."""
        self.model.train()
        for images, target in self.loader:
            self.step(images, target)
            self.schedule.step()

    def validate(self) -> float:
        """Return the validation mIoU."""
        self.model.eval()
        confusion = ConfusionMatrix(len(self.class_names))
        with torch.inference_mode():
            for images, target in self.val_loader:
                confusion.update(self.model(images), target)
        return confusion.compute().miou


def run_script(args: argparse.Namespace, masks: Path) -> None:
    """Train in the script's own process, and print a line of JSON for each epoch."""
    script = Script(args, masks)
    for epoch in range(1, args.epochs + 1):
        started = time.perf_counter()
        script.train()
        trained = time.perf_counter()
        miou = script.validate() if epoch % VAL_EVERY == 0 or epoch == args.epochs else None
        row = {"train": trained - started, "val": time.perf_counter() - trained, "miou": miou}
        print(json.dumps(row), flush=True)


def draw_masks(args: argparse.Namespace, folder: Path) -> None:
    """Write the masks of both sets as PNG files below `folder`, for the script."""
    for name, path in (("train", args.data), ("val", args.val)):
        data = CocoSegmentation(path)
        (folder / name).mkdir()
        for i in range(len(data)):
            cv2.imwrite(str(folder / name / f"{i}.png"), data.mask(i))


@dataclass
class Pace:
    """Seconds that a training takes: for its start, for an epoch of training and for a validation."""

    start: float
    train: float
    val: float

    def seconds(self, epochs: int) -> float:
        return self.start + epochs * self.train + math.ceil(epochs / VAL_EVERY) * self.val

    def epochs(self, seconds: float) -> int:
        """Return how many epochs fit into `seconds`, at least one."""
        return max([1, *(epochs for epochs in range(1, 1000) if self.seconds(epochs) <= seconds)])


class Job(Thread):
    """Run one training in a separate process, on one core."""

    def __init__(self, command: Sequence[object], core: int, log: Path) -> None:
        super().__init__()
        self.command, self.core, self.log = list(map(str, command)), core, log
        self.start()

    def run(self) -> None:
        started = time.perf_counter()
        with self.log.open("w") as file:
            process = subprocess.run(
                self.command,
                env={**os.environ, "OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1"},
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: os.sched_setaffinity(0, {self.core}),
                check=False,
            )
        self.failed, self.seconds = process.returncode != 0, time.perf_counter() - started

    def wait(self) -> None:
        self.join()
        if self.failed:
            raise RuntimeError(f"a training failed:\n{self.log.read_text()[-3000:]}")


class ScriptJob(Job):
    def __init__(self, args: argparse.Namespace, epochs: int, seed: int, masks: Path, core: int, log: Path) -> None:
        options = ["--data", args.data, "--val", args.val, "--pretrained", args.pretrained, *shape(args)]
        command = [sys.executable, __file__, *options, "--script", masks, "--epochs", epochs, "--seed", seed]
        super().__init__(command, core, log)

    def rows(self) -> list[dict[str, float | None]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def mious(self) -> list[float]:
        """Return the validation scores so far."""
        return [row["miou"] for row in self.rows() if row["miou"] is not None]

    def pace(self) -> Pace:
        """Return the pace of a training of two epochs, of which the second was scored."""
        train = statistics.mean(row["train"] for row in self.rows())
        val = self.rows()[-1]["val"]
        return Pace(self.seconds - 2 * train - val, train, val)


class SegkitJob(Job):
    def __init__(
        self,
        args: argparse.Namespace,
        epochs: int,
        seed: int,
        out: Path,
        core: int,
        log: Path,
        extra: Sequence[object] = (),
        recipe: str | None = None,
    ) -> None:
        self.out = out
        weights = args.pretrained_against if recipe and args.pretrained_against else args.pretrained
        options = ["--data", args.data, "--val", args.val, "--pretrained", weights]
        options += ["--recipe", recipe or args.recipe] if args.against else [*shape(args), "--recipe", args.recipe]
        options += ["--val-every", VAL_EVERY, "--epochs", epochs, "--seed", seed, "--workers", 1, "--out", out]
        if not recipe:
            options += [*args.options, *extra]
        super().__init__([sys.executable, ROOT / "train.py", *options], core, log)

    def rows(self) -> list[dict[str, str]]:
        with (self.out / "results.csv").open() as file:
            return list(csv.DictReader(file))

    def mious(self) -> list[float]:
        """Return the validation scores so far, including the scores of the averaged weights."""
        return [float(row[key]) for row in self.rows() for key in ("miou", "ema_miou") if row.get(key)]

    def pace(self) -> Pace:
        """Return the pace of a training of two epochs, of which the second was scored."""
        train, both = (float(row["time"]) for row in self.rows())
        return Pace(self.seconds - train - both, train, both - train)


def shape(args: argparse.Namespace) -> list[object]:
    """Return the settings that both sides share; two recipes that are compared each bring their own."""
    return ["--model", args.model, "--backbone", args.backbone, "--crop", args.crop]


def summary(job: ScriptJob | SegkitJob, epochs: int) -> dict[str, float]:
    """Return epochs, seconds and the best mIoU of a finished training."""
    return {"epochs": epochs, "seconds": round(job.seconds), "miou": round(max(job.mious()), 4)}


def record(args: argparse.Namespace, side: str, seed: int | str, result: dict[str, float | str]) -> None:
    """Append a row to accuracy.csv and print it."""
    row = {
        "date": date.today(),
        "data": args.data.parent.name,
        "model": "" if args.ensemble or args.against else args.model,
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
    """Train both sides in pairs with the same seed and the same wall time."""
    other = args.against or "script"

    def theirs(epochs: int, seed: int, core: int, name: str) -> ScriptJob | SegkitJob:
        if args.against:
            return SegkitJob(args, epochs, seed, work / name, core, work / f"{name}.log", recipe=other)
        return ScriptJob(args, epochs, seed, masks, core, work / f"{name}.log")

    epochs = args.own_epochs
    if epochs is None:
        timed = [theirs(2, 0, 0, "timed-theirs"), SegkitJob(args, 2, 0, work / "timed", 1, work / "timed.log")]
        pace = paces(timed)
        epochs = pace[1].epochs(pace[0].seconds(args.epochs))
        print(f"{other}: {args.epochs} epochs, segkit: {epochs} epochs; {pace[0]}, {pace[1]}", flush=True)
    for seed in args.seeds:
        parts = [args.data.parent.name, *([] if args.against else [args.model]), args.recipe, *args.options, seed]
        out = args.out / "-".join(str(part).strip("-").replace("/", "-") for part in parts)
        shutil.rmtree(out, ignore_errors=True)
        cores = (seed % 2, 1 - seed % 2)
        jobs = [
            theirs(args.epochs, seed, cores[0], f"{other}{seed}"),
            SegkitJob(args, epochs, seed, out, cores[1], work / f"segkit{seed}.log"),
        ]
        for job in jobs:
            job.wait()
        record(args, other, seed, summary(jobs[0], args.epochs))
        record(args, " ".join([args.recipe, *args.options]), seed, summary(jobs[1], epochs))


def paces(jobs: Sequence[ScriptJob | SegkitJob]) -> list[Pace]:
    """Wait for the timed trainings and return the pace of each."""
    for job in jobs:
        job.wait()
    return [job.pace() for job in jobs]


def ablate(args: argparse.Namespace, work: Path) -> None:
    """Train variants of the recipe, two at a time, each in the time of `--epochs` epochs of the recipe itself."""
    names = [name for name in ABLATION if not args.only or name in args.only]
    seed = args.seeds[0]

    def train(pair: Sequence[str], epochs: Mapping[str, int], stage: str) -> list[SegkitJob]:
        jobs = [
            SegkitJob(
                args, epochs[name], seed, work / f"{stage}-{name}", core, work / f"{core}.log", ABLATION[name].options
            )
            for core, name in enumerate(pair)
        ]
        for job in jobs:
            job.wait()
        return jobs

    timed = ["recipe", *(name for name in names if ABLATION[name].changes_pace)]
    pace = {
        name: job.pace()
        for pair in pairs(timed)
        for name, job in zip(pair, train(pair, dict.fromkeys(pair, 2), "timed"), strict=True)
    }
    seconds = pace["recipe"].seconds(args.epochs)
    epochs = {name: pace.get(name, pace["recipe"]).epochs(seconds) for name in names}
    for pair in pairs(names):
        for name, job in zip(pair, train(pair, epochs, "full"), strict=True):
            record(args, " ".join([f"{args.recipe}: {name}", *args.options]), seed, summary(job, epochs[name]))


def pairs(names: Sequence[str]) -> list[Sequence[str]]:
    return [names[start : start + 2] for start in range(0, len(names), 2)]


def score_together(args: argparse.Namespace) -> None:
    """Score each run, and all runs as one ensemble, without and with test-time augmentation."""
    data, models = CocoSegmentation(args.val), [load_model(run) for run in args.ensemble]
    groups = {run.name: [model] for run, model in zip(args.ensemble, models, strict=True)}
    if len(models) > 1:
        groups[" + ".join(groups)] = models
    for views, tta in (("", TTA()), (f", TTA {SCALES} and flips", TTA(scales=SCALES, flips="h"))):
        for name, members in groups.items():
            started, confusion = time.perf_counter(), ConfusionMatrix(len(data.class_names))
            for one in segment_dataset(data, Predictor(members, tta=tta)):
                confusion.update(one.prediction.mask, one.target)
            result = {"seconds": round(time.perf_counter() - started), "miou": round(confusion.compute().miou, 4)}
            record(args, f"{name}{views}", "", {"epochs": "", **result})


def measure_speed(args: argparse.Namespace, masks: Path) -> None:
    """Time a training step of the script and of train.py, on the same batches and with the same parts."""
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
            keep_memory()  # this changes the whole process, so it comes after the script's turn
        for run in range(args.runs + 1):
            started = time.perf_counter()
            for images, target in batches:
                step(images, target)
            if run:
                seconds[side].append((time.perf_counter() - started) / len(batches))
    theirs, own = (statistics.median(values) for values in seconds.values())
    print(f"{args.model}: script {theirs:.2f} s per step, segkit {own:.2f} s per step: {theirs / own:.2f} x as fast")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="COCO JSON to train on")
    parser.add_argument("--val", type=Path, required=True, help="COCO JSON to score on")
    parser.add_argument(
        "--pretrained", type=Path, required=True, help="backbone weights: safetensors with timm's names"
    )
    parser.add_argument("--pretrained-against", type=Path, help="backbone weights of --against, if it has others")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0", help="name in timm")
    parser.add_argument("--model", default="fpn", choices=ARCHITECTURES)
    parser.add_argument("--recipe", default="fast", help="recipe of train.py")
    parser.add_argument("--against", metavar="RECIPE", help="compare with this recipe instead of the script")
    parser.add_argument("--crop", type=int, default=256, help="side of the crops in pixels")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of the script; segkit gets the same time")
    parser.add_argument("--own-epochs", type=int, help="epochs of segkit; nothing is timed first")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one pair of trainings for each seed")
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"), help="folder that keeps segkit's runs")
    parser.add_argument("--ablation", action="store_true", help="change one ingredient of the recipe at a time")
    parser.add_argument("--only", nargs="+", choices=ABLATION, help="run only these rows of the ablation")
    parser.add_argument(
        "--ensemble", type=Path, nargs="+", metavar="RUN", help="score these runs one by one and together"
    )
    parser.add_argument("--speed", action="store_true", help="time training steps at equal work")
    parser.add_argument("--runs", type=int, default=5, help="timed rounds of --speed")
    parser.add_argument(
        "--options", nargs=argparse.REMAINDER, default=[], help="settings of train.py; takes the rest of the line"
    )
    parser.add_argument("--script", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.pretrained_against and not args.against:
        parser.error("--pretrained-against needs --against")
    if args.script:
        run_script(args, args.script)
        return
    for name in ("data", "val", "pretrained", "pretrained_against", "out"):
        if getattr(args, name):
            setattr(args, name, getattr(args, name).resolve())
    if args.ensemble:
        score_together(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if args.ablation:
            ablate(args, work)
            return
        draw_masks(args, work)
        (measure_speed if args.speed else lambda a, m: compare(a, m, work))(args, work)


if __name__ == "__main__":
    main()
