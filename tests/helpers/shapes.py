"""Small COCO sets that are drawn on the spot: a bright square and a dark disc on each photograph."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 7, "name": "disc"}, {"id": 3, "name": "square"}]


def write_coco(file: Path, images: list[dict], annotations: list[dict], categories=CATEGORIES) -> Path:
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def rectangle(left: int, top: int, width: int, height: int) -> list[int]:
    return [left, top, left + width, top, left + width, top + height, left, top + height]


def write_shapes(folder: Path, name: str, count: int, seed: int) -> Path:
    """Write `count` photographs of 48 x 64 pixels, each with a bright square (id 3) and a dark disc (id 7).

    Returns:
        The COCO file `folder/name.json`; the photographs are in `folder/images`.
    """
    random = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    rows, columns = np.mgrid[:48, :64]
    for i in range(count):
        picture = random.integers(90, 120, (48, 64, 3), dtype=np.uint8)
        left, top, x, y = *random.integers(2, 12, 2), random.integers(42, 52), random.integers(20, 30)
        picture[top : top + 20, left : left + 18] = 230
        picture[(rows - y) ** 2 + (columns - x) ** 2 < 100] = 20
        file_name = f"images/{name}{i}.png"
        Image.fromarray(picture).save(folder / file_name)
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        disc = np.stack([x + 0.5 + 10 * np.cos(angles), y + 0.5 + 10 * np.sin(angles)], 1).ravel().tolist()
        images.append({"id": 100 + i, "file_name": file_name, "height": 48, "width": 64})
        for category, polygon in ((3, rectangle(int(left), int(top), 18, 20)), (7, disc)):
            annotations.append(
                {"id": len(annotations), "image_id": 100 + i, "category_id": category, "segmentation": [polygon]}
            )
    return write_coco(folder / f"{name}.json", images, annotations)
