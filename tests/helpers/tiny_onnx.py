"""A trained model of two convolutions as an ONNX file, made in a tenth of a second without torch's exporter."""

import json

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from helpers.onnx_files import header_of
from helpers.tiny_training import NAMES, Drawn
from segkit.data import write_image
from segkit.models import Preprocessing, TrainingScale

SCOPES = "pkg.torch.onnx.name_scopes"


class Tiny(nn.Module):
    """Convolution of 3 x 3, ReLU, convolution of 1 x 1, trained on the images of `Drawn`."""

    def __init__(self, steps=80):
        super().__init__()
        self.class_names, self.preprocessing = NAMES, Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        self.training_scale, self.category_ids = TrainingScale(), {"square": 7, "disc": 3}
        self.data_rules = {"exif": "ignore"}
        data = Drawn(4)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 1)
        images = torch.cat([self.preprocessing(data.image(i)) for i in range(len(data))])
        target = torch.stack([torch.from_numpy(data.mask(i)) for i in range(len(data))]).long()
        optimizer = torch.optim.Adam(self.parameters(), 0.05)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(self(images), target).backward()
            optimizer.step()
        self.requires_grad_(False)

    def forward(self, images):
        return self.second(self.first(images).relu())


def write_tiny(path, model, *, opset=18, with_header=True):
    """Write a `Tiny` as `export_onnx` writes a model: with its modules, classes and preprocessing."""
    import onnx
    from onnx import helper, numpy_helper

    tensors = [numpy_helper.from_array(value.numpy(), name) for name, value in model.state_dict().items()]
    nodes = [
        helper.make_node("Conv", ["images", "first.weight", "first.bias"], ["a"], name="n0", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="n1"),
        helper.make_node("Conv", ["b", "second.weight", "second.bias"], ["logits"], name="n2"),
    ]
    for node, scopes in zip(nodes, (["", "first", "conv2d"], ["", "relu"], ["", "second", "conv2d_1"]), strict=True):
        node.metadata_props.add(key=SCOPES, value=str(scopes))
    values = [helper.make_tensor_value_info(n, 1, ["batch", 3, "height", "width"]) for n in ("images", "logits")]
    graph = helper.make_graph(nodes, "tiny", values[:1], values[1:], tensors)
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    if with_header:
        stored = {"segkit": header_of(model), "class_names": model.class_names, "training_scale": None}
        helper.set_model_props(content, {name: json.dumps(value) for name, value in stored.items()})
    onnx.save(content, path)


def write_folders(folder, count, seed):
    """Write images of `Drawn` to `folder`/images, and their masks to `folder`/masks."""
    data = Drawn(count, seed)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for i in range(count):
        write_image(folder / "images" / f"{i}.png", data.image(i))
        Image.fromarray(data.mask(i)).save(folder / "masks" / f"{i}.png")
    return folder
