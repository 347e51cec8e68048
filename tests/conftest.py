"""Fixtures of all tests, and the order in which test files run."""

import gc
import os
import signal
import socket
from pathlib import Path

import pytest
import torch
from helpers.shapes import write_shapes
from PIL import Image

from segkit import text

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # tests import onnxruntime themselves
torch.set_num_threads(1)  # the models are so small that more threads only wait for each other

FORKING_HELPERS = ("forked", "on_ranks")  # they train in forks of the test process


def pytest_configure():
    """Let SIGINT and SIGHUP act as at a terminal: jobs in the background and under `nohup` begin with them ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):  # Windows has none
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items):
    """Run the test files that import a forking helper first, before any other test trains.

    Once torch has started threads for autograd, a fork of the process cannot train. The helpers fork and do not start
    new processes because importing torch again takes seconds.
    """
    items.sort(key=lambda item: not any(hasattr(item.module, name) for name in FORKING_HELPERS))


def pytest_collection_finish():
    """Exclude the packages imported so far from garbage collection.

    Training collects garbage; without these objects a small training takes a tenth to a fifth less time.
    """
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    gc.unfreeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With pytest-xdist, run a file in one process, so that its tests share fixtures, and keep the order above."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


@pytest.fixture(scope="module", autouse=True)
def blank_charts(request):
    """Commands draw their charts in test_run_report alone: they take most of a small training."""
    if request.path.parent.name != "cli" or request.path.stem == "test_run_report":
        yield
        return
    import segkit.report.run

    def blank(*content, **options):
        Image.new("RGB", (2, 2)).save(content[-1])

    with pytest.MonkeyPatch.context() as patch:
        for name in ("save_curves", "save_class_iou", "save_confusion"):
            patch.setattr(segkit.report.run, name, blank)
        yield


@pytest.fixture
def no_network(monkeypatch):
    """Make every attempt to reach the network fail."""

    def refuse(*args, **kwargs):
        raise OSError("the network is off in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def system_fonts(monkeypatch, tmp_path_factory) -> Path:
    """Return an empty folder that is the only one with fonts besides matplotlib's, and forget all fonts afterwards."""
    folder = tmp_path_factory.mktemp("fonts")
    caches = (text.system_fonts, text._file_for, text._has, text._missing_in, text._parts, text._draw)
    monkeypatch.setattr(text, "font_folders", lambda: [folder])
    monkeypatch.setattr(text, "_warned", [])
    for cached in caches:
        cached.cache_clear()
    yield folder
    for cached in caches:
        cached.cache_clear()


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> tuple[Path, Path]:
    """Write and return two COCO files: 12 training and 4 validation photographs."""
    folder = tmp_path_factory.mktemp("shapes")
    return write_shapes(folder, "train", 12, seed=1), write_shapes(folder, "val", 4, seed=2)


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> tuple[Path, Path, float]:
    """Return the file of a small model for `shapes`, its ONNX file, and the difference that its export returned."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    if torch.__version__.startswith("2.6"):
        pytest.skip("the export of a model needs torch 2.7")
    from segkit.models import create_model, export_onnx, save_model

    torch.manual_seed(3)
    options = {"pyramid_channels": 16, "channels": 16, "pretrained": False}
    names = ("background", "square", "disc")
    model = create_model("fpn", backbone="test_resnet", class_names=names, **options).eval()
    torch.nn.init.normal_(model.head.weight, std=3)  # logits as large as those of a trained model
    folder = tmp_path_factory.mktemp("exported")
    save_model(model, folder / "best.safetensors")
    onnx = tmp_path_factory.mktemp("onnx") / "m.onnx"
    return folder / "best.safetensors", onnx, export_onnx(model, onnx)
