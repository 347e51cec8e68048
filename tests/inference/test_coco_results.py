import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segkit.data import CocoSegmentation
from segkit.inference import Prediction, PseudoLabels, write_coco
from segkit.inference.coco_results import annotations_of, category_ids, image_record
from segkit.labels import background_of

NAMES = ("background", "can", "paper", "glass")


def prediction_of(mask, sure):
    """Probability 0.9 for the label where `sure`, else 0.5."""
    best = np.where(sure, 0.9, 0.5)
    probs = np.repeat((1 - best)[None] / 3, 4, axis=0)
    np.put_along_axis(probs, mask[None].astype(np.int64), best[None], 0)
    return Prediction(mask, probs.astype(np.float32))


def random_case(seed=0):
    random = np.random.default_rng(seed)
    mask = np.kron(random.integers(0, 4, (4, 5)), np.ones((3, 4))).astype(np.uint8)
    return mask, random.random(mask.shape) < 0.7


def written(tmp_path, results):
    records = []
    for number, (mask, found) in enumerate(results, start=1):
        Image.new("RGB", mask.shape[::-1]).save(tmp_path / f"{number}.png")
        records.append((image_record(Path(f"{number}.png"), mask.shape, number), found))
    write_coco(tmp_path / "out.json", NAMES, records)
    return CocoSegmentation(tmp_path / "out.json")


def test_a_label_map_written_as_coco_is_read_back_unchanged(tmp_path):
    masks = [random_case(seed)[0] for seed in range(5)] + [np.zeros((4, 4), np.uint8), np.full((1, 1), 3, np.uint8)]
    data = written(tmp_path, [(mask, annotations_of(mask)) for mask in masks])
    assert tuple(data.class_names) == NAMES
    for i, mask in enumerate(masks):
        assert np.array_equal(data.target(i), mask)


def test_pseudo_labels_are_read_back_with_unsure_pixels_ignored(tmp_path):
    cases = [random_case(seed) for seed in range(5)]
    found = [PseudoLabels(NAMES, 0.8, min_share=0)(prediction_of(*case)) for case in cases]
    data = written(tmp_path, [(mask, one) for (mask, _), one in zip(cases, found, strict=True)])
    for i, (mask, sure) in enumerate(cases):
        assert np.array_equal(data.target(i), np.where(sure, mask, 255))


def test_an_image_without_a_sure_pixel_is_ignored_completely(tmp_path):
    mask = np.full((3, 3), 2, np.uint8)
    (found,) = [PseudoLabels(NAMES, min_share=0)(prediction_of(mask, np.zeros((3, 3), bool)))]
    assert (written(tmp_path, [(mask, found)]).target(0) == 255).all()


def test_an_image_with_too_few_sure_pixels_is_skipped():
    mask, sure = np.ones((2, 2), np.uint8), np.array([[True, True], [False, False]])
    assert PseudoLabels(NAMES, min_share=0.5)(prediction_of(mask, sure)) is not None
    assert PseudoLabels(NAMES, min_share=0.51)(prediction_of(mask, sure)) is None


def test_a_class_may_have_its_own_threshold():
    mask = np.array([[1, 2]], np.uint8)
    found = PseudoLabels(NAMES, 0.95, {"paper": 0.4})(prediction_of(mask, np.ones((1, 2), bool)))
    assert [(a["category_id"], a.get("ignore", 0)) for a in found] == [(2, 0), (1, 1)]


@pytest.mark.parametrize("names", [("road", "sky", "tree"), ("sky", "background", "tree")])
def test_a_class_0_that_is_not_background_has_a_category(tmp_path, names):
    background = background_of(names)
    mask, sure = random_case()
    mask = np.minimum(mask, 2)
    for found, where in (
        (annotations_of(mask, background), np.ones(mask.shape, bool)),
        (PseudoLabels(names, 0.8, min_share=0)(prediction_of(mask, sure)), sure),
    ):
        Image.new("RGB", mask.shape[::-1]).save(tmp_path / "a.png")
        write_coco(tmp_path / "a.json", names, [(image_record(Path("a.png"), mask.shape, 1), found)])
        data = CocoSegmentation(tmp_path / "a.json")
        named = [names.index(name) if name in names else None for name in data.class_names]
        assert set(named) - {None} == set(range(3))
        target = np.array([*(-1 if n is None else n for n in named), *[-1] * (255 - len(named)), 255])[data.target(0)]
        assert np.array_equal(target, np.where(where, mask, 255))


def test_categories_keep_the_ids_of_the_source_then_of_the_model(tmp_path):
    mask = np.array([[0, 1, 2, 3]], np.uint8)
    results = [(image_record(Path("a.png"), mask.shape, 1), annotations_of(mask))]
    write_coco(tmp_path / "a.json", NAMES, results, {"glass": 0, "other": 5}, {"glass": 9, "can": 0, "paper": "p"})
    content = json.loads((tmp_path / "a.json").read_text())
    # can has no id of the source, and the id that the model knows for it is glass here
    expected = {"can": 10, "paper": "p", "glass": 0}
    assert {category["name"]: category["id"] for category in content["categories"]} == expected
    assert [annotation["category_id"] for annotation in content["annotations"]] == list(expected.values())


def test_no_category_gets_the_id_that_the_source_has_for_background():
    names, source = ("background", "can", "box", "cup"), {"Background": 3, "can": "4"}
    assert category_ids(names, source, {"can": 7, "box": 3}) == {1: "4", 2: 8, 3: 9}


def test_annotations_have_area_box_and_mask_as_plain_json():
    mask = np.zeros((5, 6), np.uint8)
    mask[1:3, 2:6] = 3
    (found,) = annotations_of(mask)
    assert (found["category_id"], found["area"], found["bbox"]) == (3, 8, [2.0, 1.0, 4.0, 2.0])
    json.dumps(found)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: PseudoLabels(NAMES, class_thresholds={"cann": 0.5}), ValueError, "no class 'cann'"),
        (lambda: PseudoLabels(NAMES, 1.5), ValueError, "must be in 0..1"),
    ],
)
def test_wrong_settings_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
