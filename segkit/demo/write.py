"""Write the demo: drawn scenes of recyclable waste as a COCO data set of eleven classes."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from segkit.data.images import write_image
from segkit.demo.scenes import CLASSES, draw_scene
from segkit.errors import UsageError, as_segkit_error
from segkit.files import write_json

# Raise this when the drawing changes, so that an older demo is not taken for the current one.
DRAWING = 1
VAL_SEED_OFFSET = 500_000
TRACING = 4  # enlargement of a mask before its outline is traced


def write_demo(
    root: str | os.PathLike, train: int = 240, val: int = 40, size: int = 256, seed: int = 0
) -> tuple[Path, Path]:
    """Write the demo as a COCO data set, or reuse the one that is already there.

    Args:
        root: Folder of the data set; it appears only when it is complete.
        train: Number of training scenes.
        val: Number of validation scenes, none of them a training scene.
        size: Side of the square images in pixels.
        seed: Non-negative number that, with the sizes, decides every byte.

    Returns:
        The paths of `train.json` and `val.json`; their images lie below `root/images`.

    Raises:
        UsageError: `root` exists and is not this data set.
    """
    root = Path(root)
    settings = {"drawing": DRAWING, "train": train, "val": val, "size": size, "seed": seed}
    if not is_written(root, settings):
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as scratch:
            draft = Path(scratch, root.name)
            first = seed * 2 * VAL_SEED_OFFSET
            write_split(draft, "train", range(first, first + train), settings)
            write_split(draft, "val", range(first + VAL_SEED_OFFSET, first + VAL_SEED_OFFSET + val), settings)
            publish(draft, root, settings)
    return root / "train.json", root / "val.json"


def is_written(root: Path, settings: dict[str, int]) -> bool:
    """Return whether `root` is this complete demo; raise UsageError if it is something else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        splits = [json.loads((root / name).read_text()) for name in ("train.json", "val.json")]
        complete = all((root / image["file_name"]).is_file() for split in splits for image in split["images"])
        same = all(split["info"]["settings"] == settings for split in splits)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if (fault := as_segkit_error(error)) is not None:
            raise fault from error
        complete = same = False
    if not (complete and same):
        raise UsageError(f"{root} is not a complete demo data set with {settings}: delete it or name another folder")
    return True


def publish(draft: Path, root: Path, settings: dict[str, int]) -> None:
    """Move the finished folder to its final name in one step."""
    try:
        os.replace(draft, root)
    except OSError:
        # Another process may have written the same demo in the meantime; the two are equal.
        if not is_written(root, settings):
            raise


def write_split(root: Path, split: str, seeds: range, settings: dict[str, int]) -> None:
    """Draw the scenes of one split into `root/images` and describe them in `root/<split>.json`."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number, seed in enumerate(seeds):
        picture, objects = draw_scene(seed, settings["size"])
        file_name = f"images/{split}_{number:04d}.jpg"
        write_image(root / file_name, picture)
        height, width = picture.shape[:2]
        images.append({"id": number + 1, "file_name": file_name, "width": width, "height": height})
        for category_id, mask in objects:
            ids = {"id": len(annotations) + 1, "image_id": number + 1, "category_id": category_id}
            annotations.append(ids | annotate(mask))
    info = {
        "description": f"segkit demo, {split} split: drawn scenes of recyclable waste",
        "settings": settings,
    }
    coco = {
        "info": info,
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": categories(),
    }
    write_json(root / f"{split}.json", coco)


def categories() -> list[dict[str, Any]]:
    """Return the COCO categories, with ids 1 to 11."""
    return [{"id": index, "name": name, "supercategory": "waste"} for index, name in enumerate(CLASSES, 1)]


def annotate(mask: np.ndarray) -> dict[str, Any]:
    """Describe a visible mask as a COCO annotation: polygons, or compressed RLE if it has holes."""
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    polygons = outlines(mask)
    segmentation = polygons or {"size": rle["size"], "counts": rle["counts"].decode()}
    box = [float(value) for value in coco_mask.toBbox(rle)]
    return {"segmentation": segmentation, "area": int(mask.sum()), "bbox": box, "iscrowd": 0}


def outlines(mask: np.ndarray) -> list[list[float]]:
    """Trace the polygons [x0, y0, x1, y1, ...] of a mask; returns none if it has holes."""
    # findContours runs through pixel centres; on an enlarged mask that is close to the pixels' outer edges.
    large = cv2.resize(mask.astype(np.uint8), None, fx=TRACING, fy=TRACING, interpolation=cv2.INTER_NEAREST)
    contours, hierarchy = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if (hierarchy[0, :, 3] >= 0).any():
        return []
    return [((contour.reshape(-1) + 0.5) / TRACING).tolist() for contour in contours]
