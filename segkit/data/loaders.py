"""Loaders whose random choices depend on the seed, the epoch and the position alone, not on the workers."""

import atexit
import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from segkit.data.dataset import IGNORE_INDEX, SegmentationDataset
from segkit.data.findings import may_be_bad
from segkit.data.images import DataError
from segkit.data.mixing import Mix, Sample

_log = logging.getLogger(__name__)
ATTEMPTS = 20  # images that are tried in place of a bad one
PADDING = 1  # marks a sample that counts for nothing


class TrainBatches(Sampler[list[tuple[int, ...]]]):
    """Batches of (index, seed of the augmentation), shuffled anew in each epoch.

    Set `epoch` before each pass, and `start` to leave out that many of its batches. A last batch of one is
    dropped where others remain, since batch normalisation cannot learn from it.

    Several processes share each batch: process `rank` of `ranks` takes every `ranks`-th sample of it, so that
    together they learn from the same samples whatever their number, and all have as many batches. Where a last
    batch leaves one of them with less than two samples, it takes others of that batch as (index, seed, PADDING),
    whose target is ignored: they are there for the batch normalisation and count for nothing.

    Args:
        length: Number of images.
        batch_size: Images in a batch, over all processes.
        seed: What the order and the augmentations are drawn by, together with the epoch.
        shares: (length,) how much of an epoch is each image's, see `repeat_factors`; by default all
            come once. The epoch's length stays as it is.
        rank: Number of this process.
        ranks: Number of processes, which divides `batch_size`.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int = 0,
        shares: np.ndarray | None = None,
        *,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if batch_size % ranks:
            raise ValueError(
                f"batches of {batch_size} cannot be shared evenly by {ranks} processes; "
                f"try --batch-size {-(-batch_size // ranks) * ranks}"
            )
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.shares = shares
        self.rank = rank
        self.ranks = ranks
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        full, rest = divmod(self.length, self.batch_size)
        return full + (rest > 1 or full == 0)

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        random = np.random.default_rng((self.seed, self.epoch))
        order = random.permutation(self._drawn(random)).tolist()
        seeds = random.integers(2**31, size=self.length).tolist()
        samples = list(zip(order, seeds, strict=True))
        for i in range(self.start, len(self)):
            yield self._share(samples[i * self.batch_size : (i + 1) * self.batch_size])

    def _share(self, batch: list[tuple[int, int]]) -> list[tuple[int, ...]]:
        own = batch[self.rank :: self.ranks]
        if self.ranks == 1:
            return own
        least = min(2, self.batch_size // self.ranks)
        return own + [(*sample, PADDING) for sample in (batch * least)[: max(0, least - len(own))]]

    def _drawn(self, random: np.random.Generator) -> np.ndarray:
        """The images of an epoch: each as often as its share says, rounded up or down by chance."""
        if self.shares is None:
            return np.arange(self.length)
        # Evenly spaced marks on the line of all shares: `length` images in all, none missed by more than one.
        ends = np.cumsum(self.shares) / np.sum(self.shares) * self.length
        marks = np.arange(self.length) + random.random()
        return np.searchsorted(ends, marks, side="right").clip(max=self.length - 1)


def repeat_factors(presence: np.ndarray, threshold: float) -> np.ndarray:
    """How often images of rare classes are to be shown: max over its classes of max(1, sqrt(threshold / frequency)).

    Source: Gupta et al., "LVIS", 2019, section 5.1.

    Args:
        presence: (images, C) whether the class is in the image.
        threshold: A class in a smaller share of the images than this is rare.

    Returns:
        (images,) float64, at least 1.
    """
    frequency = np.maximum(presence.mean(0), 1e-12)
    of_class = np.maximum(1.0, np.sqrt(threshold / frequency))
    return np.where(presence, of_class, 1.0).max(1, initial=1.0)


class Augmented(Dataset):
    """Applies a transform, seeded for each sample: item (index, seed) -> (image (3, H, W), mask (H, W)) uint8.

    The mask of an item (index, seed, PADDING) is ignored everywhere.

    Args:
        data: Images and masks.
        transform: An albumentations pipeline.
        mix: Makes one sample of two, see `segkit.data.mixing`.
        mix_share: Share of the samples that are mixed.
        donors: Indices of the images that the second sample is drawn from; all by default.
        on_bad: What happens to an image that cannot be read: `error`, or `skip` for another in its place,
            drawn by the sample's seed, with its own mask; it is logged once.
        max_bad: Largest share of the images that `skip` replaces; one always may be.
        decode_at_least: Take images and masks at a half, a quarter or an eighth, as far as both sides stay at least
            this, for transforms that shrink large photographs to a crop; 0 takes them whole.
    """

    def __init__(
        self,
        data: SegmentationDataset,
        transform: Callable[..., Any],
        *,
        mix: Mix | None = None,
        mix_share: float = 0.5,
        donors: Sequence[int] | None = None,
        on_bad: Literal["error", "skip"] = "error",
        max_bad: float = 0.01,
        decode_at_least: int = 0,
    ) -> None:
        if on_bad not in ("error", "skip"):
            raise ValueError(f"on_bad must be 'error' or 'skip', got {on_bad!r}")
        self.data = data
        self.transform = transform
        self.mix = mix
        self.mix_share = mix_share
        self.donors = range(len(data)) if donors is None else donors
        self.on_bad = on_bad
        self.max_bad = max_bad
        self.decode_at_least = decode_at_least
        self._bad = torch.zeros(len(data), dtype=torch.bool).share_memory_()  # what one worker met, all know

    @property
    def replaced(self) -> list[str]:
        """Names of the images that could not be read so far, in this process and in the workers."""
        return [self.data.name(index) for index in self._bad.nonzero().flatten().tolist()]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, sample: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        index, seed, *padding = sample
        result = self._transformed(index, seed)
        if self.mix is not None and len(self.donors):
            random = np.random.default_rng((seed, 1))
            if random.random() < self.mix_share:
                donor = self.donors[int(random.integers(len(self.donors)))]
                result = self.mix(result, self._transformed(donor, int(random.integers(2**31))), random)
        image, mask = result
        return _to_tensors(image, np.full_like(mask, IGNORE_INDEX) if padding else mask)

    def _transformed(self, index: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        image, mask = self._read(index, seed)
        self.transform.set_random_seed(seed)
        result = self.transform(image=image, mask=mask)
        return result["image"], result["mask"]

    def _read(self, index: int, seed: int) -> Sample:
        """The image and mask; of a bad image's substitutes the first that can be read, which the files decide alone."""
        substitutes = np.random.default_rng((seed, 2))
        for _ in range(ATTEMPTS):
            if not self._bad[index]:
                try:
                    return self._sample(index)
                except DataError as error:
                    if self.on_bad == "error":
                        raise
                    self._replace(index, error)
            index = int(substitutes.integers(len(self.data)))
        raise DataError(f"{ATTEMPTS} images in a row cannot be read, the last one {self.data.name(index)}")

    def _replace(self, index: int, error: DataError) -> None:
        self._bad[index] = True
        bad, total = int(self._bad.sum()), len(self)
        if bad > may_be_bad(total, self.max_bad):
            raise DataError(
                f"{bad} of {total} training images cannot be read, more than max_bad={self.max_bad:g} (--max-bad) "
                f"replaces; the last one: {error}"
            ) from error
        _log.warning("%s; another image stands in for it", error)

    def _sample(self, index: int) -> Sample:
        return self.data.small_sample(index, self.decode_at_least) if self.decode_at_least else self.data[index]


