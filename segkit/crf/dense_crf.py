"""DenseCRF: refine class probabilities by the colours of the image."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property, partial
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from segkit.crf._inputs import MAX_CRF_PIXELS, check_image, check_probs
from segkit.crf.lattice_engine import LatticeEngine
from segkit.crf.pool import Engine, WorkerPool, map_future
from segkit.crf.presets import PRESETS, CRFParameters
from segkit.crf.pydensecrf_engine import PydensecrfEngine, import_pydensecrf
from segkit.errors import UsageError
from segkit.names import check_known

Array = np.ndarray | Tensor
ENGINES = {"torch": LatticeEngine, "pydensecrf": PydensecrfEngine}
# torch is the default: it needs no compiler, also runs on CUDA, and is faster on the CPU (benchmarks/crf.py).
ENGINES["auto"] = ENGINES["torch"]


@dataclass(frozen=True)
class DenseCRF(CRFParameters):
    """Refine class probabilities with a fully connected CRF with Gaussian edge potentials.

    Source: Krähenbühl & Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
    Potentials", 2011, equation 3. The default parameters are the preset `seed`; `DenseCRF.preset(name)`
    returns a CRF with other published parameters.

    Args:
        iterations: Number of mean-field steps.
        gaussian_sigma: Standard deviation of the smoothness kernel, in pixels.
        gaussian_weight: Weight of the smoothness kernel; 0 switches it off.
        bilateral_sigma: Standard deviation of the appearance kernel in space, in pixels.
        bilateral_colour_sigma: Standard deviation of the appearance kernel in colour, in steps of 0..255.
        bilateral_weight: Weight of the appearance kernel; 0 switches it off.
        active_threshold: Skip classes whose highest probability in the image is below this; they get the
            probability 0. Fewer classes take less time. 1e-4 changes probabilities by about 1e-5; 0 keeps all.
        tolerance: Stop when a step changes less than this share of the labels; 0 runs all iterations.
        backend: `torch` runs on the CPU, or on the GPU if the probabilities are CUDA tensors. `pydensecrf` runs
            that package, on the CPU. `auto` is `torch`. The labels of the two differ in fewer than 1 of 10,000 pixels.
        workers: Number of extra processes, of one thread each, for batches, `map` and `submit`; 0 for none. They
            start with the first image and end with `close`, the `with` block or the object. The results are
            bit for bit the same without workers. CUDA probabilities do not use them.

    Attributes:
        max_pixels: Largest image, in pixels.

    Raises:
        MissingPackageError: `backend="pydensecrf"` and pydensecrf is not installed.
        UsageError: A parameter is outside its range.
    """

    max_pixels: ClassVar[int] = MAX_CRF_PIXELS
    active_threshold: float = 1e-4
    tolerance: float = 0.0
    backend: Literal["auto", "torch", "pydensecrf"] = "auto"
    workers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("active_threshold", "tolerance"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 <= value < 1:
                raise UsageError(f"`{name}` must be at least 0 and below 1, got {value!r}")
        if not isinstance(self.workers, Integral) or self.workers < 0:
            raise UsageError(f"`workers` must be a whole number of at least 0, got {self.workers!r}")
        check_known("backend", self.backend, ENGINES)
        if self.backend == "pydensecrf":
            import_pydensecrf()  # fail here, not after the first image was predicted

    def __str__(self) -> str:
        text = (
            f"{self.iterations} iterations; smoothness of weight {self.gaussian_weight:g} and sigma "
            f"{self.gaussian_sigma:g}; appearance of weight {self.bilateral_weight:g}, sigma {self.bilateral_sigma:g} "
            f"and colour sigma {self.bilateral_colour_sigma:g}"
        )
        return text + (f"; stops below {self.tolerance:g} changed labels" if self.tolerance else "")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "DenseCRF":
        """Return a DenseCRF with published parameters: `DenseCRF.preset("deeplab_v2_resnet101", workers=2)`.

        Args:
            name: A name from `segkit.crf.PRESETS`, which also names the sources.
            changes: Arguments of DenseCRF that replace the values of the preset.

        Raises:
            UsageError: There is no preset of that name.
        """
        check_known("preset", name, PRESETS)
        return cls(**{**vars(PRESETS[name]), **changes})

    def __call__(self, probs: Array, image: Array) -> Array:
        """Refine one image or a batch.

        Args:
            probs: (C, H, W) or (N, C, H, W) probabilities that sum to 1 over the classes.
            image: (H, W, 3) or (N, H, W, 3) uint8 RGB.

        Returns:
            Refined probabilities, float32, with the shape and kind (numpy or torch) of `probs`.

        Raises:
            UsageError: The shape or type is wrong, or the values are not probabilities.
            MachineError: A worker died.
        """
        values = check_probs(probs)
        pixels = check_image(image, values)
        device = _device_or_none(probs)
        if values.ndim == 3:
            return _like_input(device, self._submit(values, pixels).result())
        futures = [self._submit(v, p) for v, p in zip(values, pixels, strict=True)]
        return _like_input(device, torch.stack([future.result() for future in futures]) if futures else values)

    def runs_on(self, device: torch.device) -> torch.device:
        """Return the device of the CRF: CUDA for CUDA input and the torch backend, otherwise the CPU."""
        return device if device.type == "cuda" and self.backend != "pydensecrf" else torch.device("cpu")

    def submit(self, probs: Array, image: Array) -> "Future[Array]":
        """Refine one image in a worker, so that the caller can continue with the next image.

        Without workers, the image is refined before this returns.

        Args:
            probs: (C, H, W) probabilities that sum to 1 over the classes.
            image: (H, W, 3) uint8 RGB.

        Raises:
            UsageError: As for `__call__`.
        """
        values = check_probs(probs)
        if values.ndim != 3:
            raise UsageError(f"submit takes one image, `probs` (C, H, W), got {tuple(values.shape)}")
        # Keep only the device, not the probabilities: many images may wait for the workers.
        device = _device_or_none(probs)
        return map_future(self._submit(values, check_image(image, values)), partial(_like_input, device))

    def map(self, pairs: Iterable[tuple[Array, Array]]) -> Iterator[Array]:
        """Refine pairs (probs, image) of any sizes, in order; only a few of them are in memory at a time."""
        waiting: deque[Future[Array]] = deque()
        for probs, image in pairs:
            waiting.append(self.submit(probs, image))
            if len(waiting) > 2 * self.workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def close(self) -> None:
        """End the workers and free the kernels of the last image; a later call starts them again."""
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
        device = self.runs_on(probs.device)
        kept, image = probs[active].to(device), image.to(device)
        if len(kept) > 1 and self.workers and device.type != "cuda":
            refined = self._pool.submit(kept, image)
        else:
            refined = Future()
            refined.set_result(self._engine(kept, image) if len(kept) > 1 else torch.ones_like(kept))
        return map_future(refined, partial(_with_skipped, active.to(device)))


def _with_skipped(active: Tensor, probs: Tensor) -> Tensor:
    """Add the skipped classes again, with the probability 0."""
    full = probs.new_zeros(len(active), *probs.shape[1:])
    full[active] = probs
    return full


def _device_or_none(probs: Array) -> torch.device | None:
    """Return the device of a tensor, or None for a numpy array."""
    return probs.device if isinstance(probs, Tensor) else None


def _like_input(device: torch.device | None, probs: Tensor) -> Array:
    """Return the tensor on `device`, or as a numpy array if it is None."""
    return probs.numpy() if device is None else probs.to(device)
