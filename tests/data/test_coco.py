import json
import pickle

import numpy as np
import pytest
from helpers.shapes import CATEGORIES, rectangle, write_coco, write_shapes
from PIL import Image
from pycocotools import mask as rle

from segkit.data import CocoSegmentation, DataError
from segkit.data.findings import DataWarning

IMAGE = {"id": 1, "file_name": "a.png", "height": 20, "width": 30}


@pytest.fixture
def folder(tmp_path):
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    return tmp_path


def annotation(segmentation, category=3, **extra):
    return {"id": 5, "image_id": 1, "category_id": category, "segmentation": segmentation, **extra}


def load(folder, *annotations, **changes):
    write_coco(folder / "x.json", [IMAGE], [{**a, "id": a["id"] + i} for i, a in enumerate(annotations)])
    content = json.loads((folder / "x.json").read_text()) | changes
    (folder / "x.json").write_text(json.dumps(content))
    return CocoSegmentation(folder / "x.json")


def test_labels_follow_the_order_of_the_category_ids(folder):
    data = load(folder, annotation([rectangle(0, 0, 5, 5)], 3), annotation([rectangle(10, 0, 5, 5)], 7))
    assert data.class_names == ("background", "square", "disc")
    image, mask = data[0]
    assert (image.shape, image.dtype, mask.shape, mask.dtype) == ((20, 30, 3), np.uint8, (20, 30), np.uint8)
    assert (mask[:5, :5] == 1).all()
    assert (mask[:5, 10:15] == 2).all()
    assert mask.sum() == 25 + 50


@pytest.mark.parametrize("order", [1, -1])
def test_the_smaller_object_lies_on_top(folder, order):
    both = [annotation([rectangle(0, 0, 20, 15)], 7), annotation([rectangle(5, 5, 5, 5)], 3)]
    mask = load(folder, *both[::order]).mask(0)
    assert (mask[5:10, 5:10] == 1).all()
    assert (mask == 2).sum() == 300 - 25


def test_polygons_and_both_kinds_of_rle_give_the_same_mask(folder):
    expected = np.zeros((20, 30), dtype=np.uint8)
    expected[3:9, 4:14] = 1
    compressed = rle.encode(np.asfortranarray(expected))
    flat = expected.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    runs = np.diff([0, *edges, flat.size]).tolist()
    for segmentation in (
        [rectangle(4, 3, 10, 6)],
        {"size": [20, 30], "counts": compressed["counts"].decode()},
        {"size": [20, 30], "counts": runs},
    ):
        assert np.array_equal(load(folder, annotation(segmentation)).mask(0), expected)


def test_a_hole_in_rle_stays_a_hole(folder):
    ring = np.zeros((20, 30), dtype=np.uint8)
    ring[2:12, 2:12] = 1
    ring[5:8, 5:8] = 0
    counts = rle.encode(np.asfortranarray(ring))["counts"].decode()
    assert np.array_equal(load(folder, annotation({"size": [20, 30], "counts": counts})).mask(0), ring)


@pytest.mark.parametrize("segmentation", [[], None, [[1, 2, 3, 4]], [[]]])
def test_a_segmentation_without_area_paints_nothing(folder, segmentation):
    assert load(folder, annotation(segmentation), annotation([rectangle(0, 0, 5, 5)])).mask(0).sum() == 25


def test_parts_of_an_object_are_all_painted_and_cut_at_the_border(folder):
    mask = load(folder, annotation([rectangle(0, 0, 5, 5), rectangle(25, 15, 50, 50)])).mask(0)
    assert mask.sum() == 25 + 25


def test_an_image_without_annotations_is_background(folder):
    assert load(folder).mask(0).sum() == 0
    content = json.loads((folder / "x.json").read_text())
    del content["annotations"]
    (folder / "x.json").write_text(json.dumps(content))
    assert CocoSegmentation(folder / "x.json").mask(0).sum() == 0


def test_a_byte_order_mark_is_skipped(folder):
    load(folder)
    (folder / "x.json").write_bytes(b"\xef\xbb\xbf" + (folder / "x.json").read_bytes())
    assert len(CocoSegmentation(folder / "x.json")) == 1


def test_several_files_with_their_own_folders_are_one_set(tmp_path):
    first, second = write_shapes(tmp_path / "a", "one", 2, 0), write_shapes(tmp_path / "b", "two", 3, 1)
    data = CocoSegmentation([first, second])
    assert len(data) == 5
    assert data[4][0].shape == (48, 64, 3)
    assert len(CocoSegmentation([first, second], root=[tmp_path / "a", tmp_path / "b"])) == 5


def test_a_transform_is_called_as_in_albumentations(shapes):
    def double(*, image, mask):
        return {"image": image[::2], "mask": mask[::2]}

    image, mask = CocoSegmentation(shapes[0], transform=double)[0]
    assert (image.shape, mask.shape) == ((24, 64, 3), (24, 64))


