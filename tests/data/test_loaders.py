import numpy as np
import pytest
import torch

from segkit.data import AUGMENTATIONS, CocoSegmentation, create_transform, train_loader, val_loader
from segkit.data.loaders import TrainBatches


@pytest.fixture
def data(shapes):
    return CocoSegmentation(shapes[0])


def batches_of(data, epoch, **options):
    loader = train_loader(data, create_transform("standard", crop=32), **({"batch_size": 4} | options))
    loader.batch_sampler.epoch = epoch
    return [torch.cat([images.flatten(), target.flatten()]) for images, target in loader]


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_samples_depend_on_seed_and_epoch_alone(data):
    once = batches_of(data, epoch=3)
    assert equal(once, batches_of(data, epoch=3))
    assert equal(once, batches_of(data, epoch=3, workers=2))
    assert not equal(once, batches_of(data, epoch=4))
    assert not equal(once, batches_of(data, epoch=3, seed=1))


def test_training_batches_are_uint8_crops(data):
    images, target = next(iter(train_loader(data, create_transform("standard", crop=40), batch_size=5)))
    assert (images.shape, images.dtype) == ((5, 3, 40, 40), torch.uint8)
    assert (target.shape, target.dtype) == ((5, 40, 40), torch.uint8)


@pytest.mark.parametrize(("length", "batch_size", "sizes"), [(12, 4, [4, 4, 4]), (9, 4, [4, 4]), (10, 4, [4, 4, 2])])
def test_only_a_last_batch_of_one_is_dropped(length, batch_size, sizes):
    batches = TrainBatches(length, batch_size)
    assert [len(batch) for batch in batches] == sizes
    assert len(batches) == len(sizes)


@pytest.mark.parametrize(("length", "batch_size"), [(1, 4), (3, 4), (5, 1)])
def test_small_sets_are_not_dropped(length, batch_size):
    assert sum(len(batch) for batch in TrainBatches(length, batch_size)) == length


def test_each_image_comes_once_in_an_epoch():
    indices = [index for batch in TrainBatches(10, 5) for index, _ in batch]
    assert sorted(indices) == list(range(10))


def test_validation_is_every_image_at_full_size_in_order(data):
    items = list(val_loader(data))
    assert len(items) == len(data)
    assert items[0][0].shape == (1, 3, 48, 64)
    assert np.array_equal(items[5][1][0], data.mask(5))


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("size", [(20, 200), (1, 1), (97, 131)])
def test_a_crop_has_its_size_whatever_the_image(name, size):
    transform = create_transform(name, crop=64)
    result = transform(image=np.zeros((*size, 3), np.uint8), mask=np.zeros(size, np.uint8))
    assert result["image"].shape == (64, 64, 3)
    assert result["mask"].shape == (64, 64)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_pixels_outside_the_image_are_ignored_and_labels_are_not_mixed(name):
    mask = np.zeros((30, 30), np.uint8)
    mask[10:20] = 9
    transform = create_transform(name, crop=64)
    seen = set()
    for seed in range(20):
        transform.set_random_seed(seed)
        seen |= set(np.unique(transform(image=np.zeros((30, 30, 3), np.uint8), mask=mask)["mask"]).tolist())
    assert seen == {0, 9, 255}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda data: create_transform("strong", crop=8), "unknown augmentation 'strong', expected one of none, flip"),
        (lambda data: create_transform("none", crop=0), "crop must be at least 1"),
        (lambda data: train_loader(data, None, batch_size=0), "batch_size must be at least 1"),
        (lambda data: train_loader([], None, batch_size=1), "no images"),
    ],
)
def test_wrong_settings_are_named(data, call, message):
    with pytest.raises(ValueError, match=message):
        call(data)
