import math

import pytest
import torch

from segkit.losses import BoundaryLoss, boundary_loss


def example():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(3, (2, 4, 6), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.3] = 255
    return (
        torch.randn(2, 3, 4, 6, generator=generator, dtype=torch.float64),
        target,
        torch.randn(2, 3, 4, 6, generator=generator, dtype=torch.float64),
    )


def test_the_loss_is_the_mean_over_counted_pixels_and_classes():
    logits, target, maps = example()
    products = (logits.softmax(1) * maps).movedim(1, -1)[target != 255]
    torch.testing.assert_close(boundary_loss(logits, target, maps), products.mean())


def test_with_sigmoids_every_entry_counts_by_itself():
    logits, _, maps = example()
    target = torch.randint(2, (2, 3, 4, 6))
    target[0, 1] = 255
    products = (logits.sigmoid() * maps)[target != 255]
    torch.testing.assert_close(boundary_loss(logits, target, maps, mode="multilabel"), products.mean())


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e30])
def test_what_stands_at_ignored_pixels_changes_nothing(poison):
    logits, target, maps = example()
    results = []
    for z in (logits, torch.where((target == 255).unsqueeze(1), poison, logits)):
        z = z.detach().requires_grad_()
        loss = BoundaryLoss()(z, target, maps)
        loss.backward()
        results.append((loss.detach(), z.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert (results[0][1].movedim(1, -1)[target == 255] == 0).all()


def test_all_pixels_ignored_gives_zero_with_a_graph():
    logits = torch.randn(1, 2, 3, 3, requires_grad=True)
    loss = boundary_loss(logits, torch.full((1, 3, 3), 255), torch.ones(1, 2, 3, 3))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_the_gradient_is_that_of_finite_differences():
    logits, target, maps = example()
    assert torch.autograd.gradcheck(lambda z: boundary_loss(z, target, maps), logits.requires_grad_())


def test_maps_of_another_shape_are_named():
    logits, target, maps = example()
    with pytest.raises(ValueError, match="distance_maps must be"):
        boundary_loss(logits, target, maps[:, :2])
