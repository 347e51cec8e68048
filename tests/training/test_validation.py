"""Validation of large images in windows, and what happens if memory runs out."""

import numpy as np
import pytest
import torch
from helpers.tiny_training import CPU, Drawn, build_state, loaders
from torch import nn

from segkit.config import TrainConfig
from segkit.data import val_loader
from segkit.errors import MachineError, UsageError
from segkit.inference import Predictor
from segkit.losses import create_loss
from segkit.metrics import ConfusionMatrix
from segkit.models import Preprocessing
from segkit.sliding_window import SlidingWindow
from segkit.training import Trainer, TrainOptions, autocast, load_state, read_checkpoint, save_state, validate
from segkit.training.validation import AUTO_WINDOW, validation_window
from segkit.training_scale import TrainingScale

WINDOW = SlidingWindow(16)


class ByColour(nn.Module):
    """Logits (N, 3, H, W) that depend on nothing but the colour of their pixel; notes the sizes of its inputs."""

    class_names = ("background", "square", "disc")
    num_classes = 3
    preprocessing = Preprocessing()
    training_scale = TrainingScale()

    def __init__(self):
        super().__init__()
        self.sizes = set()

    def forward(self, images):
        self.sizes.add(tuple(images.shape[2:]))
        return images * torch.tensor([1.0, 2.0, -1.0])[:, None, None]


def validated(model, *, loss=None, **options):
    loss = create_loss(loss or {"ce": 1.0})
    return validate(model, val_loader(WithBorder(3)), loss, device=CPU, autocast=autocast(CPU, "off"), **options)


class WithBorder(Drawn):
    """Images whose upper rows are not labelled, so that bands of rows differ in their number of valid pixels."""

    def mask(self, index):
        mask = super().mask(index).copy()
        mask[: 5 + 3 * index] = 255
        return mask


def test_windows_change_nothing_for_a_model_without_context():
    model = ByColour()
    whole, found = validated(model), validated(model, window=WINDOW)
    assert model.sizes == {(32, 40), (16, 16)}
    assert found.loss == pytest.approx(whole.loss, rel=1e-5)
    assert np.array_equal(found.scores.iou, whole.scores.iou)


@pytest.mark.parametrize(
    "scale", [TrainingScale(), TrainingScale(decode_at_least=16), TrainingScale(factor=(1.5, 2.0))]
)
def test_the_scores_are_those_of_a_predictor_with_this_window(scale):
    model, data = build_state().model.eval(), WithBorder(3)
    model.training_scale = scale
    predictor, confusion = Predictor(model, window=WINDOW), ConfusionMatrix(3, class_names=model.class_names)
    for index in range(len(data)):
        confusion.update(predictor(data.image(index)).mask, data.target(index))
    found = validated(model, window=WINDOW, loss={"ce": 0.5, "dice": 0.5})
    assert np.array_equal(found.scores.iou, confusion.compute().iou)
    assert np.isfinite(found.loss)


@pytest.mark.parametrize(("above", "size"), [(32 * 40, (32, 40)), (32 * 40 - 1, (16, 16))])
def test_images_that_are_no_larger_than_above_stay_whole(above, size):
    model = ByColour()
    validated(model, window=SlidingWindow(16, above=above))
    assert model.sizes == {size}


def test_the_setting_is_a_side_or_none_or_only_for_large_images():
    assert validation_window(512) == SlidingWindow(512)
    assert validation_window(0) is None
    assert validation_window("auto") == AUTO_WINDOW
    assert AUTO_WINDOW.of(3000, 4000) is None
    assert AUTO_WINDOW.of(6000, 4000).size == (1024, 1024)
    assert AUTO_WINDOW.of(6000, 4000, factors=(0.5, 0.5)) is None  # the model sees 6 megapixels
    with pytest.raises(UsageError, match="`val_window` must be 0 or more, or auto"):
        TrainConfig(val_window=-1)


