"""segment: images in, predictions out; reading, models and CRF work at the same time."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from segkit.data import SegmentationDataset
from segkit.data.dataset import checked_target
from segkit.errors import DataError, NotFiniteError, SegkitError, UnreadableFileError
from segkit.inference.batch_size import BatchSize
from segkit.inference.prediction import Prediction
from segkit.inference.predictor import Predictor, RawPrediction, finished
from segkit.inference.source import SourceImage

LOT_PIXELS = 8 * 2**20  # pixels of the images that wait for the CRF at once


class Segmented(NamedTuple):
    """An image with its prediction, or with the reason why it has none.

    The image cannot be read, it is too large for the CRF, or the models return NaN for it.

    Attributes:
        source: The image of the source.
        image: (H, W, 3) uint8 RGB, or None if it cannot be read.
        prediction: The prediction, or None.
        error: The reason, or None.
    """

    source: SourceImage
    image: np.ndarray | None
    prediction: Prediction | None
    error: SegkitError | None = None


# An image and what the models predict for it, before the CRF and the label map; None if there is nothing to predict.
_Predicted = tuple[Segmented, RawPrediction | None]


class Labelled(NamedTuple):
    """An image of a data set.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        target: (H, W) uint8 true labels; pixels with 255 are ignored.
        prediction: The prediction.
    """

    image: np.ndarray
    target: np.ndarray
    prediction: Prediction


class Clock:
    """Measure how long a loop works at each stage, or waits for it, in seconds."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - started

    def bottleneck(self) -> str:
        """Return the stage that took longest."""
        return self.seconds.most_common(1)[0][0] if self.seconds else ""

    def shares(self) -> str:
        """Return text such as `models 71 %, CRF 25 %`, the longest stage first."""
        total = sum(self.seconds.values()) or 1.0
        return ", ".join(f"{stage} {100 * s / total:.0f} %" for stage, s in self.seconds.most_common())


def segment(
    images: Iterable[SourceImage],
    predictor: Predictor,
    clock: Clock | None = None,
    batch_size: BatchSize | None = None,
    *,
    threads: int = 2,
) -> Iterator[Segmented]:
    """Segment images in their order; only a few of them are in memory at a time.

    Threads read files ahead. Neighbours of one size run as one batch. A CRF on a GPU refines the probabilities there,
    without a copy. A CRF with workers refines images while the models run on the next ones on a GPU; on a CPU, where
    both need all cores, models and CRF take turns over a lot of images.

    Args:
        images: See `open_source`.
        predictor: Models, test-time augmentation and CRF.
        clock: Measures the time of reading, models and CRF.
        batch_size: How many images run at once; by default one.
        threads: Number of threads that read files.
    """
    clock = clock or Clock()
    predicted = _run_models(images, predictor, clock, batch_size or BatchSize(predictor, 1), threads)
    if predictor.crf is None:
        return (_finish(one, raw, predictor, clock, "models") for one, raw in predicted)
    return _refine(predicted, predictor, clock)


def segment_dataset(
    data: SegmentationDataset,
    predictor: Predictor,
    clock: Clock | None = None,
    batch_size: BatchSize | None = None,
    *,
    threads: int = 2,
) -> Iterator[Labelled]:
    """Segment every image of a data set, in its order, see `segment`.

    Args:
        data: Images with labels.
        predictor: Models, test-time augmentation and CRF.
        clock: Measures the time of reading, models and CRF.

    Raises:
        DataError: An image cannot be read, or is too large for the CRF; none is skipped. Or the labels of an image have
            another size, or are not classes.
        NotFiniteError: The models return NaN for an image.
    """
    images = (SourceImage(Path(data.name(i)), partial(data.image, i)) for i in range(len(data)))
    for index, one in enumerate(segment(images, predictor, clock, batch_size, threads=threads)):
        if one.error is not None:
            raise one.error
        yield Labelled(one.image, checked_target(data, index, one.image.shape[:2]), one.prediction)


def ahead(
    pairs: Iterable[tuple[object, Future]], count: int | Callable[[], int], clock: Clock, stage: str
) -> Iterator[tuple]:
    """Yield pairs with the results of their futures, in order, while up to `count` later ones are under way."""
    waiting: deque[tuple[object, Future]] = deque()

    def first() -> tuple:
        item, future = waiting.popleft()
        with clock(stage):
            return item, future.result()

    for pair in pairs:
        waiting.append(pair)
        while len(waiting) > (count() if callable(count) else count):
            yield first()
    while waiting:
        yield first()


