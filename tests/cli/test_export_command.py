import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.commands import fails
from helpers.onnx_files import write_onnx
from helpers.onnx_stand_in import CONTENT, stand_in_for_onnx

from segkit.cli import export
from segkit.models import create_model, save_model

ROOT = Path(__file__).parents[2]
needs_torch_27 = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7), reason="the export of a model needs torch 2.7"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    model = create_model("fpn", backbone="resnet18", num_classes=3, pyramid_channels=16, channels=16)
    save_model(model, folder / "best.safetensors")
    return folder


@pytest.mark.slow
@needs_torch_27
def test_a_run_folder_is_exported_next_to_its_model(run, capsys):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    export.main([str(run)])
    printed = capsys.readouterr().out
    assert f"{run / 'best.onnx'}, 4" in printed
    assert "MB" in printed
    assert "differs from torch by at most" in printed
    assert sorted(path.name for path in run.iterdir()) == ["best.onnx", "best.safetensors"]


@needs_torch_27
def test_onnx_names_the_file_which_is_replaced_only_by_overwrite(run, tmp_path, monkeypatch, capsys):
    stand_in_for_onnx(monkeypatch)
    target, run = tmp_path / "new" / "out.onnx", shutil.copytree(run, tmp_path / "run")
    (run / "best.onnx").unlink(missing_ok=True)
    export.main([str(run)])
    assert (run / "best.onnx").read_bytes() == CONTENT
    assert not target.exists()
    export.main([str(run / "best.safetensors"), "--onnx", str(target)])
    assert target.read_bytes() == CONTENT
    target.write_bytes(b"old")
    assert fails(export, run, "--onnx", target) == 2
    error = capsys.readouterr().err
    assert f"{target} exists already; choose another --onnx, or replace it by --overwrite" in error
    assert "Traceback" not in error
    assert target.read_bytes() == b"old"
    export.main([str(run), "--onnx", str(target), "--overwrite"])
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.safetensors"], "there is no model file none.safetensors"),
        (["."], "has neither best.safetensors nor model.safetensors"),
        (["RUN", "--onnx", "."], ". is a folder; --onnx takes a file"),
        ([], "FILE|RUN"),
        (["RUN", "--onxx", "a"], "--onxx"),
    ],
)
def test_a_wrong_argument_ends_in_one_sentence(run, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert fails(export, *(run if a == "RUN" else a for a in arguments)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_become_int8_ends_in_one_sentence(tmp_path, capsys):
    pytest.importorskip("onnx")
    write_onnx(tmp_path / "other.onnx", header=None)
    assert fails(export, tmp_path / "other.onnx", "--int8", "--calibrate", tmp_path) == 2
    assert "other.onnx was not exported by segkit" in capsys.readouterr().err
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "other.onnx").read_bytes()[:-9])
    assert fails(export, tmp_path / "cut.onnx", "--int8", "--calibrate", tmp_path) == 2
    assert "the header of" not in capsys.readouterr().err


def test_a_missing_package_is_an_error_with_its_install_command(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert fails(export, run, "--onnx", tmp_path / "m.onnx") == 2
    assert "pip install onnx onnxscript onnxruntime" in capsys.readouterr().err


def test_help_does_not_import_torch():
    code = (
        "import atexit, runpy, sys; atexit.register(lambda: print('torch' in sys.modules)); "
        "sys.argv = ['segkit', 'export', '--help']; runpy.run_module('segkit', run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--overwrite" in result.stdout
    assert result.stdout.strip().endswith("False")
