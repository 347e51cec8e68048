"""Gradients and second derivatives against finite differences, and compiled losses against eager ones."""

import pytest
import torch
from helpers.loss_examples import DEFAULTS, MAINLY_ONE_MODE, build, example, loss_and_gradient, mainly
from torch.autograd import gradcheck, gradgradcheck

SMALL = (2, 2, 2)


@pytest.mark.parametrize(("name", "mode", "options"), MAINLY_ONE_MODE)
def test_the_gradient_is_that_of_finite_differences(name, mode, options):
    logits, target = example(mode, SMALL, ignored=0.2)
    assert gradcheck(lambda z: build(name, mode, **options)(z, target), logits.requires_grad_())


@pytest.mark.parametrize(("name", "mode", "options"), MAINLY_ONE_MODE)
def test_the_gradient_can_be_differentiated(name, mode, options):
    logits, target = example(mode, SMALL, ignored=0.2)
    assert gradgradcheck(lambda z: build(name, mode, **options)(z, target), logits.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize(("name", "mode", "options"), [case for case in MAINLY_ONE_MODE if case.values[0] != "lovasz"])
def test_the_gradient_at_soft_targets_is_that_of_finite_differences(name, mode, options):
    logits, target = example(mode, SMALL, soft=True, ignored=0.2)
    assert gradcheck(lambda z: build(name, mode, **options)(z, target), logits.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("name", ["ce", "bce", "dice", "tversky", "generalized_dice"])
def test_a_soft_target_has_the_gradient_of_finite_differences(name):
    logits, target = example(size=SMALL, soft=True, ignored=0)
    shares = (target / 2).requires_grad_()
    assert gradcheck(lambda t: build(name)(logits, t), shares, fast_mode=True)


@pytest.mark.parametrize("name", ["ce", "bce", "focal"])
def test_unreduced_losses_have_a_gradient_each(name):
    logits, target = example(size=SMALL, ignored=0.2)
    assert gradcheck(lambda z: build(name, reduction="none")(z, target), logits.requires_grad_())


@pytest.mark.parametrize(
    ("name", "mode"),
    mainly([case for case in DEFAULTS if case.values[1] != "binary"], {"ce-multiclass", "dice-multilabel"}),
)
def test_compiled_whole_a_loss_is_the_same(name, mode):
    torch.compiler.reset()
    logits, target = example(mode)
    logits, loss = logits.float(), build(name, mode)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(loss_and_gradient(compiled, logits, target), loss_and_gradient(loss, logits, target))


@pytest.mark.parametrize(("name", "mode"), DEFAULTS)
def test_steps_along_the_gradient_find_the_target(name, mode):
    _, target = example(mode)
    logits = torch.zeros(example(mode)[0].shape, requires_grad=True)
    optimizer, loss = torch.optim.Adam([logits], lr=0.3), build(name, mode)
    for _ in range(40):
        optimizer.zero_grad()
        loss(logits, target).backward()
        optimizer.step()
    found = logits.argmax(1) if mode == "multiclass" else (logits if mode == "multilabel" else logits[:, 0]) > 0
    assert torch.equal(found[target != 255].long(), target[target != 255])
