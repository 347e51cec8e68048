"""Auxiliary heads: their losses, their gradients, and that a weight of 0 changes nothing."""

import math

import pytest
import torch
from helpers.many_ranks import on_ranks
from helpers.one_step import learn, weights
from helpers.tiny_training import NAMES, build_state, interrupted, loaders, outcome, run, same
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from segkit.errors import UsageError
from segkit.models import load_model
from segkit.training import create_optimizer, create_scheduler
from segkit.training.step import presence_loss

HEADS = ("aux_head", "image_head")
WEIGHTS = {"aux_weight": 0.4, "image_weight": 0.2}


def ce(logits, target):
    return cross_entropy(logits, target.long(), ignore_index=255)


class CrossEntropy(nn.Module):
    def forward(self, logits, target):
        return ce(logits, target)


def test_presence_counts_the_classes_of_valid_pixels_by_hand():
    # Image 0 shows classes 0 and 2, image 1 only class 1. The loss of a shown class is softplus(-x), else softplus(x).
    target = torch.tensor([[[0, 2], [2, 255]], [[1, 255], [255, 1]]], dtype=torch.uint8)
    logits = torch.tensor([[0.0, 1.0, -1.0], [2.0, 0.0, 0.0]])
    softplus = lambda x: math.log1p(math.exp(x))  # noqa: E731
    first = (softplus(0) + softplus(1) + softplus(1)) / 3
    second = (softplus(2) + softplus(0) + softplus(0)) / 3
    assert presence_loss(logits, target).item() == pytest.approx((first + second) / 2)


def test_presence_ignores_images_without_a_valid_pixel():
    target = torch.full((2, 2, 2), 255, dtype=torch.uint8)
    logits = torch.randn(2, 3, requires_grad=True)
    presence_loss(logits, target).backward()
    assert torch.equal(logits.grad, torch.zeros(2, 3))
    target[0] = 1
    assert presence_loss(logits, target).item() == pytest.approx(presence_loss(logits[:1], target[:1]).item())


def gradients(state):
    return {name: parameter.grad for name, parameter in state.model.named_parameters()}


def one_batch():
    return [next(iter(loaders()[0]))]


@pytest.mark.parametrize("options", [WEIGHTS, {"aux_weight": 0.4}, {"image_weight": 0.2}])
def test_the_gradient_is_that_of_the_weighted_sum(options):
    state, other = (build_state(heads=HEADS, ema=0) for _ in range(2))
    [(images, target)] = data = one_batch()
    torch.manual_seed(1)  # dropout
    reported = learn(state, data, CrossEntropy(), **options)
    torch.manual_seed(1)
    model = other.model.train()
    logits, aux, image = model(model.preprocessing(images), extras=True)
    shown = torch.stack([torch.stack([(mask == label).any() for label in range(len(NAMES))]) for mask in target])
    loss = ce(logits, target) + options.get("aux_weight", 0) * ce(aux, target)
    loss = loss + options.get("image_weight", 0) * binary_cross_entropy_with_logits(image, shown.float())
    loss.backward()
    assert reported == pytest.approx(ce(logits, target).item())
    expected = gradients(other)
    for name, gradient in gradients(state).items():
        head = name.partition(".")[0]
        if head in HEADS and not options.get(head.replace("head", "weight")):
            assert gradient is None
        else:
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
            assert head not in HEADS or gradient.abs().max() > 0


def test_heads_of_weight_0_change_nothing():
    plain, with_heads = build_state(ema=0), build_state(ema=0, heads=HEADS)
    losses = []
    for state in (plain, with_heads):
        torch.manual_seed(1)
        losses.append(learn(state, loaders()[0]))
    assert losses[0] == losses[1]
    learnt = dict(with_heads.model.named_parameters())
    assert all(torch.equal(value, learnt[name]) for name, value in plain.model.named_parameters())


def test_a_weight_needs_its_head():
    with pytest.raises(UsageError, match="`image_weight` needs a model created with `image_head`"):
        learn(build_state(heads=["aux_head"]), [], **WEIGHTS)


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"sam": 0.05}])
@pytest.mark.parametrize("stop_after", [pytest.param(2, marks=pytest.mark.slow), 9])
def test_a_run_with_heads_resumes_exactly(tmp_path, options, stop_after):
    run(tmp_path / "a", state=build_state(heads=HEADS), **WEIGHTS, **options)
    assert interrupted(tmp_path / "b", stop_after, state=build_state(heads=HEADS), **WEIGHTS, **options)
    run(tmp_path / "b", resume=True, state=build_state(heads=HEADS), **WEIGHTS, **options)
    assert same(outcome(tmp_path / "b"), outcome(tmp_path / "a"))


def test_the_saved_model_predicts_without_its_heads(tmp_path):
    run(tmp_path, state=build_state(heads=HEADS, ema=0), epochs=1, **WEIGHTS)
    model = load_model(tmp_path).eval()
    images = torch.randn(1, 3, 33, 40)
    expected = model(images)
    model.aux_head = model.image_head = None
    assert torch.equal(model(images), expected)


@pytest.mark.parametrize("heads", [HEADS, pytest.param(["aux_head"], marks=pytest.mark.slow)])
def test_processes_train_the_heads_together(tmp_path, heads):
    options = {name.replace("head", "weight"): 0.5 for name in heads}

    def train(ranks):
        state = build_state(ema=0, heads=HEADS)
        before = [parameter.detach().clone() for parameter in state.model.parameters()]
        run(tmp_path / "run", ranks=ranks, state=state, epochs=1, batch_size=4, **options)
        after = state.model.named_parameters()
        learnt = {name for (name, value), old in zip(after, before, strict=True) if not torch.equal(value, old)}
        return weights(state), {name.partition(".")[0] for name in learnt}

    first, second = on_ranks(2, train, tmp_path / "group")
    assert torch.equal(first[0], second[0])
    assert first[1] == second[1] == {"backbone", "decoder", "head", *heads}


def test_heads_learn_at_the_full_rate_under_layer_decay():
    model = build_state(heads=HEADS).model
    optimizer = create_optimizer(model, lr=1.0, layer_decay=0.5)
    create_scheduler(optimizer, "constant", epochs=1, steps_per_epoch=1).step_update(0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rates[id(p)] for name in HEADS for p in getattr(model, name).parameters()} == {1.0}
    assert not hasattr(model, "pretrained_cfg")


def test_presence_of_a_model_with_one_channel_is_the_presence_of_label_1():
    target = torch.tensor([[[0, 0]], [[1, 255]], [[255, 255]]], dtype=torch.uint8)
    expected = (math.log1p(math.exp(2.0)) + math.log1p(math.exp(3.0))) / 2  # softplus(2) of no, softplus(3) of yes
    assert presence_loss(torch.tensor([[2.0], [-3.0], [5.0]]), target).item() == pytest.approx(expected)
