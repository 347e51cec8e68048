"""A small data set in each label format, of the same pictures with the same rectangles and known masks."""

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from helpers.layouts import LAYOUTS

CLASSES = ("can", "cup")
SIZES = ((48, 64), (47, 63))  # (H, W), even and odd


class Box(NamedTuple):
    """A rectangle along the borders of pixels."""

    label: int
    left: int
    top: int
    width: int
    height: int

    @property
    def corners(self) -> list[tuple[int, int]]:
        right, bottom = self.left + self.width, self.top + self.height
        return [(self.left, self.top), (right, self.top), (right, bottom), (self.left, bottom)]


class Drawn(NamedTuple):
    """A picture: its size (H, W), and its rectangles in the order of painting, the last one the smallest."""

    size: tuple[int, int]
    boxes: tuple[Box, ...]

    def mask(self) -> np.ndarray:
        mask = np.zeros(self.size, dtype=np.uint8)
        for box in self.boxes:
            mask[box.top : box.top + box.height, box.left : box.left + box.width] = box.label
        return mask

    def save(self, file: Path) -> None:
        """Write the picture: the classes are bright and dark."""
        file.parent.mkdir(parents=True, exist_ok=True)
        gray = np.array([120, 230, 20], dtype=np.uint8)[self.mask()]
        Image.fromarray(np.repeat(gray[..., None], 3, axis=2)).save(file)


class Written(NamedTuple):
    """A data set that was written.

    Attributes:
        path: What `data` takes.
        masks: The expected label map (H, W) of each image, by the name of its file without folder and suffix.
        class_names: The expected classes in label order.
    """

    path: Path
    masks: Mapping[str, np.ndarray]
    class_names: tuple[str, ...] = ("background", *CLASSES)


def pictures(count: int, seed: int) -> list[Drawn]:
    """Return pictures of a can in which a cup lies, and a cup at the other side."""
    random = np.random.default_rng(seed)
    drawn = []
    for i in range(count):
        left, top, aside = (int(value) for value in random.integers(2, 10, 3))
        boxes = Box(1, left, top, 26, 30), Box(2, 44, aside, 14, 25), Box(2, left + 5, top + 8, 9, 11)
        drawn.append(Drawn(SIZES[i % len(SIZES)], boxes))
    return drawn


def write_yolo(folder: Path) -> Written:
    """Write a YOLO segmentation data set with splits; the last picture of each is background without a file."""
    masks = {}
    for split, seed in (("train", 1), ("val", 2)):
        drawn = [*pictures(4, seed), Drawn((48, 64), ())]
        (folder / "labels" / split).mkdir(parents=True)
        for i, picture in enumerate(drawn):
            name = f"{split}{i}"
            picture.save(folder / "images" / split / f"{name}.png")
            masks[name] = picture.mask()
            height, width = picture.size
            lines = (
                " ".join([str(box.label - 1), *(f"{x / width:.6f} {y / height:.6f}" for x, y in box.corners)])
                for box in picture.boxes
            )
            if picture.boxes:
                (folder / "labels" / split / f"{name}.txt").write_text("\n".join(lines) + "\n")
    (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: [{', '.join(CLASSES)}]\n")
    return Written(folder, masks)


def png(array: np.ndarray) -> bytes:
    """Return an array as a PNG file."""
    content = io.BytesIO()
    Image.fromarray(array).save(content, "PNG")
    return content.getvalue()


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def labelme_shape(label: str, points: Sequence[Sequence[float]], kind: str | None = "polygon", **more: Any) -> dict:
    """Return a shape as LabelMe writes it; `mask` is the array of a mask."""
    if isinstance(more.get("mask"), np.ndarray):
        more["mask"] = base64.b64encode(png(more["mask"])).decode()
    row = {"label": label, "points": list(points), "group_id": None, "description": "", "shape_type": kind, "flags": {}}
    return row | {"mask": None} | more


def labelme_file(path: Path, image: str, size: tuple[int, int] | None, *shapes: dict, **more: Any) -> Path:
    """Write a JSON file as LabelMe does."""
    height, width = size or (None, None)
    content = {"version": "6.3.1", "flags": {}, "shapes": shapes, "imagePath": image, "imageData": None}
    return write_json(path, content | {"imageHeight": height, "imageWidth": width} | more)


def write_labelme(folder: Path) -> Written:
    """Write rectangles as polygons and as two corners; a picture without objects has a file without shapes."""
    masks = {}
    for i, picture in enumerate(pictures(6, seed=3)):
        picture.save(folder / f"{i}.png")
        masks[str(i)] = picture.mask()
        shapes = [
            labelme_shape(CLASSES[box.label - 1], box.corners)
            if k % 2
            else labelme_shape(CLASSES[box.label - 1], box.corners[::2], "rectangle")
            for k, box in enumerate(picture.boxes)
        ]
        labelme_file(folder / f"{i}.json", f"{i}.png", picture.size, *shapes)
    return Written(folder, masks)


def cvat_xml(images: Sequence[str], labels: Sequence[str] = CLASSES, kinds: Mapping[str, str] | None = None) -> str:
    """Return the XML of "CVAT for images 1.1" with these image elements."""
    meta = "".join(
        f"<label><name>{name}</name><color>#ff0000</color><type>{(kinds or {}).get(name, 'any')}</type></label>"
        for name in labels
    )
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
        f"  <meta><task><id>1</id><labels>{meta}</labels></task></meta>\n  {''.join(images)}\n</annotations>\n"
    )