def _run_models(
    images: Iterable[SourceImage], predictor: Predictor, clock: Clock, batch_size: BatchSize, threads: int
) -> Iterator[_Predicted]:
    """Read images ahead, and run the models on each that can be read and is not too large for the CRF."""

    def read(source: SourceImage) -> np.ndarray | SegkitError:
        try:
            return source.read()
        except (DataError, UnreadableFileError) as error:
            return error

    def checked() -> Iterator[Segmented]:
        for source, image in ahead(reading, lambda: 2 * threads + batch_size.largest, clock, "reading"):
            if isinstance(image, SegkitError):
                yield Segmented(source, None, None, image)
                continue
            try:
                predictor.check_image(image)
                yield Segmented(source, image, None)
            except DataError as error:
                yield Segmented(source, None, None, _named(error, source))

    with ThreadPoolExecutor(threads) as pool:
        reading = ((source, pool.submit(read, source)) for source in images)
        for lot in _of_a_batch(checked(), batch_size):
            yield from _predict_lot(lot, predictor, clock, batch_size)


def _predict_lot(
    lot: list[Segmented], predictor: Predictor, clock: Clock, batch_size: BatchSize
) -> Iterator[_Predicted]:
    """Run the models on images of a few sizes, a batch for each size; yield the images in their order."""
    by_size: dict[tuple[int, ...], list[int]] = {}
    for i, one in enumerate(lot):
        if one.error is None:
            by_size.setdefault(one.image.shape, []).append(i)
    found: dict[int, RawPrediction | NotFiniteError] = {}
    for chosen in by_size.values():
        with clock("models"):
            found.update(zip(chosen, batch_size.run([lot[i].image for i in chosen]), strict=True))
            if predictor.crf is not None and predictor.device.type == "cuda":
                torch.cuda.synchronize(predictor.device)  # or the clock would count the models as the CRF
    for i, one in enumerate(lot):
        result = found.pop(i, None)  # its memory is free as soon as the caller is done with it
        if isinstance(result, NotFiniteError):
            yield Segmented(one.source, None, None, _named(result, one.source)), None
        else:
            yield one, result


def _of_a_batch(images: Iterable[Segmented], batch_size: BatchSize) -> Iterator[list[Segmented]]:
    """Yield successive images that fill a batch together; if two sizes alternate, each gets half of the batch."""
    lot: list[Segmented] = []
    room, share = 1.0, 1.0  # an image that has an error takes the room of the one before it
    try:
        for one in images:
            if one.error is None:
                share = 1 / batch_size.of(*one.image.shape[:2])
            if lot and share > room + 1e-6:
                yield lot
                lot, room = [], 1.0
            lot.append(one)
            room -= share
            if room < 1e-6 or lot[0].error is not None:
                yield lot
                lot, room = [], 1.0
    except Exception:  # of the machine, which ends the stream; the images before it are predicted
        if lot:
            yield lot
        raise
    if lot:
        yield lot


def _refine(predicted: Iterable[_Predicted], predictor: Predictor, clock: Clock) -> Iterator[Segmented]:
    """Refine by the CRF: ahead in its workers; or, if both use the same CPU, models and CRF take turns by lots."""

    def submitted(some: Iterable[_Predicted]) -> Iterator[tuple[Segmented, Future]]:
        for one, raw in some:
            if raw is None:
                yield one, finished(None)
                continue
            with clock("CRF"):
                future = predictor.refine(raw, one.image)
            yield one, future

    workers = predictor.crf_workers
    if workers and predictor.device.type == "cpu":
        lots = _lots(predicted, 4 * workers)
        refined = (pair for lot in lots for pair in ahead(iter(list(submitted(lot))), 0, clock, "CRF"))
    else:
        refined = ahead(submitted(predicted), 2 * workers, clock, "CRF")
    for one, probs in refined:
        yield _finish(one, None if probs is None else RawPrediction(probs), predictor, clock, "CRF")


def _finish(one: Segmented, raw: RawPrediction | None, predictor: Predictor, clock: Clock, stage: str) -> Segmented:
    if raw is None:
        return one
    try:
        with clock(stage):
            return one._replace(prediction=predictor.finish(raw, one.image))
    except NotFiniteError as error:  # raised by the CRF
        return Segmented(one.source, None, None, _named(error, one.source))


def _named(error: SegkitError, source: SourceImage) -> SegkitError:
    """Return the error with the name of its image."""
    return type(error)(f"{source.name}: {error}")


def _lots(predicted: Iterable[_Predicted], count: int) -> Iterator[list[_Predicted]]:
    """Yield up to `count` images, or `LOT_PIXELS` pixels, at a time."""
    lot: list[_Predicted] = []
    pixels = 0
    for one, raw in predicted:
        lot.append((one, raw))
        pixels += 0 if one.image is None else one.image[..., 0].size
        if len(lot) == count or pixels >= LOT_PIXELS:
            yield lot
            lot, pixels = [], 0
    if lot:
        yield lot
