"""The benchmarks and the documentation use names and arguments of segkit that exist; only one of them is run."""

import ast
import inspect
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def dotted(node: ast.AST) -> str | None:
    """Return the text of a chain of attributes such as `segkit.models.load_model`, None for other expressions."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value)
        return None if owner is None else f"{owner}.{node.attr}"
    return None


def imports_of(tree: ast.AST) -> dict[str, str]:
    """Return the full names of what is imported from segkit, by the name that the code uses for it."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return {used: name for used, name in found.items() if name.split(".")[0] == "segkit"}


def full_name(node: ast.AST, imports: dict[str, str]) -> str | None:
    """Return the full name of an expression that begins with an imported name of segkit, None for others."""
    used, *attributes = (dotted(node) or "").split(".")
    return ".".join([imports[used], *attributes]) if used in imports else None


def segkit_names(tree: ast.AST) -> set[str]:
    """Return the full names of all that is imported from segkit or used as an attribute of such an import."""
    imports = imports_of(tree)
    used = {full_name(node, imports) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return {*imports.values(), *used} - {None}


def find(name: str) -> object:
    """Import and return what a full name stands for."""
    value, path = import_module("segkit"), "segkit"
    for part in name.split(".")[1:]:
        path = f"{path}.{part}"
        try:
            value = getattr(value, part)
        except AttributeError:  # a module that its package does not import
            value = import_module(path)
    return value


def problem_of_call(call: ast.Call, imports: dict[str, str]) -> str | None:
    """Return why a call of something of segkit cannot work, None if its arguments are right or unknown."""
    name = full_name(call.func, imports)
    unpacked = any(isinstance(value, ast.Starred) for value in call.args)
    if name is None or unpacked:
        return None
    keywords = {keyword.arg: None for keyword in call.keywords if keyword.arg}
    signature = inspect.signature(find(name))
    bind = signature.bind if len(keywords) == len(call.keywords) else signature.bind_partial
    try:
        bind(*call.args, **keywords)
    except TypeError as error:
        return f"{name}: {error}"
    return None


def problems(code: str) -> list[str]:
    """Return the names of segkit in `code` that do not exist, or else the calls that do not fit."""
    tree, missing = ast.parse(code), []
    for name in sorted(segkit_names(tree)):
        try:
            find(name)
        except ImportError:
            missing.append(name)
    if missing:
        return missing
    imports, calls = imports_of(tree), [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [problem for call in calls if (problem := problem_of_call(call, imports))]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda file: file.name)
def test_a_benchmark_uses_names_and_arguments_that_exist(file):
    code = file.read_text(encoding="utf-8")
    assert segkit_names(ast.parse(code)), f"{file.name} imports nothing of segkit"
    assert problems(code) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_code_of_a_page_uses_names_and_arguments_that_exist(page):
    code = "\n".join(python_blocks(page))  # later blocks use the imports of earlier ones
    assert problems(code) == []


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_on_a_cpu_from_start_to_end_and_without_network(tmp_path):
    pytest.importorskip("segmentation_models_pytorch")
    proxies = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--device", "cpu", "--quick", "--minutes", "20"]
    found = subprocess.run(
        [*command, "--cache", tmp_path / "cache", "--out", tmp_path / "gpu.txt"],
        env={**os.environ, **proxies, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    lines = (tmp_path / "gpu.txt").read_text().splitlines()
    states = [line.split()[-1] for line in lines[-4:]]
    assert (found.returncode, states) == (0, ["done"] * 4), found.stdout[-3000:] + found.stderr[-3000:]
    (whole,) = [line for line in lines if line.startswith("  segkit") and "equal labels" in line]
    assert float(whole.split("equal labels")[1].split()[0]) > 90


@pytest.mark.slow
def test_a_part_of_the_benchmark_ends_when_its_time_is_over(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import gpu; from pathlib import Path\n"
        "gpu.__file__ = sys.argv[2]\n"
        "with open(sys.argv[3], 'w') as log: print(gpu.run(gpu.Part('a', 1, ['slow.py']), 1.0, log))"
    )
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    (tmp_path / "slow.py").write_text(f"print('begun')\n{child}\n")
    found = subprocess.run(
        [sys.executable, "-c", code, ROOT / "benchmarks", tmp_path / "gpu.py", tmp_path / "log"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert found.stdout.splitlines()[-1] == "its time was over", found.stderr
    assert "begun" in (tmp_path / "log").read_text()


def test_the_readme_has_python_code_with_names_of_segkit():
    assert any(segkit_names(ast.parse(code)) for code in python_blocks(ROOT / "README.md"))


@pytest.mark.parametrize(
    "code",
    [
        "from segkit.models import create_model as make\nmake('fpn', num_classes=3)",
        "import segkit\nsegkit.models.create_model('fpn').eval(1, 2, 3)",
        "from segkit.models import layers\nlayers.resize_like",
        "from segkit.data import CocoSegmentation\nCocoSegmentation(*paths)\nCocoSegmentation(path, **options)",
        "import not_installed\nfrom . import sibling\nmodel.moved(1)",
    ],
)
def test_sound_code_has_no_problems(code):
    assert problems(code) == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from segkit.models import creat_model", "segkit.models.creat_model"),
        ("from segkit.nowhere import create_model", "segkit.nowhere.create_model"),
        ("import segkit.nowhere", "segkit.nowhere"),
        ("def run():\n    from segkit.models.factory import moved", "segkit.models.factory.moved"),
        ("import segkit\nsegkit.models.moved(1)", "segkit.models.moved"),
        ("from segkit import models\nmodels.moved", "segkit.models.moved"),
        ("from segkit.data import read_image\nread_image()", "segkit.data.read_image: missing a required argument"),
        ("from segkit.data import read_image\nread_image(path, moved=1)", "segkit.data.read_image: got an unexpected"),
        ("import segkit\nsegkit.TTA(moved=1, **options)", "segkit.TTA: got an unexpected keyword argument 'moved'"),
    ],
)
def test_a_name_or_argument_that_went_is_found(code, found):
    (problem,) = problems(code)
    assert problem.startswith(found)