def cvat_image(name: str, size: tuple[int, int], *shapes: str, subset: str = "") -> str:
    of_subset = f' subset="{subset}"' if subset else ""
    inside = "\n".join(shapes)
    return f'<image id="0" name="{name}"{of_subset} width="{size[1]}" height="{size[0]}">{inside}</image>\n'


def write_cvat(folder: Path) -> Written:
    """Write a project with subsets: polygons, boxes and masks, the shapes on top first but with a higher z_order."""
    masks, images = {}, []
    for i, picture in enumerate([*pictures(6, seed=4), Drawn((47, 63), ())]):
        subset = "Validation" if i > 4 else "Train"
        picture.save(folder / "images" / subset / f"{i}.png")
        masks[str(i)] = picture.mask()
        shapes = []
        for z, box in enumerate(picture.boxes):
            label, (x, y) = CLASSES[box.label - 1], box.corners[0]
            runs = f"0,{box.width * box.height}"
            points = ";".join(f"{x:.2f},{y:.2f}" for x, y in box.corners)
            forms = (
                f'<polygon label="{label}" source="manual" occluded="0" points="{points}" z_order="{z}"></polygon>',
                f'<box label="{label}" xtl="{x}" ytl="{y}" xbr="{x + box.width}" ybr="{y + box.height}" '
                f'z_order="{z}"/>',
                f'<mask label="{label}" rle="{runs}" left="{x}" top="{y}" width="{box.width}" height="{box.height}" '
                f'z_order="{z}"/>',
            )
            shapes.append(forms[(i + z) % 3])
        images.append(cvat_image(f"{i}.png", picture.size, *shapes[::-1], subset=subset))
    (folder / "annotations.xml").write_text(cvat_xml(images))
    return Written(folder, masks)


def studio_region(label: str, kind: str, size: tuple[int, int] | None, number: int = 1, **value: Any) -> dict:
    """Return a region as Label Studio exports it."""
    frame = {} if size is None else {"original_width": size[1], "original_height": size[0], "image_rotation": 0}
    row = {"id": f"r{number}", "type": kind, "from_name": "label", "to_name": "image", "origin": "manual"}
    return frame | row | {"value": value | {kind: [label]}}


def studio_task(image: str, *results: dict, **more: Any) -> dict:
    """Return a task with one annotation as Label Studio exports it."""
    annotation = {"id": 1, "result": list(results), "was_cancelled": False, "ground_truth": False}
    return {"id": 7, "data": {"image": image}, "annotations": [annotation], "predictions": []} | more


def pack_brush(values: np.ndarray) -> list[int]:
    """Return the bytes of a brush whose values of a pixel (red, green, blue, alpha) are all the same, (H, W) uint8."""
    flat = values.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=-1))
    bits = f"{4 * flat.size:032b}{7:05b}" + "".join(f"{bits - 1:04b}" for bits in (3, 4, 8, 16))
    for start, end in zip(starts, [*starts[1:], flat.size], strict=True):
        for count in [65536] * ((4 * (end - start)) // 65536) + [(4 * (end - start)) % 65536]:
            if count:
                bits += f"111{count - 1:016b}{flat[start]:08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def write_label_studio(folder: Path) -> Written:
    """Write polygons, rectangles and brushes of uploaded images, next to the JSON; the last image is background."""
    masks, tasks = {}, []
    for i, picture in enumerate([*pictures(6, seed=5), Drawn((47, 63), ())]):
        picture.save(folder / f"{i}.png")
        masks[str(i)] = picture.mask()
        height, width = picture.size
        regions = []
        for number, box in enumerate(picture.boxes):
            painted = np.zeros(picture.size, dtype=np.uint8)
            painted[box.top : box.top + box.height, box.left : box.left + box.width] = 255
            corners = [[x * 100 / width, y * 100 / height] for x, y in box.corners]
            share = {"width": box.width * 100 / width, "height": box.height * 100 / height, "rotation": 0}
            kind, value = (
                ("polygonlabels", {"points": corners, "closed": True}),
                ("rectanglelabels", {"x": corners[0][0], "y": corners[0][1], **share}),
                ("brushlabels", {"format": "rle", "rle": pack_brush(painted)}),
            )[(i + number) % 3]
            regions.append(studio_region(CLASSES[box.label - 1], kind, picture.size, number, **value))
        tasks.append(studio_task(f"/data/upload/1/0a1b2c3d-{i}.png", *regions, file_upload=f"0a1b2c3d-{i}.png"))
    write_json(folder / "project-1-at-2026-11-27.json", tasks)
    return Written(folder, masks)


def write_layout(name: str, folder: Path) -> Written:
    """Write a data set of `helpers.layouts`."""
    layout = LAYOUTS[name](folder)
    return Written(layout.path, {Path(file).stem: mask for file, mask in layout.masks.items()}, layout.class_names)


# Functions that write a small data set into an empty folder. The first word of the name is a key of
# `segkit.data.formats.FORMATS`; each format must have one.
WRITERS: Mapping[str, Callable[[Path], Written]] = {
    **{name: partial(write_layout, name) for name in LAYOUTS},
    **{"yolo": write_yolo, "labelme": write_labelme, "cvat": write_cvat},
    "label-studio": write_label_studio,
}
