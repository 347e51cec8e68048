"""Optimizers: weight decay and learning rate of each parameter; precision."""

import pytest
import torch
from helpers.tiny_training import CPU, NAMES

from segkit.models import create_model
from segkit.training import create_optimizer, create_scaler
from segkit.training.optim import amp_dtype


@pytest.fixture(scope="module")
def model():
    return create_model("fpn", backbone="test_resnet", class_names=NAMES, pretrained=False, channels=8)


def settings_by_name(model, **options):
    groups = create_optimizer(model, lr=1.0, weight_decay=0.1, **options).param_groups
    of_id = {id(p): (g["weight_decay"], g.get("lr_scale", 1.0)) for g in groups for p in g["params"]}
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    return {name: of_id[id(p)] for name, p in model.named_parameters()}


@pytest.mark.parametrize("options", [{}, {"layer_decay": 0.9}, {"backbone_lr_factor": 0.1}])
def test_norms_and_biases_do_not_decay(model, options):
    for name, parameter in model.named_parameters():
        decay, _ = settings_by_name(model, **options)[name]
        assert decay == (0.1 if parameter.ndim > 1 else 0.0), name


@pytest.mark.parametrize("options", [{}, {"layer_decay": 0.9}, {"backbone_lr_factor": 0.1}])
def test_norms_and_biases_decay_with_decay_norms(model, options):
    found = settings_by_name(model, decay_norms=True, **options)
    assert {decay for decay, _ in found.values()} == {0.1}
    assert {name: scale for name, (_, scale) in found.items()} == {
        name: scale for name, (_, scale) in settings_by_name(model, **options).items()
    }


def test_the_backbone_learns_at_its_share_of_the_rate(model):
    for name, (_, scale) in settings_by_name(model, backbone_lr_factor=0.1).items():
        assert scale == (0.1 if name.startswith("backbone.") else 1.0), name


def test_layer_decay_rises_towards_the_head(model):
    found = settings_by_name(model, layer_decay=0.5)
    scales = [scale for name, (_, scale) in found.items() if name.startswith("backbone.")]
    assert scales == sorted(scales)
    assert scales[0] < scales[-1] == 0.5
    assert {scale for name, (_, scale) in found.items() if not name.startswith("backbone.")} == {1.0}


def test_both_factors_multiply(model):
    found = settings_by_name(model, layer_decay=0.5, backbone_lr_factor=0.1)
    assert found["head.weight"][1] == 1.0
    assert max(scale for name, (_, scale) in found.items() if name.startswith("backbone.")) == pytest.approx(0.05)


@pytest.mark.parametrize(("amp", "enabled"), [("off", False), ("auto", False), ("bf16", False), ("fp16", True)])
def test_only_fp16_scales_the_loss(amp, enabled):
    assert create_scaler(CPU, amp).is_enabled() == enabled


def test_unknown_names_are_errors_that_list_the_known_ones(model):
    with pytest.raises(ValueError, match=r"unknown optimizer 'adm'; did you mean 'adam'\? Known: .*adamw"):
        create_optimizer(model, "adm", lr=1.0)
    with pytest.raises(ValueError, match=r"unknown `amp` 'half'.*Known: off, bf16"):
        create_scaler(torch.device("cpu"), "half")


def test_a_second_order_optimizer_is_refused(model):
    with pytest.raises(ValueError, match="optimizer 'adahessian' needs second derivatives"):
        create_optimizer(model, "adahessian", lr=1.0)


@pytest.mark.parametrize("name", ["adamw", "adamp", "sgd", "lamb"])
def test_optimisers_of_timm_lower_the_loss(name):
    torch.manual_seed(0)
    model = create_model("fpn", backbone="test_resnet", class_names=NAMES, pretrained=False, channels=8)
    optimizer = create_optimizer(model, name, lr=1e-2, weight_decay=0.01)
    images, target = torch.randn(2, 3, 32, 32), torch.randint(0, len(NAMES), (2, 32, 32))
    losses = []
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(model(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert type(optimizer).__name__.lower().startswith(name)


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_that_only_emulates_bf16_gets_fp16(monkeypatch, native, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert amp_dtype(torch.device("cuda"), "auto") == dtype
