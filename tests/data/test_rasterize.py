import numpy as np
import pytest
from helpers.shapes import rectangle
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from segkit.data.rasterize import Annotation, encode, rasterize, runs_of

SIZE = (40, 50)
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools on numpy 2


def random_polygons(random, count):
    """Draw parts of three to nine points, some beyond the image, most of them with crossing edges."""
    for _ in range(count):
        parts = [random.uniform(-10, 60, 2 * random.integers(3, 10)) for _ in range(random.integers(1, 4))]
        yield [part.round(int(random.integers(0, 4))) for part in parts]


def ann_to_mask(polygons):
    coco = COCO()
    coco.imgs = {1: {"height": SIZE[0], "width": SIZE[1]}}
    return coco.annToMask({"image_id": 1, "segmentation": [part.tolist() for part in polygons]})


def test_a_thousand_random_polygons_equal_pycocotools():
    for polygons in random_polygons(np.random.default_rng(0), 1000):
        assert np.array_equal(rasterize([Annotation(1, 1, False, polygons)], SIZE), ann_to_mask(polygons))


@pytest.mark.parametrize("spread", [50, 500, 5_000])
def test_polygons_with_a_long_boundary_equal_pycocotools(monkeypatch, spread):
    """Here all polygons take the way of long ones; among them are edges of no length and edges along the axes."""
    monkeypatch.setattr("segkit.data.rasterize.LONGEST", -1)
    monkeypatch.setattr("segkit.data.rasterize._AT_ONCE", 50)
    random = np.random.default_rng(spread)
    for i in range(100):
        polygon = random.uniform(-spread, spread + 50, 2 * random.integers(3, 9)).round(int(random.integers(0, 3)))
        polygon[2:4] = [polygon[2:4], polygon[:2], (polygon[0], polygon[3]), (polygon[2], polygon[1])][i % 4]
        parts = [polygon, *(next(random_polygons(random, 1)) if i % 2 else ())]
        assert np.array_equal(rasterize([Annotation(1, 1, False, parts)], SIZE), ann_to_mask(parts))


@pytest.mark.parametrize("upright", [False, True])
def test_a_polygon_that_goes_far_beyond_the_image_400_times_is_drawn(upright):
    """It goes to and fro along each border of two rows, so that every second row is inside."""
    far = 999_999
    points = np.array([(-far if (i + 1) // 2 % 2 == 0 else far, i // 2) for i in range(400)], dtype=float)
    polygon = (points[:, ::-1] if upright else points).ravel()
    mask = rasterize([Annotation(1, 1, False, [polygon])], (30, 200) if upright else (200, 30))
    rows = mask.T if upright else mask
    assert np.array_equal(rows, np.broadcast_to(1 - np.arange(200)[:, None] % 2, rows.shape))


def test_many_overlapping_objects_equal_painting_them_one_by_one():
    random = np.random.default_rng(1)
    for _ in range(50):
        shapes = [(int(random.integers(1, 5)), polygons) for polygons in random_polygons(random, 8)]
        masks = [
            (label, coco_mask.decode([{"size": list(SIZE), "counts": encode(p, SIZE)}])[..., 0]) for label, p in shapes
        ]
        orders = {
            "last": masks,
            "smallest": sorted(masks, key=lambda pair: -int(pair[1].sum())),
            "max-id": sorted(masks, key=lambda pair: pair[0]),
        }
        for overlap, order in orders.items():
            expected = np.zeros(SIZE, np.uint8)
            for label, mask in order:
                expected[mask > 0] = label
            annotations = [Annotation(i, label, False, polygons) for i, (label, polygons) in enumerate(shapes)]
            assert np.array_equal(rasterize(annotations, SIZE, overlap=overlap), expected)


def test_decompressed_run_lengths_are_the_compressed_ones():
    random = np.random.default_rng(2)
    for _ in range(200):
        size = tuple(random.integers(1, 90, 2).tolist())
        mask = random.random(size) < random.choice([0, 0.001, 0.02, 0.5, 0.999, 1])
        flat = mask.ravel(order="F")
        edges = np.flatnonzero(np.diff(flat, prepend=False))
        runs = np.diff([0, *edges, flat.size])
        counts = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
        assert runs_of(counts).tolist() == runs.tolist()


@pytest.mark.parametrize("counts", [b"", b"\x00\x01", b"abc\xff", b"P", b"oooooooooooooooo0"])
def test_bytes_that_are_no_counts_are_refused(counts):
    with pytest.raises(ValueError, match="not a compressed RLE"):
        runs_of(counts)


def test_ignored_crowds_are_255_below_the_other_objects():
    crowd = Annotation(1, 1, True, [np.array(rectangle(0, 0, 20, 10), float)])
    objects = [Annotation(2, 2, False, [np.array(rectangle(5, 0, 30, 10), float)])]
    mask = rasterize([*objects, crowd], SIZE, crowd="ignore")
    assert (mask[:10, :5] == 255).all()
    assert (mask[:10, 5:35] == 2).all()
    assert (rasterize([*objects, crowd], SIZE)[:10, :20] == 1).all()


def test_nothing_to_paint_is_background():
    assert rasterize([Annotation(1, 1, False, None)], (3, 4)).tolist() == [[0] * 4] * 3
