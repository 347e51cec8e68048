"""Predictor: from a photograph to a label map, by one model or several."""

import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from segkit.data.images import bits_of, read_image, to_rgb
from segkit.errors import DataError, NotFiniteError, UsageError, as_segkit_error
from segkit.files import reserve
from segkit.inference.prediction import Prediction
from segkit.labels import IGNORE_INDEX, label_names
from segkit.names import check_known
from segkit.sliding_window import SlidingWindow
from segkit.training_scale import FULL_SIZE, training_scale_of
from segkit.tta import TTA, Member
from segkit.tta.merge import MERGES

# A function such as DenseCRF: probabilities (C, H, W) on their device and image (H, W, 3) uint8 -> (C, H, W).
Refine = Callable[[Tensor, np.ndarray], Tensor | np.ndarray]
Photo = str | os.PathLike | np.ndarray | Image.Image
PROBS = ("memory", "disk", "none")
MOST_CLASSES = 65_536  # that labels of 16 bits can hold
LARGEST_BIAS = 20  # a factor of 5e8; with much more, no other class would be left in float32

_log = logging.getLogger(__name__)


class RawPrediction(NamedTuple):
    """What the models predict for an image, on the device that computed it.

    Attributes:
        probs: (C, H, W) float32 probabilities, or None if neither a CRF nor the caller needs them.
        mask: (H, W) labels, or None if they are not computed yet.
        array: The memory-mapped file that holds `probs`, or None if they are in memory.
    """

    probs: Tensor | None
    mask: Tensor | None = None
    array: np.memmap | None = None


