"""Small ONNX files that are written without torch's exporter, in milliseconds."""

import json
from dataclasses import asdict

import pytest
import torch
from torch import nn

from segkit.models import Preprocessing, TrainingScale

FREE = ("batch", 3, "height", "width")
CLASSES = ("sky", "tree", "möwe")


class Pointwise(nn.Module):
    """A model of torch with a 1x1 convolution, whose file `write_onnx` writes.

    Args:
        classes: Names of the classes.
        seed: Of the weights.
        scale: The training scale.
    """

    def __init__(self, classes=CLASSES, *, seed=0, scale=None):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.conv = nn.Conv2d(3, len(classes), 1).requires_grad_(False)
        self.conv.weight.copy_(torch.randn(self.conv.weight.shape, generator=generator))
        self.conv.bias.copy_(torch.randn(self.conv.bias.shape, generator=generator))
        self.class_names = tuple(classes)
        self.preprocessing = Preprocessing((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
        self.training_scale = scale or TrainingScale()
        self.category_ids = {}
        self.data_rules = {}

    def forward(self, images):
        return self.conv(images)


def header_of(model):
    """Return the header that `segkit export` writes for a model."""
    return {
        "format": 1,
        "model": None,
        "class_names": list(model.class_names),
        "category_ids": dict(model.category_ids),
        "data_rules": dict(model.data_rules),
        "preprocessing": asdict(model.preprocessing),
        "training_scale": model.training_scale.write(),
    }


def write_onnx(path, model=None, *, header="of the model", opset=18, front=(), tail=(), sides=FREE, kind=1):
    """Write a `Pointwise` as ONNX and return it.

    Args:
        path: The file.
        model: The model; a new one by default.
        header: The header in the metadata; None for a file of another program.
        opset: The opset.
        front: Operators before the convolution, such as ("Transpose", {"perm": [0, 3, 1, 2]}).
        tail: Operators after the convolution, such as ("Softmax", {"axis": 1}).
        sides: The shape of the input.
        kind: Its type: 1 float32, 10 float16.
    """
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper

    model = model or Pointwise()
    types = {1: torch.float32, 10: torch.float16}
    arrays = {"w": model.conv.weight, "b": model.conv.bias}
    tensors = [numpy_helper.from_array(value.to(types[kind]).numpy(), name) for name, value in arrays.items()]
    nodes, last = [], "images"
    for number, (operator, options) in enumerate([*front, ("Conv", {}), *tail]):
        inputs = [last, "w", "b"] if operator == "Conv" else [last]
        is_last = number == len(front) + len(tail)
        nodes.append(helper.make_node(operator, inputs, ["logits" if is_last else f"map{number}"], **options))
        last = nodes[-1].output[0]
    out_kind = 7 if tail and tail[-1][0] == "ArgMax" else kind
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", kind, list(sides))],
        [helper.make_tensor_value_info(last, out_kind, None)],
        tensors,
    )
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    if header is not None:
        header = header_of(model) if header == "of the model" else header
        helper.set_model_props(content, {"segkit": json.dumps(header)})
    onnx.save(content, path)
    return model
