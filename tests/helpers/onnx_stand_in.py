"""Stand-ins for the packages of ONNX, for tests of what happens around an export."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
CONTENT = b"onnx"


def stand_in_for_onnx(monkeypatch, logits=None):
    """Replace torch's exporter and onnxruntime, which take seconds and may not be installed.

    Args:
        monkeypatch: The fixture.
        logits: What a written file returns for images; by default the logits of the model.
    """
    exported, find_spec = [], importlib.util.find_spec

    def export(model, **options):
        exported.append(model)
        return SimpleNamespace(
            model=SimpleNamespace(metadata_props={}), save=lambda path, external_data: path.write_bytes(CONTENT)
        )

    class InferenceSession:
        def __init__(self, path, providers):
            assert Path(path).read_bytes() == CONTENT

        def run(self, names, inputs):
            return [(logits or exported[-1])(torch.from_numpy(inputs["images"])).numpy()]

    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: object() if name in PACKAGES else find_spec(name, *more)
    )
    monkeypatch.setattr(torch.export, "export", lambda model, *args, **options: model)
    monkeypatch.setattr(torch.onnx, "export", export)
    onnxruntime = SimpleNamespace(__version__="1.20.0", InferenceSession=InferenceSession)
    monkeypatch.setitem(sys.modules, "onnxruntime", onnxruntime)
