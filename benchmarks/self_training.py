"""Measure what one round of self-training gains if few photographs are labelled.

Keeps the labels of a random share of the images of a COCO file and removes all others. Then it runs these steps, and
prints the command of each:

    teacher        trains on the labelled images
    pseudo labels  are predicted by the teacher for the other images; the removed labels say how many pixels are right
    self-trained   trains from scratch on both
    control        trains from scratch on only the labelled images, for as many steps as the self-trained model

"From scratch" is from the same backbone weights for all three. Each model is scored once, after its last epoch, on all
images of --val, so that no epoch is selected on the validation set.

    python benchmarks/self_training.py --data facade/train.json --val facade/val.json --pretrained lite0.safetensors
"""

import argparse
import csv
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segkit.data import CocoSegmentation
from segkit.labels import IGNORE_INDEX

ROOT = Path(__file__).parents[1]
BATCH = 8
MODEL = ["--model", "fpn", "--backbone", "tf_efficientnet_lite0", "--crop", 256, "--batch-size", BATCH, "--lr", "1e-3"]


def run(command: str, *arguments: object) -> None:
    words = [str(argument) for argument in arguments]
    print(f"$ python {command} {shlex.join(words)}", flush=True)
    subprocess.run([sys.executable, ROOT / command, *words], check=True, stdout=subprocess.DEVNULL)


def divide(file: Path, share: float, seed: int, out: Path) -> tuple[Path, Path]:
    """Write two COCO files: the labelled images, and the other images without annotations; return their paths."""
    content = json.loads(file.read_text())
    order = np.random.default_rng(seed).permutation(len(content["images"]))
    labelled = set(order[: round(share * len(order))].tolist())
    parts = [[image for i, image in enumerate(content["images"]) if (i in labelled) is kept] for kept in (True, False)]
    ids = {image["id"] for image in parts[0]}
    annotations = [annotation for annotation in content["annotations"] if annotation["image_id"] in ids]
    files = out / "labelled.json", out / "unlabelled.json"
    for path, images, found in zip(files, parts, (annotations, []), strict=True):
        path.write_text(json.dumps({**content, "images": images, "annotations": found}))
    return files


def train(args: argparse.Namespace, data: Path, epochs: int, seed: int, out: Path, more: Sequence[object] = ()) -> None:
    files = ["--data", data, *more, "--val", args.val, "--images", args.data.parent]
    length = ["--epochs", epochs, "--val-every", epochs, "--workers", args.workers, "--seed", seed]
    run("train.py", *files, *MODEL, "--pretrained", args.pretrained, *length, "--out", out)


def scores(run_folder: Path) -> dict[str, float]:
    with (run_folder / "results.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    found = {name: float(value) for name, value in row.items() if name.startswith("iou/") and value}
    return {"mIoU": float(row["miou"])} | {name.removeprefix("iou/"): value for name, value in found.items()}


def describe_pseudo(args: argparse.Namespace, pseudo: Path) -> tuple[int, str]:
    """Return the number of pseudo-labelled images, and a text: the share of sure pixels, and how many are right."""
    root = args.data.parent
    truth, guess = (CocoSegmentation(file, root=root, mask_cache=None) for file in (args.data, pseudo))
    place = {item.file_name: i for i, item in enumerate(truth.items)}
    sure = right = total = 0
    for i, item in enumerate(guess.items):
        mask, target = guess.target(i), truth.target(place[item.file_name])
        total += mask.size
        sure += (mask != IGNORE_INDEX).sum()
        right += ((mask == target) & (mask != IGNORE_INDEX)).sum()
    text = f"{len(guess)} images, {sure / total:.1%} of their pixels are sure, {right / sure:.1%} of these are right"
    return len(guess), text


def steps_of(images: int) -> int:
    """Return the steps of an epoch; train.py drops a last batch of one image."""
    full, rest = divmod(images, BATCH)
    return full + (rest > 1)


def one_round(args: argparse.Namespace, seed: int, out: Path) -> dict[str, dict[str, float]]:
    out.mkdir(parents=True)
    labelled, unlabelled = divide(args.data, args.share, seed, out)
    train(args, labelled, args.epochs, seed, out / "teacher")
    source = ["--source", unlabelled, "--images", args.data.parent, "--out", out / "pseudo"]
    run("infer.py", "--weights", out / "teacher", *source, "--save", "pseudo", "--pseudo-threshold", args.threshold)
    pseudo = out / "pseudo" / "pseudo.json"
    count, text = describe_pseudo(args, pseudo)
    print(f"pseudo labels: {text}")
    images = len(json.loads(labelled.read_text())["images"])
    steps = args.longer * args.epochs * steps_of(images)
    epochs = max(1, round(steps / steps_of(images + count)))
    train(args, labelled, epochs, seed, out / "self-trained", ["--train-only", pseudo])
    steps = epochs * steps_of(images + count)
    train(args, labelled, round(steps / steps_of(images)), seed, out / "control")
    return {name: scores(out / name) for name in ("teacher", "self-trained", "control")}


def print_table(rounds: Sequence[dict[str, dict[str, float]]]) -> None:
    """Print the IoU of each class as a mean over the seeds, and the mIoU of each seed, in percent."""
    arms = list(rounds[0])
    names = list(rounds[0][arms[0]])
    width = max(map(len, names)) + 8
    print(f"\n{'IoU %':<{width}}" + "".join(f"{arm:>14}" for arm in arms) + "   self-trained - control")
    rows = [(name, [np.nanmean([r[arm].get(name, np.nan) for r in rounds]) for arm in arms]) for name in names]
    if len(rounds) > 1:
        rows[1:1] = [(f"  mIoU, seed {i}", [r[arm]["mIoU"] for arm in arms]) for i, r in enumerate(rounds)]
    for name, values in rows:
        print(
            f"{name:<{width}}" + "".join(f"{100 * v:14.2f}" for v in values) + f"{100 * (values[1] - values[2]):+28.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="COCO file to train on, in the folder of the images")
    parser.add_argument("--val", type=Path, required=True, help="COCO file to score on, in the same folder")
    parser.add_argument("--pretrained", required=True, help="weights of tf_efficientnet_lite0, or true for timm's hub")
    parser.add_argument("--share", type=float, default=1 / 3, help="share of the images that keep their labels")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of the teacher")
    parser.add_argument("--longer", type=float, default=2, help="steps of the other two, in multiples of its steps")
    parser.add_argument("--threshold", type=float, default=0.8, help="lowest probability of a pseudo label")
    parser.add_argument("--seeds", type=int, default=1, help="number of rounds with different seeds")
    parser.add_argument("--workers", type=int, default=1, help="loader processes of a training")
    parser.add_argument("--out", type=Path, default=Path("runs/self-training"), help="folder for all runs")
    args = parser.parse_args()
    print_table([one_round(args, seed, args.out / f"seed{seed}") for seed in range(args.seeds)])


if __name__ == "__main__":
    main()
