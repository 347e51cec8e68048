import ast
import subprocess
import sys
from pathlib import Path

import pytest

import segkit

PACKAGE = Path(segkit.__file__).parent
GROUND = {
    *("errors", "files", "names", "labels", "runs", "console", "compat", "training_scale", "sliding_window", "text"),
    "class_map",
    *("_lazy", "_version"),
}
PARTS = {"models", "losses", "metrics", "tta", "crf", "data", "demo", "config", "visualize", "testing"}
JOBS = {"training", "inference", "report", "checks", "folds"}
FLOORS = [GROUND, PARTS, JOBS, {"workflows"}, {"cli"}, {"__init__", "__main__"}]
# Imports between neighbours on a floor; on the ground floor all are allowed.
SIDEWAYS: dict[str, set[str]] = {part: GROUND for part in GROUND} | {"demo": {"data"}}
# Users look for `predict` on the model that they hold, and it needs the Predictor.
UPWARDS = {"models/segmenter.py": {"inference"}}


def imports_of(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return {name.split(".")[1] for name in names if name.startswith("segkit.")}


def floor_of(part: str) -> int:
    (floor,) = [number for number, parts in enumerate(FLOORS) if part in parts]
    return floor


def test_imports_point_down_the_floors():
    for file in PACKAGE.rglob("*.py"):
        part = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        above = {name for name in imports_of(file) - {part} if floor_of(name) >= floor_of(part)}
        wrong = above - SIDEWAYS.get(part, set()) - UPWARDS.get(file.relative_to(PACKAGE).as_posix(), set())
        assert not wrong, f"{file} imports {wrong}"


def test_importing_segkit_costs_no_heavy_package():
    heavy = ["torch", "timm", "albumentations", "pycocotools", "matplotlib", "cv2"]
    code = f"import sys, segkit, segkit.config; print([m for m in {heavy} if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_models_and_the_commands_that_use_them_load_only_what_they_need():
    code = (
        "import sys, segkit; segkit.create_model('fpn', backbone='test_resnet', num_classes=2); print(*sys.modules); "
        "import segkit.workflows.infer, segkit.workflows.evaluate, segkit.workflows.tune; print(*sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    with_model, with_commands = (set(line.split()) for line in printed.splitlines())
    assert "segkit.models.fpn" in with_model
    assert with_model & {"segkit.models.export", "segkit.models.optimized", "segkit.models.smp.checkpoints"} == set()
    assert "segkit.inference" in with_commands
    assert "albumentations" not in with_commands


@pytest.mark.parametrize("name", segkit.__all__)
def test_every_public_name_is_there(name):
    assert getattr(segkit, name) is not None


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known_ones():
    with pytest.raises(AttributeError, match="create_model"):
        segkit.creat_model  # noqa: B018
