"""MemberProbs: what each model says of each view of each image, at some pixels, kept on disk."""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from segkit.data import SegmentationDataset
from segkit.errors import UsageError
from segkit.inference.predictor import Predictor
from segkit.tta import Member, View

Progress = Callable[[Iterable[int]], Iterable[int]]


class MemberProbs:
    """Probabilities (M, V, C, P) float16 of an image's P pixels by M members for V views: `probs[i]`.

    They lie in a file without a name, whose space is freed with the object. All weights of the members, and
    all choices among the views, can then be tried without running a model again.

    Args:
        predictor: Members, views and window; its member weights, class bias and CRF are not used.
        pixels: Numbers of the pixels of each image that are kept, see `sample_pixels`.
        folder: Where the file lies.

    Raises:
        ValueError: there is not enough room for it.
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
                f"{self.bytes / 1e9:.2f} GB, but {folder.resolve()} has room for {free / 1e9:.2f} GB; "
                "keep fewer pixels, views or members"
            )
        with tempfile.TemporaryFile(dir=folder) as file:
            self._values = np.memmap(file, dtype=np.float16, mode="w+", shape=(self._ends[-1],))

    @property
    def bytes(self) -> int:
        """Room that the file takes."""
        return 2 * self._ends[-1]

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> np.ndarray:
        start = self._ends[index - 1] if index else 0
        return self._values[start : self._ends[index]].reshape(*self._shape, -1)

    def run(self, data: SegmentationDataset, progress: Progress = iter) -> None:
        """Runs every member on every view of every image, once."""
        for i in progress(range(len(data))):
            image = torch.from_numpy(data.image(i)).permute(2, 0, 1)
            for kept, model in zip(self[i], self.predictor.members, strict=True):
                _keep(kept, self._scores(model, image), self.pixels[i], image.shape[2])

    def mixture(self, index: int, weights: Sequence[float], views: Sequence[int]) -> np.ndarray:
        """(C, P) float32 probabilities of an image: the mean over some views, weighted over the members."""
        total = np.zeros((self._shape[2], len(self.pixels[index])), dtype=np.float32)
        for of_member, weight in zip(self[index], weights, strict=True):
            if weight:
                total += of_member[list(views)].sum(0, dtype=np.float32) * np.float32(weight / len(views))
        return total

    @torch.inference_mode()
    def _scores(self, model: nn.Module, image: Tensor) -> Iterator[tuple[int, Tensor]]:
        """First row and (V, C, rows, W) of one band of rows after another."""

        def predict(pixels: Tensor) -> Tensor:
            member = Member(model, model.preprocessing.normalise)
            every = self.predictor.tta.each(member, pixels.to(self.predictor.device).float())
            return torch.cat([scores.cpu() for scores in every], dim=1)  # (N, V*C, H, W)

        window = self.predictor.window
        whole = window is None or max(np.subtract(image.shape[1:], window.size)) <= 0
        for top, band in [(0, predict(image[None])[0])] if whole else window.bands(predict, image):
            yield top, band.unflatten(0, self._shape[1:])


def _keep(kept: np.ndarray, bands: Iterable[tuple[int, Tensor]], pixels: np.ndarray, width: int) -> None:
    """Writes the pixels, which ascend, of bands of rows into `kept` (V, C, P)."""
    for top, band in bands:
        first, last = np.searchsorted(pixels, [top * width, (top + band.shape[2]) * width])
        places = torch.from_numpy(pixels[first:last] - top * width)
        kept[..., first:last] = band.flatten(2)[..., places].numpy()


def sample_pixels(sizes: Sequence[int], pixels: int, seed: int) -> list[np.ndarray]:
    """Numbers of pixels, ascending: the same share of each image, one drawn from each stretch of neighbours.

    Args:
        sizes: Number of pixels of each image.
        pixels: Number of them that is drawn from an image on average; all, where there are no more.
        seed: Of the drawing.
    """
    random = np.random.default_rng(seed)
    share = min(1.0, pixels * len(sizes) / sum(sizes))
    counts = [max(1, round(share * size)) for size in sizes]
    return [
        np.arange(size) if count == size else np.int64((np.arange(count) + random.random(count)) * size / count)
        for size, count in zip(sizes, counts, strict=True)
    ]
