"""segment: images in, predictions out, with reading, models and CRF at work side by side."""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from segkit.errors import DataError
from segkit.inference.predictor import Prediction, Predictor, with_probs
from segkit.inference.source import SourceImage

READERS = 2
LOT_PIXELS = 8 * 2**20  # of images that wait for the CRF at once


class Segmented(NamedTuple):
    """An image with its prediction, or with the error that reading it gave; too large for the CRF is one."""

    source: SourceImage
    image: np.ndarray | None
    prediction: Prediction | None
    error: DataError | None = None


class Clock:
    """How long the loop worked at what or waited for whom, in seconds."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - started

    def bottleneck(self) -> str:
        """The stage that took longest."""
        return self.seconds.most_common(1)[0][0] if self.seconds else ""

    def shares(self) -> str:
        """`models 71 %, CRF 25 %, ...`, the longest first."""
        total = sum(self.seconds.values()) or 1.0
        return ", ".join(f"{stage} {100 * s / total:.0f} %" for stage, s in self.seconds.most_common())


def segment(images: Iterable[SourceImage], predictor: Predictor, clock: Clock | None = None) -> Iterator[Segmented]:
    """Segments images in their order; few of them are in memory at a time.

    Files are read ahead by threads. On a GPU, a CRF with workers refines images while the models are at the
    next ones; on a CPU, where both need all cores, models and CRF take turns over a lot of images.

    Args:
        images: See `open_source`.
        predictor: Models, test-time augmentation and CRF.
        clock: Takes the time of reading, models and CRF.
    """
    clock = clock or Clock()
    done = (_by_models(source, image, predictor, clock) for source, image in _read_ahead(images, clock))
    return done if predictor.crf is None else _refined(done, predictor, clock)


def _by_models(source: SourceImage, image: np.ndarray | DataError, predictor: Predictor, clock: Clock) -> Segmented:
    limit = getattr(predictor.crf, "max_pixels", math.inf)
    if isinstance(image, np.ndarray) and image[..., 0].size > limit:
        size = " x ".join(map(str, image.shape[:2]))
        image = DataError(
            f"{source.name} has {size} pixels (height x width), more than the {limit} of a CRF; leave out crf= (--crf)"
        )
    if isinstance(image, DataError):
        return Segmented(source, None, None, image)
    with clock("models"):
        return Segmented(source, image, predictor.by_models(image))


def _read_ahead(images: Iterable[SourceImage], clock: Clock) -> Iterator[tuple[SourceImage, np.ndarray | DataError]]:
    with ThreadPoolExecutor(READERS) as pool:
        yield from ahead(((source, pool.submit(_read, source)) for source in images), 2 * READERS, clock, "reading")


def _read(source: SourceImage) -> np.ndarray | DataError:
    try:
        return source.read()
    except DataError as error:
        return error


def ahead(pairs: Iterable[tuple[object, Future]], count: int, clock: Clock, stage: str) -> Iterator[tuple]:
    """Pairs with their results, in order; `count` of them are taken before the first is waited for."""
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


def _refined(segmented: Iterable[Segmented], predictor: Predictor, clock: Clock) -> Iterator[Segmented]:
    submit = getattr(predictor.crf, "submit", None) or _at_once(predictor.crf)
    workers = getattr(predictor.crf, "workers", 0)
    if not workers or predictor.device.type != "cpu":
        pairs = ((one, _submit(one, submit, clock)) for one in segmented)
        for one, probs in ahead(pairs, 2 * workers, clock, "CRF"):
            yield one if probs is None else one._replace(prediction=with_probs(probs))
        return
    for lot in _lots(segmented, 4 * workers):
        pairs = [(one, _submit(one, submit, clock)) for one in lot]
        for one, probs in ahead(pairs, 0, clock, "CRF"):
            yield one if probs is None else one._replace(prediction=with_probs(probs))


def _submit(one: Segmented, submit: Callable[..., Future], clock: Clock) -> Future:
    if one.prediction is None:
        return _finished(None)
    with clock("CRF"):
        return submit(one.prediction.probs, one.image)


def _lots(segmented: Iterable[Segmented], count: int) -> Iterator[list[Segmented]]:
    """Up to `count` images, or `LOT_PIXELS` pixels, at a time."""
    lot: list[Segmented] = []
    pixels = 0
    for one in segmented:
        lot.append(one)
        pixels += 0 if one.image is None else one.image[..., 0].size
        if len(lot) == count or pixels >= LOT_PIXELS:
            yield lot
            lot, pixels = [], 0
    if lot:
        yield lot


def _at_once(refine: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[..., Future]:
    return lambda probs, image: _finished(refine(probs, image))


def _finished(result: object) -> Future:
    future: Future = Future()
    future.set_result(result)
    return future