def trainer_with_memory_for(pixels, tmp_path, monkeypatch, window):
    state = build_state(ema=0)
    forward = type(state.model).forward

    def limited(self, images, **options):
        if images[0, 0].numel() > pixels:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return forward(self, images, **options)

    monkeypatch.setattr(type(state.model), "forward", limited)
    options = TrainOptions(epochs=1, val_window=window)
    loss = create_loss({"ce": 1.0})
    return Trainer(state, loss, tmp_path, options, device=CPU, autocast=autocast(CPU, "off"))


def test_the_automatic_window_is_used_once_memory_has_run_out(tmp_path, monkeypatch, caplog):
    trainer = trainer_with_memory_for(16 * 16, tmp_path, monkeypatch, SlidingWindow(16, above=10**6))
    found = trainer.validate(loaders()[1])["raw"]
    assert found.scores.support.sum() == 2 * 32 * 40
    assert trainer.val_window == trainer.state.model.window == WINDOW
    assert "predicted in windows of 16 pixels; `val_window=16` does so from the start" in caplog.text
    assert (tmp_path / "last.pt").is_file()  # the training of the epoch is not lost if the second attempt fails


def test_if_memory_runs_out_only_for_the_average_both_are_validated_in_windows(tmp_path, monkeypatch):
    state = build_state()
    average, forward = state.ema.module, type(state.model).forward

    def limited(self, images, **options):
        if self is average and images[0, 0].numel() > 16 * 16:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return forward(self, images, **options)

    monkeypatch.setattr(type(state.model), "forward", limited)
    options = TrainOptions(epochs=1, val_window=SlidingWindow(16, above=10**6))
    trainer = Trainer(state, create_loss({"ce": 1.0}), tmp_path, options, device=CPU, autocast=autocast(CPU, "off"))
    found = trainer.validate(loaders()[1])
    for name, model in (("raw", state.model), ("ema", average)):
        assert model.window == WINDOW
        predictor, confusion, data = Predictor(model), ConfusionMatrix(3), loaders()[1].dataset.data
        for index in range(len(data)):
            confusion.update(predictor(data.image(index)).mask, data.target(index))
        assert found[name].scores.miou == confusion.compute().miou


@pytest.mark.parametrize(("val_window", "expected"), [(SlidingWindow(16, above=10**6), WINDOW), (None, None)])
def test_a_resumed_run_stays_in_windows_unless_the_setting_changes(tmp_path, val_window, expected):
    state = build_state()
    state.model.window = WINDOW
    save_state(state, tmp_path)
    resumed = build_state()
    load_state(resumed, read_checkpoint(tmp_path)[0])
    assert resumed.model.window == resumed.ema.module.window == WINDOW
    options = TrainOptions(epochs=1, val_window=val_window)
    trainer = Trainer(resumed, create_loss({"ce": 1.0}), tmp_path, options, device=CPU, autocast=autocast(CPU, "off"))
    trainer.validate(loaders()[1])
    assert trainer.val_window == resumed.model.window == expected


@pytest.mark.parametrize("window", [None, SlidingWindow(20), SlidingWindow(20, above=10**6)])
def test_memory_that_runs_out_again_names_what_helps_in_a_validation(tmp_path, monkeypatch, window):
    trainer = trainer_with_memory_for(16 * 16, tmp_path, monkeypatch, window)
    with pytest.raises(MachineError, match=r"while the validation images were predicted.*; try `val_window=512`"):
        trainer.validate(loaders()[1])


def test_a_checkpoint_that_finds_no_memory_is_not_saved_and_stops_nothing(tmp_path, monkeypatch, caplog):
    trainer = trainer_with_memory_for(16 * 16, tmp_path, monkeypatch, SlidingWindow(16, above=10**6))

    def full(*args):
        raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 704 vs 598")  # torch's words

    monkeypatch.setattr(torch, "save", full)
    assert trainer.validate(loaders()[1])["raw"].scores.support.sum() == 2 * 32 * 40
    assert f"cannot write {tmp_path / 'last.pt'}: memory ran out; files saved before are kept" in caplog.text
