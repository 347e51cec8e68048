"""Sharpness-aware steps: the gradient is that at w + rho g / ||g||, and nothing else changes."""

import pytest
import torch
from helpers.one_step import batches, learn, norm_free_state, weights
from helpers.tiny_training import build_state, interrupted, outcome, run, same
from torch import nn

from segkit.training.step import at_sam_point


def test_the_gradient_of_a_quadratic_by_hand():
    # L(w) = (3 w0^2 + 4 w1^2) / 2 at w = (1, 1): g = (3, 4), ||g|| = 5, and with rho = 0.5
    # w + rho g / ||g|| = (1.3, 1.4), where the gradient is (3.9, 5.6).
    model = nn.ParameterList([nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))])

    def add_gradients():
        model.zero_grad()
        ((3 * model[0] ** 2 + 4 * model[1] ** 2) / 2).sum().backward()

    add_gradients()
    with at_sam_point(model, 0.5):
        assert [w.item() for w in model] == pytest.approx([1.3, 1.4])
        add_gradients()
    assert [w.item() for w in model] == [1.0, 1.0]
    assert [w.grad.item() for w in model] == pytest.approx([3.9, 5.6])


@pytest.mark.parametrize("gradient", [0.0, float("nan"), float("inf")])
def test_weights_do_not_move_without_a_direction(gradient):
    model = nn.Linear(2, 1)
    before = model.weight.clone()
    model.weight.grad = torch.full((1, 2), gradient)
    with at_sam_point(model, 0.5):
        assert torch.equal(model.weight, before)


def test_an_error_inside_restores_the_weights():
    model = nn.Linear(2, 1)
    before = model.weight.clone()
    model.weight.grad = torch.ones(1, 2)
    with pytest.raises(KeyError), at_sam_point(model, 0.5):
        raise KeyError
    assert torch.equal(model.weight, before)


def test_the_second_pass_does_not_change_the_statistics_of_batch_norms(tmp_path):
    sharp, plain = build_state(ema=0, lr=1e-12), build_state(ema=0, lr=1e-12)
    run(tmp_path / "a", state=sharp, epochs=1, sam=0.5)
    run(tmp_path / "b", state=plain, epochs=1)
    buffers = dict(plain.model.named_buffers())
    assert any(name.endswith("running_var") for name in buffers)
    for name, value in sharp.model.named_buffers():
        torch.testing.assert_close(value, buffers[name], rtol=1e-5, atol=1e-6)


def test_an_update_differs_from_a_plain_one_and_the_reported_loss_does_not():
    sharp, plain = norm_free_state(), norm_free_state()
    assert learn(sharp, batches(4), sam=0.5) == learn(plain, batches(4))
    assert not torch.allclose(weights(sharp), weights(plain))


def test_accumulated_batches_are_one_large_batch():
    big, small = norm_free_state(), norm_free_state()
    learn(big, batches(6), sam=0.5)
    learn(small, batches(2, 2, 2), sam=0.5, accumulate=3)
    torch.testing.assert_close(weights(small), weights(big), rtol=0, atol=1e-6)


def test_the_scale_of_fp16_changes_nothing():
    scaled, plain = norm_free_state(amp="fp16"), norm_free_state()
    for state in (scaled, plain):
        learn(state, batches(4), sam=0.5)
    assert scaled.scaler.get_scale() == 2.0**16
    torch.testing.assert_close(weights(scaled), weights(plain), rtol=0, atol=1e-6)


def test_a_run_with_sam_resumes_exactly(tmp_path):
    run(tmp_path / "a", sam=0.05)
    assert interrupted(tmp_path / "b", 2, sam=0.05)
    run(tmp_path / "b", resume=True, sam=0.05)
    assert same(outcome(tmp_path / "b"), outcome(tmp_path / "a"))
