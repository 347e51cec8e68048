"""Plan: all that tune chooses, the steps from one plan to others, and the infer command of a plan."""

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations

from segkit.config import TuneConfig, default_of
from segkit.tta import FLIPS

UNITS = 20  # of weight for each member, so that equal weights and halves, quarters, fifths of them are exact
SHIFTS = (0.2, 0.1, 0.05)  # of all weight, that one step takes from a member and gives to another
BIASES = (0.5, 0.25)  # steps of a class's log-probability
LARGEST_BIAS = 2.0


@dataclass(frozen=True)
class Plan:
    """How an ensemble predicts.

    Attributes:
        weights: Units of weight of each member, of `UNITS` for each in sum.
        flips: As in `TTA`.
        scales: Ascending.
        bias: What each class's log-probability is raised by.
        crf: Words of --crf; None for no CRF.
    """

    weights: tuple[int, ...]
    flips: str
    scales: tuple[float, ...]
    bias: tuple[float, ...]
    crf: tuple[str, ...] | None = None


Step = Callable[[Plan], Plan]


def first_plan(config: TuneConfig, members: int, classes: int) -> Plan:
    """Equal weights, the image as it is, no bias, no CRF."""
    scale = min(config.scales, key=lambda s: abs(math.log(s)))
    return Plan((UNITS,) * members, "none", (scale,), (0.0,) * classes)


def steps_of(ingredient: str, config: TuneConfig, plan: Plan) -> list[Step]:
    """The steps that change one ingredient of a plan."""
    members, labels = range(len(plan.weights)), range(len(plan.bias))
    shares = [max(1, round(share * UNITS * len(members))) for share in SHIFTS]
    flips = [name for name, turns in FLIPS.items() if set(turns) <= set(FLIPS[config.flips])]
    return {
        "member weights": [
            *(partial(_only, member=m) for m in members),
            *(partial(_shift, pair=pair, units=units) for units in shares for pair in permutations(members, 2)),
        ],
        "flips": [partial(replace, flips=name) for name in flips],
        "scales": [partial(_toggle, scale=scale) for scale in sorted(set(config.scales))],
        "class bias": [partial(_raise, label=c, by=sign * by) for by in BIASES for c in labels for sign in (1, -1)],
        "crf": [partial(replace, crf=words) for words in crf_words(config.crf)],
    }[ingredient]


def crf_words(given: Sequence[str] | None) -> list[tuple[str, ...] | None]:
    """No CRF, and those to choose from: what --crf says, or each preset, as it is and at a third of its weights."""
    from segkit.crf.presets import PRESETS

    if given is None:
        return [None]
    if given:
        return [None, tuple(given)]
    third = {
        name: tuple(
            f"{kernel}_weight={getattr(preset, f'{kernel}_weight') / 3:.3g}" for kernel in ("gaussian", "bilateral")
        )
        for name, preset in PRESETS.items()
    }
    return [None, *((name, *words) for name in PRESETS for words in ((), third[name]))]


def infer_command(plan: Plan, config: TuneConfig, class_names: Sequence[str]) -> str:
    """The command that predicts as a plan says; members without weight are left out."""
    members = [(path, units) for path, units in zip(config.weights, plan.weights, strict=True) if units]
    words = ["python", "infer.py", "--weights", *(str(path) for path, _ in members)]
    if len({units for _, units in members}) > 1:
        words += ["--member-weights", *(f"{units / sum(plan.weights):.4g}" for _, units in members)]
    if plan.flips != "none":
        words += ["--flips", plan.flips]
    if plan.scales != (1.0,):
        words += ["--scales", *(f"{scale:g}" for scale in plan.scales)]
    if any(plan.bias):
        words += ["--class-bias", *bias_words(plan, class_names)]
    if plan.crf is not None:
        words += ["--crf", *plan.crf]
    if config.window:
        words += ["--window", str(config.window), "--window-overlap", f"{config.window_overlap:g}"]
    for name in ("amp", "exif", "max_pixels"):
        if getattr(config, name) != default_of(config, name):
            words += [f"--{name.replace('_', '-')}", str(getattr(config, name))]
    return shlex.join([*words, "--source", "photographs/"])


def bias_words(plan: Plan, class_names: Sequence[str]) -> list[str]:
    """The words of --class-bias."""
    return [f"{name}={value:g}" for name, value in zip(class_names, plan.bias, strict=True) if value]


def _only(plan: Plan, member: int) -> Plan:
    return replace(plan, weights=tuple(sum(plan.weights) * (m == member) for m in range(len(plan.weights))))


def _shift(plan: Plan, pair: tuple[int, int], units: int) -> Plan:
    giver, taker = pair
    weights = list(plan.weights)
    units = min(units, weights[giver])
    weights[giver], weights[taker] = weights[giver] - units, weights[taker] + units
    return replace(plan, weights=tuple(weights))


def _toggle(plan: Plan, scale: float) -> Plan:
    scales = tuple(sorted(set(plan.scales) ^ {scale}))
    return replace(plan, scales=scales) if scales else plan


def _raise(plan: Plan, label: int, by: float) -> Plan:
    bias = list(plan.bias)
    bias[label] = min(LARGEST_BIAS, max(-LARGEST_BIAS, bias[label] + by))
    return replace(plan, bias=tuple(bias))
