"""BatchSize: how many images of one size the models run on at once."""

import logging
from collections.abc import Sequence
from numbers import Integral
from typing import Literal

import numpy as np
import torch

from segkit.errors import NotFiniteError, UsageError
from segkit.inference.predictor import Predictor, RawPrediction

AUTO = "auto"
# A forward pass of fewer pixels leaves most of a processor waiting. Larger inputs gain nothing from a batch on a CPU.
SMALL_ON_CPU = 2**16
# Estimates of the memory of a forward pass. Features: bytes for each pixel of the input. Probabilities: bytes for each
# pixel of the image and each class (sum of the views, one view, its scaled copy and the result, in float32).
BYTES_PER_INPUT_PIXEL = 2048
BYTES_PER_PROBABILITY = 20
SHARE_OF_MEMORY = 0.5  # share of the free memory of a GPU; the rest is for the CRF and for errors of the estimate

_log = logging.getLogger(__name__)


class BatchSize:
    """Decide how many images of one size run as one batch, and run them.

    Args:
        predictor: Runs the batches.
        batch_size: The number of images. `auto`: on a CUDA GPU as many as fit its free memory; on a CPU several if they
            are small, and one if they are large, because larger batches take longer there; one on other devices.

    Attributes:
        largest: The largest number of images so far.

    Raises:
        UsageError: `batch_size` is neither `auto` nor a whole number of at least 1.
    """

    def __init__(self, predictor: Predictor, batch_size: int | Literal["auto"] = AUTO) -> None:
        is_number = isinstance(batch_size, Integral) and not isinstance(batch_size, bool) and batch_size >= 1
        if batch_size != AUTO and not is_number:
            raise UsageError(f"`batch_size` must be a whole number of at least 1 or {AUTO!r}, got {batch_size!r}")
        self.predictor = predictor
        self.batch_size = batch_size
        self.largest = 1
        self._sizes: dict[tuple[int, int], int] = {}
        self._most_pixels: int | None = None  # pixels of the largest batch, after memory ran out once
        self._is_compiled = any(getattr(model, "compiled", False) for model in predictor.members)

    def of(self, height: int, width: int) -> int:
        """Return the number of images of this size to run at once; 1 if they are cut into windows."""
        size = (height, width)
        if size not in self._sizes:
            self._sizes[size] = self._count(height, width)
        count = self._sizes[size]
        if self._most_pixels is not None:
            count = min(count, max(1, self._most_pixels // (height * width)))
        self.largest = max(self.largest, count)
        return count

    def run(self, images: Sequence[np.ndarray]) -> list[RawPrediction | NotFiniteError]:
        """Run the models on images of one size, in several batches if the GPU lacks the memory for one.

        Args:
            images: Each (H, W, 3) uint8 RGB, see `Predictor.run_batch`.
        """
        found: list[RawPrediction | NotFiniteError] = []
        while len(found) < len(images):
            count = self.of(*images[0].shape[:2])
            part = list(images[len(found) : len(found) + count])
            # A compiled model is compiled again for each batch size, which takes longer than running extra images.
            padding = [part[-1]] * (count - len(part) if self._is_compiled else 0)
            found += self._results_if_memory_suffices(part + padding)[: len(part)]
        return found

    def _results_if_memory_suffices(self, batch: list[np.ndarray]) -> list[RawPrediction | NotFiniteError]:
        """Return the results of a batch; if the GPU lacks the memory, return none and make the next batches smaller."""
        try:
            return self.predictor.run_batch(batch)
        except torch.cuda.OutOfMemoryError:
            if len(batch) == 1:
                raise
        # After the handler, because the error keeps the tensors of the batch.
        height, width = batch[0].shape[:2]
        half = len(batch) // 2
        self._most_pixels = half * height * width
        if self.predictor.device.type == "cuda":
            torch.cuda.empty_cache()
        _log.warning(
            "the GPU lacks the memory for a batch of %d images of %d x %d pixels; continuing with %d",
            *(len(batch), height, width, half),
        )
        return []

    def _count(self, height: int, width: int) -> int:
        if self.predictor.is_cut(height, width):
            return 1
        if self.batch_size != AUTO:
            return int(self.batch_size)
        device, tta = self.predictor.device, self.predictor.tta
        members = self.predictor.members_for(height, width)
        largest = max(member.resizing.height * member.resizing.width for member in members if member.weight > 0)
        inputs = max(1, int(height * width * largest * max(tta.scales) ** 2))  # pixels of the largest input of an image
        if device.type == "cpu":
            return max(1, SMALL_ON_CPU // inputs)
        if device.type != "cuda":
            return 1
        turns = len(tta.turns)
        probabilities = height * width * len(self.predictor.class_names)
        needed = BYTES_PER_INPUT_PIXEL * inputs * turns + BYTES_PER_PROBABILITY * probabilities
        most = tta.largest_batch(device) // inputs
        return max(1, min(most, int(SHARE_OF_MEMORY * _free_memory(device)) // needed))


def _free_memory(device: torch.device) -> int:
    """Return the free memory of a GPU in bytes, including the memory that torch keeps for later."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
