"""Small data made on the spot, and a network that is off."""

import gc
import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
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


CATEGORIES = [{"id": 7, "name": "disc"}, {"id": 3, "name": "square"}]


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("the network is off in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def write_coco(file: Path, images: list[dict], annotations: list[dict], categories=CATEGORIES) -> Path:
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def rectangle(left: int, top: int, width: int, height: int) -> list[int]:
    return [left, top, left + width, top, left + width, top + height, left, top + height]


def write_shapes(folder: Path, name: str, count: int, seed: int) -> Path:
    """`count` photographs of 48 x 64 pixels with a bright square (id 3) and a dark disc (id 7) each."""
    random = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    rows, columns = np.mgrid[:48, :64]
    for i in range(count):
        picture = random.integers(90, 120, (48, 64, 3), dtype=np.uint8)
        left, top, x, y = *random.integers(2, 12, 2), random.integers(42, 52), random.integers(20, 30)
        picture[top : top + 20, left : left + 18] = 230
        picture[(rows - y) ** 2 + (columns - x) ** 2 < 100] = 20
        file_name = f"images/{name}{i}.png"
        Image.fromarray(picture).save(folder / file_name)
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        disc = np.stack([x + 0.5 + 10 * np.cos(angles), y + 0.5 + 10 * np.sin(angles)], 1).ravel().tolist()
        images.append({"id": 100 + i, "file_name": file_name, "height": 48, "width": 64})
        for category, polygon in ((3, rectangle(int(left), int(top), 18, 20)), (7, disc)):
            annotations.append(
                {"id": len(annotations), "image_id": 100 + i, "category_id": category, "segmentation": [polygon]}
            )
    return write_coco(folder / f"{name}.json", images, annotations)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> tuple[Path, Path]:
    """COCO files of 12 training and 4 validation photographs."""
    folder = tmp_path_factory.mktemp("shapes")
    return write_shapes(folder, "train", 12, seed=1), write_shapes(folder, "val", 4, seed=2)
