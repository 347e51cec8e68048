import errno
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from multiprocessing import active_children

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from albumentations.pytorch import ToTensorV2
from helpers.limits import no_more_files
from helpers.shapes import write_coco, write_shapes
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data._utils import worker

from segkit.data import (
    AUGMENTATIONS,
    Augmentation,
    CocoSegmentation,
    DataError,
    SegmentationDataset,
    create_transform,
    loaders,
    train_loader,
    val_loader,
)
from segkit.data.batches import TrainBatches
from segkit.data.loaders import SIGNALS, Loader
from segkit.data.samples import Augmented, CopyPaste, cutmix
from segkit.data.transforms import strict_arguments
from segkit.errors import MachineError, UsageError


@pytest.fixture
def data(shapes):
    return CocoSegmentation(shapes[0])


def batches_of(data, epoch, **options):
    loader = train_loader(data, create_transform("standard", crop=32), **({"batch_size": 4} | options))
    loader.batch_sampler.epoch = epoch
    return [torch.cat([images.flatten(), target.flatten()]) for images, target in loader]


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_samples_depend_only_on_seed_and_epoch(data):
    once = batches_of(data, epoch=3)
    assert equal(once, batches_of(data, epoch=3))
    assert equal(once, batches_of(data, epoch=3, workers=2))
    assert not equal(once, batches_of(data, epoch=4))
    assert not equal(once, batches_of(data, epoch=3, seed=1))


@pytest.mark.parametrize("workers", [0, 1])
def test_each_pass_over_the_loader_is_the_next_epoch(data, workers):
    loader = train_loader(data, create_transform("standard", crop=32), batch_size=4, workers=workers)
    loader.start()
    passes = [[torch.cat([images.flatten(), target.flatten()]) for images, target in loader] for _ in range(3)]
    for epoch, batches in enumerate(passes):
        assert equal(batches, batches_of(data, epoch))
    next(iter(loader))  # a pass that breaks off is a pass
    assert loader.batch_sampler.epoch == 3
    loader.close()


def test_set_epoch_continues_a_training_of_ones_own(data):
    loader = train_loader(data, create_transform("standard", crop=32), batch_size=4)
    loader.set_epoch(5, start=1)
    passes = [[torch.cat([images.flatten(), target.flatten()]) for images, target in loader] for _ in range(2)]
    loader.set_epoch(5)
    passes.append([torch.cat([images.flatten(), target.flatten()]) for images, target in loader])
    assert equal(passes[0], batches_of(data, epoch=5)[1:])
    assert equal(passes[1], batches_of(data, epoch=6))
    assert equal(passes[2], batches_of(data, epoch=5))


def test_training_batches_are_uint8_crops(data):
    images, target = next(iter(train_loader(data, create_transform("standard", crop=40), batch_size=5)))
    assert (images.shape, images.dtype) == ((5, 3, 40, 40), torch.uint8)
    assert (target.shape, target.dtype) == ((5, 40, 40), torch.uint8)


class Halves(SegmentationDataset):
    """Images (32, 48, 3) whose left half is black, label 0, and whose right half is (255, 0, 51), label 1."""

    class_names = ("left", "right")

    def __len__(self):
        return 4

    def image(self, index):
        return np.where(self.mask(index)[..., None] == 1, [255, 0, 51], [0, 0, 0]).astype(np.uint8)

    def mask(self, index):
        return np.tile(np.repeat([0, 1], 24), (32, 1)).astype(np.uint8)


@pytest.mark.parametrize("mix", [None, cutmix])
def test_a_pipeline_may_end_with_normalize_and_to_tensor(mix):
    transform = A.Compose([A.HorizontalFlip(p=0), A.Normalize(mean=(0, 0.5, 0.2), std=(1, 0.5, 0.1)), ToTensorV2()])
    loader = train_loader(Halves(), transform, batch_size=4, mix=mix, mix_share=1.0)
    images, target = next(iter(loader))
    assert (images.shape, images.dtype) == ((4, 3, 32, 48), torch.float32)
    assert images.is_contiguous(memory_format=torch.channels_last)
    right = torch.tensor([1.0, -1, 0]).expand(4, 32, 24, 3)
    left = torch.tensor([0.0, -1, -2]).expand(4, 32, 24, 3)
    torch.testing.assert_close(images.permute(0, 2, 3, 1), torch.cat([left, right], dim=2))
    assert (target == torch.arange(48).ge(24).expand(4, 32, 48)).all()


