"""The embedded demo: drawn scenes of recyclable waste, written as a COCO data set of eleven classes."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from .demo_objects import CANVAS, OBJECTS, colour, noise

CLASSES: tuple[str, ...] = tuple(OBJECTS)

# Raise this whenever the drawing changes, so that an older demo is not taken for the present one.
DRAWING = 1
SMALLEST_AREA = 40
SMALLEST_SHARE = 0.25
VAL_SEED_OFFSET = 500_000
TRACING = 4


class Placed(NamedTuple):
    """A sprite in its place: category id, then colour, silhouette and opacity (0..1) of the scene's size."""

    category_id: int
    rgb: np.ndarray
    cover: np.ndarray
    opacity: np.ndarray


def draw_scene(seed: int, size: int = 256) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Draw one scene of waste.

    Args:
        seed: Non-negative number that alone decides the scene.
        size: Side of the square image in pixels.

    Returns:
        The image, (size, size, 3) uint8 RGB, and the objects from bottom to top: category id (1..11) and
        visible mask, (size, size) bool. The masks are disjoint and none is smaller than 40 pixels.
    """
    rng = np.random.default_rng(seed)
    image = background(rng, size)
    # The sprites' own shading has its light in the upper left, so the scene's must be about there too.
    towards_light = rng.uniform(1.1, 1.45) * np.pi
    objects = visible_objects(scatter(rng, size))
    for placed, _ in objects:
        image = lay(image, placed, towards_light)
    image = finish(rng, image, towards_light)
    return image, [(placed.category_id, mask) for placed, mask in objects]


def scatter(rng: np.random.Generator, size: int) -> list[Placed]:
    """Deal three to six different classes from a shuffled deck and put them on a jittered grid."""
    hand = rng.permutation(len(CLASSES))[: rng.integers(3, 7)]
    rows, columns = (2, 2) if len(hand) <= 4 else ((2, 3), (3, 2))[rng.integers(2)]
    spots = rng.permutation(rows * columns)[: len(hand)]
    cells = np.stack([spots % columns, spots // columns], 1) + rng.uniform(0.32, 0.68, (len(hand), 2))
    centres = cells / (columns, rows) * size
    return [place(rng, int(index) + 1, centre, size) for index, centre in zip(hand, centres, strict=True)]


def place(rng: np.random.Generator, category_id: int, centre: np.ndarray, size: int) -> Placed:
    """Draw an object of one class and turn, scale and slightly shear it around `centre` (x, y) in pixels."""
    sprite = OBJECTS[CLASSES[category_id - 1]](rng)
    scale = rng.uniform(0.5, 0.78) * (size / 256)
    angle, shear = rng.uniform(-0.7, 0.7), rng.uniform(-0.12, 0.12)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = scale * turn @ np.array([[1, shear], [0, rng.uniform(0.9, 1.1)]])
    shift = centre - linear @ np.full(2, CANVAS / 2)
    matrix = np.hstack([linear, shift[:, None]])
    rgb = cv2.warpAffine(sprite.rgb.astype(np.float32), matrix, (size, size), borderMode=cv2.BORDER_REPLICATE)
    masks = np.dstack([sprite.cover, sprite.opacity]).astype(np.float32)
    return Placed(category_id, rgb, *np.moveaxis(cv2.warpAffine(masks, matrix, (size, size)), -1, 0))


def visible_objects(placed: list[Placed]) -> list[tuple[Placed, np.ndarray]]:
    """Find what shows of each object, bottom to top, and leave out objects that are all but hidden.

    An object is left out before anything is painted, so nothing unlabelled can be seen.
    """
    covered = np.zeros_like(placed[0].cover, bool)
    kept = []
    for item in reversed(placed):
        whole = item.cover > 0.5
        mask = whole & ~covered
        if mask.sum() >= max(SMALLEST_AREA, SMALLEST_SHARE * whole.sum()):
            kept.append((item, mask))
            covered |= whole
    return kept[::-1]


def lay(image: np.ndarray, placed: Placed, towards_light: float) -> np.ndarray:
    """Paint one object and its soft shadow over a float image."""
    size, reach = len(image), len(image) / 40
    visible = placed.cover * placed.opacity
    away = np.float32([[1, 0, -reach * np.cos(towards_light)], [0, 1, -reach * np.sin(towards_light)]])
    kernel = (max(size // 24, 1),) * 2
    shadow = cv2.blur(cv2.blur(cv2.warpAffine(visible, away, (size, size)), kernel), kernel)
    image = image * (1 - 0.6 * shadow)[..., None]
    return image + (placed.rgb - image) * visible[..., None]


def finish(rng: np.random.Generator, image: np.ndarray, towards_light: float) -> np.ndarray:
    """Light the scene from one side, add sensor noise and convert 0..1 to uint8."""
    size = len(image)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    light = 1 + rng.uniform(0.05, 0.22) * (x * np.cos(towards_light) + y * np.sin(towards_light))
    grain = rng.standard_normal((size, size, 1), dtype=np.float32) * 0.015
    return (np.clip(image * light[..., None] + grain, 0, 1) * 255).astype(np.uint8)


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a textured ground, (size, size, 3) float32 in 0..1, in muted colours of the shared palette."""
    height = GROUNDS[rng.integers(len(GROUNDS))](rng, size)
    base = 0.45 * colour(rng) + 0.55 * rng.uniform(0.25, 0.75)
    return (base * (1 + height)[..., None]).astype(np.float32)


