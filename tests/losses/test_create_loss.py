"""Losses by name, their options, and the messages about wrong names, options and inputs."""

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch
from helpers.loss_examples import DEFAULTS, build, example

from segkit import losses
from segkit.errors import UsageError
from segkit.losses import LOSSES, bce_loss, create_loss, cross_entropy_loss, dice_loss, jaccard_loss, ohem_loss

FUNCTIONS = {
    losses.CrossEntropyLoss: losses.cross_entropy_loss,
    losses.BCELoss: losses.bce_loss,
    losses.OHEMLoss: losses.ohem_loss,
    losses.FocalLoss: losses.focal_loss,
    losses.LovaszLoss: losses.lovasz_loss,
    losses.DiceLoss: losses.dice_loss,
    losses.JaccardLoss: losses.jaccard_loss,
    losses.TverskyLoss: losses.tversky_loss,
    losses.GeneralizedDiceLoss: losses.generalized_dice_loss,
    losses.MCCLoss: losses.mcc_loss,
    losses.BoundaryLoss: losses.boundary_loss,
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_name_creates_its_loss(name):
    loss = create_loss(name, ignore_index=1)
    assert isinstance(loss, LOSSES[name])
    assert loss.ignore_index == 1


def test_a_combination_is_the_weighted_sum():
    logits, target = example()
    expected = 0.6 * bce_loss(logits, target) + 0.4 * dice_loss(logits, target)
    torch.testing.assert_close(create_loss({"bce": 0.6, "dice": 0.4})(logits, target), expected)


def test_an_option_reaches_the_losses_that_have_it():
    logits, target = example()
    expected = cross_entropy_loss(logits, target, label_smoothing=0.1) + dice_loss(logits, target)
    torch.testing.assert_close(create_loss({"ce": 1, "dice": 1}, label_smoothing=0.1)(logits, target), expected)


def test_an_option_with_the_name_of_a_loss_reaches_only_that_loss():
    logits, target = example()
    options = {"dice.smooth": 1.0, "smooth": 3.0}
    expected = dice_loss(logits, target, smooth=1.0) + jaccard_loss(logits, target, smooth=3.0)
    torch.testing.assert_close(create_loss(["dice", "jaccard"], **options)(logits, target), expected)
    torch.testing.assert_close(
        create_loss("dice", **{"dice.smooth": 1.0})(logits, target), dice_loss(logits, target, smooth=1.0)
    )


@pytest.mark.parametrize(("name", "mode"), DEFAULTS)
def test_a_loss_shows_how_it_was_built(name, mode):
    assert f"mode='{mode}', ignore_index=7" in repr(build(name, mode, ignore_index=7))


@pytest.mark.parametrize(("module", "function"), FUNCTIONS.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_a_module_has_the_options_and_defaults_of_its_function(module, function):
    options = list(inspect.signature(module).parameters.values())
    assert options == [x for x in inspect.signature(function).parameters.values() if x.kind is x.KEYWORD_ONLY]
    assert {option.name for option in options} >= {"ignore_index"}


def test_focal_tversky_has_other_defaults_and_no_logarithm():
    options = inspect.signature(losses.FocalTverskyLoss).parameters
    assert {name: options[name].default for name in ("alpha", "beta", "gamma")} == {
        "alpha": 0.3,
        "beta": 0.7,
        "gamma": 4 / 3,
    }
    assert options.keys() == inspect.signature(losses.TverskyLoss).parameters.keys() - {"log"}


@pytest.mark.parametrize(
    ("module", "option", "message"),
    [
        (losses.DiceLoss, "smoth", "DiceLoss has no option 'smoth', did you mean 'smooth'?"),
        (losses.CrossEntropyLoss, "mode", "CrossEntropyLoss has no option 'mode'; its options are ignore_index, label"),
        (losses.FocalTverskyLoss, "log", "FocalTverskyLoss has no option 'log'; its options are mode"),
    ],
)
def test_an_option_that_a_module_does_not_have_is_a_type_error(module, option, message):
    with pytest.raises(TypeError, match=message):
        module(**{option: 1})


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_a_copy_is_the_same_loss(copied):
    inputs = example()
    loss = create_loss({"ce": 0.5, "dice": 0.5}, class_weights=[1.0, 2.0, 3.0], smooth=1.0, ignore_index=255)
    same = copied(loss)
    assert repr(same) == repr(loss)
    assert torch.equal(same(*inputs), loss(*inputs))


def test_class_weights_are_state_that_moves_with_the_module():
    loss = create_loss("ce", class_weights=[1.0, 2.0, 3.0])
    assert loss.to(torch.float64).class_weights.dtype == torch.float64
    assert list(loss.state_dict()) == ["class_weights"]


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("dise", {}, "unknown loss 'dise'; did you mean 'dice'"),
        ({"ce": 1, "cee": 1}, {}, "unknown loss 'cee'"),
        ({}, {}, "no loss given, expected some of ce, bce"),
        ({"ce": 0}, {}, "the weight of loss 'ce' must be positive, got 0"),
        ({"ce": float("nan")}, {}, "must be positive, got nan"),
        ({"dice": 1}, {"label_smoothing": 0.1}, "the loss dice does not use `label_smoothing`; .*: ce, bce"),
        ("lovasz", {"class_weights": [1, 2]}, "the loss lovasz does not use `class_weights`; losses that do: ce"),
        ({"bce": 1, "ohem": 1}, {"class_weights": [1, 2]}, r"the loss bce \+ ohem does not use `class_weights`"),
        ({"dice": 1}, {"wide": 0.1}, "unknown dice option 'wide'. Known: absent"),
        ({"ce": "1"}, {}, "the weight of loss 'ce' must be positive, got '1'"),
        ({"ce": float("inf")}, {}, "the weight of loss 'ce' must be positive, got inf"),
        (None, {}, "a loss must be a name, a list of names, or names with weights, got None"),
        (["ce", "boundary"], {}, "unknown loss 'boundary'. Known: ce, bce"),
        (["ce", 3], {}, "unknown loss 3"),
        ({"ce": 1, "dice": 1}, {"smoth": 1}, r"unknown ce \+ dice option 'smoth'; did you mean 'smooth'"),
        ({"ce": 1, "dice": 1}, {"mode": "binary"}, "loss 'ce' has only mode multiclass; for mode 'binary' use 'bce'"),
        ("dice", {"mode": "multi"}, "`mode` must be one of multiclass, binary, multilabel, got 'multi'"),
        ("ce", {"label_smoothing": 1.5}, r"`label_smoothing` must be in \[0, 1\], got 1.5"),
        ("ce", {"reduction": "batchwise_mean"}, "`reduction` must be one of mean, sum, none, got 'batchwise_mean'"),
        ("dice", {"absent": "ignore"}, "`absent` must be one of skip, penalise, zero, got 'ignore'"),
        (["ce", "dice"], {"jaccard.log": True}, r"`jaccard.log` is an option of jaccard, but the loss is ce \+ dice"),
        ({"ce": 1, "dice": 1}, {"dice.wide": 1}, "unknown dice option 'wide'"),
        ("dice", {"dice.absent": "ignore"}, "`absent` must be one of skip, penalise, zero, got 'ignore'"),
        ("dice", {"smooth": "1"}, "`smooth` must be a number, got '1'"),
        ("dice", {"log": "no"}, "`log` must be True or False, got 'no'"),
        ("ohem", {"threshold": 0}, r"`threshold` must be in \(0, 1\], got 0"),
    ],
)
def test_a_wrong_specification_is_named(spec, options, message):
    with pytest.raises(UsageError, match=message):
        create_loss(spec, **options)


