"""The images of each training batch: drawn by seed and epoch, divided among processes, rare classes more often."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from segkit.errors import UsageError

PADDING = 1  # marks a sample that is neither trained on nor counted


class TrainBatches(Sampler[list[tuple[int, ...]]]):
    """Batches of (index, seed of the augmentation), shuffled again in each epoch.

    Yields the batches of `epoch`, from number `start` on; iterating changes neither of these. The loader calls
    `begin_pass`, which goes to the next epoch. A last batch of one sample is dropped if there are others, because
    batch normalisation cannot learn from it.

    Several processes share each batch: process `rank` of `num_ranks` takes every `num_ranks`-th sample, so that
    together they learn from the same samples, however many they are, and all have the same number of batches. If the
    last batch leaves a process with fewer than two samples, it also takes others of that batch as (index, seed,
    PADDING): batch normalisation needs them, but their target is ignored.

    Args:
        length: Number of images.
        batch_size: Images in a batch, over all processes.
        seed: Decides, together with the epoch, the order and the augmentations.
        shares: (length,) relative frequency of each image in an epoch, see `repeat_factors`. By default each image
            occurs once. The length of the epoch does not change.
        rank: Number of this process.
        num_ranks: Number of processes; it divides `batch_size`.

    Raises:
        UsageError: `num_ranks` does not divide `batch_size`.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int = 0,
        shares: np.ndarray | None = None,
        *,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        if batch_size % num_ranks:
            raise UsageError(
                f"batches of {batch_size} cannot be divided evenly among {num_ranks} processes; "
                f"try `batch_size={-(-batch_size // num_ranks) * num_ranks}`"
            )
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.shares = shares
        self.rank = rank
        self.num_ranks = num_ranks
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Make this epoch the next pass, without its first `start` batches."""
        self.epoch = epoch
        self.start = start

    @property
    def epoch(self) -> int:
        """The epoch of the next pass if it was set, otherwise of the latest pass."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch = epoch
        self._is_set = True

    def begin_pass(self) -> None:
        """Go to the next epoch, unless this is the first pass or `epoch` was set since the latest one."""
        if not self._is_set:
            self.set_epoch(self.epoch + 1)
        self._is_set = False

    def __len__(self) -> int:
        full, rest = divmod(self.length, self.batch_size)
        return full + (rest > 1 or full == 0)

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        samples = self._samples()
        for i in range(self.start, len(self)):
            yield self._share(samples[i * self.batch_size : (i + 1) * self.batch_size])

    def images(self, number: int) -> list[int]:
        """Return the images of a batch of the epoch, over all processes."""
        return [index for index, _ in self._samples()[number * self.batch_size : (number + 1) * self.batch_size]]

    def _samples(self) -> list[tuple[int, int]]:
        random = np.random.default_rng((self.seed, self.epoch))
        order = random.permutation(self._drawn(random)).tolist()
        seeds = random.integers(2**31, size=self.length).tolist()
        return list(zip(order, seeds, strict=True))

    def _share(self, batch: list[tuple[int, int]]) -> list[tuple[int, ...]]:
        own = batch[self.rank :: self.num_ranks]
        if self.num_ranks == 1:
            return own
        least = min(2, self.batch_size // self.num_ranks)
        return own + [(*sample, PADDING) for sample in (batch * least)[: max(0, least - len(own))]]

    def _drawn(self, random: np.random.Generator) -> np.ndarray:
        """Return the images of an epoch: each as often as its share says, rounded up or down at random."""
        if self.shares is None:
            return np.arange(self.length)
        # Evenly spaced marks on the line of all shares hit each image as often as its share says, to within one.
        ends = np.cumsum(self.shares) / np.sum(self.shares) * self.length
        marks = np.arange(self.length) + random.random()
        return np.searchsorted(ends, marks, side="right").clip(max=self.length - 1)


def repeat_factors(presence: np.ndarray, threshold: float) -> np.ndarray:
    """Return how often to show each image: the maximum over its classes of max(1, sqrt(threshold / frequency)).

    Source: Gupta et al., "LVIS", 2019, section 5.1.

    Args:
        presence: (N, C) bool, whether the class is in the image.
        threshold: A class is rare if its share of the images is smaller than this.

    Returns:
        (N,) float64, at least 1.
    """
    frequency = np.maximum(presence.mean(0), 1e-12)
    of_class = np.maximum(1.0, np.sqrt(threshold / frequency))
    return np.where(presence, of_class, 1.0).max(1, initial=1.0)
