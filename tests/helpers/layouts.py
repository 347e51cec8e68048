"""Small data sets in the layouts of exports and published data sets, each with the label maps that must come out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from segkit.data.formats import cityscapes, voc, zerowaste

CLASSES = ("background", "bus", "road")
SIZE = (33, 48)  # (H, W)
FOLDER_OF = ("train", "train", "train", "train", "valid", "valid")  # of each scene


class Scene(NamedTuple):
    """An image with a road, and on it a bus; each is x, y, width and height in pixels. The last image has neither."""

    name: str
    boxes: list[tuple[str, tuple[int, int, int, int]]]

    @property
    def mask(self) -> np.ndarray:
        mask = np.zeros(SIZE, dtype=np.uint8)
        for name, (x, y, width, height) in self.boxes:
            mask[y : y + height, x : x + width] = CLASSES.index(name)
        return mask


def scenes() -> list[Scene]:
    drawn = [[("road", (2, 15 + i, 40, 12)), ("bus", (5 + 3 * i, 10, 15, 9 + i))] for i in range(len(FOLDER_OF) - 1)]
    return [Scene(f"{i}.png", boxes) for i, boxes in enumerate([*drawn, []])]


def corners(box: tuple[int, int, int, int]) -> list[list[float]]:
    x, y, width, height = box
    return [[x, y], [x + width, y], [x + width, y + height], [x, y + height]]


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


class Layout(NamedTuple):
    """A data set: the path to open, the classes, the label map of each image by its name, and whether it has splits."""

    path: Path
    class_names: tuple[str, ...]
    masks: dict[str, np.ndarray]
    is_divided: bool = True


def placed(place: Callable[[Scene, str], Path]) -> list[tuple[Scene, str]]:
    """Write the images of the scenes where `place` says; return each scene with its split."""
    rows = list(zip(scenes(), FOLDER_OF, strict=True))
    for i, (scene, split) in enumerate(rows):
        image = np.full((*SIZE, 3), 90, dtype=np.uint8) + np.uint8(60) * scene.mask[..., None]
        image[i] = 7 * i  # no two images are the same
        file = place(scene, split)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    return rows


def write_png(path: Path, mask: np.ndarray, colours: dict[int, tuple[int, int, int]] | None = None) -> None:
    """Write a label map, or the picture of its colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if colours is not None:
        table = np.zeros((256, 3), dtype=np.uint8)
        for label, colour in colours.items():
            table[label] = colour
        mask = table[mask]
    Image.fromarray(mask).save(path)


def all_masks(rows: list[tuple[Scene, str]]) -> dict[str, np.ndarray]:
    return {scene.name: scene.mask for scene, _ in rows}


