"""Small data made on the spot, and a network that is off."""

import gc
import socket
from pathlib import Path

import pytest
import torch
from helpers.shapes import write_shapes
from PIL import Image

torch.set_num_threads(1)  # the models here are so small that threads only wait for each other

FORKING = ("test_distributed", "test_kill", "test_runs")


def pytest_collection_modifyitems(items):
    """Tests that fork this process go first: once torch has started threads for autograd, a child cannot use it."""
    items.sort(key=lambda item: item.path.stem not in FORKING)


def pytest_collection_finish():
    """Training collects garbage; leaving out the packages, imported by now, saves a tenth to a fifth of a command."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    gc.unfreeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Under pytest-xdist a file is one process's, for its fixtures, and files are taken in the order above."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


@pytest.fixture(scope="module", autouse=True)
def blank_charts(request):
    """Commands draw their charts in test_run_report alone: they take most of a small training."""
    if request.path.parent.name != "cli" or request.path.stem == "test_run_report":
        yield
        return
    import segkit.report

    def blank(*content, **options):
        Image.new("RGB", (2, 2)).save(content[-1])

    with pytest.MonkeyPatch.context() as patch:
        for name in ("save_curves", "save_class_iou", "save_confusion"):
            patch.setattr(segkit.report, name, blank)
        yield


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("the network is off in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> tuple[Path, Path]:
    """COCO files of 12 training and 4 validation photographs."""
    folder = tmp_path_factory.mktemp("shapes")
    return write_shapes(folder, "train", 12, seed=1), write_shapes(folder, "val", 4, seed=2)
