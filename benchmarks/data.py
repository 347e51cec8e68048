"""Time the training loader, in images per second, against a data set class as people write it by hand.

For each item, the class by hand asks pycocotools for the annotations, rasterises them one by one, converts the image
to float32, augments and normalises it. `by hand, uint8` is faster: it stays in uint8 until the normalisation. All
sides use the same augmentation (`seed2`). segkit's loader returns uint8 batches, which the model normalises: on a GPU
this costs nothing, and the last line shows what it costs on a CPU. The sides take turns, epoch by epoch; the first
epoch, in which segkit draws its masks, is reported separately.

    python benchmarks/data.py --data facade/train.json
    python benchmarks/data.py --data facade/train.json --profile
    python benchmarks/data.py --decode

`--memory` loads generated images with 100,000 annotations for six epochs, and prints the private memory of each
worker after each epoch. It needs Linux.

    python benchmarks/data.py --memory

`--formats` reads 10,000 labelled images in each label format with the same polygons, in turn with COCO: the median time
of `--runs` processes, and the memory that the reading adds to a process. It needs Linux.

    python benchmarks/data.py --formats
"""

import argparse
import contextlib
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from multiprocessing import active_children
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from segkit.data import CocoSegmentation, FolderSegmentation, create_transform, find_source, read_image, train_loader
from segkit.data.formats import MaskFiles
from segkit.models import Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ByHand(Dataset):
    """A data set class as in many competition notebooks."""

    def __init__(self, file: Path, crop: int, *, as_float: bool) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self.coco = COCO(str(file))
        self.root, self.as_float = file.parent, as_float
        self.ids = self.coco.getImgIds()
        normalize = A.Normalize(MEAN, STD, max_pixel_value=1.0 if as_float else 255.0)
        self.transform = A.Compose([*create_transform("seed2", crop=crop).transforms, normalize, ToTensorV2()])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        info = self.coco.loadImgs(self.ids[index])[0]
        image = cv2.cvtColor(cv2.imread(str(self.root / info["file_name"])), cv2.COLOR_BGR2RGB)
        if self.as_float:
            image = image.astype(np.float32) / 255.0
        mask = np.zeros((info["height"], info["width"]))
        for annotation in self.coco.loadAnns(self.coco.getAnnIds(imgIds=info["id"])):
            mask[self.coco.annToMask(annotation) == 1] = annotation["category_id"]
        result = self.transform(image=image, mask=mask.astype(np.int8))
        return result["image"], result["mask"]


def ours(file: Path, crop: int, batch_size: int, workers: int, cache: Path) -> DataLoader:
    data = CocoSegmentation(file, mask_cache=cache)
    return train_loader(data, create_transform("seed2", crop=crop), batch_size=batch_size, workers=workers)


def epoch(batches: Iterable[tuple[Tensor, Tensor]], preprocessing: Preprocessing | None) -> int:
    """Load one epoch, normalise its batches if asked, and return the number of images."""
    images = 0
    for batch, _ in batches:
        if preprocessing is not None:
            batch = preprocessing(batch)
        images += len(batch)
    return images


def measure(args: argparse.Namespace, cache: Path) -> None:
    options = {"batch_size": args.batch_size, "num_workers": args.workers, "shuffle": True}
    options |= {"drop_last": True, "persistent_workers": args.workers > 0}
    loaders = {
        "by hand, float32": (DataLoader(ByHand(args.data, args.crop, as_float=True), **options), None),
        "by hand, uint8": (DataLoader(ByHand(args.data, args.crop, as_float=False), **options), None),
        "segkit": (ours(args.data, args.crop, args.batch_size, args.workers, cache), None),
        "segkit, normalised": (
            ours(args.data, args.crop, args.batch_size, args.workers, cache),
            Preprocessing(MEAN, STD),
        ),
    }
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for run in range(args.runs + 1):
        for name, (loader, preprocessing) in loaders.items():
            started = time.perf_counter()
            rates[name].append(epoch(loader, preprocessing) / (time.perf_counter() - started))
            if run == 0:
                print(f"first epoch  {name:<18} {rates[name][0]:7.1f} images/s", flush=True)
    base = statistics.median(rates["by hand, float32"][1:])
    print(f"\n{args.workers} workers, batches of {args.batch_size}, crop {args.crop}, median of {args.runs} epochs")
    for name, values in rates.items():
        rate = statistics.median(values[1:])
        print(f"  {name:<18} {rate:7.1f} images/s  {rate / base:5.2f} x")


def profile(args: argparse.Namespace, cache: Path) -> None:
    """Split the time of one of segkit's samples into its parts, in this process, with the masks in the cache."""
    cv2.setNumThreads(0)
    data = CocoSegmentation(args.data, mask_cache=cache)
    transform = create_transform("seed2", crop=args.crop)
    count = min(len(data), 100)
    parts = {
        "image, decoded": lambda i: data.image(i),
        "mask, drawn": lambda i: data.mask(i),
        "mask, from the cache": lambda i: data.target(i),
        "both, augmented": lambda i: transform(**dict(zip(("image", "mask"), data[i], strict=True))),
    }
    for name, part in parts.items():
        part(0)
        for i in range(count):
            if name.startswith("mask, from"):
                part(i)
        started = time.perf_counter()
        for i in range(count):
            part(i)
        print(f"  {name:<22} {1000 * (time.perf_counter() - started) / count:6.2f} ms per image")
    batch = torch.zeros(args.batch_size, 3, args.crop, args.crop, dtype=torch.uint8)
    preprocessing = Preprocessing(MEAN, STD)
    started = time.perf_counter()
    for _ in range(10):
        preprocessing(batch)
    print(f"  {'normalised':<22} {100 * (time.perf_counter() - started) / args.batch_size:6.2f} ms per image")