class Predictor:
    """Predict label maps of photographs: `Predictor(model)("photo.jpg").mask`.

    The image is resized to the size at which training showed such photographs to the model (`model.training_scale`)
    times each scale, and normalised by the model's own preprocessing. The probabilities are resized to the size of the
    image, and averaged over the models. They stay on `device` through class bias, CRF and argmax; the label map is
    copied to the host once, and the probabilities only if they are kept.

    Args:
        models: One Segmenter, or several with the same classes; they are put in eval mode and moved to `device`.
            Results of `segkit.models.optimize` and ONNX files (`segkit.load_model`) work as well, and so does any
            module with `class_names` and `preprocessing` that returns logits. A model with one channel predicts the
            background, label 0, and its class, label 1, by the sigmoid.
        member_weights: Weight of each model, scaled to sum to 1; equal by default.
        tta: Test-time augmentation.
        window: Run images that are larger than this window piece by piece. Its size is in pixels of the models' input:
            a window of 512 of a model that was trained on photographs at a quarter of their size shows 2,048 pixels.
            By default each model has the window of its training's validation (`model.window`); 0: whole images.
        full_size: Run the models on images at full size, even if the models were trained at another scale.
        class_bias: `{class: number}` to add to its log-probability; probabilities are then normalised again. Above 0 a
            class is predicted more often. `python -m segkit tune` finds values.
        crf: Refinement by the colours of the image. It is called with a tensor on `device`, so that a DenseCRF runs
            on CUDA too. If its memory does not suffice there, it runs on the CPU.
        device: The device of the models.
        probs: Where to keep the probabilities of a prediction. `memory`: in memory. `disk`: in a memory-mapped file,
            which is deleted with the array; a CRF then runs on the CPU. `none`: do not keep them. Without a CRF,
            memory holds one band of windows and the label map.

    Raises:
        UsageError: An argument cannot be used, or the models differ in their classes.
    """

    def __init__(
        self,
        models: nn.Module | Sequence[nn.Module],
        *,
        member_weights: Sequence[float] | None = None,
        tta: TTA | None = None,
        window: SlidingWindow | Literal[0] | None = None,
        full_size: bool = False,
        class_bias: Mapping[str, float] | None = None,
        crf: Refine | None = None,
        device: str | torch.device = "cpu",
        probs: str = "memory",
    ) -> None:
        models = list(models) if isinstance(models, list | tuple) else [models]
        _check_models(models)
        check_known("probs", probs, PROBS)
        if tta is not None and not isinstance(tta, TTA):
            raise UsageError(f"`tta` must be a TTA, got {tta!r}")
        if window is not None and not isinstance(window, SlidingWindow) and window != 0:
            raise UsageError(f"`window` must be a SlidingWindow, or 0 for whole images, got {window!r}")
        if crf is not None and not callable(crf):
            raise UsageError(f"`crf` must be a DenseCRF or a function, got {crf!r}")
        try:
            self.device = torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise UsageError(f"there is no device {device!r}: {error}") from error
        self.members = [model.to(self.device).eval() for model in models]
        if len(self.class_names) > MOST_CLASSES:
            raise UsageError(f"a Predictor takes at most {MOST_CLASSES} classes, got {len(self.class_names)}")
        self.member_weights = _shares(member_weights, len(models))
        self.tta = tta or TTA()
        self.window = window
        self.full_size = full_size
        self.class_factors = _factors(class_bias or {}, self.class_names, self.device)
        self.crf = crf
        self.probs = probs
        if self.tta.merge == "logits":
            raise UsageError(
                "a Predictor averages probabilities; for the softmax of the mean logits use a TTA with `merge=gmean`"
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the labels, in their order."""
        return label_names(self.members[0].class_names)

    @property
    def category_ids(self) -> dict[str, int | str]:
        """The id of each class, by name, in the COCO JSON that the models were trained on; empty if unknown."""
        ids = (getattr(member, "category_ids", {}) for member in self.members)
        return next(filter(None, ids), {})

    @property
    def crf_workers(self) -> int:
        """Number of processes that refine images; 0 if the CRF runs in this process, as it does on a GPU."""
        place = torch.device("cpu") if self.probs == "disk" else self.device
        runs_on = getattr(self.crf, "runs_on", None)
        return 0 if runs_on is not None and runs_on(place).type == "cuda" else getattr(self.crf, "workers", 0)

    def __call__(self, image: Photo) -> Prediction:
        """Segment one image of any size.

        Args:
            image: An array (H, W, 3) uint8 RGB, a file or a PIL image. EXIF orientations are applied.

        Raises:
            UsageError: `image` is something else.
            DataError: The file does not exist or is not an image, or it is too large for the CRF.
            NotFiniteError: The models return NaN for this image.
        """
        return next(self.compare_crfs(read_photo(image), [self.crf]))

    def close(self) -> None:
        """End the worker processes of the CRF, if it has some; the next image starts new ones."""
        close = getattr(self.crf, "close", None)
        if close is not None:
            close()

    def compare_crfs(self, image: np.ndarray, crfs: Sequence[Refine | None]) -> Iterator[Prediction]:
        """Yield the prediction with each CRF, None for no CRF; the models run once.

        Args:
            image: (H, W, 3) uint8 RGB.
            crfs: Used instead of the Predictor's own CRF.
        """
        raw = self.run_models(image, crfs)
        for crf in crfs:
            refined = raw if crf is None else RawPrediction(self.refine(raw, image, crf).result())
            yield self.finish(refined, image)

    # The three steps, for `segkit.inference.segment`, which runs them side by side.

    @torch.no_grad()
    def run_models(self, image: np.ndarray, crfs: Sequence[Refine | None] | None = None) -> RawPrediction:
        """Run the models and add the class bias: the first step.

        Args:
            image: (H, W, 3) uint8 RGB.
            crfs: The CRFs that refine the result; by default the Predictor's own.

        Raises:
            UsageError: The array is not such an image.
            DataError: The image is too large for a CRF.
            NotFiniteError: The models return NaN for this image.
        """
        crfs = [crf for crf in ([self.crf] if crfs is None else crfs) if crf is not None]
        self._check_image(image, crfs)
        (raw,) = self._run([image], for_crf=bool(crfs))
        if isinstance(raw, NotFiniteError):
            raise raw
        return raw

    def check_image(self, image: np.ndarray) -> None:
        """Raise what `run_models` raises for an image before it runs the models."""
        self._check_image(image, [] if self.crf is None else [self.crf])

    @torch.no_grad()
    def run_batch(self, images: Sequence[np.ndarray]) -> list[RawPrediction | NotFiniteError]:
        """Run the models on several images at once: `run_models` for images of one size.

        The results of an image do not depend on the others, except for the rounding of torch, which may compute a
        larger batch in another order.

        Args:
            images: Each (H, W, 3) uint8 RGB that `check_image` accepts; one, if it is cut into windows.

        Returns:
            The result of each image, or the error of an image for which the models return NaN.
        """
        return self._run(images, for_crf=self.crf is not None)

    def _check_image(self, image: np.ndarray, crfs: Sequence[Refine]) -> None:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise UsageError(f"image must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
        height, width = image.shape[:2]
        limits = [crf.max_pixels for crf in crfs if hasattr(crf, "max_pixels")]
        if limits and height * width > min(limits):
            raise DataError(
                f"the image has {height} x {width} pixels (height x width), more than the {min(limits)} of a CRF; "
                "predict it without `crf`"
            )

    def is_cut(self, height: int, width: int) -> bool:
        """Return whether a model gets an image of this size in windows."""
        members = [member for member in self.members_for(height, width) if member.weight > 0]
        return any(self.window_for(member, height, width) is not None for member in members)

    def _run(self, images: Sequence[np.ndarray], *, for_crf: bool) -> list[RawPrediction | NotFiniteError]:
        height, width = images[0].shape[:2]
        together = images[0][None] if len(images) == 1 else np.stack(images)
        pixels = torch.from_numpy(np.require(together, requirements=("C", "W"))).permute(0, 3, 1, 2)
        members = [member for member in self.members_for(height, width) if member.weight > 0]
        if self.is_cut(height, width):
            (whole,) = pixels
            bands = ((top, self._biased(band)) for top, band in self._bands(members, whole))
            try:
                return [self._gathered(bands, (height, width), for_crf=for_crf)]
            except NotFiniteError as error:
                return [error]
        probs = self._predict(members, pixels)  # (N, C, H, W)
        found: list[RawPrediction | NotFiniteError] = []
        for of_image, is_finite in zip(probs, probs.flatten(1).sum(1).isfinite().tolist(), strict=True):
            if not is_finite:
                found.append(_not_finite("the model returns"))
                continue
            biased = self._weighted(of_image)
            if self.probs == "disk":
                found.append(self._gathered([(0, biased)], (height, width), for_crf=for_crf))
            elif for_crf:
                found.append(RawPrediction(biased))
            else:
                found.append(RawPrediction(None if self.probs == "none" else biased, _labels(biased)))
        return found

    def refine(self, raw: RawPrediction, image: np.ndarray, crf: Refine | None = None) -> "Future[Tensor]":
        """Refine the probabilities by a CRF, in its workers if it has some: the second step.

        Args:
            raw: The result of `run_models`.
            image: (H, W, 3) uint8 RGB.
            crf: By default the Predictor's own.
        """
        crf = self.crf if crf is None else crf
        submit = getattr(crf, "submit", None) or (lambda probs, image: finished(crf(probs, image)))
        try:
            return submit(raw.probs, image)
        except torch.cuda.OutOfMemoryError:
            size = " x ".join(map(str, image.shape[:2]))
            _log.warning("the GPU lacks the memory for the CRF of an image of %s pixels; it runs on the CPU", size)
        return submit(raw.probs.cpu(), image)

    @torch.no_grad()
    def finish(self, raw: RawPrediction, image: np.ndarray) -> Prediction:
        """Take the most likely class of each pixel, and copy what is kept to the host: the last step."""
        probs = None if raw.probs is None else torch.as_tensor(raw.probs)  # a CRF may return an array
        if raw.mask is None:
            _check_finite(probs, "the CRF returns")
        mask = _labels(probs) if raw.mask is None else raw.mask
        kept = None
        if self.probs != "none":
            kept = probs.cpu().numpy() if raw.array is None else raw.array
        labels = mask.cpu().numpy()
        labels = labels if labels.dtype == np.uint8 else labels.astype(np.uint16)
        return Prediction(labels, kept, self.class_names, image)

    def members_for(self, height: int, width: int) -> list[Member]:
        """Return the models, with how each of them resizes an image of this size, and windows of it."""
        sizes = [FULL_SIZE if self.full_size else training_scale_of(m).of(height, width) for m in self.members]
        members = zip(self.members, self.member_weights, sizes, strict=True)
        return [Member(model, partial(_normalised, model), weight, resizing) for model, weight, resizing in members]

    def window_for(self, member: Member, height: int, width: int) -> SlidingWindow | None:
        """Return a member's window for an image of this size, in pixels of the image; None if the image fits into it.

        It does not depend on the other members, so that `segkit tune` can run each of them once.
        """
        window = getattr(member.model, "window", None) if self.window is None else self.window or None
        if window is None:
            return None
        resizing = member.resizing
        return window.of(height, width, factors=(resizing.height, resizing.width), reduce=resizing.reduce)

    def _bands(self, members: Sequence[Member], pixels: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield what members predict for an image (3, H, W) in bands of rows: (first row, (C, rows, W))."""
        groups: dict[SlidingWindow | None, list[Member]] = {}
        for member in members:
            groups.setdefault(self.window_for(member, *pixels.shape[1:]), []).append(member)
        if len(groups) > 1 and not MERGES[self.tta.merge].averages:
            # Such a merge compares the members within a window: all get the smallest one, which limits the memory.
            smallest = min(filter(None, groups), key=lambda window: window.size[0] * window.size[1])
            reduce = max(member.resizing.reduce for member in members)
            size = tuple(math.ceil(side / reduce) * reduce for side in smallest.size)
            groups = {replace(smallest, size=size): list(members)}
        streams = [self._in_windows(window, group, pixels) for window, group in groups.items()]
        shares = [sum(member.weight for member in group) for group in groups.values()]
        return streams[0] if len(streams) == 1 else _weighted_sum(streams, shares)

    def _in_windows(
        self, window: SlidingWindow | None, members: Sequence[Member], pixels: Tensor
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield what members predict for an image (3, H, W) in bands; without a window, one band is the whole image."""
        if window is None:
            yield 0, self._predict(members, pixels[None])[0]
        else:
            yield from window.bands(partial(self._predict, members), pixels)

    def _predict(self, members: Sequence[Member], pixels: Tensor) -> Tensor:
        """Return the probabilities (N, C, H, W) of uint8 images (N, 3, H, W), on the device."""
        return self.tta.ensemble(members, pixels.to(self.device).float())

    def _biased(self, probs: Tensor) -> Tensor:
        """Return the result of `_weighted`, if it is finite."""
        _check_finite(probs, "the model returns")
        return self._weighted(probs)

    def _weighted(self, probs: Tensor) -> Tensor:
        """Multiply the probabilities (C, H, W) of each class by its factor."""
        if self.class_factors is None:
            return probs
        weighted = probs * self.class_factors[:, None, None]
        return weighted / weighted.sum(0)

    def _gathered(self, bands: Iterable[tuple[int, Tensor]], size: tuple[int, int], *, for_crf: bool) -> RawPrediction:
        """Join bands of rows (C, rows, W)."""
        dtype = _label_dtype(len(self.class_names))
        mask = None if for_crf else torch.empty(size, dtype=dtype, device=self.device)
        probs = array = None
        for top, band in bands:
            rows = slice(top, top + band.shape[1])
            if mask is not None:
                mask[rows] = _labels(band)
            if not for_crf and self.probs == "none":
                continue
            if probs is None:
                probs, array = self._allocate((len(band), *size), for_crf)
            probs[:, rows] = band
        return RawPrediction(probs, mask, array)

    def _allocate(self, shape: tuple[int, ...], for_crf: bool) -> tuple[Tensor, np.memmap | None]:
        if self.probs == "disk":
            with tempfile.TemporaryFile() as file:  # its space is freed with the array
                size = int(np.prod(shape, dtype=np.int64)) * np.dtype(np.float32).itemsize
                reserve(file, size, tempfile.gettempdir(), "the probabilities of an image")
                array = np.memmap(file, dtype=np.float32, mode="w+", shape=shape)
            return torch.from_numpy(array), array
        try:
            return torch.empty(shape, device=self.device if for_crf else "cpu"), None
        except torch.cuda.OutOfMemoryError:
            return torch.empty(shape), None


def predict_photo(model: nn.Module, photo: Photo, **options: object) -> Prediction:
    """Segment a photograph on the device of the model, whose mode (train or eval) does not change.

    Args:
        model: A Segmenter or an OnnxModel.
        photo: A file, an array (H, W, 3) uint8 RGB or a PIL image. EXIF orientations are applied.
        **options: Arguments of `Predictor`, such as `tta` or `crf`.

    Raises:
        UsageError: `photo` is something else.
        DataError: The file does not exist or is not an image.
        NotFiniteError: The model returns NaN for this image.
    """
    image = read_photo(photo)
    if image is photo:
        image = photo.copy()  # the overlay is drawn on it later
    if "device" in options:
        raise UsageError("a model predicts on its own device; move it by `model.to`, instead of giving `device`")
    modes = [(module, module.training) for module in model.modules()]
    try:
        place = next(chain(model.parameters(), model.buffers())).device
        return Predictor(model, device=place, **options)(image)
    finally:
        for module, mode in modes:
            module.training = mode


def read_photo(photo: Photo) -> np.ndarray:
    """Return a file or a PIL image as (H, W, 3) uint8 RGB, rotated by its EXIF orientation; an array unchanged.

    Raises:
        UsageError: `photo` is something else.
        DataError: The file does not exist or is not an image.
    """
    if isinstance(photo, np.ndarray):
        return photo
    if isinstance(photo, str | os.PathLike):
        return read_image(photo)
    if not isinstance(photo, Image.Image):
        raise UsageError(
            f"a photograph must be a path, an array (H, W, 3) uint8 RGB or a PIL image, got {type(photo).__name__}"
        )
    try:
        bits = bits_of(photo)
        _load(photo)
        return np.array(to_rgb(ImageOps.exif_transpose(photo), bits))
    except (OSError, ValueError, AssertionError) as error:  # the last two: a closed image
        raise as_segkit_error(error) or DataError(f"the image is damaged or closed: {error}") from error


def _load(photo: Image.Image) -> None:
    """Decode the pixels of an image; a TIFF is also rotated by its EXIF orientation."""
    try:
        photo.load()
    except AttributeError as error:  # some versions of Pillow (11.0) read from the file of a closed image, None
        raise ValueError("its file is closed") from error


def _normalised(model: nn.Module, images: Tensor) -> Tensor:
    """Normalise images (N, 3, H, W) in 0..255, in the type of the weights."""
    weight = next(model.parameters(), images)
    return model.preprocessing.normalise(images).to(weight.dtype)


def _check_models(models: Sequence[nn.Module]) -> None:
    """Raise UsageError unless the models can predict photographs together."""
    if not models:
        raise UsageError("Predictor needs at least one model")
    for model in models:
        if not isinstance(model, nn.Module):
            raise UsageError(f"Predictor takes models, got {model!r}; read a file by `segkit.load_model`")
        if missing := [name for name in ("class_names", "preprocessing") if not hasattr(model, name)]:
            raise UsageError(
                f"a {type(model).__name__} has no {' and no '.join(missing)}; give a model of segkit, or set "
                "`class_names` and `preprocessing` (a `segkit.models.preprocessing.Preprocessing`)"
            )
        channels = len(model.preprocessing.mean)
        if channels != 3:
            raise UsageError(f"the model takes images of {channels} channels, but photographs have 3")
        if label_names(model.class_names) != label_names(models[0].class_names):
            raise UsageError(f"the models differ in their classes: {models[0].class_names} and {model.class_names}")


def _shares(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """Return the weights of `count` models, scaled to sum to 1."""
    try:
        values = [float(weight) for weight in (() if weights is None else weights)] or [1.0] * count
    except (TypeError, ValueError):
        values = []
    if len(values) != count or not min(values) >= 0 or not 0 < sum(values) < math.inf:
        raise UsageError(f"`member_weights` must be {count} numbers of at least 0, not all 0, got {weights}")
    return tuple(value / sum(values) for value in values)


def _weighted_sum(
    streams: Sequence[Iterator[tuple[int, Tensor]]], weights: Sequence[float]
) -> Iterator[tuple[int, Tensor]]:
    """Yield the weighted sum of several predictions of an image, whose bands of rows end at different rows."""
    top, bands = 0, [next(stream)[1] for stream in streams]
    while True:
        rows = min(band.shape[1] for band in bands)
        yield top, sum(band[:, :rows] * weight for band, weight in zip(bands, weights, strict=True))
        top += rows
        for number, stream in enumerate(streams):
            bands[number] = bands[number][:, rows:]
            if not bands[number].shape[1]:
                following = next(stream, None)
                if following is None:  # all streams end at the last row of the image
                    return
                bands[number] = following[1]


def _check_finite(probs: Tensor, who: str) -> None:
    """Raise NotFiniteError if a probability is NaN, which `argmax` would take for the largest one."""
    if not probs.sum().isfinite():
        raise _not_finite(who)


def _not_finite(who: str) -> NotFiniteError:
    return NotFiniteError(
        f"{who} values that are not finite (NaN or infinite) for this image; were the weights damaged, or is the "
        "precision too low for them?"
    )


def _labels(probs: Tensor) -> Tensor:
    """Return the most likely class of each pixel, (C, H, W) -> (H, W)."""
    # torch's argmax takes four times as long on a CPU. On ties, both return the first class.
    return probs.max(0).indices.to(_label_dtype(len(probs)))


def _label_dtype(num_classes: int) -> torch.dtype:
    """Return the dtype of labels on the device: int32 instead of uint16, with which torch computes little."""
    return torch.uint8 if num_classes <= IGNORE_INDEX else torch.int32


def finished(result: Tensor | None) -> "Future[Tensor | None]":
    """Return a future that has its result already."""
    future: Future[Tensor | None] = Future()
    future.set_result(result)
    return future


def _factors(bias: Mapping[str, float], class_names: Sequence[str], device: torch.device) -> Tensor | None:
    """Return the factor (C,) of each class's probability, e to the power of its bias; None without a bias."""
    if not isinstance(bias, Mapping):
        raise UsageError(f"`class_bias` must be a mapping from classes to numbers, got {bias!r}")
    for name in bias:
        if name not in class_names:
            raise UsageError(f"there is no class {name!r} for `class_bias`, the classes are {', '.join(class_names)}")
    try:
        values = torch.tensor([float(bias.get(name, 0.0)) for name in class_names])
    except (TypeError, ValueError):
        values = torch.full((1,), torch.nan)
    if not values.abs().max() <= LARGEST_BIAS:
        raise UsageError(f"`class_bias` must be numbers in -{LARGEST_BIAS} .. {LARGEST_BIAS}, got {dict(bias)}")
    return values.exp().to(device) if values.any() else None
