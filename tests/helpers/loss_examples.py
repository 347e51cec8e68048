"""Every loss in every mode with every option that changes its value, and inputs for them."""

import inspect

import pytest
import torch

from segkit.losses import LOSSES
from segkit.losses._inputs import Inputs
from segkit.losses._softmax import device_traits

MODES = ("multiclass", "binary", "multilabel")
SOFTMAX, SIGMOID = MODES[:1], MODES[1:]
CLASSES = 3
WEIGHTS = (0.5, 2.0, 1.25)
OVERLAP = [
    ({}, MODES),
    ({"smooth": 1.0}, MODES),
    ({"log": True}, MODES),
    ({"per_image": True}, MODES),
    ({"absent": "zero"}, MODES),
    ({"absent": "penalise", "smooth": 1.0, "per_image": True}, MODES),
    ({"classes": (2, 0)}, ("multiclass", "multilabel")),
]
OPTIONS = {
    "ce": [
        ({}, SOFTMAX),
        ({"label_smoothing": 0.1}, SOFTMAX),
        ({"class_weights": WEIGHTS}, SOFTMAX),
        ({"class_weights": WEIGHTS, "label_smoothing": 0.1}, SOFTMAX),
    ],
    "bce": [
        ({}, MODES),
        ({"label_smoothing": 0.1}, MODES),
        ({"pos_weight": 2.0}, MODES),
        ({"pos_weight": torch.tensor(WEIGHTS), "label_smoothing": 0.1}, ("multiclass", "multilabel")),
    ],
    "dice": OVERLAP,
    "jaccard": OVERLAP,
    "tversky": [({"alpha": 0.25, "beta": 0.75, **options}, modes) for options, modes in OVERLAP],
    "focal_tversky": [({}, MODES), ({"gamma": 0.5, "per_image": True}, MODES)],
    "generalized_dice": [
        ({}, MODES),
        ({"per_image": True}, MODES),
        ({"classes": (2, 0)}, ("multiclass", "multilabel")),
    ],
    "focal": [
        ({}, MODES),
        ({"gamma": 0.5}, MODES),
        ({"class_weights": WEIGHTS}, SOFTMAX),
        ({"alpha": 0.25}, SIGMOID),
    ],
    "lovasz": [({}, MODES), ({"per_image": True}, MODES), ({"classes": "all"}, SOFTMAX)],
    "ohem": [({}, MODES), ({"threshold": 0.4, "min_kept": 3}, MODES), ({"threshold": 0.01, "min_kept": 9}, MODES)],
    "mcc": [({}, MODES), ({"per_image": True}, MODES), ({"classes": (2, 0)}, ("multiclass", "multilabel"))],
}


def modes_of(name):
    return MODES if "mode" in inspect.signature(LOSSES[name]).parameters else SOFTMAX


def mainly(cases, fast):
    """Return the cases, each marked slow unless its id is in `fast`."""
    return [
        case if case.id in fast else pytest.param(*case.values, id=case.id, marks=pytest.mark.slow) for case in cases
    ]


def _id(*parts):
    return "-".join(part if isinstance(part, str) else "-".join(part) for part in parts if part)


# All losses in all modes with default options; the same with each set of options; each set of options in one mode.
DEFAULTS = [pytest.param(name, mode, id=_id(name, mode)) for name in LOSSES for mode in modes_of(name)]
VARIANTS = [
    pytest.param(name, mode, options, id=_id(name, mode, options))
    for name in LOSSES
    for options, modes in OPTIONS[name]
    for mode in modes
]

ONE_MODE = [
    pytest.param(name, modes[0], options, id=_id(name, modes[0], options))
    for name in LOSSES
    for options, modes in OPTIONS[name]
]


# All of VARIANTS, but without `-m slow` only the cases in ONE_MODE, or only those with the first set of options.
MAINLY_ONE_MODE = mainly(VARIANTS, {case.id for case in ONE_MODE})
MAINLY_DEFAULTS = mainly(VARIANTS, {case.id for case in VARIANTS if case.values[2] == OPTIONS[case.values[0]][0][0]})


def build(name, mode="multiclass", **options):
    return LOSSES[name](**options) if mode == "multiclass" else LOSSES[name](mode=mode, **options)


def example(mode="multiclass", size=(2, 4, 5), *, soft=False, ignored=0.3, ignore_index=255, classes=CLASSES, seed=0):
    """Return float64 logits (N, C, *size) and a target with a share `ignored` of its pixels set to `ignore_index`.

    In mode multilabel, single entries are ignored instead of pixels.
    """
    random = torch.Generator().manual_seed(seed)
    n, *space = size
    logits = 2 * torch.randn(n, 1 if mode == "binary" else classes, *space, generator=random, dtype=torch.float64)
    if mode == "multiclass" and soft:
        target = torch.randn(logits.shape, generator=random, dtype=torch.float64).softmax(1)
    else:
        shape = logits.shape if mode == "multilabel" else (n, *space)
        if soft:
            target = torch.rand(shape, generator=random, dtype=torch.float64)
        else:
            labels = [i for i in range(classes if mode == "multiclass" else 2) if i != ignore_index]
            target = torch.tensor(labels)[torch.randint(len(labels), shape, generator=random)]
    if ignored:
        where = target[:, :1] if mode == "multiclass" and soft else target
        where = torch.rand(where.shape, generator=random) < ignored
        target = target.masked_fill(where, ignore_index)
    return logits, target


def ignored_entries(logits, target, ignore_index=255):
    """Return a mask in the shape of the logits, true where they must be ignored."""
    where = target == ignore_index
    return (where if where.ndim == logits.ndim else where.unsqueeze(1)).expand(logits.shape)


def as_on(device_type, loss, **changes):
    """Return a function that computes a loss module as on that type of device, but on the CPU.

    Args:
        device_type: Such as `cuda`.
        loss: The module.
        **changes: Other values of the device's traits.
    """

    def compute(logits, target):
        traits = device_traits(device_type)._replace(**changes)
        inputs = Inputs(logits, target, loss.mode, loss.ignore_index, traits=traits)
        return loss.evaluate(inputs)

    return compute


def loss_and_gradient(loss, logits, *others):
    logits = logits.detach().requires_grad_()
    value = loss(logits, *others)
    (gradient,) = torch.autograd.grad(value, logits)
    return value.detach(), gradient