def test_a_data_set_that_makes_tensors_itself_is_loaded_alike():
    data = Halves()
    data.transform = A.Compose([A.Normalize(), ToTensorV2()])
    images, target = next(iter(val_loader(data)))
    assert (images.shape, images.dtype, target.shape) == ((1, 3, 32, 48), torch.float32, (1, 32, 48))


class Places(Halves):
    """An image whose pixels all differ, to see which crop of it is drawn."""

    def image(self, index):
        return np.arange(32 * 48, dtype=np.uint16).view(np.uint8).reshape(32, 48, 2)[..., [0, 1, 1]]


def test_the_transform_of_a_data_set_draws_anew_in_each_worker_and_epoch():
    data = Places()
    data.transform = A.Compose([A.RandomCrop(4, 4)])
    loader = DataLoader(data, batch_size=2, num_workers=2, generator=torch.Generator().manual_seed(0))
    corners = [tuple(image[0, 0].tolist()) for _ in range(2) for images, _ in loader for image in images]
    assert len(corners) == 8
    assert len(set(corners)) >= 6  # of 1,305 places; workers that draw alike, in each epoch again, have two


def channels_first(image, mask):
    return {"image": image.transpose(2, 0, 1), "mask": mask}


def test_a_transform_that_cannot_be_used_is_one_sentence():
    with pytest.raises(UsageError, match=r"`transform` must be a pipeline of albumentations .* got a function"):
        train_loader(Halves(), channels_first, batch_size=4)
    channels_first.set_random_seed = int
    with pytest.raises(UsageError, match=r"image must be an array \(H, W, 3\) .* \(3, 32, 48\) and \(32, 48\)"):
        next(iter(train_loader(Halves(), channels_first, batch_size=4)))


def test_validation_is_every_image_at_full_size_in_order(data):
    items = list(val_loader(data))
    assert len(items) == len(data)
    assert items[0][0].shape == (1, 3, 48, 64)
    assert np.array_equal(items[5][1][0], data.mask(5))


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("size", [(20, 200), (1, 1), (97, 131)])
def test_a_crop_has_its_size_for_images_of_any_size(name, size):
    transform = create_transform(name, crop=64)
    result = transform(image=np.zeros((*size, 3), np.uint8), mask=np.zeros(size, np.uint8))
    assert result["image"].shape == (64, 64, 3)
    assert result["mask"].shape == (64, 64)


@pytest.mark.parametrize("name", ["none", "flip", "light", "standard"])
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
        (lambda data: create_transform("strong", crop=8), "unknown augmentation 'strong'. Known: none, flip"),
        (lambda data: create_transform("none", crop=0), "`crop` must be at least 1"),
        (lambda data: train_loader(data, None, batch_size=0), "`batch_size` must be at least 1"),
        (lambda data: train_loader([], None, batch_size=1), "no images"),
    ],
)
def test_wrong_settings_are_named(data, call, message):
    with pytest.raises(ValueError, match=message):
        call(data)


@pytest.mark.parametrize("name", ["seed1", "seed1-fpn", "seed2"])
def test_the_seeds_pipelines_reflect_at_the_border_and_invent_no_label(name):
    mask = np.full((30, 40), 3, np.uint8)
    mask[:, 20:] = 9
    transform = create_transform(name, crop=32)
    for seed in range(20):
        transform.set_random_seed(seed)
        assert set(np.unique(transform(image=np.zeros((30, 40, 3), np.uint8), mask=mask)["mask"])) <= {3, 9}


def test_the_blur_of_seed2_has_the_kernel_that_opencv_had():
    blur = create_transform("seed2", crop=32).transforms[0].transforms[2]
    blur.p = 1
    point = np.zeros((9, 9, 3), np.uint8)
    point[4, 4] = 240
    for seed in range(3):
        blur.set_random_seed(seed)
        expected = np.outer([60, 120, 60], [0.25, 0.5, 0.25])
        np.testing.assert_array_equal(blur(image=point)["image"][3:6, 3:6, 1], expected)


def test_an_argument_that_albumentations_does_not_know_is_an_error():
    with pytest.raises(ValueError, match="'percent' are not valid"), strict_arguments():
        A.HorizontalFlip(percent=50)