def planks(rng: np.random.Generator, size: int) -> np.ndarray:
    """Wooden boards with grain along them and dark joints."""
    boards = int(rng.integers(4, 7))
    tone = np.repeat(rng.uniform(-0.12, 0.12, boards), -(-size // boards))[:size, None]
    grain = 0.12 * noise(rng, size // 3, 3, size) + 0.1 * noise(rng, 12, 2, size)
    joint = np.arange(size)[:, None] % (size / boards) < max(size / 100, 1)
    return np.where(joint, -0.55, tone + grain)


def concrete(rng: np.random.Generator, size: int) -> np.ndarray:
    """Blotchy cast concrete with pores."""
    fine = noise(rng, size // 2, size // 2, size)
    return 0.1 * noise(rng, 5, 5, size) + 0.07 * noise(rng, 20, 20, size) + 0.1 * fine - 0.35 * (fine > 0.85)


def belt(rng: np.random.Generator, size: int) -> np.ndarray:
    """A conveyor belt with cross ribs and stains."""
    ribs = np.sin(np.arange(size) * (2 * np.pi * rng.integers(14, 22) / size))
    return 0.16 * np.clip(3 * ribs, -1, 1)[None, :] + 0.1 * noise(rng, 6, 6, size) + 0.05 * noise(rng, 90, 90, size)


def tiles(rng: np.random.Generator, size: int) -> np.ndarray:
    """Square tiles of slightly different tones with pale joints."""
    count = int(rng.integers(3, 7))
    tone = cv2.resize(rng.uniform(-0.1, 0.1, (count, count)), (size, size), interpolation=cv2.INTER_NEAREST)
    line = np.arange(size) % (size / count) < max(size / 64, 1)
    return np.where(line[:, None] | line[None, :], 0.3, tone + 0.06 * noise(rng, 40, 40, size))


def grass(rng: np.random.Generator, size: int) -> np.ndarray:
    """Short blades: noise that is much finer across than along."""
    blades = np.maximum(noise(rng, size // 9, size // 2, size), noise(rng, size // 7, size // 3, size))
    return 0.4 * blades - 0.1 + 0.1 * noise(rng, 6, 6, size)


def cardboard(rng: np.random.Generator, size: int) -> np.ndarray:
    """Corrugated board with faint flutes and fibres."""
    flutes = np.sin(np.arange(size) * (2 * np.pi * rng.integers(28, 44) / size))
    return 0.05 * flutes[:, None] + 0.06 * noise(rng, size // 2, size // 8, size) + 0.08 * noise(rng, 4, 4, size)


def cloth(rng: np.random.Generator, size: int) -> np.ndarray:
    """Coarse plain weave."""
    phase = np.arange(size) * (2 * np.pi / size * rng.integers(40, 64))
    return 0.14 * np.sin(phase)[:, None] * np.sin(phase)[None, :] + 0.1 * noise(rng, 5, 5, size)


GROUNDS: tuple[Callable[[np.random.Generator, int], np.ndarray], ...] = (
    planks,
    concrete,
    belt,
    tiles,
    grass,
    cardboard,
    cloth,
)


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
        ValueError: If `root` exists and holds anything else than this very data set.
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
    """Tell whether `root` is this complete demo; raise ValueError if it is something else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        splits = [json.loads((root / name).read_text()) for name in ("train.json", "val.json")]
        complete = all((root / image["file_name"]).is_file() for split in splits for image in split["images"])
        same = all(split["info"]["settings"] == settings for split in splits)
    except (OSError, ValueError, KeyError, TypeError):
        complete = same = False
    if not (complete and same):
        raise ValueError(f"{root} is not a complete demo data set with {settings}: delete it or name another folder")
    return True


def publish(draft: Path, root: Path, settings: dict[str, int]) -> None:
    """Move the finished folder to its final name in one step."""
    try:
        os.replace(draft, root)
    except OSError:
        # Another process may have written the same demo meanwhile, which is as good as ours.
        if not is_written(root, settings):
            raise


def write_split(root: Path, split: str, seeds: range, settings: dict[str, int]) -> None:
    """Draw the scenes of one split into `root/images` and describe them in `root/<split>.json`."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number, seed in enumerate(seeds):
        picture, objects = draw_scene(seed, settings["size"])
        file_name = f"images/{split}_{number:04d}.jpg"
        write_jpeg(root / file_name, picture)
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
    (root / f"{split}.json").write_text(json.dumps(coco))


def categories() -> list[dict[str, Any]]:
    """List the COCO categories, ids 1..11."""
    return [{"id": index, "name": name, "supercategory": "waste"} for index, name in enumerate(CLASSES, 1)]


def write_jpeg(path: Path, image: np.ndarray) -> None:
    """Write an RGB image as JPEG."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])
    path.write_bytes(data.tobytes())


def annotate(mask: np.ndarray) -> dict[str, Any]:
    """Describe a visible mask in COCO's terms: polygons, or compressed RLE where it has holes."""
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    polygons = outlines(mask)
    segmentation = polygons or {"size": rle["size"], "counts": rle["counts"].decode()}
    box = [float(value) for value in coco_mask.toBbox(rle)]
    return {"segmentation": segmentation, "area": int(mask.sum()), "bbox": box, "iscrowd": 0}


def outlines(mask: np.ndarray) -> list[list[float]]:
    """Trace the polygons [x0, y0, x1, y1, ...] of a mask without holes; empty if it has any."""
    # findContours runs through pixel centres; on an enlarged mask that is close to the pixels' outer edges.
    large = cv2.resize(mask.astype(np.uint8), None, fx=TRACING, fy=TRACING, interpolation=cv2.INTER_NEAREST)
    contours, hierarchy = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if (hierarchy[0, :, 3] >= 0).any():
        return []
    return [((contour.reshape(-1) + 0.5) / TRACING).tolist() for contour in contours]
