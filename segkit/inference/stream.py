"""segment: images in, predictions out; reading, models and CRF work at the same time."""

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from segkit.data import SegmentationDataset
from segkit.errors import DataError
from segkit.inference.prediction import Prediction
from segkit.inference.predictor import Predictor, Scores
from segkit.inference.source import SourceImage

READERS = 2  # threads
LOT_PIXELS = 8 * 2**20  # of the images that wait for the CRF at once


class Segmented(NamedTuple):
    """An image with its prediction, or with the reason why it has none: it cannot be read, or is too large for the CRF.

    Attributes:
        source: The image as it was given.
        image: (H, W, 3) uint8 RGB, or None if it cannot be read.
        prediction: The prediction, or None.
        error: The reason, or None.
    """

    source: SourceImage
    image: np.ndarray | None
    prediction: Prediction | None
    error: DataError | None = None


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
    """Measures how long a loop works at each stage, or waits for it, in seconds."""

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


def segment(images: Iterable[SourceImage], predictor: Predictor, clock: Clock | None = None) -> Iterator[Segmented]:
    """Segment images in their order; only a few of them are in memory at a time.

    Threads read files ahead. A CRF on a GPU refines each image where the models left it. A CRF with workers refines
    images while the models run on the next ones on a GPU; on a CPU, where both need all cores, models and CRF take
    turns over a lot of images.

    Args:
        images: See `open_source`.
        predictor: Models, test-time augmentation and CRF.
        clock: Takes the time of reading, models and CRF.
    """
    clock = clock or Clock()
    scored = (_score(source, image, predictor, clock) for source, image in _read_ahead(images, clock))
    if predictor.crf is None:
        return (_finish(one, scores, predictor, clock, "models") for one, scores in scored)
    return _refine(scored, predictor, clock)


def segment_dataset(data: SegmentationDataset, predictor: Predictor, clock: Clock | None = None) -> Iterator[Labelled]:
    """Segment every image of a data set, in its order; only a few of them are in memory at a time.

    Raises:
        DataError: An image cannot be read, or is too large for the CRF; none is skipped.
    """
    images = (SourceImage(Path(data.name(i)), partial(data.image, i)) for i in range(len(data)))
    for index, one in enumerate(segment(images, predictor, clock)):
        if one.error is not None:
            raise one.error
        yield Labelled(one.image, data.target(index), one.prediction)


def ahead(pairs: Iterable[tuple[object, Future]], count: int, clock: Clock, stage: str) -> Iterator[tuple]:
    """Yield pairs with the results of their futures, in order, while up to `count` later ones are under way."""
    waiting: deque[tuple[object, Future]] = deque()

    def first() -> tuple:
        given, future = waiting.popleft()
        with clock(stage):
            return given, future.result()

    for pair in pairs:
        waiting.append(pair)
        if len(waiting) > count:
            yield first()
    while waiting:
        yield first()


def _read_ahead(images: Iterable[SourceImage], clock: Clock) -> Iterator[tuple[SourceImage, np.ndarray | DataError]]:
    def read(source: SourceImage) -> np.ndarray | DataError:
        try:
            return source.read()
        except DataError as error:
            return error

    with ThreadPoolExecutor(READERS) as pool:
        yield from ahead(((source, pool.submit(read, source)) for source in images), 2 * READERS, clock, "reading")


def _score(
    source: SourceImage, image: np.ndarray | DataError, predictor: Predictor, clock: Clock
) -> tuple[Segmented, Scores | None]:
    """Run the models on an image, unless it cannot be read or is too large for the CRF."""
    if isinstance(image, DataError):
        return Segmented(source, None, None, image), None
    try:
        with clock("models"):
            scores = predictor.score(image)
            if predictor.crf is not None and predictor.device.type == "cuda":
                torch.cuda.synchronize(predictor.device)  # or the clock would count the models as the CRF
    except DataError as error:
        return Segmented(source, None, None, DataError(f"{source.name}: {error}")), None
    return Segmented(source, image, None), scores


def _refine(
    scored: Iterable[tuple[Segmented, Scores | None]], predictor: Predictor, clock: Clock
) -> Iterator[Segmented]:
    def submitted(some: Iterable[tuple[Segmented, Scores | None]]) -> Iterator[tuple[Segmented, Future]]:
        for one, scores in some:
            yield one, _submit(one, scores, predictor, clock)

    workers = predictor.crf_workers
    lots = _lots(scored, 4 * workers) if workers and predictor.device.type == "cpu" else None
    if lots is None:
        refined = ahead(submitted(scored), 2 * workers, clock, "CRF")
    else:
        refined = (pair for lot in lots for pair in ahead(iter(list(submitted(lot))), 0, clock, "CRF"))
    for one, probs in refined:
        yield _finish(one, None if probs is None else Scores(probs), predictor, clock, "CRF")


def _submit(one: Segmented, scores: Scores | None, predictor: Predictor, clock: Clock) -> Future:
    if scores is None:
        nothing: Future = Future()
        nothing.set_result(None)
        return nothing
    with clock("CRF"):
        return predictor.refine(scores, one.image)


def _finish(one: Segmented, scores: Scores | None, predictor: Predictor, clock: Clock, stage: str) -> Segmented:
    if scores is None:
        return one
    with clock(stage):
        return one._replace(prediction=predictor.finish(scores, one.image))


def _lots(
    scored: Iterable[tuple[Segmented, Scores | None]], count: int
) -> Iterator[list[tuple[Segmented, Scores | None]]]:
    """Yield up to `count` images, or `LOT_PIXELS` pixels, at a time."""
    lot: list[tuple[Segmented, Scores | None]] = []
    pixels = 0
    for one, scores in scored:
        lot.append((one, scores))
        pixels += 0 if one.image is None else one.image[..., 0].size
        if len(lot) == count or pixels >= LOT_PIXELS:
            yield lot
            lot, pixels = [], 0
    if lot:
        yield lot