def test_a_split_is_seeded_and_loses_nothing(shapes):
    data = CocoSegmentation(shapes[0])
    first, second = data.split(0.25, seed=3)
    assert (len(first), len(second)) == (9, 3)
    names = [part.name(i) for part in (first, second) for i in range(len(part))]
    assert sorted(names) == sorted(item.file_name for item in data.items)
    again = data.split(0.25, seed=3)[1]
    assert again.indices == second.indices


def test_one_image_cannot_be_split(folder):
    with pytest.raises(DataError, match="give `val`"):
        load(folder).split(0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": []}, "0 categories"),
        ({"categories": [{"id": 1}]}, "needs an id and a name"),
        ({"categories": [*CATEGORIES, {"id": 9, "name": "disc"}]}, "the same name: disc; `merge_same_name`"),
        ({"images": [{"id": 1}]}, "an image lacks 'file_name'"),
        ({"images": [IMAGE, IMAGE]}, "two images with the same id"),
        (
            {"images": [{**IMAGE, "file_name": "b.png"}]},
            r"there is no image at .*b\.png; .*`images`",
        ),
        ({"annotations": [annotation([], image_id=8)]}, "annotation 5 .* image_id 8"),
        ({"annotations": [annotation([], category=4)]}, "annotation 5 .* category_id 4"),
    ],
)
def test_a_fault_in_the_file_is_named(folder, changes, message):
    with pytest.raises(DataError, match=message):
        load(folder, **changes)


@pytest.mark.parametrize(
    "segmentation",
    [{"counts": [1]}, {"size": [3, 3], "counts": [9]}, [["a", 1, 2, 3, 4, 5]], {"size": [20, 30]}, "polygon"],
)
def test_a_segmentation_that_cannot_be_read_names_its_annotation(folder, segmentation):
    with pytest.raises(DataError, match=r"annotation 5 of a\.png"):
        load(folder, annotation(segmentation)).mask(0)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[]", "no 'images' and no 'categories'"), ("{", "not valid JSON"), ('{"images": []}', "no 'categories'")],
)
def test_a_file_that_is_not_coco_is_named(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=rf"x\.json is .*{message}"):
        CocoSegmentation(tmp_path / "x.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no annotation file at .*x\.json"):
        CocoSegmentation(tmp_path / "x.json")


def test_files_with_other_categories_are_refused(tmp_path):
    first, second = write_shapes(tmp_path, "one", 1, 0), write_shapes(tmp_path, "two", 1, 0)
    content = json.loads(second.read_text())
    content["categories"][0]["name"] = "ball"
    second.write_text(json.dumps(content))
    with pytest.raises(
        DataError, match="do not match the classes square, disc: 'ball' is new here, 'disc' is missing here"
    ):
        CocoSegmentation([first, second])


@pytest.mark.parametrize("class_names", [None, ("disc", "square"), ["background", "disc", "square"]])
def test_a_file_may_lack_classes_of_the_others_with_a_warning(tmp_path, class_names):
    first, second = write_shapes(tmp_path, "one", 1, 0), write_shapes(tmp_path, "two", 1, 0)
    content = json.loads(second.read_text())
    content["categories"] = [{"id": 1, "name": "disc"}]
    content["annotations"] = [a | {"category_id": 1} for a in content["annotations"] if a["category_id"] == 7]
    second.write_text(json.dumps(content))
    with pytest.warns(DataWarning, match=r"classes without a category in a JSON.*: 1 \(square\)"):
        data = CocoSegmentation([first, second], class_names=class_names)
    disc, square = data.class_names.index("disc"), data.class_names.index("square")
    assert data.class_names == ("background", *(class_names or ("square", "disc"))[-2:])
    assert np.array_equal(data.mask(1), np.where(data.mask(0) == square, 0, data.mask(0)))
    assert set(np.unique(data.mask(1))) == {0, disc}


@pytest.mark.parametrize("name", ["background", "Background", " BACKGROUND "])
@pytest.mark.parametrize("i", [0, 5, 9])
def test_a_category_called_background_is_label_0_and_no_class(folder, name, i):
    categories = [*CATEGORIES, {"id": i, "name": name}]
    rows = [annotation([rectangle(0, 0, 20, 20)], 3), annotation([rectangle(5, 5, 5, 5)], i)]
    data = load(folder, *rows, annotation([rectangle(22, 0, 5, 5)], 7), categories=categories)
    assert data.class_names == ("background", "square", "disc")
    expected = np.zeros((20, 30), dtype=np.uint8)
    expected[:20, :20] = 1
    expected[5:10, 5:10] = 0
    expected[:5, 22:27] = 2
    assert np.array_equal(data.mask(0), expected)
    assert [(note.kind, note.severity, note.examples) for note in data.notes] == [
        ("background-category", "note", (name,))
    ]


def test_a_model_with_a_class_called_background_again_keeps_it(folder):
    rows = [annotation([rectangle(0, 0, 5, 5)], 3), annotation([rectangle(9, 0, 5, 5)], 7)]
    load(folder, *rows, categories=[{"id": 3, "name": "Background"}, *CATEGORIES[:1]])
    data = CocoSegmentation(folder / "x.json", class_names=("background", "Background", "disc"))
    assert data.mask(0).sum() == 25 + 50