@pytest.mark.parametrize(
    ("name", "mode", "options", "message"),
    [
        ("dice", "multiclass", {"absent": "penalise"}, '`absent="penalise"` needs `smooth` > 0'),
        ("dice", "multiclass", {"classes": 3}, "`classes` must be a sequence of indices from 0 to 2, got 3"),
        ("mcc", "multiclass", {"classes": [0, 3]}, r"`classes` must be a sequence .* got \[0, 3\]"),
        ("jaccard", "multiclass", {"classes": []}, r"`classes` must be a sequence .* got \[\]"),
        ("focal_tversky", "multiclass", {"gamma": 0}, "`gamma` must be positive, got 0"),
        ("ce", "multiclass", {"class_weights": [1.0, 2.0]}, r"expected 3 weights, one for each class, got \(2,\)"),
        ("bce", "multilabel", {"pos_weight": torch.ones(4)}, r"expected 3 weights, one for each class, got \(4,\)"),
        ("focal", "multiclass", {"alpha": 0.25}, '`alpha` is for `mode="binary"` and'),
        ("focal", "binary", {"class_weights": [1.0]}, '`class_weights` is for `mode="multiclass"`'),
        ("focal", "binary", {"gamma": -1}, "`gamma` must be at least 0, got -1"),
        ("lovasz", "multiclass", {"classes": "some"}, "`classes` must be one of present, all, got 'some'"),
    ],
)
def test_a_wrong_option_is_named(name, mode, options, message):
    with pytest.raises(UsageError, match=message):
        build(name, mode, **options)(*example(mode))


