import json

import numpy as np
import pytest
from PIL import Image

from segkit.data import CocoSegmentation, SegmentationDataset, create_transform, read_image, train_loader
from segkit.data.dataset import JoinedDatasets
from segkit.data.images import reduce_mask
from segkit.files import reduction


def smooth(height, width):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 200 / height, columns * 200 / width, rows * 0 + 90], axis=2).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "at_least", "factor"),
    [((512, 512), 512, 1), ((1023, 4000), 512, 1), ((1024, 4000), 512, 2), ((9000, 9000), 512, 8), ((1, 1), 1, 1)],
)
def test_an_image_is_reduced_as_far_as_both_sides_allow(size, at_least, factor):
    assert reduction(size, at_least) == factor


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("size", [(64, 96), (67, 93)])
def test_a_small_image_is_the_mean_of_squares_of_the_large_one_in_every_format(
    tmp_path, factor, orientation, suffix, size
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(smooth(*size)).save(path, exif=exif, **({"quality": 95} if suffix == "jpg" else {}))
    large, small = read_image(path), read_image(path, reduce=factor)
    assert small.shape == (-(-large.shape[0] // factor), -(-large.shape[1] // factor), 3)
    inner = tuple(slice(0, length // factor) for length in large.shape[:2])
    rows, columns = (length // factor for length in large.shape[:2])
    means = large[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor, 3).mean((1, 3))
    assert np.abs(small[inner] - means).max() < 4


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("size", [(3, 20), (20, 3), (1, 1)])
def test_an_image_smaller_than_a_square_is_reduced_to_its_mean(tmp_path, suffix, size):
    path = tmp_path / f"x.{suffix}"
    Image.new("RGB", size[::-1], (90, 90, 90)).save(path)
    small = read_image(path, reduce=8)
    assert small.shape == (-(-size[0] // 8), -(-size[1] // 8), 3)
    assert np.abs(small.astype(int) - 90).max() < 4


def test_the_label_comes_from_the_middle_of_the_square():
    mask = np.arange(35, dtype=np.uint8).reshape(5, 7)
    assert reduce_mask(mask, 2).tolist() == [[8, 10, 12, 13], [22, 24, 26, 27], [29, 31, 33, 34]]
    assert np.array_equal(reduce_mask(mask, 1), mask)


def test_the_loader_takes_small_images_with_masks_that_fit(tmp_path):
    Image.fromarray(smooth(256, 400)).save(tmp_path / "a.jpg")
    square = [0, 0, 200, 0, 200, 128, 0, 128]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 256, "width": 400}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [square]}],
        "categories": [{"id": 1, "name": "can"}],
    }
    (tmp_path / "x.json").write_text(json.dumps(content))
    data = CocoSegmentation(tmp_path / "x.json")
    for whole in (data, data.subset([0]), JoinedDatasets([data, data])):
        image, target = whole.small_sample(0, 64)
        assert image.shape == (64, 100, 3)
        assert (target == np.pad(np.ones((32, 50)), ((0, 32), (0, 50)))).all()
    transform = create_transform("none", crop=64)
    ((images, target),) = train_loader(data, transform, batch_size=1, decode_at_least=64)
    assert (images.shape, target.shape) == ((1, 3, 64, 64), (1, 64, 64))
    assert target.max() == 1
    assert len(data[0][0]) == 256


def test_a_custom_data_set_is_reduced_by_default():
    class Own(SegmentationDataset):
        class_names = ("background", "can")

        def __len__(self):
            return 1

        def image(self, index):
            return smooth(50, 70)

        def mask(self, index):
            return np.ones((50, 70), np.uint8)

    image, target = Own().small_sample(0, 20)
    assert (image.shape, target.shape) == ((25, 35, 3), (25, 35))
    assert Own().small_sample(0, 40)[0].shape == (50, 70, 3)
    data = Own()
    data.transform = lambda image, mask: {"image": image[:, ::-1], "mask": mask[:, ::-1]}
    for at_least in (20, 40):
        flipped, labels = data.small_sample(0, at_least)
        image, target = Own().small_sample(0, at_least)
        assert (flipped[:, ::-1] == image).all()
        assert (labels[:, ::-1] == target).all()
