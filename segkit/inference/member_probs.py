"""MemberProbs: the probabilities of each model for each view of each image, at some pixels, kept on disk."""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segkit.data import SegmentationDataset
from segkit.errors import NotFiniteError, UsageError
from segkit.files import reserve
from segkit.inference.predictor import Predictor
from segkit.tta import Member, View

Progress = Callable[[Iterable[int]], Iterable[int]]


class MemberProbs:
    """Keep probabilities (M, V, C, P) float16 for P pixels of an image, by M members for V views: `probs[i]`.

    All weights of the members and all choices of views can then be tried without running a model again. The file has
    no name, so that its space is freed with the object.

    Args:
        predictor: Its members, views and window are used; its member weights, class bias and CRF are not.
        pixels: For each image, the indices of the pixels to keep, in ascending order; see `sample_pixels`.
        folder: The folder of the file.

    Raises:
        UsageError: The disk is too small.
        MachineError: The space cannot be reserved, because another process fills the disk.
    """

    def __init__(self, predictor: Predictor, pixels: Sequence[np.ndarray], folder: Path) -> None:
        self.predictor, self.pixels = predictor, pixels
        self.views: tuple[View, ...] = predictor.tta.views
        self._shape = (len(predictor.members), len(self.views), len(predictor.class_names))
        self._ends = list(accumulate(len(chosen) * int(np.prod(self._shape)) for chosen in pixels))
        free = shutil.disk_usage(folder).free
        if self.bytes > free:
            raise UsageError(
                f"the probabilities of {self._shape[0]} members for {self._shape[1]} views take "
                f"{self.bytes / 1e9:.2f} GB, but {folder.resolve()} has only {free / 1e9:.2f} GB left; "
                "keep fewer `pixels`, views or members"
            )
        with tempfile.TemporaryFile(dir=folder) as file:
            reserve(file, self.bytes, folder.resolve(), "the probabilities of all images")
            self._values = np.memmap(file, dtype=np.float16, mode="w+", shape=(self._ends[-1],))

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return 2 * self._ends[-1]

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> np.ndarray:
        start = self._ends[index - 1] if index else 0
        return self._values[start : self._ends[index]].reshape(*self._shape, -1)

    def run(self, data: SegmentationDataset, progress: Progress = iter) -> None:
        """Run every member on every view of every image, once.

        Args:
            data: The images.
            progress: Wraps the iteration over their indices, for example in a progress bar.

        Raises:
            NotFiniteError: A model returns NaN at a pixel that is kept.
        """
        for i in progress(range(len(data))):
            image = torch.from_numpy(data.image(i)).permute(2, 0, 1)
            for kept, member in zip(self[i], self.predictor.members_for(*image.shape[1:]), strict=True):
                self._keep(kept, member, image, self.pixels[i])
            if not np.isfinite(self[i]).all():
                raise NotFiniteError(f"{data.name(i)}: a model returns values that are not finite (NaN or infinite)")

    def mixture(self, index: int, weights: Sequence[float], views: Sequence[int]) -> np.ndarray:
        """Return probabilities (C, P) float32 of an image: the mean over views, weighted over the members.

        Args:
            index: The image.
            weights: One weight per member; their sum is 1.
            views: Indices into `views`.
        """
        total = np.zeros((self._shape[2], len(self.pixels[index])), dtype=np.float32)
        for of_member, weight in zip(self[index], weights, strict=True):
            if weight:
                total += of_member[list(views)].sum(0, dtype=np.float32) * np.float32(weight / len(views))
        return total

    def _keep(self, kept: np.ndarray, member: Member, image: Tensor, pixels: np.ndarray) -> None:
        """Write the probabilities of all views at some pixels into `kept` (V, C, P)."""
        window, width = self.predictor.window_for(member, *image.shape[1:]), image.shape[2]
        if window is None:
            for of_view, scores in zip(kept, self._views(member, image[None]), strict=True):
                of_view[:] = _at(scores[0], pixels)
            return
        for top, band in window.bands(lambda part: torch.cat(list(self._views(member, part)), dim=1), image):
            first, last = np.searchsorted(pixels, [top * width, (top + band.shape[1]) * width])
            kept[..., first:last] = _at(band.unflatten(0, self._shape[1:]), pixels[first:last] - top * width)

    def _views(self, member: Member, pixels: Tensor) -> Iterator[Tensor]:
        """Yield the probabilities (N, C, H, W) of each view of uint8 images (N, 3, H, W)."""
        return self.predictor.tta.each(member, pixels.to(self.predictor.device).float())


def _at(scores: Tensor, pixels: np.ndarray) -> np.ndarray:
    """Return scores (..., H, W) at some pixels as (..., P) float16; only these are copied to the host."""
    places = torch.from_numpy(pixels).to(scores.device)
    return scores.flatten(-2)[..., places].half().cpu().numpy()


def sample_pixels(sizes: Sequence[int], pixels: int, seed: int) -> list[np.ndarray]:
    """Draw the same share of the pixels of each image, one from each stretch of neighbours.

    Args:
        sizes: Number of pixels of each image.
        pixels: How many to draw from an image on average; all, if it has no more.
        seed: Seed of the drawing.

    Returns:
        For each image, the indices of the pixels in ascending order.
    """
    random = np.random.default_rng(seed)
    share = min(1.0, pixels * len(sizes) / sum(sizes))
    counts = [max(1, round(share * size)) for size in sizes]
    return [
        np.arange(size) if count == size else np.int64((np.arange(count) + random.random(count)) * size / count)
        for size, count in zip(sizes, counts, strict=True)
    ]
