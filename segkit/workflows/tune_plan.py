"""Plan: everything that tune chooses, the steps from one plan to others, and the infer command of a plan."""

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations

from segkit.config import TuneConfig, default_of
from segkit.crf.presets import PRESETS
from segkit.tta import FLIPS

UNITS = 20  # units of weight per member, so that equal weights and halves, quarters, fifths of them are exact
SHIFTS = (0.2, 0.1, 0.05)  # shares of the whole weight that one step moves from a member to another
BIASES = (0.5, 0.25)  # steps of the log-probability of a class
LARGEST_STEPPED_BIAS = 2.0


@dataclass(frozen=True)
class Plan:
    """How an ensemble predicts.

    Attributes:
        weights: Units of weight of each member; their sum is `UNITS` times the number of members.
        flips: As in `TTA`.
        scales: As in `TTA`, ascending.
        bias: Addition to the log-probability of each class.
        crf: The setting `crf`; None for no CRF.
    """

    weights: tuple[int, ...]
    flips: str
    scales: tuple[float, ...]
    bias: tuple[float, ...]
    crf: tuple[str, ...] | None = None


Step = Callable[[Plan], Plan]


def first_plan(config: TuneConfig, members: int, classes: int) -> Plan:
    """Return the plan to start from: equal weights, the unchanged image, no bias, no CRF."""
    scale = min(config.scales, key=lambda s: abs(math.log(s)))
    return Plan((UNITS,) * members, "none", (scale,), (0.0,) * classes)


def steps_of(ingredient: str, config: TuneConfig, plan: Plan) -> list[Step]:
    """Return the steps that change one ingredient of a plan."""
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
    """Return the values of `crf` to choose from: none, and the one that is set, or all presets.

    Each preset is tried as it is, and with a third of its weights.
    """
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


def infer_command(plan: Plan, config: TuneConfig, models: Sequence[str], class_names: Sequence[str]) -> str:
    """Return the command that predicts by a plan.

    Args:
        plan: The plan; members without weight are not in the command.
        config: The settings that stay: windows, precision, reading.
        models: The paths of the members.
        class_names: The classes of the models.
    """
    members = [(path, units) for path, units in zip(models, plan.weights, strict=True) if units]
    words = ["python", "infer.py", "--weights", *(path for path, _ in members)]
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
    """Return the setting `class_bias` of a plan as CLASS=VALUE words."""
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
    bias[label] = min(LARGEST_STEPPED_BIAS, max(-LARGEST_STEPPED_BIAS, bias[label] + by))
    return replace(plan, bias=tuple(bias))
