import threading
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch

from segkit.data import DataError
from segkit.inference import Clock, Predictor, SourceImage, segment
from segkit.inference.stream import ahead
from segkit.models.preprocessing import Preprocessing


class ByColour(torch.nn.Module):
    class_names = ("background", "b", "c")
    preprocessing = Preprocessing()

    def forward(self, images):
        return images * 3


class Image(SourceImage):
    """An image that counts how many of its kind were read and not yet let go."""

    alive = 0

    def read(self):
        Image.alive += 1
        if "bad" in self.name.name:
            raise DataError(f"{self.name} is damaged")
        random = np.random.default_rng(int(self.name.stem))
        return random.integers(0, 256, (5, 7, 3), dtype=np.uint8)


class Refine:
    """A CRF that turns the classes round, by futures that are finished when they are waited for."""

    def __init__(self, workers):
        self.workers = workers
        self.open = self.most = 0

    def __call__(self, probs, image):
        return probs[::-1].copy()

    def submit(self, probs, image):
        self.open += 1
        self.most = max(self.most, self.open)
        outer = self

        class Lazy(Future):
            def result(self, timeout=None):
                outer.open -= 1
                return probs[::-1].copy()

        return Lazy()


def images(count, bad=()):
    return [Image(Path(f"bad{i}.png" if i in bad else f"{i}.png")) for i in range(count)]


@pytest.mark.parametrize("workers", [None, 0, 2])
def test_predictions_come_in_order_and_equal_those_one_by_one(workers):
    crf = None if workers is None else Refine(workers)
    predictor = Predictor(ByColour(), crf=crf)
    found = list(segment(images(21), predictor))
    assert [one.source.name.stem for one in found] == [str(i) for i in range(21)]
    for one in found:
        alone = predictor(one.source.read())
        assert np.array_equal(one.prediction.mask, alone.mask)
        np.testing.assert_allclose(one.prediction.probs, alone.probs, atol=1e-6)


@pytest.mark.parametrize("workers", [None, 0, 2])
def test_an_image_that_cannot_be_read_carries_its_error_and_the_others_go_on(workers):
    crf = None if workers is None else Refine(workers)
    found = list(segment(images(9, bad=(0, 4, 8)), Predictor(ByColour(), crf=crf)))
    assert [one.error is not None for one in found] == [i in (0, 4, 8) for i in range(9)]
    assert "bad4.png is damaged" in str(found[4].error)
    assert found[4].prediction is None


def test_an_image_too_large_for_the_crf_fails_before_the_models_and_the_others_go_on(monkeypatch):
    crf = Refine(0)
    crf.max_pixels = 35  # as those of Image
    monkeypatch.setattr(Image, "read", lambda self: np.zeros((5 + (self.name.stem == "1"), 7, 3), np.uint8))
    found = list(segment(images(3), Predictor(ByColour(), crf=crf)))
    assert [one.error is None for one in found] == [True, False, True]
    assert "1.png has 6 x 7 pixels" in str(found[1].error)
    assert found[1].prediction is None


def test_few_images_are_in_memory_however_many_there_are():
    Image.alive = 0
    most = 0
    crf = Refine(2)
    for number, _ in enumerate(segment(images(60), Predictor(ByColour(), crf=crf)), start=1):
        most = max(most, Image.alive - number)
    assert most < 20
    assert crf.most == 8


def test_reading_happens_while_the_caller_works():
    started = threading.Event()

    class Second(Image):
        def read(self):
            started.set()
            return super().read()

    stream = segment([Image(Path("0.png")), Second(Path("1.png"))], Predictor(ByColour()))
    next(stream)
    assert started.wait(timeout=10)


def test_the_clock_knows_what_took_longest():
    clock = Clock()
    assert clock.bottleneck() == ""
    clock.seconds.update({"models": 3.0, "reading": 1.0})
    assert clock.bottleneck() == "models"
    assert clock.shares() == "models 75 %, reading 25 %"
    list(segment(images(2), Predictor(ByColour(), crf=Refine(0)), clock))
    assert set(clock.seconds) == {"models", "reading", "CRF"}


def test_an_error_in_a_thread_reaches_the_caller():
    failed: Future = Future()
    failed.set_exception(OSError("no space left"))
    with pytest.raises(OSError, match="no space left"):
        list(ahead([(0, failed)], 4, Clock(), "writing"))
