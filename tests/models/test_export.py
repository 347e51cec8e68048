import importlib.util
import json

import pytest
import torch
from helpers.onnx_stand_in import stand_in_for_onnx
from torch import nn

from segkit.models import create_model, export, export_onnx, export_program, load_model

needs_torch_27 = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7), reason="the export of a model needs torch 2.7"
)
DECODERS = {
    "deeplabv3plus": {"channels": 16},
    "fpn": {"pyramid_channels": 16, "channels": 16},
    "unet": {"channels": (32, 16, 16, 8, 8)},
}
SIZES = [(1, 1, 1), (3, 33, 5), (2, 97, 131), (1, 64, 96)]


def small_model(name, backbone="test_resnet"):
    torch.manual_seed(0)
    model = create_model(name, backbone=backbone, class_names=["sky", "tree", "möwe"], **DECODERS[name]).eval()
    nn.init.normal_(model.head.weight)  # logits as large as those of a trained model
    return model


@pytest.fixture(
    scope="module",
    params=["deeplabv3plus", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fpn", "unet"))],
)
def model(request):
    return small_model(request.param)


@pytest.fixture(scope="module")
def written(exported):
    file, path, difference = exported
    return load_model(file), path, difference


@needs_torch_27
@torch.inference_mode()
def test_a_program_returns_the_same_logits_at_any_size(model):
    program = export_program(model)
    assert len(program.range_constraints) == 3
    run = program.module()
    for batch, height, width in SIZES:
        images = torch.randn(batch, 3, height, width)
        torch.testing.assert_close(run(images), model(images))


@torch.inference_mode()
def test_a_model_compiles_without_a_graph_break(model):
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    images = torch.randn(2, 3, 97, 131)
    torch.testing.assert_close(compiled(images), model(images))


def test_export_leaves_the_model_as_it_is():
    model = small_model("fpn").train()
    model.backbone.eval()
    modes = [module.training for module in model.modules()]
    export._prepare(model)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in model.modules())


def onnx_logits(path, images):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    return torch.from_numpy(logits)


@needs_torch_27
@torch.inference_mode()
def test_an_onnx_file_returns_the_same_logits_at_any_size(written):
    model, path, difference = written
    assert difference < 1e-5
    for batch, height, width in SIZES:
        images = torch.randn(batch, 3, height, width)
        expected = model(images)
        torch.testing.assert_close(
            onnx_logits(path, images), expected, rtol=0, atol=1e-5 * max(1.0, expected.abs().max().item())
        )


@needs_torch_27
@torch.inference_mode()
def test_load_model_reads_an_exported_file(written):
    model, path, _ = written
    loaded = load_model(path)
    for name in ("class_names", "preprocessing", "config", "category_ids", "data_rules", "training_scale"):
        assert getattr(loaded, name) == getattr(model, name)
    for batch, height, width in SIZES:
        images = torch.randn(batch, 3, height, width)
        expected = model(images)
        torch.testing.assert_close(loaded(images), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@needs_torch_27
def test_an_onnx_file_names_its_axes_and_carries_classes_preprocessing_and_architecture(written):
    import onnx

    model, path, _ = written
    content = onnx.load(path)
    onnx.checker.check_model(content)
    axes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*content.graph.input, *content.graph.output)
    }
    assert axes == {"images": ["batch", 3, "height", "width"], "logits": ["batch", 3, "height", "width"]}
    metadata = {entry.key: entry.value for entry in content.metadata_props}
    assert metadata.pop("input").startswith("images (N, C, H, W) float, normalised outside of this file")
    metadata = {key: json.loads(value) for key, value in metadata.items()}
    assert metadata["preprocessing"] == metadata["segkit"]["preprocessing"]
    names = list(model.class_names)
    assert metadata["class_names"] == metadata["labels"] == metadata["segkit"]["class_names"] == names
    assert metadata["training_scale"] is None
    assert metadata["category_ids"] == model.category_ids
    assert metadata["segkit"]["preprocessing"]["mean"] == list(model.preprocessing.mean)
    assert set(metadata["segkit"]["preprocessing"]) == {"mean", "std", "input_range"}
    rebuilt = create_model(**metadata["segkit"]["model"], class_names=metadata["class_names"])
    assert rebuilt.state_dict().keys() == model.state_dict().keys()


@needs_torch_27
def test_an_onnx_export_is_a_single_file(written):
    assert [path.name for path in written[1].parent.iterdir()] == ["m.onnx"]


@needs_torch_27
@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (lambda images: torch.zeros(len(images), 3, *images.shape[2:]), "differs from torch by 1 of the largest logit"),
        (lambda images: torch.full((len(images), 3, *images.shape[2:]), torch.nan), "differs from torch by nan"),
        (lambda images: torch.zeros(len(images), 3, 96, 128), r"returns \(2, 3, 96, 128\) for images \(2, 97, 131\)"),
    ],
)
def test_a_file_that_differs_from_torch_is_not_left_behind(tmp_path, monkeypatch, logits, message):
    stand_in_for_onnx(monkeypatch, logits)
    with pytest.raises(ValueError, match=message):
        export_onnx(small_model("fpn"), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named_with_the_command_that_installs_them(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    absent = ("onnxruntime", "onnxscript")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in (*absent, "onnx") else find(name))
    with pytest.raises(ImportError, match=r"pip install onnx onnxscript onnxruntime$"):
        export_onnx(small_model("fpn"), tmp_path / "m.onnx")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else object())
    with pytest.raises(ImportError, match=r"pip install onnxscript$"):
        export_onnx(small_model("fpn"), tmp_path / "m.onnx", check=False)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_exceed_one_file_are_refused(tmp_path, monkeypatch):
    stand_in_for_onnx(monkeypatch)
    model = small_model("fpn")
    model.register_buffer("large", torch.zeros(1).expand(2**29))  # 2 GB that take no memory
    with pytest.raises(ValueError, match=r"the weights have 2\.\d GB, one ONNX file holds 2 GB"):
        export_onnx(model, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


@needs_torch_27
@pytest.mark.slow
@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(
    "backbone",
    [
        "resnet18",
        "tf_efficientnet_lite0",  # padded as in TensorFlow
        "mobilenetv3_small_100",
        "convnext_atto",  # permuted maps
        "regnetx_002",
    ],
)
@torch.inference_mode()
def test_all_models_return_the_same_logits_in_onnx_at_any_size(tmp_path, name, backbone):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    model = small_model(name, backbone)
    assert export_onnx(model, tmp_path / "m.onnx") < 2e-5
    loaded = load_model(tmp_path / "m.onnx")
    for batch, height, width in [*SIZES, (1, 200, 150), (1, 31, 257)]:
        images = torch.randn(batch, 3, height, width)
        expected = model(images)
        torch.testing.assert_close(loaded(images), expected, rtol=0, atol=2e-5 * expected.abs().max().item())
