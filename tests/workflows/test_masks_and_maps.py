"""Class maps and patterns of mask names, from the training to the scores."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.layouts import CLASSES, LAYOUTS, SIZE, coco_content, placed, write_png, write_taco
from PIL import Image

import segkit
from segkit.config import TrainConfig
from segkit.data import CocoSegmentation
from segkit.data.folder import FolderSegmentation
from segkit.data.formats import find_source
from segkit.errors import UsageError
from segkit.folds import read_fold_source
from segkit.models import read_header
from segkit.workflows.datasets import data_digests, load_data

SETTINGS = {
    **{"model": "fpn", "backbone": "test_resnet", "pretrained": "false", "crop": 32, "augment": "none", "epochs": 1},
    **{"decoder": {"pyramid_channels": 16, "channels": 16}, "batch_size": 4, "workers": 0, "device": "cpu"},
    "mask_cache": "off",
}
MERGED = "original,target\nbus,traffic\nroad,Background\n"


@pytest.fixture
def table(tmp_path):
    file = tmp_path / "map.csv"
    file.write_text(MERGED)
    return file


def supports(weights, out, **data):
    result = segkit.evaluate(weights=weights, out=out, device="cpu", mask_cache="off", **data)
    return {row["class"]: row["support"] for row in result.classes}


@pytest.mark.filterwarnings("ignore:images whose names are spelt in another way")
def test_a_class_map_is_stored_in_the_run_and_in_the_model(table, tmp_path):
    layout = write_taco(tmp_path / "taco")
    bus = int(sum((mask == 1).sum() for mask in layout.masks.values()))
    run = segkit.train(data=layout.path, out=tmp_path / "run", class_map=table, val_fraction=0.5, **SETTINGS)
    assert run.class_names == ("background", "traffic")
    table.unlink()  # the run has its content
    expected = {"bus": "traffic", "road": "background"}
    assert yaml.safe_load((tmp_path / "run" / "args.yaml").read_text())["class_map"] == expected
    assert read_header(tmp_path / "run" / "best.safetensors")["data_rules"]["class_map"] == expected
    assert len(segkit.train(resume=tmp_path / "run", epochs=2).history) == 2
    # Scores on the original labels, without the map; and on labels that were mapped before, such as pseudo labels.
    total = SIZE[0] * SIZE[1] * len(layout.masks)
    assert supports(tmp_path / "run", tmp_path / "1", data=layout.path) == {"background": total - bus, "traffic": bus}
    content = json.loads((layout.path / "annotations.json").read_text())
    content["categories"] = [{"id": 0, "name": "traffic"}]
    content["annotations"] = [row for row in content["annotations"] if row["category_id"] == 0]
    mapped = layout.path / "pseudo.json"
    mapped.write_text(json.dumps(content))
    assert supports(tmp_path / "run", tmp_path / "2", data=mapped) == {"background": total - bus, "traffic": bus}
    more = {"data": layout.path, "train_only": mapped, "val_fraction": 0.5, "class_map": expected}
    assert segkit.train(out=tmp_path / "more", **more, **SETTINGS).class_names == ("background", "traffic")
    with pytest.raises(UsageError, match="cannot resume with other settings: `class_map` was"):
        segkit.train(resume=tmp_path / "run", epochs=3, class_map={"bus": "traffic", "road": "ignore"})


def test_masks_beside_their_images_are_scored_by_their_original_values(table, tmp_path):
    rows = placed(lambda scene, split: tmp_path / "data" / split / scene.name.replace(".png", "_sat.png"))
    for scene, split in rows:
        write_png(tmp_path / "data" / split / scene.name.replace(".png", "_mask.png"), scene.mask)
    names = tmp_path / "names.txt"
    names.write_text("\n".join(CLASSES))
    where = {"data": tmp_path / "data", "mask_name": "{stem-_sat}_mask.png"}
    options = {"class_names": names, "class_map": table, "val_fraction": 0.5}
    run = segkit.train(**where, **options, out=tmp_path / "run", **SETTINGS)
    assert run.class_names == ("background", "traffic")
    bus = int(sum((scene.mask == 1).sum() for scene, _ in rows))
    names.unlink()
    total = SIZE[0] * SIZE[1] * len(rows)
    assert supports(tmp_path / "run", tmp_path / "1", **where) == {"background": total - bus, "traffic": bus}
    write_png(tmp_path / "data" / "train" / "0_mask.png", np.ones(SIZE, dtype=np.uint8))
    names.write_text("\n".join(CLASSES))
    with pytest.raises(UsageError, match="the data files have changed"):
        segkit.train(resume=tmp_path / "run", epochs=2)


@pytest.mark.parametrize(
    ("name", "path", "changed"),
    [
        ("yolo", "data.yaml", "labels/train/0.txt"),
        ("zerowaste", "", "zerowaste-f/train/sem_seg/0.png"),
    ],
)
def test_digests_of_the_data_change_with_its_labels(name, path, changed, tmp_path):
    LAYOUTS[name](tmp_path)
    config = TrainConfig(data=(tmp_path / path,), mask_cache="off")
    before = data_digests(config, load_data(config))
    assert data_digests(config, load_data(config)) == before
    file = tmp_path / changed
    if file.suffix == ".txt":
        file.write_text(file.read_text().replace("0.3", "0.4"))
    else:
        write_png(file, np.zeros(SIZE, dtype=np.uint8))
    after = data_digests(config, load_data(config))
    assert after["train labels"] != before["train labels"]
    assert after["val labels"] == before["val labels"]


@pytest.mark.filterwarnings("ignore:images whose names are spelt in another way")
def test_check_and_folds_count_the_classes_of_the_map(table, tmp_path):
    layout = write_taco(tmp_path / "taco")
    result = segkit.check(data=layout.path, class_map=table, out=tmp_path / "check")
    assert "traffic" in str(result)
    assert "road" not in str(result)
    file = layout.path / "annotations.json"
    folds = segkit.make_folds(data=file, k=2, class_map=table, out=tmp_path / "folds")
    assert folds.class_names == ("traffic",)
    written = json.loads(folds.train[0].read_text())
    assert [row["name"] for row in written["categories"]] == ["bus", "road"]  # to be trained on with the same map


@pytest.mark.filterwarnings("ignore::segkit.errors.DataWarning")
@pytest.mark.parametrize("name", ["taco", "zerowaste", "roboflow", "cvat-masks"])
def test_convert_writes_the_classes_of_the_map(name, tmp_path):
    layout = LAYOUTS[name](tmp_path / "data")
    first, second = layout.class_names[1:3]
    class_map = {first: "background", second: "kept", "*": "*"}
    made = segkit.convert(data=layout.path, to="masks", class_map=class_map, out=tmp_path / "out")
    assert made.class_names[:2] == ("background", "kept")
    table = np.full(256, 255, dtype=np.uint8)
    table[:3] = 0, 0, 1
    parts = [FolderSegmentation(read()) for read in find_source(tmp_path / "out").splits.values()]
    masks = {Path(part.name(i)).stem: part.mask(i) for part in parts for i in range(len(part))}
    assert len(masks) == len(layout.masks)
    for file, mask in layout.masks.items():
        np.testing.assert_array_equal(masks[Path(file).stem], table[mask])


def test_convert_finds_masks_by_a_pattern(tmp_path):
    Image.new("RGB", (5, 4)).save(tmp_path / "a.jpg")
    values = np.arange(20, dtype=np.uint8).reshape(4, 5) % 2
    write_png(tmp_path / "a_mask.png", values)
    (tmp_path / "names.txt").write_text("background\ncan\n")
    where = {"data": tmp_path, "mask_name": "{stem}_mask.png", "class_names": tmp_path / "names.txt"}
    segkit.convert(**where, to="coco", out=tmp_path / "out")
    data = CocoSegmentation(tmp_path / "out" / "annotations.json", tmp_path)
    np.testing.assert_array_equal(data.mask(0), values)


def test_regions_of_train_only_that_the_map_ignores_stay_ignored_in_folds(tmp_path):
    rows = placed(lambda scene, split: tmp_path / scene.name)
    scenes = [scene for scene, _ in rows]
    for file, names in (("a.json", {"bus": 1}), ("b.json", {"bus": 1, "road": 2})):
        kept = [scene._replace(boxes=[box for box in scene.boxes if box[0] in names]) for scene in scenes]
        (tmp_path / file).write_text(json.dumps(coco_content(kept, names, [scene.name for scene in scenes])))
    source = read_fold_source(tmp_path / "a.json", [tmp_path / "b.json"], class_map={"bus": "bus", "road": "ignore"})
    assert [row.get("ignore") for row in source.annotations[len(scenes)]] == [1, None]


@pytest.mark.parametrize(
    ("pattern", "mask"),
    [
        ("{stem}_mask.png", "{folder}/a_mask.png"),
        ("{stem}_MASK.PNG", "{folder}/a_mask.png"),
        ("{name}.png", "{folder}/a.jpg.png"),
        ("labels/{folder}/{stem}.png", "labels/{folder}/a.png"),
        ("../labels/{folder}/{stem}-label.png", "../labels/{folder}/a-label.png"),
        ("{folder}/masks/m_{stem}.png", "{folder}/masks/m_a.png"),
    ],
)
@pytest.mark.parametrize("folder", [".", "x/y"])
def test_mask_names_say_where_the_mask_of_an_image_is(pattern, mask, folder, tmp_path):
    image = tmp_path / "photographs" / folder / "a.jpg"
    image.parent.mkdir(parents=True)
    Image.new("RGB", (5, 4)).save(image)
    values = np.arange(20, dtype=np.uint8).reshape(4, 5) % 2
    write_png(tmp_path / "photographs" / mask.format(folder=folder), values)
    data = FolderSegmentation(tmp_path / "photographs", mask_name=pattern, class_names=("a", "b"))
    assert [item.path for item in data.items] == [image]
    np.testing.assert_array_equal(data.mask(0), values)


def test_masks_and_images_without_a_partner_are_named(tmp_path):
    for name in ("1_sat.jpg", "2_sat.jpg", "3.jpg"):
        Image.new("RGB", (5, 4)).save(tmp_path / name)
    for name in ("1_mask.png", "4_mask.png"):
        write_png(tmp_path / name, np.zeros((4, 5), dtype=np.uint8))
    data = FolderSegmentation.inspect(tmp_path, mask_name="{stem-_sat}_mask.png", class_names=("a", "b"))
    assert [data.name(i) for i in range(len(data))] == ["1_sat.jpg"]
    assert sorted(finding.sentence for finding in data.findings) == [
        f"{tmp_path / '2_sat.jpg'} has no mask, expected at {tmp_path / '2_mask.png'}",
        f"{tmp_path / '3.jpg'} has no mask, expected at no place, because its name does not end in '_sat'",
        f"{tmp_path / '4_mask.png'} has no image",
    ]


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("{stm}_mask.png", r"there is no field \{stm\}; the fields are \{stem\}"),
        ("masks/{folder}.png", r"names one file for all images; it needs \{stem\}"),
    ],
)
def test_patterns_that_cannot_be(pattern, sentence, tmp_path):
    with pytest.raises(UsageError, match=sentence):
        FolderSegmentation(tmp_path, mask_name=pattern, class_names=("a", "b"))
