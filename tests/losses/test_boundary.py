"""The boundary loss, which takes distance maps in addition to logits and target."""

import math

import pytest
import torch
from helpers import loss_oracles
from helpers.loss_examples import MODES, example, ignored_entries, loss_and_gradient

from segkit.errors import UsageError
from segkit.losses import BoundaryLoss, boundary_loss


def example_with_maps(mode, **options):
    logits, target = example(mode, **options)
    return logits, target, torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), dtype=logits.dtype)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("ignore_index", [255, 1, -100])
def test_the_loss_is_its_formula_over_the_pixels_that_count(mode, soft, ignore_index):
    logits, target, maps = example_with_maps(mode, soft=soft, ignore_index=ignore_index)
    found = loss_oracles.pixels(logits.numpy(), target.numpy(), mode, ignore_index)
    loss = BoundaryLoss(mode=mode, ignore_index=ignore_index)(logits, target, maps)
    assert loss.item() == pytest.approx(loss_oracles.boundary(found, maps.numpy()))


@pytest.mark.parametrize(("region", "expected"), [((0, 0, 1, 1), -3 / 4), ((0, 1, 1, 0), 0), ((1, 1, 0, 0), 3 / 4)])
def test_a_region_costs_the_distances_that_it_covers(region, expected):
    logits, maps = 100 * torch.tensor([[[region]]]) - 50.0, torch.tensor([[[[2.0, 1.0, -1.0, -2.0]]]])
    loss = boundary_loss(logits, torch.tensor([[[0, 0, 1, 1]]]), maps, mode="binary")
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e30])
def test_what_stands_at_ignored_entries_changes_nothing(mode, poison):
    logits, target, maps = example_with_maps(mode)
    ignored, loss = ignored_entries(logits, target), BoundaryLoss(mode=mode)
    expected = loss_and_gradient(loss, logits, target, maps)
    for inputs in (
        (torch.where(ignored, poison, logits), target, maps),
        (logits, target, torch.where(ignored, poison, maps)),
    ):
        torch.testing.assert_close(loss_and_gradient(loss, *inputs), expected)
    assert (expected[1][ignored] == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_all_pixels_ignored_gives_zero_with_a_graph(mode):
    logits, target, maps = example_with_maps(mode)
    loss, gradient = loss_and_gradient(BoundaryLoss(mode=mode), logits, torch.full_like(target, 255), maps)
    assert loss == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_is_that_of_finite_differences(mode):
    logits, target, maps = example_with_maps(mode, size=(2, 2, 2))
    loss = BoundaryLoss(mode=mode)
    assert torch.autograd.gradcheck(lambda z: loss(z, target, maps), logits.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda z: loss(z, target, maps), logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_costs_what_the_same_numbers_cost_in_float64(dtype):
    logits, target, maps = example_with_maps("multiclass", size=(2, 32, 32))
    loss = boundary_loss(logits.to(dtype), target, maps)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(boundary_loss(logits.to(dtype).double(), target, maps).item(), rel=1e-4)


def test_compiled_whole_it_is_the_same():
    inputs = example_with_maps("multiclass")
    compiled = torch.compile(boundary_loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(loss_and_gradient(compiled, *inputs), loss_and_gradient(boundary_loss, *inputs))


def test_maps_of_another_shape_are_named():
    logits, target, maps = example_with_maps("multiclass")
    with pytest.raises(UsageError, match=r"`distance_maps` must be .* like the logits .* got \(2, 2, 4, 5\)"):
        boundary_loss(logits, target, maps[:, :2])