def test_background_is_not_the_only_category(folder):
    with pytest.raises(DataError, match=r"x\.json has 0 categories besides background"):
        load(folder, categories=[{"id": 1, "name": "background"}])


def test_a_second_file_may_number_the_same_categories_in_another_way(tmp_path):
    first, second = write_shapes(tmp_path, "one", 1, 0), write_shapes(tmp_path, "two", 1, 0)
    content = json.loads(second.read_text())
    ids = {category["id"]: new for category, new in zip(content["categories"], (1, 40), strict=True)}
    for row in content["categories"]:
        row["id"] = ids[row["id"]]
    for row in content["annotations"]:
        row["category_id"] = ids[row["category_id"]]
    second.write_text(json.dumps(content))
    data = CocoSegmentation([first, second])
    assert np.array_equal(data.mask(0), data.mask(1))


@pytest.mark.parametrize("overlap", ["smallest", "last", "max-id"])
def test_a_region_marked_ignore_is_255_under_any_overlap_rule(folder, overlap):
    whole = {**annotation([rectangle(0, 0, 20, 20)], 3), "id": 1, "ignore": 1}
    write_coco(folder / "x.json", [IMAGE], [whole, {**annotation([rectangle(5, 5, 30, 4)], 7), "id": 2}])
    mask = CocoSegmentation(folder / "x.json", overlap=overlap).mask(0)
    assert (mask[:20, :20] == 255).all()
    assert (mask[5:9, 20:35] == 2).all()


BOTH = [annotation([rectangle(0, 0, 10, 10)], 7), annotation([rectangle(5, 0, 20, 10)], 3)]


@pytest.mark.parametrize(("overlap", "on_top"), [("smallest", 2), ("last", 1), ("max-id", 2)])
def test_the_overlap_rule_says_what_lies_on_top(folder, overlap, on_top):
    write_coco(folder / "x.json", [IMAGE], [{**a, "id": i} for i, a in enumerate(BOTH)])
    assert (CocoSegmentation(folder / "x.json", overlap=overlap).mask(0)[:10, 5:10] == on_top).all()


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools on numpy 2
def test_max_id_is_the_maximum_of_the_labels(folder):
    write_coco(folder / "x.json", [IMAGE], [{**a, "id": i} for i, a in enumerate(BOTH[::-1])])
    data = CocoSegmentation(folder / "x.json", overlap="max-id")
    expected = np.zeros((20, 30), np.uint8)
    for a in BOTH:
        (one,) = np.moveaxis(rle.decode(rle.frPyObjects(a["segmentation"], 20, 30)), -1, 0)
        expected = np.maximum(expected, one * {3: 1, 7: 2}[a["category_id"]])
    assert np.array_equal(data.mask(0), expected)


def test_ignored_classes_are_255_only_in_the_target(folder):
    write_coco(folder / "x.json", [IMAGE], [annotation([rectangle(0, 0, 5, 5)], 3)])
    data = CocoSegmentation(folder / "x.json", ignore_classes=["square"])
    assert data.ignored_labels == (1,)
    assert set(np.unique(data.mask(0))) == {0, 1}
    assert set(np.unique(data.target(0))) == set(np.unique(data[0][1])) == {0, 255}
    with pytest.raises(DataError, match="no class 'UNKNOWN' to ignore"):
        CocoSegmentation(folder / "x.json", ignore_classes=["UNKNOWN"])


def test_an_unknown_choice_is_named(folder):
    load(folder)
    for name in ("overlap", "on_bad", "crowd"):
        with pytest.raises(ValueError, match=f"unknown `{name}` 'x'"):
            CocoSegmentation(folder / "x.json", **{name: "x"})


class Counting(CocoSegmentation):
    """Counts how many masks are drawn."""

    drawn = 0

    def mask(self, index):
        self.drawn += 1
        return super().mask(index)


def cached(folder, **options):
    """Return the mask, and whether it was drawn."""
    data = Counting(folder / "x.json", **options)
    return data.target(0), bool(data.drawn)


def test_cached_masks_are_drawn_again_if_the_json_or_a_rule_changes(folder):
    load(folder, *BOTH)
    options = {"mask_cache": folder / "cache"}
    assert cached(folder, **options)[1]
    assert not cached(folder, **options)[1]
    mask, drawn = cached(folder, overlap="last", **options)
    assert drawn
    assert (mask == 1).sum() == 200
    assert cached(folder, crowd="ignore", **options)[1]
    load(folder, *BOTH[:1])
    mask, drawn = cached(folder, **options)
    assert drawn
    assert mask.max() == 2


def test_masks_in_memory_are_drawn_once(folder):
    load(folder, *BOTH)
    data = Counting(folder / "x.json", mask_cache="memory")
    assert np.array_equal(data.target(0), data.target(0))
    assert data.drawn == 1


def test_a_data_set_travels_to_a_spawned_worker(shapes, tmp_path):
    data = CocoSegmentation(shapes[0], mask_cache=tmp_path)
    there = pickle.loads(pickle.dumps(data))
    assert np.array_equal(there[3][0], data[3][0])
    assert np.array_equal(there[3][1], data[3][1])
