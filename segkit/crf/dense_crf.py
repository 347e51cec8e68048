"""DenseCRF: refines class probabilities by the colours of the image."""

import difflib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from segkit.crf._inputs import MAX_PIXELS, check_image, check_probs
from segkit.crf.lattice_engine import LatticeEngine
from segkit.crf.pool import Engine, WorkerPool, then
from segkit.crf.presets import PRESETS, CRFParameters
from segkit.crf.pydensecrf_engine import PydensecrfEngine, import_pydensecrf

Array = np.ndarray | Tensor
ENGINES = {"torch": LatticeEngine, "pydensecrf": PydensecrfEngine}
# The same labels wherever it runs, no compiler, and on the CPU too the faster one: benchmarks/crf.py.
ENGINES["auto"] = ENGINES["torch"]


@dataclass(frozen=True)
class DenseCRF(CRFParameters):
    """Fully connected CRF with Gaussian edge potentials.

    Source: Krähenbühl & Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
    Potentials", 2011, equation 3. The default parameters are those of the recycled-waste solutions
    that segkit grew from; `DenseCRF.preset(name)` gives others.

    Args:
        iterations: Steps of mean-field inference.
        gaussian_sigma: Reach of the smoothness kernel, in pixels.
        gaussian_weight: Its weight; 0 leaves it out.
        bilateral_sigma: Reach of the appearance kernel, in pixels.
        bilateral_colour_sigma: Its reach in colour, in steps of 0..255.
        bilateral_weight: Its weight; 0 leaves it out.
        active_threshold: Classes whose highest probability in the image lies below it are left out and come back as
            0; time grows with the classes. With 1e-4, probabilities change by some 1e-5. 0 keeps all classes.
        tolerance: Stop as soon as a step changes less than this share of the labels; 0 runs all iterations.
        backend: `torch` computes in plain torch, on the CPU or on the device of CUDA probabilities; `pydensecrf` by
            the package of that name, on the CPU; `auto` is torch. Their labels differ in fewer than 1 of 10 000 pixels.
        workers: Processes, of one core each, that refine beside the caller's, for batches, `map` and `submit`. They
            start with the first image and end with `close`, with the `with` block or with the object. Results are
            those of no workers, bit for bit. CUDA probabilities are refined without them.

    Attributes:
        max_pixels: Of an image; larger ones are refused.

    Raises:
        ImportError: backend="pydensecrf", and it is not installed.
        ValueError: a parameter outside its range.
    """

    max_pixels: ClassVar[int] = MAX_PIXELS
    active_threshold: float = 1e-4
    tolerance: float = 0.0
    backend: Literal["auto", "torch", "pydensecrf"] = "auto"
    workers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("active_threshold", "tolerance"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if not isinstance(self.workers, int) or self.workers < 0:
            raise ValueError(f"workers must be a whole number of at least 0, got {self.workers!r}")
        if self.backend not in ENGINES:
            raise ValueError(f"backend must be one of {', '.join(ENGINES)}, got {self.backend!r}")
        if self.backend == "pydensecrf":
            import_pydensecrf()  # better now than after the first image

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "DenseCRF":
        """A DenseCRF with published parameters: `DenseCRF.preset("deeplab_v2_resnet101", workers=2)`.

        Args:
            name: One of `segkit.crf.PRESETS`, where the sources stand.
            changes: Arguments of DenseCRF that differ from the preset's.
        """
        if name not in PRESETS:
            near = difflib.get_close_matches(name, PRESETS, n=1)
            hint = f", did you mean {near[0]!r}" if near else ""
            raise ValueError(f"there is no preset {name!r}{hint}; known: {', '.join(PRESETS)}")
        return cls(**{**vars(PRESETS[name]), **changes})

    def __call__(self, probs: Array, image: Array) -> Array:
        """Refines one image or a batch.

        Args:
            probs: (C, H, W) or (N, C, H, W) probabilities that sum to 1 over the classes.
            image: (H, W, 3) or (N, H, W, 3) uint8 RGB.

        Returns:
            Probabilities like `probs`, float32, of the same kind (numpy or torch).

        Raises:
            ValueError: a wrong shape or type, values that are not probabilities.
            RuntimeError: a worker died.
        """
        values = check_probs(probs)
        pixels = check_image(image, values)
        if values.ndim == 3:
            return _like(probs, self._submit(values, pixels).result())
        futures = [self._submit(v, p) for v, p in zip(values, pixels, strict=True)]
        return _like(probs, torch.stack([future.result() for future in futures]) if futures else values)

    def submit(self, probs: Array, image: Array) -> "Future[Array]":
        """Refines one image in a worker, while the caller goes on with the models of the next.

        Without workers the result is there when this returns.

        Args:
            probs: (C, H, W).
            image: (H, W, 3).
        """
        values = check_probs(probs)
        if values.ndim != 3:
            raise ValueError(f"submit takes one image, probs (C, H, W), got {tuple(values.shape)}")
        return then(self._submit(values, check_image(image, values)), partial(_like, probs))

    def map(self, pairs: Iterable[tuple[Array, Array]]) -> Iterator[Array]:
        """Refines pairs (probs, image) of any sizes, in order; few of them are in memory at a time."""
        waiting: deque[Future[Array]] = deque()
        for probs, image in pairs:
            waiting.append(self.submit(probs, image))
            if len(waiting) > 2 * self.workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def close(self) -> None:
        """Ends the workers and frees the last image's kernels; a later call starts anew."""
        for name in ("_pool", "_engine"):
            part = vars(self).pop(name, None)
            if isinstance(part, WorkerPool):
                part.close()

    def __enter__(self) -> "DenseCRF":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def _engine(self) -> Engine:
        return self._make_engine()

    @cached_property
    def _pool(self) -> WorkerPool:
        return WorkerPool(self.workers, self._make_engine)

    @property
    def _make_engine(self) -> partial[Engine]:
        parameters = CRFParameters(**{name: getattr(self, name) for name in vars(CRFParameters())})
        return partial(ENGINES[self.backend], parameters, self.tolerance)

    def _submit(self, probs: Tensor, image: Tensor) -> "Future[Tensor]":
        peaks = probs.flatten(1).amax(1)
        active = (peaks >= self.active_threshold) | (peaks == peaks.max())
        device = probs.device if probs.is_cuda and self.backend != "pydensecrf" else torch.device("cpu")
        refined = self._refine(probs[active].to(device), image.to(device))
        return then(refined, partial(_restored, active.to(device)))

    def _refine(self, probs: Tensor, image: Tensor) -> "Future[Tensor]":
        if self.workers and len(probs) > 1 and not probs.is_cuda:
            return self._pool.submit(probs, image)
        done: Future[Tensor] = Future()
        done.set_result(self._engine(probs, image) if len(probs) > 1 else torch.ones_like(probs))
        return done


def _restored(active: Tensor, probs: Tensor) -> Tensor:
    """Puts the classes that were left out back, as zeros."""
    full = probs.new_zeros(len(active), *probs.shape[1:])
    full[active] = probs
    return full


def _like(given: Array, probs: Tensor) -> Array:
    return probs.to(given.device) if isinstance(given, Tensor) else probs.numpy()