class Plain(Dataset):
    """Images as they are: item index -> (image (3, H, W), mask (H, W)) uint8."""

    def __init__(self, data: SegmentationDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return _to_tensors(*self.data[index])


class Loader(DataLoader):
    """A DataLoader whose workers end with the program, though they leave the signals that would end them to it.

    Without this, a program that ends with a loader alive would wait for its workers, and they for work.
    """

    _workers: ClassVar[list[tuple[int, BaseProcess]]] = []  # with the process that started them

    def _get_iterator(self) -> Any:
        iterator = super()._get_iterator()
        self._workers.extend((os.getpid(), worker) for worker in getattr(iterator, "_workers", ()))
        return iterator

    @classmethod
    def end_workers(cls) -> None:
        """Ends the workers that this process has started."""
        for parent, worker in cls._workers:
            if parent == os.getpid() and worker.is_alive():
                worker.kill()


atexit.register(Loader.end_workers)  # before multiprocessing's own, which was there first


def train_loader(
    data: SegmentationDataset,
    transform: Callable[..., Any],
    *,
    batch_size: int,
    workers: int = 0,
    seed: int = 0,
    shares: np.ndarray | None = None,
    rank: int = 0,
    ranks: int = 1,
    **options: Any,
) -> DataLoader:
    """Batches of images (N, 3, H, W) and target (N, H, W), both uint8; `loader.batch_sampler.epoch` is the epoch.

    Args:
        data: Images and masks.
        transform: See `create_transform`.
        batch_size: Images in a batch, over all processes that train.
        workers: Processes that load; they do not change what is loaded.
        seed: Of order and augmentation.
        shares: See `TrainBatches`.
        rank: The number of this process among those that train together.
        ranks: How many they are.
        **options: `mix`, `mix_share`, `donors`, `on_bad`, `max_bad`, `decode_at_least`, see `Augmented`.
    """
    if len(data) == 0:
        raise ValueError("the training set has no images")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if shares is not None and (len(shares) != len(data) or not np.min(shares) > 0):
        raise ValueError(f"shares must be {len(data)} positive numbers, one for each image")
    batches = TrainBatches(len(data), batch_size, seed, shares, rank=rank, ranks=ranks)
    return Loader(Augmented(data, transform, **options), batch_sampler=batches, **_worker_options(workers))


def val_loader(data: SegmentationDataset, *, workers: int = 0, rank: int = 0, ranks: int = 1) -> DataLoader:
    """One image at a time, at full size and in order: (1, 3, H, W) and (1, H, W), both uint8.

    Process `rank` of `ranks` gets every `ranks`-th image; together they have each once, and some may have none.
    """
    return Loader(Plain(data), batch_size=1, sampler=range(rank, len(data), ranks), **_worker_options(workers))


def _worker_options(workers: int) -> dict[str, Any]:
    return {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "collate_fn": _stack,
        "worker_init_fn": _single_threaded,
        "pin_memory": torch.cuda.is_available(),
        # Of its own, so that loading leaves the global random state alone.
        "generator": torch.Generator(),
    }


def _single_threaded(worker: int) -> None:
    cv2.setNumThreads(0)  # a pool of threads in each worker would fight over the cores
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach every process; the main one ends its workers
        signal.signal(number, signal.SIG_IGN)


def _to_tensors(image: np.ndarray, mask: np.ndarray) -> tuple[Tensor, Tensor]:
    """Image (3, H, W) and mask (H, W); the image's memory stays as it is, channels last."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1), torch.from_numpy(np.ascontiguousarray(mask))


def _stack(samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """A batch whose images are channels last, as models take them fastest; no pixel changes its place."""
    images, masks = zip(*samples, strict=True)
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2), torch.stack(masks)
