import json
import shutil

import numpy as np
import pytest

from segkit.data import CocoSegmentation, write_demo
from segkit.data.rasterize import rasterize
from segkit.demo.scenes import CLASSES, draw_scene

SMALL = {"train": 3, "val": 2, "size": 96}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("demo") / "set", **SMALL)


def test_the_classes_are_the_eleven_kinds_of_waste(demo):
    expected = (
        *("UNKNOWN", "General trash", "Paper", "Paper pack", "Metal", "Glass"),
        *("Plastic", "Styrofoam", "Plastic bag", "Battery", "Clothing"),
    )
    assert expected == CLASSES
    assert CocoSegmentation(demo[0]).class_names == ("background", *CLASSES)


def test_the_written_annotations_are_the_drawn_regions(demo):
    data = CocoSegmentation(demo[0])
    for seed in range(3):
        image, objects = draw_scene(seed, 96)
        assert (image.shape, image.dtype) == ((96, 96, 3), np.uint8)
        assert sum(mask.astype(int) for _, mask in objects).max() == 1  # visible regions are disjoint
        drawn = sum(category * mask for category, mask in objects)
        assert (drawn == data.mask(seed)).mean() > 0.995


def test_every_file_loads_and_holds_objects(demo):
    for file, count in zip(demo, (3, 2), strict=True):
        data = CocoSegmentation(file)
        assert len(data) == count
        for image, mask in (data[i] for i in range(count)):
            assert image.shape == (96, 96, 3)
            assert len(np.unique(mask)) > 2


def test_the_painting_order_does_not_matter(demo):
    data = CocoSegmentation(demo[0])
    for i, (item, annotations) in enumerate(zip(data.items, data.annotations, strict=True)):
        assert np.array_equal(data.mask(i), rasterize(annotations[::-1], item.size))


def test_the_same_seed_draws_the_same_bytes(demo, tmp_path):
    again = write_demo(tmp_path / "set", **SMALL)
    for first, second in zip(demo, again, strict=True):
        assert first.read_bytes() == second.read_bytes()
    images = sorted((demo[0].parent / "images").iterdir())
    assert len(images) == 5
    assert all(path.read_bytes() == (tmp_path / "set/images" / path.name).read_bytes() for path in images)


def test_training_and_validation_scenes_differ(demo):
    contents = [path.read_bytes() for path in (demo[0].parent / "images").iterdir()]
    assert len(set(contents)) == 5


def test_a_complete_demo_is_used_again(demo):
    before = demo[0].stat().st_mtime_ns
    assert write_demo(demo[0].parent, **SMALL) == demo
    assert demo[0].stat().st_mtime_ns == before


def test_polygons_and_rle_both_occur(tmp_path):
    train, _ = write_demo(tmp_path / "set", train=12, val=1, size=96)
    kinds = {type(a["segmentation"]) for a in json.loads(train.read_text())["annotations"]}
    assert kinds == {list, dict}


def test_another_folder_is_not_overwritten(demo, tmp_path):
    shutil.copytree(demo[0].parent, tmp_path / "set")
    with pytest.raises(ValueError, match="set"):
        write_demo(tmp_path / "set", **(SMALL | {"seed": 5}))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="other"):
        write_demo(tmp_path / "other", **SMALL)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]
