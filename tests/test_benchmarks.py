"""The benchmarks and the documentation use names of segkit that exist; nothing of them is run."""

import ast
import re
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


def segkit_names(code: str) -> set[tuple[str, str]]:
    """Return (module, name) of everything in `code` that is imported from segkit or reached as `segkit.name`."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {(node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Attribute):
            module, *names = (dotted(node) or "").split(".")
            found.add((module, ".".join(names)))
    return {(module, name) for module, name in found if module.split(".")[0] == "segkit"}


def missing_names(code: str) -> list[str]:
    """Return the names of segkit in `code` that do not exist."""
    missing = []
    for module, names in sorted(segkit_names(code)):
        try:
            value = import_module(module)
            for name in filter(None, names.split(".")):
                try:
                    value = getattr(value, name)
                except AttributeError:  # a module that the package does not import by itself
                    value = import_module(f"{value.__name__}.{name}")
        except (ImportError, AttributeError):
            missing.append(f"{module}.{names}".rstrip("."))
    return missing


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda file: file.name)
def test_a_benchmark_imports_names_that_exist(file):
    code = file.read_text(encoding="utf-8")
    assert segkit_names(code), f"{file.name} uses nothing of segkit"
    assert missing_names(code) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_code_of_a_page_uses_names_that_exist(page):
    assert {code: missing for code in python_blocks(page) if (missing := missing_names(code))} == {}


def test_the_readme_has_python_code_with_names_of_segkit():
    assert any(segkit_names(code) for code in python_blocks(ROOT / "README.md"))


@pytest.mark.parametrize(
    ("code", "missing"),
    [
        ("from segkit.models import create_model", []),
        ("import segkit\nsegkit.models.create_model('fpn').eval()", []),
        ("from segkit.models import layers", []),
        ("from segkit.models import creat_model", ["segkit.models.creat_model"]),
        ("from segkit.nowhere import create_model", ["segkit.nowhere.create_model"]),
        ("import segkit.nowhere", ["segkit.nowhere"]),
        ("def run():\n    from segkit.models.factory import moved", ["segkit.models.factory.moved"]),
        ("import segkit\nsegkit.models.moved(1)", ["segkit.models.moved"]),
        ("import not_installed\nfrom . import sibling\nmodel.moved(1)", []),
    ],
)
def test_a_name_that_moved_is_found(code, missing):
    assert missing_names(code) == missing
