"""Training on a GPU: the same results as on the CPU, exact resume, mixed precision, full memory."""

import warnings
from pathlib import Path

import pytest
import torch
from helpers.tiny_training import build_state, interrupted, loaders, outcome, run, same

from segkit.cli import train
from segkit.losses import create_loss
from segkit.training import Trainer, TrainOptions, autocast, make_deterministic, read_checkpoint

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda")


@pytest.fixture
def deterministic(monkeypatch):
    before = torch.backends.cudnn.benchmark
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    make_deterministic()
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = before


def on_gpu(out, amp="off", **options):
    out.mkdir(parents=True, exist_ok=True)
    state = build_state(amp=amp, device=GPU)
    options = {"device": GPU, "amp": amp, "state": state, **options}
    return interrupted(out, **options) if "stop_after" in options else run(out, **options)


def test_a_gpu_learns_what_the_cpu_learns(tmp_path):
    gpu, cpu = on_gpu(tmp_path / "gpu"), run(tmp_path / "cpu")
    for ours, theirs in zip(gpu.history, cpu.history, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=0.02)
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=0.05)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_a_resumed_run_on_a_gpu_equals_an_uninterrupted_one(tmp_path, amp):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*deterministic.*")
        on_gpu(tmp_path / "a", amp)
        for stop_after in (1, 7):
            assert on_gpu(tmp_path / f"b{stop_after}", amp, stop_after=stop_after)
            on_gpu(tmp_path / f"b{stop_after}", amp, resume=True)
            assert same(outcome(tmp_path / f"b{stop_after}"), outcome(tmp_path / "a"))


def test_the_scale_of_fp16_is_saved_in_the_checkpoint(tmp_path):
    state = on_gpu(tmp_path, "fp16")
    assert state.scaler.is_enabled()
    assert read_checkpoint(tmp_path)[0]["scaler"]["scale"] == state.scaler.get_scale() > 1


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("options", [{"clip_grad": 5.0}, {"sam": 0.05}, {"accumulate": 2}])
def test_a_step_waits_for_the_gpu_once(amp, options):
    state = build_state(amp=amp, device=GPU)
    loss_fn = create_loss({"ce": 0.6, "dice": 0.4})
    trainer = Trainer(
        state, loss_fn, Path(), TrainOptions(epochs=1, **options), device=GPU, autocast=autocast(GPU, amp)
    )
    data = [(images.pin_memory(), target.pin_memory()) for images, target in loaders()[0]]
    trainer.train_one_epoch(data)  # the first steps also allocate memory and choose kernels
    updates = state.updates
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            trainer.train_one_epoch(data)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in caught if "called a synchronizing CUDA operation" in str(warning.message)]
    assert 0 < len(waits) <= state.updates - updates


@pytest.fixture
def small_gpu():
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-3)  # 80 MB of 80 GB
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.usefixtures("small_gpu")
def test_a_full_gpu_memory_is_one_sentence(shapes, tmp_path, capsys):
    files = ["--data", str(shapes[0]), "--val", str(shapes[1]), "--out", str(tmp_path / "a")]
    options = "--device cuda --model fpn --backbone test_resnet --pretrained false --crop 1024 --batch-size 12"
    with pytest.raises(SystemExit) as stop:
        train.main([*files, *options.split(), "--epochs", "1", "--workers", "0"])
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert "; try half the --batch-size with twice the --accumulate" in error
    assert "Traceback" not in error
