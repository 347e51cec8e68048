"""Loaders whose random choices depend on the seed, the epoch and the position alone, not on the workers."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler


class SegmentationDataset(Protocol):
    """What the loaders need: a length and `(image (H, W, 3) uint8, mask (H, W))` items."""

    class_names: Sequence[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]: ...


class TrainBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (index, seed of the augmentation), shuffled anew in each epoch.

    Set `epoch` before each pass. A last batch of one is dropped where others remain, since batch
    normalisation cannot learn from it.
    """

    def __init__(self, length: int, batch_size: int, seed: int = 0) -> None:
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        full, rest = divmod(self.length, self.batch_size)
        return full + (rest > 1 or full == 0)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        random = np.random.default_rng((self.seed, self.epoch))
        order = random.permutation(self.length).tolist()
        seeds = random.integers(2**31, size=self.length).tolist()
        samples = list(zip(order, seeds, strict=True))
        for i in range(len(self)):
            yield samples[i * self.batch_size : (i + 1) * self.batch_size]


class Augmented(Dataset):
    """Applies a transform, seeded for each sample: item (index, seed) -> (image (3, H, W), mask (H, W)) uint8."""

    def __init__(self, data: SegmentationDataset, transform: Callable[..., Any]) -> None:
        self.data = data
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, sample: tuple[int, int]) -> tuple[Tensor, Tensor]:
        index, seed = sample
        image, mask = self.data[index]
        self.transform.set_random_seed(seed)
        result = self.transform(image=image, mask=mask)
        return _to_tensors(result["image"], result["mask"])


class Plain(Dataset):
    """Images as they are: item index -> (image (3, H, W), mask (H, W)) uint8."""

    def __init__(self, data: SegmentationDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return _to_tensors(*self.data[index])


def train_loader(
    data: SegmentationDataset, transform: Callable[..., Any], *, batch_size: int, workers: int = 0, seed: int = 0
) -> DataLoader:
    """Batches of images (N, 3, H, W) and target (N, H, W), both uint8; `loader.batch_sampler.epoch` is the epoch."""
    if len(data) == 0:
        raise ValueError("the training set has no images")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    batches = TrainBatches(len(data), batch_size, seed)
    return DataLoader(Augmented(data, transform), batch_sampler=batches, **_worker_options(workers))


def val_loader(data: SegmentationDataset, *, workers: int = 0) -> DataLoader:
    """One image at a time, at full size and in order: (1, 3, H, W) and (1, H, W), both uint8."""
    return DataLoader(Plain(data), batch_size=1, **_worker_options(workers))


def _worker_options(workers: int) -> dict[str, Any]:
    return {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "worker_init_fn": _single_threaded,
        "pin_memory": torch.cuda.is_available(),
    }


def _single_threaded(worker: int) -> None:
    cv2.setNumThreads(0)  # a pool of threads in each worker would fight over the cores


def _to_tensors(image: np.ndarray, mask: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), torch.from_numpy(mask)