def test_crops_are_drawn_around_rare_classes():
    mask = np.zeros((200, 300), np.uint8)
    mask[150, 250] = 5
    image = np.zeros((200, 300, 3), np.uint8)

    def hits(share):
        transform = create_transform("none", crop=32, rare_classes=(5, 7), rare_crops=share)
        seen = []
        for seed in range(40):
            transform.set_random_seed(seed)
            seen.append((transform(image=image, mask=mask)["mask"] == 5).any())
        return np.mean(seen)

    assert hits(1.0) == 1
    assert 0.2 < hits(0.5) < 0.8
    assert hits(0.0) < 0.2


def test_cutmix_puts_one_rectangle_of_the_donor_in_its_place():
    zeros, ones = ((np.full((20, 30, 3), v, np.uint8), np.full((20, 30), v, np.uint8)) for v in (0, 1))
    shares = []
    for seed in range(200):
        image, mask = cutmix(zeros, ones, np.random.default_rng(seed))
        assert np.array_equal(image[..., 0], mask)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask.sum() == len(rows) * len(columns)
        shares.append(mask.mean())
    assert 0.4 < np.mean(shares) < 0.6
    assert not zeros[1].any()


def test_copy_paste_copies_only_pixels_of_its_classes():
    image, mask = np.zeros((20, 20, 3), np.uint8), np.zeros((20, 20), np.uint8)
    donor_mask = np.zeros((20, 20), np.uint8)
    donor_mask[2:5, 3:9] = 4
    donor_mask[3, 4] = 2
    donor = (np.stack([donor_mask * 10] * 3, -1), donor_mask)
    mixed, labels = CopyPaste([4])((image, mask), donor, np.random.default_rng(0))
    assert (labels == 4).sum() == (donor_mask == 4).sum()
    assert set(np.unique(labels)) == {0, 4}
    assert np.array_equal(mixed[..., 0], labels * 10)
    assert CopyPaste([7])((image, mask), donor, np.random.default_rng(0))[1] is mask


def test_mixed_samples_depend_only_on_the_seed(data):
    def sample(seed):
        mixed = Augmented(data, create_transform("flip", crop=32), mix=cutmix, mix_share=1.0)
        return mixed[0, seed]

    assert torch.equal(sample(3)[0], sample(3)[0])
    assert not torch.equal(sample(3)[0], sample(4)[0])


def test_rare_crops_of_a_pipeline_that_does_not_crop_are_refused():
    with pytest.raises(ValueError, match="`rare_crops` needs an augmentation that crops"):
        create_transform("seed2", crop=8, rare_classes=(1,), rare_crops=0.5)


def test_an_augmentation_of_ones_own_is_padded_and_cropped_around_rare_classes(monkeypatch):
    monkeypatch.setitem(AUGMENTATIONS, "half", Augmentation(lambda crop: [A.RandomScale((-0.5, -0.5), p=1.0)]))
    mask = np.zeros((200, 300), np.uint8)
    mask[150:154, 250:254] = 5
    transform = create_transform("half", crop=32, rare_classes=(5,), rare_crops=1.0)
    for seed in range(5):
        transform.set_random_seed(seed)
        result = transform(image=np.zeros((200, 300, 3), np.uint8), mask=mask)
        assert result["image"].shape == (32, 32, 3)
        assert 5 in result["mask"]
    small = create_transform("half", crop=32)(image=np.zeros((8, 8, 3), np.uint8), mask=np.zeros((8, 8), np.uint8))
    assert small["mask"].shape == (32, 32)
    assert (small["mask"] == 255).sum() == 32 * 32 - 4 * 4


def test_an_augmentation_of_ones_own_may_resize_to_the_crop_itself(monkeypatch):
    monkeypatch.setitem(AUGMENTATIONS, "whole", Augmentation(lambda crop: [A.Resize(crop, crop)], resizes=True))
    result = create_transform("whole", crop=32)(image=np.zeros((8, 9, 3), np.uint8), mask=np.ones((8, 9), np.uint8))
    assert (result["mask"] == np.ones((32, 32))).all()
    with pytest.raises(ValueError, match="one of none, flip, light, standard, not 'whole'"):
        create_transform("whole", crop=32, rare_classes=(1,), rare_crops=0.5)


@pytest.mark.parametrize("size", [(1, 1), (3, 2000)])
def test_extreme_images_become_crops(tmp_path, size):
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / "a.png")
    rows = [{"id": 1, "file_name": "a.png", "height": size[0], "width": size[1]}]
    data = CocoSegmentation(write_coco(tmp_path / "x.json", rows, []))
    for name in AUGMENTATIONS:
        for seed in range(3):
            image, mask = Augmented(data, create_transform(name, crop=32))[0, seed]
            assert image.shape == (3, 32, 32)
            assert mask.shape == (32, 32)