def write_many_annotations(folder: Path, images: int = 4000, of_each: int = 25) -> Path:
    """Write a COCO JSON with `of_each` polygons of 20 points per image; all images are hard links to one picture."""
    random = np.random.default_rng(0)
    cv2.imwrite(str(folder / "picture.png"), np.zeros((128, 128, 3), np.uint8))
    angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    rows, annotations = [], []
    for i in range(images):
        (folder / f"{i}.png").hardlink_to(folder / "picture.png")
        rows.append({"id": i, "file_name": f"{i}.png", "height": 128, "width": 128})
        for x, y, radius in random.uniform((30, 30, 5), (98, 98, 30), (of_each, 3)):
            polygon = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1).round(2).ravel().tolist()
            annotations.append(
                {"id": len(annotations), "image_id": i, "category_id": 1 + i % 10, "segmentation": [polygon]}
            )
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, 11)]
    file = folder / "many.json"
    file.write_text(json.dumps({"images": rows, "annotations": annotations, "categories": categories}))
    return file


def private_megabytes(process: int) -> float:
    """Return the memory in MB that a process shares with no other process."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def memory(workers: int) -> None:
    """Print the private memory of each worker after each of six epochs over 100,000 annotations."""
    with tempfile.TemporaryDirectory() as folder:
        file = write_many_annotations(Path(folder))
        started = time.perf_counter()
        data = CocoSegmentation(file)
        print(f"{len(data)} images with {sum(map(len, data.annotations))} annotations, ", end="")
        print(f"read and checked in {time.perf_counter() - started:.1f} s")
        loader = train_loader(data, create_transform("none", crop=64), batch_size=16, workers=workers)
        for epoch in range(6):
            for _ in loader:
                pass
            used = [private_megabytes(worker.pid) for worker in active_children()]
            print(f"epoch {epoch + 1}: {', '.join(f'{mb:.0f}' for mb in used)} MB in the workers")


def write_formats(folder: Path, images: int = 10_000, of_each: int = 5) -> list[str]:
    """Write one data set in several formats, in a folder each; all images are hard links to one picture."""
    coco = json.loads(write_many_annotations(folder, images, of_each).read_text())
    names = [row["name"] for row in coco["categories"]]
    polygons: list[list[tuple[str, np.ndarray]]] = [[] for _ in range(images)]
    for row in coco["annotations"]:
        polygons[row["image_id"]].append((names[row["category_id"] - 1], np.reshape(row["segmentation"][0], (-1, 2))))

    def yolo(out: Path) -> None:
        (out / "data.yaml").write_text(json.dumps({"names": names}))
        for i, regions in enumerate(polygons):
            lines = (f"{names.index(n)} {' '.join(f'{v:.6f}' for v in (p / 128).ravel())}" for n, p in regions)
            (out / f"{i}.txt").write_text("\n".join(lines))

    def labelme(out: Path) -> None:
        for i, regions in enumerate(polygons):
            shapes = [
                {"label": n, "points": p.tolist(), "group_id": None, "shape_type": "polygon", "flags": {}}
                for n, p in regions
            ]
            content = {"version": "6.3.1", "flags": {}, "shapes": shapes, "imagePath": f"{i}.png", "imageData": None}
            (out / f"{i}.json").write_text(json.dumps(content | {"imageHeight": 128, "imageWidth": 128}, indent=2))

    def cvat(out: Path) -> None:
        labels = "".join(f"<label><name>{name}</name><type>any</type></label>" for name in names)
        lines = [f"<annotations><version>1.1</version><meta><task><labels>{labels}</labels></task></meta>"]
        for i, regions in enumerate(polygons):
            lines.append(f'<image id="{i}" name="{i}.png" width="128" height="128">')
            for name, points in regions:
                text = ";".join(f"{x:.2f},{y:.2f}" for x, y in points)
                lines.append(f'<polygon label="{name}" occluded="0" points="{text}" z_order="0"></polygon>')
            lines.append("</image>")
        (out / "annotations.xml").write_text("\n".join([*lines, "</annotations>"]))

    def label_studio(out: Path) -> None:
        tasks = []
        for i, regions in enumerate(polygons):
            results = [
                {
                    **{"id": f"r{k}", "type": "polygonlabels", "from_name": "label", "to_name": "image"},
                    **{"original_width": 128, "original_height": 128, "image_rotation": 0},
                    "value": {"points": (p / 1.28).tolist(), "closed": True, "polygonlabels": [n]},
                }
                for k, (n, p) in enumerate(regions)
            ]
            annotation = {"id": i, "result": results, "was_cancelled": False, "ground_truth": False}
            tasks.append({"id": i, "data": {"image": f"{i}.png"}, "annotations": [annotation], "predictions": []})
        (out / "project.json").write_text(json.dumps(tasks))

    def roboflow(out: Path) -> None:
        (out / "_annotations.coco.json").write_text(json.dumps(coco))

    def voc(out: Path) -> None:
        mask = np.zeros((128, 128), np.uint8)
        mask[30:90, 30:90] = 1
        for name in ("SegmentationClass", "JPEGImages"):
            (out / name).mkdir()
        (out / "class_names.txt").write_text("\n".join(["background", *names]))
        cv2.imwrite(str(out / "mask.png"), mask)
        for i in range(images):
            (out / f"SegmentationClass/{i}.png").hardlink_to(out / "mask.png")
            (out / f"{i}.png").rename(out / f"JPEGImages/{i}.png")

    writers = {"yolo": yolo, "labelme": labelme, "cvat": cvat, "label-studio": label_studio, "roboflow": roboflow}
    for name, write in {**writers, "voc": voc}.items():
        out = folder / name
        out.mkdir()
        picture = folder / f"{name}.png"  # a file system has a largest number of links of a file
        picture.write_bytes((folder / "picture.png").read_bytes())
        for i in range(images):
            (out / f"{i}.png").hardlink_to(picture)
        write(out)
    return [*writers, "voc"]


def peak_megabytes() -> float:
    """Return the largest memory of this process since /proc/self/clear_refs was written to, in MB."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def read_format(path: Path) -> None:
    """Read labelled images and check their headers; print seconds of time and of CPUs, and the added memory in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    before, started, busy = peak_megabytes(), time.perf_counter(), time.process_time()
    source = find_source(path)
    labels = path if source is None else source.read("train")[0]
    (FolderSegmentation if isinstance(labels, MaskFiles) else CocoSegmentation)([labels])
    print(time.perf_counter() - started, time.process_time() - busy, peak_megabytes() - before)


def formats(runs: int) -> None:
    """Print time and memory of reading each format, and of COCO read next to it."""

    def measure_in_process(path: Path) -> list[float]:
        command = [sys.executable, __file__, "--read-format", str(path)]
        return [float(value) for value in subprocess.run(command, capture_output=True, check=True).stdout.split()]

    with tempfile.TemporaryDirectory() as folder:
        names = write_formats(Path(folder))
        print(f"{'':14} {'seconds':>8} {'CPU s':>8} {'MB':>6}   COCO next to it: seconds, CPU s, MB")
        for name in names:
            sides: tuple[list, list] = ([], [])
            for _ in range(runs):
                sides[0].append(measure_in_process(Path(folder, name)))
                sides[1].append(measure_in_process(Path(folder, "many.json")))
            own, coco = ([statistics.median(values) for values in zip(*side, strict=True)] for side in sides)
            shown = [f"{a:8.2f} {b:8.2f} {c:6.0f}" for a, b, c in (own, coco)]
            print(f"{name:14} {shown[0]}   {shown[1]}   {own[1] / coco[1]:.2f}x the CPU time", flush=True)


def decode() -> None:
    """Time the decoding of a JPEG of 4000 x 3000 pixels, at full size and reduced."""
    random = np.random.default_rng(0)
    picture = cv2.GaussianBlur(random.integers(0, 256, (3000, 4000, 3), dtype=np.uint8), (0, 0), 3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.jpg")
        cv2.imwrite(str(path), cv2.normalize(picture, None, 0, 255, cv2.NORM_MINMAX))
        for factor in (1, 2, 4, 8):
            times = []
            for _ in range(7):
                started = time.perf_counter()
                read_image(path, reduce=factor)
                times.append(time.perf_counter() - started)
            print(f"  1/{factor}  {1000 * statistics.median(times):6.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="COCO JSON of the photographs")
    parser.add_argument("--crop", type=int, default=512, help="side of the crops in pixels")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2, help="loader processes")
    parser.add_argument("--runs", type=int, default=3, help="timed epochs of each side")
    parser.add_argument("--profile", action="store_true", help="split the time of one sample into its parts")
    parser.add_argument("--memory", action="store_true", help="print the private memory of the workers")
    parser.add_argument("--decode", action="store_true", help="time the decoding of a large JPEG")
    parser.add_argument("--formats", action="store_true", help="time and memory of reading each label format")
    parser.add_argument("--read-format", type=Path, metavar="PATH", help="read one data set; --formats runs it")
    args = parser.parse_args()
    if args.formats:
        formats(args.runs)
        return
    if args.read_format:
        read_format(args.read_format)
        return
    if args.memory:
        memory(args.workers)
        return
    if args.decode:
        decode()
        return
    if args.data is None:
        parser.error("give one of --data, --memory, --formats, --decode")
    torch.set_num_threads(1)  # the workers use the cores; more threads here would only compete with them
    with tempfile.TemporaryDirectory() as cache:
        (profile if args.profile else measure)(args, Path(cache))


if __name__ == "__main__":
    main()