@pytest.mark.parametrize("soft", ["multiclass", "binary", "multilabel"])
def test_lovasz_takes_no_soft_targets(soft):
    with pytest.raises(UsageError, match="Lovasz loss takes"):
        build("lovasz", soft)(*example(soft, soft=True))


def test_a_function_checks_what_its_module_checks():
    with pytest.raises(UsageError, match="`threshold` must be"):
        ohem_loss(*example(), threshold=2)
    with pytest.raises(UsageError, match="`label_smoothing` must be"):
        cross_entropy_loss(*example(), label_smoothing=-1)


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


LABELS, MASK = zeros(1, 2, 2, dtype=torch.long), zeros(1, 3, 2, 2)


@pytest.mark.parametrize("name", ["ce", *(pytest.param(x, marks=pytest.mark.slow) for x in LOSSES if x != "ce")])
@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (MASK, zeros(1, 2, 3, dtype=torch.long), r"target must be \(N, H, W\) .* got \(1, 2, 3\) for \(1, 3, 2, 2\)"),
        (MASK, zeros(2, 2, 2, dtype=torch.long), r"target must be \(N, H, W\)"),
        (zeros(3, 2, 2), zeros(2, 2, dtype=torch.long), r"target must be \(N, H, W\)"),
        (zeros(3, 2), zeros(3, dtype=torch.long), r"logits must be \(N, C, H, W\), got \(3, 2\)"),
        (MASK, zeros(1, 2, 2), r"integer class indices or .* got torch.float32 \(1, 2, 2\)"),
        (MASK, MASK.long(), r"integer class indices or .* got torch.int64 \(1, 3, 2, 2\)"),
        (MASK, LABELS.bool(), "integer class indices or .* got torch.bool"),
        (MASK.long(), LABELS, "logits must be floating-point numbers, got torch.int64"),
        (MASK, LABELS + 3, "labels from 3 to 3, expected 0 to 2 or ignore_index=255"),
        (MASK, LABELS - 1, "labels from -1 to -1, expected 0 to 2"),
    ],
)
def test_wrong_inputs_are_named(name, logits, target, message):
    with pytest.raises(UsageError, match=message):
        create_loss(name)(logits, target)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_checks_its_inputs(name):
    with pytest.raises(UsageError, match="labels from 3 to 3, expected 0 to 2 or ignore_index=255"):
        create_loss(name)(MASK, LABELS + 3)


@pytest.mark.parametrize(("name", "mode"), [case for case in DEFAULTS if case.values[1] != "multiclass"])
def test_wrong_inputs_of_sigmoid_losses_are_named(name, mode):
    loss = build(name, mode)
    logits, target = example(mode)
    with pytest.raises(UsageError, match=r"target has values from 0\.0 to 2\.0, expected 0 to 1"):
        loss(logits, torch.where(target == 1, 2, target))
    with pytest.raises(UsageError, match="target must be"):
        loss(logits, target[..., :-1])
    if mode == "binary":
        with pytest.raises(UsageError, match=r"takes logits \(N, 1, H, W\), got \(2, 2, 4, 5\)"):
            loss(logits.repeat(1, 2, 1, 1), target)


def test_names_in_a_list_weigh_1_each():
    logits, target = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    expected = create_loss("ce")(logits, target) + create_loss("dice")(logits, target)
    torch.testing.assert_close(create_loss(["ce", "dice"])(logits, target), expected)


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (np.zeros((1, 2, 3, 3), np.float32), torch.zeros(1, 3, 3).long(), "logits must be a tensor, got ndarray"),
        (torch.zeros(1, 2, 3, 3), np.zeros((1, 3, 3), np.int64), "target must be a tensor, got ndarray"),
        ({"out": torch.zeros(1, 2, 3, 3)}, torch.zeros(1, 3, 3).long(), "logits must be a tensor, got dict"),
        (torch.zeros(()), torch.zeros(()).long(), r"logits must be \(N, C, H, W\), got \(\)"),
    ],
)
def test_what_is_no_logits_or_target_is_named(logits, target, message):
    with pytest.raises(UsageError, match=message):
        create_loss("ce")(logits, target)