@pytest.fixture
def damaged(tmp_path):
    """Twelve photographs, two of them cut after half of their bytes."""
    file = write_shapes(tmp_path, "x", 12, seed=4)
    for i in (3, 7):
        path = tmp_path / f"images/x{i}.png"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return CocoSegmentation(file)


def test_a_damaged_image_is_replaced_by_another_with_its_own_mask_and_named_once(damaged, caplog):
    samples = Augmented(damaged, create_transform("none", crop=64), on_bad="skip", max_bad=0.2)
    image, mask = samples[3, 5]
    assert any(
        torch.equal(image, other) and torch.equal(mask, other_mask)
        for other, other_mask in (samples[i, 5] for i in range(12) if i not in (3, 7))
    )
    assert torch.equal(samples[3, 5][0], image)
    named = [record.getMessage() for record in caplog.records if "x3.png" in record.getMessage()]
    assert len(named) == 1
    assert named[0].endswith("; another image is used instead")
    assert samples.replaced == ["images/x3.png"]


def test_an_image_is_not_replaced_because_the_machine_cannot_open_it(damaged):
    samples = Augmented(damaged, create_transform("none", crop=64), on_bad="skip", max_bad=1.0)
    whole = samples[0, 5][0]
    with no_more_files(), pytest.raises(MachineError, match=r"x0\.png: Too many open files"):
        samples[0, 5]
    assert samples.replaced == []
    assert torch.equal(samples[0, 5][0], whole)


def test_substitutes_depend_only_on_the_seed_and_all_workers_know_bad_images(damaged):
    here, there = (
        train_loader(
            damaged, create_transform("flip", crop=32), batch_size=4, workers=workers, on_bad="skip", max_bad=0.2
        )
        for workers in (0, 2)
    )
    for (images, target), (other, other_target) in zip(here, there, strict=True):
        assert torch.equal(images, other)
        assert torch.equal(target, other_target)
    assert here.dataset.replaced == there.dataset.replaced == ["images/x3.png", "images/x7.png"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_an_error_unless_it_may_be_skipped_and_always_in_validation(damaged, workers):
    for loader in (
        train_loader(damaged, create_transform("none", crop=32), batch_size=4, workers=workers),
        val_loader(damaged, workers=workers),
    ):
        with closing(loader), pytest.raises(DataError, match=r"x[37]\.png is damaged"):
            list(loader)


def test_more_damaged_images_than_allowed_are_an_error_with_their_number(damaged):
    samples = Augmented(damaged, create_transform("none", crop=32), on_bad="skip", max_bad=0.1)
    samples[3, 5]  # one bad image is always allowed
    with pytest.raises(DataError, match=r"2 of 12 training images cannot be read, more than `max_bad=0\.1` .*x7\.png"):
        samples[7, 1]


def test_a_set_of_damaged_images_is_an_error_and_no_endless_search(tmp_path):
    file = write_shapes(tmp_path, "x", 2, seed=4)
    data = CocoSegmentation(file)
    for item in data.items:
        item.path.write_bytes(b"")
    samples = Augmented(data, create_transform("none", crop=32), on_bad="skip", max_bad=1.0)
    with pytest.raises(DataError, match="20 images in a row cannot be read"):
        samples[0, 1]


LEAVES_A_LOADER_BEHIND = """
import sys
from segkit.data import CocoSegmentation, create_transform, train_loader
if __name__ == "__main__":
    loader = train_loader(CocoSegmentation(sys.argv[1]), create_transform("none", crop=16), batch_size=4, workers=1)
    iterator = iter(loader)
    next(iterator)
    loader.itself = loader  # only the collector of cycles would end it, and does not at exit
"""


@pytest.mark.slow
def test_a_program_that_ends_with_a_loader_alive_does_end(shapes, tmp_path):
    (tmp_path / "x.py").write_text(LEAVES_A_LOADER_BEHIND)
    command = [sys.executable, tmp_path / "x.py", shapes[0]]
    ended = subprocess.run(command, check=True, timeout=120, stderr=subprocess.PIPE, text=True)
    assert "Traceback" not in ended.stderr


def test_a_closed_loader_has_no_workers_until_its_next_pass(data):
    before = set(active_children())
    loader = train_loader(data, create_transform("flip", crop=32), batch_size=4, workers=2)
    once = [images for images, _ in loader]
    assert len(set(active_children()) - before) == 2
    for _ in range(2):
        loader.close()
        assert set(active_children()) == before
    loader.set_epoch(0)
    assert equal(once, [images for images, _ in loader])
    loader.close()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_does_not_end_a_worker_that_has_just_begun(data, monkeypatch, number):
    work = worker._worker_loop

    def signalled(*arguments):
        os.kill(os.getpid(), number)
        work(*arguments)

    monkeypatch.setattr(worker, "_worker_loop", signalled)
    with closing(train_loader(data, create_transform("flip", crop=32), batch_size=4, workers=1)) as loader:
        assert len(list(loader)) == len(loader)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])