def write_yolo(root: Path) -> Layout:
    rows = placed(lambda scene, split: root / "images" / split / scene.name)
    height, width = SIZE
    for scene, split in rows:
        lines = []
        for name, box in scene.boxes:
            points = [
                value / side for point in corners(box) for value, side in zip(point, (width, height), strict=True)
            ]
            lines.append(" ".join([str(CLASSES[1:].index(name)), *(f"{value:.6f}" for value in points)]))
        if lines:  # the last image has no file: it is background
            file = root / "labels" / split / f"{scene.name[:-4]}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\n".join(lines) + "\n")
    (root / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/valid\nnames:\n  0: bus\n  1: road\n")
    return Layout(root, CLASSES, all_masks(rows))


def coco_content(rows: list[Scene], names: dict[str, int], file_names: list[str]) -> dict[str, Any]:
    """Return a COCO JSON of scenes; `names` has the ids of the categories."""
    images, annotations = [], []
    for number, (scene, file_name) in enumerate(zip(rows, file_names, strict=True)):
        images.append({"id": number, "file_name": file_name, "height": SIZE[0], "width": SIZE[1]})
        for name, box in scene.boxes:
            annotations.append(
                {
                    **{"id": len(annotations), "image_id": number, "category_id": names[name], "bbox": list(box)},
                    **{"area": box[2] * box[3], "iscrowd": 0, "segmentation": [np.ravel(corners(box)).tolist()]},
                }
            )
    categories = [{"id": number, "name": name, "supercategory": "streets"} for name, number in names.items()]
    return {"info": {}, "licenses": [], "categories": categories, "images": images, "annotations": annotations}


def write_roboflow(root: Path) -> Layout:
    """Write an export whose second split lacks a class, so that its ids differ."""
    rows = placed(lambda scene, split: root / split / scene.name)
    for split, names in (("train", {"bus": 1, "road": 2}), ("valid", {"road": 1, "bus": 2})):
        own = [scene for scene, where in rows if where == split]
        content = coco_content(own, names, [scene.name for scene in own])
        content["categories"].insert(0, {"id": 0, "name": "streets", "supercategory": "none"})
        write_json(root / split / "_annotations.coco.json", content)
    return Layout(root, CLASSES, all_masks(rows))


def write_roboflow_masks(root: Path) -> Layout:
    rows = placed(lambda scene, split: root / split / scene.name)
    for scene, split in rows:
        write_png(root / split / f"{scene.name[:-4]}_mask.png", scene.mask)
        (root / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, bus\n2, road\n")
    return Layout(root, CLASSES, all_masks(rows))


COLOURS = {0: (0, 0, 0), 1: (250, 50, 83), 2: (51, 221, 255), 3: (20, 20, 20)}


def write_cvat_masks(root: Path) -> Layout:
    """Write an export with one subset and the lines in another order; one pixel is ignored."""
    rows = placed(lambda scene, split: root / "JPEGImages" / scene.name)
    masks = all_masks(rows)
    for name, mask in masks.items():
        write_png(root / "SegmentationClass" / name, np.where(np.arange(mask.size).reshape(SIZE), mask, 3), COLOURS)
        mask[0, 0] = 255
    lines = ["# label:color_rgb:parts:actions", "bus:250,50,83::", "road:51,221,255:lane:", "background:0,0,0::"]
    (root / "labelmap.txt").write_text("\n".join([*lines, "ignore:20,20,20::", ""]))
    listed = root / "ImageSets" / "Segmentation" / "default.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("".join(f"{scene.name[:-4]}\n" for scene, _ in rows))
    return Layout(root, CLASSES, masks, is_divided=False)


def write_voc(root: Path) -> Layout:
    """Write a VOCdevkit: the palette of VOC, 255 at the border of the image, and a list for each split."""
    home = root / "VOC2012"
    rows = placed(lambda scene, split: home / "JPEGImages" / f"2007_00000{scene.name}")
    masks = {f"2007_00000{scene.name}": scene.mask for scene, _ in rows}
    for name, mask in masks.items():
        mask[mask == 2] = 7  # bus is 1, an aeroplane, and road is 7, a car
        mask[[0, -1]] = 255
        image = Image.fromarray(mask, "P")
        image.putpalette([value for label in range(256) for value in voc.voc_colour(label)])
        (home / "SegmentationClass").mkdir(exist_ok=True)
        image.save(home / "SegmentationClass" / name)
    (home / "ImageSets" / "Segmentation").mkdir(parents=True)
    for split, file in (("train", "train.txt"), ("valid", "val.txt")):
        names = [f"2007_00000{scene.name[:-4]}\n" for scene, where in rows if where == split]
        (home / "ImageSets" / "Segmentation" / file).write_text("".join(names))
    return Layout(root, voc.CLASSES, masks)


def write_cityscapes(root: Path) -> Layout:
    rows = placed(
        lambda scene, split: root / "leftImg8bit" / split[:5].replace("valid", "val") / "aachen" / city(scene),
    )
    masks = {}
    for scene, split in rows:
        mask = np.select([scene.mask == 1, scene.mask == 2], [28, 7], 4).astype(np.uint8)  # bus, road, static
        name = city(scene).replace("leftImg8bit", "gtFine_labelIds")
        write_png(root / "gtFine" / split.replace("valid", "val") / "aachen" / name, mask)
        masks[city(scene)] = np.select([scene.mask == 1, scene.mask == 2], [15, 0], 255).astype(np.uint8)
    return Layout(root, tuple(cityscapes.CLASSES.values()), masks)


def city(scene: Scene) -> str:
    return f"aachen_00000{scene.name[:-4]}_000019_leftImg8bit.png"


def write_zerowaste(root: Path) -> Layout:
    rows = placed(lambda scene, split: root / "zerowaste-f" / split.replace("valid", "val") / "data" / scene.name)
    for scene, split in rows:
        write_png(root / "zerowaste-f" / split.replace("valid", "val") / "sem_seg" / scene.name, scene.mask)
    return Layout(root, zerowaste.CLASSES, all_masks(rows))


def write_taco(root: Path) -> Layout:
    """Write TACO with category 0, and photographs whose suffix has other capitals than in the JSON."""
    rows = placed(lambda scene, split: root / f"batch_{1 + int(scene.name[0]) % 2}" / scene.name)
    names = [f"batch_{1 + int(scene.name[0]) % 2}/{scene.name[:-4]}.PNG" for scene, _ in rows]
    content = coco_content([scene for scene, _ in rows], {"bus": 0, "road": 1}, names)
    write_json(root / "annotations.json", content | {"scene_annotations": [], "scene_categories": []})
    masks = {name.rpartition("/")[2]: scene.mask for name, (scene, _) in zip(names, rows, strict=True)}
    return Layout(root, CLASSES, masks, is_divided=False)


LAYOUTS: dict[str, Callable[[Path], Layout]] = {
    **{"yolo": write_yolo, "roboflow": write_roboflow, "roboflow masks": write_roboflow_masks, "taco": write_taco},
    **{"cvat-masks": write_cvat_masks, "voc": write_voc, "cityscapes": write_cityscapes},
    "zerowaste": write_zerowaste,
}
