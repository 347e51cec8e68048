import numpy as np
from helpers.shapes import rectangle

from segkit.checks.measure import contested_pixels, measure
from segkit.data.dataset import ImageFiles
from segkit.data.rasterize import Annotation, rasterize

NAMES = ("background", "square", "disc")


class Picture:
    path = file_name = "a.png"
    size = (20, 30)


class Drawn(ImageFiles):
    """Pictures of one size with these annotations, or with masks."""

    def __init__(self, annotations=None, masks=(), names=NAMES):
        self.annotations, self.masks, self.class_names = annotations, masks, names
        self.items = [Picture()] * len(annotations or masks)

    def mask(self, index):
        return self.masks[index]


def polygon(label, *box):
    return Annotation(0, label, False, [np.array(rectangle(*box), dtype=float)])


def measured(*images, names=NAMES):
    return measure(Drawn(images, names=names))


def test_pixels_and_annotations_are_counted_by_image_and_class():
    result = measured(
        [polygon(1, 0, 0, 5, 4), polygon(1, 10, 0, 5, 4), polygon(2, 20, 10, 3, 3)], [Annotation(1, 2, False, None)]
    )
    assert result.pixels.tolist() == [[600 - 40 - 9, 40, 9], [600, 0, 0]]
    assert result.annotations.tolist() == [[0, 2, 1], [0, 0, 0]]


def test_overlaps_count_only_pixels_of_different_classes():
    big, small, twin = polygon(1, 0, 0, 20, 10), polygon(2, 5, 5, 10, 10), polygon(1, 0, 0, 10, 10)
    result = measured([big, small, twin], [big, twin])
    assert result.overlaps == {(1, 2): 50}
    assert result.contested.tolist() == [50, 0]
    where = contested_pixels([big, small, twin], (20, 30))
    assert where.sum() == 50
    assert where[5:10, 5:15].all()
    assert not contested_pixels([big, twin], (20, 30)).any()


def test_a_pixel_of_three_classes_is_contested_once():
    boxes = [polygon(label, 0, 0, 4 + label, 5) for label in (1, 2, 3)]
    result = measured(boxes, names=(*NAMES, "star"))
    assert result.overlaps == {(1, 2): 25, (1, 3): 25, (2, 3): 30}
    assert result.contested.tolist() == [30]


def test_repainted_pixels_have_another_label_under_another_rule():
    images = [[polygon(2, 0, 0, 4, 5), polygon(1, 0, 0, 10, 5)], [polygon(1, 0, 0, 4, 5), polygon(2, 0, 0, 10, 5)]]
    result = measured(*images)
    for rule, repainted in result.repainted.items():
        expected = [
            (rasterize(image, (20, 30), overlap=rule) != rasterize(image, (20, 30))).sum().item() for image in images
        ]
        assert repainted.tolist() == expected
    assert result.repainted["last"].tolist() == [20, 20]
    assert result.repainted["max-id"].tolist() == [0, 20]


def test_the_overlap_rule_of_the_data_set_is_measured():
    data = Drawn([[polygon(2, 0, 0, 4, 5), polygon(1, 0, 0, 10, 5)]])
    data.overlap = "last"
    result = measure(data)
    assert result.rule == "last"
    assert result.pixels.tolist() == [[550, 50, 0]]
    assert result.repainted["smallest"].tolist() == [20]


def test_an_annotation_over_the_whole_image_is_reported():
    assert measured([polygon(2, -5, -5, 50, 50)], [polygon(2, 0, 0, 29, 20)]).covering == [(0, 2)]


def test_an_ignored_region_is_no_annotation_of_a_class():
    annotations = [polygon(1, 0, 0, 10, 10), polygon(255, 0, 0, 30, 20)]
    result = measured(annotations)
    assert not result.pixels.any()
    assert result.annotations.tolist() == [[0, 1, 0]]
    assert (result.contested.tolist(), result.covering) == ([0], [])
    assert not contested_pixels(annotations, (20, 30)).any()


def test_masks_from_files_are_counted_without_annotations():
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[:2], mask[2] = 1, 255
    result = measure(Drawn(masks=[mask]))
    assert result.pixels.tolist() == [[600 - 90, 60, 0]]
    assert not result.annotations.any()
    assert not result.repainted