class Broken(SegmentationDataset):
    """A custom data set; one of its images raises an error that does not name it."""

    class_names = ("a", "b")

    def __len__(self):
        return 4

    def image(self, index):
        if index == 2:
            raise ZeroDivisionError("some bug")
        return np.zeros((8, 8, 3), np.uint8)

    def mask(self, index):
        return np.zeros((8, 8), np.uint8)

    def name(self, index):
        return f"photograph{index}.jpg"


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["train", "val"])
def test_an_error_of_a_custom_data_set_names_the_image_in_its_last_line(kind, workers):
    data = Broken()
    if kind == "train":
        loader = train_loader(data, create_transform("none", crop=8), batch_size=2, workers=workers)
    else:
        loader = val_loader(data, workers=workers)
    with closing(loader), pytest.raises(RuntimeError) as caught:
        list(loader)
    assert (
        str(caught.value)
        .rstrip()
        .splitlines()[-1]
        .endswith("cannot load image photograph2.jpg: ZeroDivisionError: some bug")
    )


class Threads(Broken):
    """Images whose pixels are the number of threads that OpenCV may use."""

    def image(self, index):
        return np.full((8, 8, 3), cv2.getNumThreads(), np.uint8)


def test_opencv_has_one_thread_in_a_worker():
    loader = train_loader(Threads(), create_transform("none", crop=8), batch_size=4, workers=1)
    assert next(iter(loader))[0].unique().tolist() == [1]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_that_was_started_early_uses_the_same_workers_for_every_pass(data, workers):
    before = len(active_children())
    loader = val_loader(data, workers=workers)
    loader.start()
    started = active_children()
    assert len(started) - before == workers
    for _ in range(2):
        for batch, other in zip(loader, val_loader(data), strict=True):
            assert equal(batch, other)
    loader.start()
    assert active_children() == started
    loader.close()


def test_loaders_travel_to_workers_that_are_spawned(data):
    loader = train_loader(data, create_transform("standard", crop=32), batch_size=4)
    copy = pickle.loads(pickle.dumps(loader.dataset))
    assert all(torch.equal(a, b) for a, b in zip(copy[3, 5], loader.dataset[3, 5], strict=True))


@pytest.mark.slow
def test_spawned_workers_load_the_same_batches(data):
    options = {"data": data, "transform": create_transform("standard", crop=32), "batch_size": 4}
    spawned, forked = train_loader(**options, workers=1), train_loader(**options)
    spawned.multiprocessing_context = "spawn"
    for batch, other in zip(spawned, forked, strict=True):
        assert equal(batch, other)


def test_a_batch_lists_its_images():
    batches = TrainBatches(10, 4, seed=3, rank=1, num_ranks=2)
    batches.epoch, batches.start = 2, 1
    own = [index for index, _ in next(iter(batches))]
    assert batches.images(1)[1::2] == own
    assert sorted(index for number in range(3) for index in batches.images(number)) == list(range(10))


def test_importing_the_loaders_changes_neither_the_environment_nor_the_exit_of_the_process():
    code = (
        "import atexit, os, torch.utils.data, cv2, multiprocessing.util, concurrent.futures.thread; "
        "registered = []; atexit.register = registered.append; before = dict(os.environ); "
        "import segkit.data.loaders, segkit.data.transforms; "
        "print(dict(os.environ) == before, [f for f in registered if 'segkit' in f.__module__])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    assert printed.split() == ["True", "[]"]


def layouts(loader):
    with closing(loader):
        return [(images.clone(), images.stride(), target.clone()) for images, target in loader]


def same_batches(first, second):
    return len(first) == len(second) and all(
        torch.equal(a[0], b[0]) and a[1] == b[1] and torch.equal(a[2], b[2]) for a, b in zip(first, second, strict=True)
    )


def of_workers(data, workers):
    return train_loader(data, create_transform("flip", crop=32), batch_size=4, workers=workers)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="has no /dev/shm")
