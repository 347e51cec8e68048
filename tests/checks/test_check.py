import numpy as np
import pytest
from PIL import Image

from segkit.checks.check import check_sets
from segkit.checks.pictures import save_pictures
from segkit.data import DataError
from segkit.data.dataset import ImageFiles
from segkit.data.findings import KINDS, Finding

NAMES = ("background", "leaf", "stem")
RANDOM = np.random.default_rng(0)


class Picture:
    def __init__(self, path, size):
        self.path, self.file_name, self.size = path, path.name, size


class Drawn(ImageFiles):
    def __init__(self, items, draw, findings=(), class_names=NAMES):
        self.items, self.draw, self.findings, self.class_names = items, draw, findings, class_names

    def mask(self, index):
        return self.draw(index)


def check(*sets, full=False):
    """Check sets called train and val."""
    return check_sets(dict(zip(("train", "val"), sets, strict=False)), full=full)


def smooth(size=(48, 64)):
    """Return a photograph of large soft spots, which differs from others as two photographs do."""
    coarse = RANDOM.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))


def create(folder, images, labels=1, findings=()):
    """Return a set of images by name, each with a square of a label."""
    items = []
    for file_name, image in images.items():
        Image.fromarray(image).save(folder / file_name)
        items.append(Picture(folder / file_name, image.shape[:2]))

    def mask(index):
        result = np.zeros(items[index].size, dtype=np.uint8)
        result[:8, :8] = labels
        result[8:10, :8] = 2
        return result

    return Drawn(items, mask, findings)


def kinds(report):
    return {(finding.kind, finding.where) for finding in report.findings}


def test_images_of_more_than_8_bits_that_would_be_dark_are_named(tmp_path):
    brightest = {"dark.tif": 0.2, "full.tif": 1.0}
    ramp = np.linspace(0, 1, 48 * 64, dtype=np.float32).reshape(48, 64)
    pictures = {name: ramp * np.float32(high) for name, high in brightest.items()}
    data = create(tmp_path, {name: np.uint8(np.repeat(p[..., None], 3, 2) * 255) for name, p in pictures.items()})
    for name, values in pictures.items():
        Image.fromarray(values).save(tmp_path / name)
    (report,) = check(data, full=True)
    dim = [finding for finding in report.findings if finding.kind == "dim"]
    assert [finding.sentence for finding in dim] == ["dark.tif has 32 bits, but no value is above 51 of 255"]


def test_clean_data_has_no_findings(tmp_path):
    for full in (False, True):
        (report,) = check(create(tmp_path, {f"{i}.png": smooth() for i in range(4)}), full=full)
        assert report.findings == []
        assert report.measures.pixels.sum(0).tolist() == [4 * (48 * 64 - 80), 4 * 64, 4 * 16]


def test_sizes_are_judged_without_decoding(tmp_path):
    images = {"small.png": smooth((20, 90)), "long.png": smooth((40, 170)), "fine.png": smooth((40, 160))}
    (report,) = check(create(tmp_path, images))
    assert kinds(report) == {("tiny", "small.png"), ("narrow", "long.png")}


def test_decoding_finds_images_of_one_colour_and_damaged_ones(tmp_path):
    data = create(tmp_path, {"red.png": np.full((48, 64, 3), (200, 0, 0), dtype=np.uint8), "half.png": smooth()})
    content = (tmp_path / "half.png").read_bytes()
    (tmp_path / "half.png").write_bytes(content[: len(content) // 2])
    assert check(data)[0].findings == []
    (report,) = check(data, full=True)
    assert kinds(report) == {("one-colour", "red.png"), ("unreadable-image", "half.png")}
    assert [report.count(severity) for severity in ("error", "warning", "note")] == [1, 1, 0]
    assert report.findings[0].severity == "error"


def test_decoding_finds_what_looks_alike_across_sets(tmp_path):
    photograph = smooth()
    train = create(tmp_path, {"other.png": smooth(), "a.png": photograph})
    val = create(tmp_path, {"new.png": smooth(), "bright.png": np.uint8(photograph * 0.9)})
    assert [report.findings for report in check(train, val)] == [[], []]
    first, second = check(train, val, full=True)
    assert first.findings == []
    assert kinds(second) == {("alike-across", "bright.png")}
    assert second.twins == {1: (0, 1)}


def test_images_of_one_colour_do_not_look_alike(tmp_path):
    grays = {f"{value}.png": np.full((48, 64, 3), value, dtype=np.uint8) for value in (0, 90, 200)}
    (report,) = check(create(tmp_path, grays), full=True)
    assert {kind for kind, _ in kinds(report)} == {"one-colour"}


def test_absent_classes_and_empty_sets_are_reported(tmp_path):
    (report,) = check(create(tmp_path, {"a.png": smooth()}, labels=2))
    assert kinds(report) == {("absent-class", "leaf")}
    (report,) = check(create(tmp_path, {}))
    assert kinds(report) == {("no-images", "train")}
    assert report.count("error") == 1
    data = create(tmp_path, {"a.png": smooth()})
    data.draw = lambda index: np.zeros((48, 64), dtype=np.uint8)
    assert ("nothing-painted", "train") in kinds(check(data)[0])


def test_findings_of_the_reader_are_kept_worst_first(tmp_path):
    findings = [Finding(kind, kind, kind) for kind in reversed(KINDS)]
    (report,) = check(create(tmp_path, {"a.png": smooth()}, findings=findings))
    severities = [finding.severity for finding in report.findings]
    assert sorted(severities, key=["error", "warning", "note"].index) == severities
    assert len(report.findings) == len(KINDS)


def test_sets_with_other_classes_are_refused(tmp_path):
    train = create(tmp_path, {"a.png": smooth()})
    other = Drawn(train.items, train.draw, class_names=("background", "leaf", "root"))
    with pytest.raises(DataError, match="train and val differ in their classes: stem, root"):
        check(train, other)
    with pytest.raises(DataError, match="differ in the order of their classes"):
        check(train, Drawn(train.items, train.draw, class_names=NAMES[::-1]))


def test_mask_files_without_an_object_are_reported(tmp_path):
    data = create(tmp_path, {"a.png": smooth(), "b.png": smooth()})
    data.draw = lambda index: np.full((48, 64), index, dtype=np.uint8)
    assert ("no-annotations", "a.png") in kinds(check(data)[0])
    assert ("no-annotations", "b.png") not in kinds(check(data)[0])


def test_a_class_0_that_is_not_background_is_checked_and_shown_like_the_others(tmp_path):
    data = create(tmp_path, {f"{i}.png": smooth() for i in range(2)})
    data.class_names, data.draw = ("road", "car"), lambda index: np.zeros((48, 64), dtype=np.uint8)
    (report,) = check(data)
    assert kinds(report) == {("absent-class", "car")}
    assert "class_examples.png" in save_pictures([report], tmp_path)
    data.class_names = ("background", "car")
    (report,) = check(data)
    assert {kind for kind, _ in kinds(report)} == {"absent-class", "no-annotations", "nothing-painted"}
    assert save_pictures([report], tmp_path) == ["worst_cases.png"]