@pytest.mark.parametrize("free", [10**6, 3 * 4 * 4 * 32 * 32 - 1])
def test_batches_that_do_not_fit_dev_shm_come_through_pipes_with_a_warning(data, monkeypatch, caplog, free):
    expected = layouts(of_workers(data, 0))
    with closing(of_workers(data, 1)) as loader:
        loader.start()  # its semaphores need some room, too
        loader.close()
        monkeypatch.setattr(Loader, "_fit_machine", lambda self: None)
        monkeypatch.setattr(loaders, "_free_shared_memory", lambda: free)
        assert same_batches(layouts(loader), expected)
    sent = "MB left, too little for batches of 0.0164 MB, which are sent through pipes" in caplog.text
    assert sent == (free < 10**6)  # each of one worker's batches and two more: 3 x (4, 32, 32, 4) bytes


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="has no /dev/shm")
@pytest.mark.parametrize(("pages", "left"), [(17, 3), (16, 2), (11, 1), (10, 0), (0, 0)])
def test_fewer_workers_start_if_their_semaphores_do_not_fit_dev_shm(data, monkeypatch, caplog, pages, left):
    monkeypatch.setattr(loaders, "_free_shared_memory", lambda: pages * os.sysconf("SC_PAGE_SIZE"))
    with closing(of_workers(data, 3)) as loader:
        loader._fit_machine()
        assert loader.num_workers == left
        if not left:
            assert same_batches(layouts(loader), layouts(of_workers(data, 0)))
    assert (f"images are loaded by {left} processes instead of 3: /dev/shm has only" in caplog.text) == (left < 3)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
@pytest.mark.parametrize(("more", "left"), [(36, 2), (19, 1), (12, 0)])
def test_few_open_files_mean_fewer_workers_and_pipes_instead_of_a_hang(data, monkeypatch, caplog, more, left):
    import resource

    expected = layouts(of_workers(data, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    loader = of_workers(data, 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + more, hard))
    try:
        found = layouts(loader)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert loader.num_workers == left
    assert same_batches(found, expected)
    assert ("allow more of them (ulimit -n)" in caplog.text) == (left < 2)


@pytest.mark.parametrize(("more", "left"), [(4, 2), (3, 1), (1, 0)])  # each worker is a process with a thread
def test_fewer_workers_start_if_the_user_may_not_start_enough_processes(data, monkeypatch, caplog, more, left):
    expected = layouts(of_workers(data, 0))
    others = torch.get_num_threads() + 4  # threads of torch and of the program
    start, calls = threading.Thread.start, iter(range(99))

    def limited(thread):
        if next(calls) == others + more:
            raise RuntimeError("can't start new thread")
        start(thread)

    running = threading.active_count()
    with closing(of_workers(data, 2)) as loader:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", limited)
            loader._fit_machine()
        assert loader.num_workers == left
        assert threading.active_count() == running
        if not left:
            assert same_batches(layouts(loader), expected)
    message = f"images are loaded by {left} processes instead of 2: this user may start only {others + more} more"
    assert (message in caplog.text) == (left < 2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are not forked")
def test_workers_that_cannot_all_start_are_one_sentence_and_none_stays(data, monkeypatch, capsys):
    fork, calls = os.fork, iter(range(9))

    def no_more():
        if next(calls) == 1:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    before = set(active_children())
    monkeypatch.setattr(os, "fork", no_more)
    with pytest.raises(MachineError, match="cannot start 2 processes that load images: this user may not start more"):
        of_workers(data, 2).start()
    gc.collect()
    for process in set(active_children()) - before:
        process.join(10)
    assert set(active_children()) == before
    assert "Traceback" not in capsys.readouterr().err


class Stuck(SegmentationDataset):
    """A data set on a disk that does not answer."""

    class_names = ("a", "b")

    def __len__(self):
        return 2

    def image(self, index):
        time.sleep(60)


def test_a_request_to_stop_is_seen_while_a_batch_does_not_come(monkeypatch):
    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr(loaders, "PATIENCE", 0.05)
    loader = val_loader(Stuck(), workers=1)
    loader.while_waiting = stop
    with closing(loader), pytest.raises(KeyboardInterrupt):
        next(iter(loader))
    assert not active_children()
