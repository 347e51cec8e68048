"""tune: find the weights, views, class biases and CRF that help on labelled images held out from the choice."""

import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from segkit.config import TuneConfig, default_of, from_keywords, import_words, takes_settings
from segkit.console import Console, counted
from segkit.crf import DenseCRF
from segkit.crf.presets import PRESETS
from segkit.data import SegmentationDataset
from segkit.data.dataset import checked_target
from segkit.errors import DataError, NotFiniteError, UsageError
from segkit.files import write_json
from segkit.inference import MemberProbs, Predictor, sample_pixels
from segkit.metrics import Chosen, HeldOutSearch, Interval, PerImageConfusion, bootstrap_interval, gain
from segkit.models import import_modules
from segkit.runs import RunLock, create_run_folder
from segkit.tta import FLIPS, TTA
from segkit.workflows.datasets import open_scored
from segkit.workflows.predictors import (
    ModelSource,
    build_crf,
    find_models,
    load_scored_predictor,
    tell_rules,
    with_rules_of_models,
)

KEPT_BYTES = 2**30  # bytes of mixtures that are kept in memory
UNITS = 20  # units of weight per member, so that equal weights and halves, quarters, fifths of them are exact
SHIFTS = (0.2, 0.1, 0.05)  # shares of the whole weight that one step moves from a member to another
BIASES = (0.5, 0.25)  # steps of the log-probability of a class
LARGEST_STEPPED_BIAS = 2.0

CrfWords = tuple[str, ...] | None


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
    crf: CrfWords = None


@dataclass(frozen=True)
class TuneResult:
    """What `tune` chose.

    Attributes:
        folder: The folder with tune.json.
        plan: The chosen weights, views, class biases and CRF.
        held_out_miou: mIoU of the choice before the CRF, each image scored under what was chosen without it.
        gains: Gain of mIoU of each ingredient that was tried, with its 95 % bootstrap interval.
        command: The infer command of the plan.
    """

    folder: Path
    plan: Plan
    held_out_miou: float
    gains: dict[str, Interval]
    command: str


@takes_settings(TuneConfig)
def tune(*, verbose: bool = False, **settings: Any) -> TuneResult:
    """Find weights, views, class biases and a CRF that help on held-out images, as `python -m segkit tune` does.

    The models run once; member weights, flips, scales and class biases are then tried on their kept probabilities.

    Args:
        verbose: Print what each ingredient brings, and the infer command.
        **settings: The settings of the command, see `python -m segkit tune --help`. `data` also takes a
            `SegmentationDataset`; `weights` also takes loaded models.

    Raises:
        UsageError: A setting cannot be used.
        DataError: An image or an annotation cannot be used, or a model has other classes than the data.
        NotFiniteError: A model returns NaN for an image.
    """
    config = from_keywords(TuneConfig, with_rules_of_models(TuneConfig, settings))
    import_modules(config.imports)
    console = Console(verbose=verbose)
    members, _ = find_models(config)
    tell_rules(config, members, console)
    data = open_scored(config, console, members[0].class_names, members[0].palette, members[0].mask_names)
    crfs = {words: build_crf(words) for words in crf_words(config.crf)}  # errors in them come before the models run
    if config.folds > len(data):
        raise UsageError(f"`folds` must be no more than the {len(data)} images, got {config.folds}")
    predictor = load_scored_predictor(config, members, data, console, with_crf=False)
    with RunLock() as lock:
        out = create_run_folder(config.out, "tune", lock)
        return _tune(config, out, data, members, predictor, crfs, console)


def _tune(
    config: TuneConfig,
    out: Path,
    data: SegmentationDataset,
    members: Sequence[ModelSource],
    predictor: Predictor,
    crfs: Mapping[CrfWords, DenseCRF | None],
    console: Console,
) -> TuneResult:
    """Choose the ingredients one after another, and write the plan to `out`."""
    probs, targets = _keep_probs(config, data, predictor, out, console)
    search = _search(config, data, PlanCounter(probs, targets, data))
    start = search.fixed(first_plan(config, len(members), len(data.class_names)))
    if len(members) > 1:
        for member, only in zip(members, steps_of("member weights", config, start.final), strict=False):
            console.print(_score_line(f"only {member.name}", search.count(only(start.final))))
    console.print(_score_line("at the start: equal weights, one view", start.held_out))
    console.print(
        f"\nan ingredient is kept if it brings more than {100 * config.margin:g} points of mIoU on images held out"
    )
    chosen, gains = _try_all(config, search, start, ("member weights", "flips", "scales", "class bias"), data, console)
    console.print(_score_line("on images held out, with the ingredients that were kept", chosen.held_out))
    plan = chosen.final
    if config.crf is not None:
        # The models run again, now by the plan and on whole images: only the CRF is chosen by folds here.
        counts = count_crfs(data, planned_predictor(predictor, plan, data.class_names), crfs, console)
        search = _search(config, data, lambda plan: deepcopy(counts[plan.crf]))
        refined, more = _try_all(config, search, search.fixed(plan), ("crf",), data, console)
        plan, gains = refined.final, gains | more
    command = infer_command(plan, config, members, data.class_names)
    held_out = chosen.held_out.total().compute().miou
    numbers = {name: {k: float(v) for k, v in asdict(interval).items()} for name, interval in gains.items()}
    content = {"held_out_miou": held_out, "gains": numbers, "plan": asdict(plan), "command": command}
    write_json(out / "tune.json", content, indent=2)
    console.print(f"\n{command}\n\n{out}: tune.json")
    return TuneResult(out, plan, held_out, gains, command)


def first_plan(config: TuneConfig, members: int, classes: int) -> Plan:
    """Return the plan to start from: equal weights, the unchanged image, no bias, no CRF."""
    scale = min(config.scales, key=lambda s: abs(math.log(s)))
    return Plan((UNITS,) * members, "none", (scale,), (0.0,) * classes)


def steps_of(ingredient: str, config: TuneConfig, plan: Plan) -> list[Callable[[Plan], Plan]]:
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


def crf_words(given: Sequence[str] | None) -> list[CrfWords]:
    """Return the values of `crf` to choose from: no CRF, and the value that is set, or all presets.

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


def infer_command(plan: Plan, config: TuneConfig, models: Sequence[ModelSource], class_names: Sequence[str]) -> str:
    """Return the command that predicts by a plan.

    Args:
        plan: The plan; members without weight are not in the command.
        config: The settings that stay: windows, precision, reading.
        models: The members.
        class_names: The classes of the models.
    """
    members = [(model, units) for model, units in zip(models, plan.weights, strict=True) if units]
    words = ["python", "infer.py", *import_words(config.imports), "--weights", *(model.name for model, _ in members)]
    if len({units for _, units in members}) > 1:
        words += ["--member-weights", *(str(units // math.gcd(*plan.weights)) for _, units in members)]
    if plan.flips != "none":
        words += ["--flips", plan.flips]
    if plan.scales != (1.0,):
        words += ["--scales", *map(str, plan.scales)]  # with all digits, so that the sizes are the same as tried
    if any(plan.bias):
        words += ["--class-bias", *bias_words(plan, class_names)]
    if plan.crf is not None:
        words += ["--crf", *plan.crf]
    if config.window is not None:
        words += ["--window", str(config.window)]
        words += ["--window-overlap", str(config.window_overlap)] if config.window else []
    if config.full_size:
        words.append("--full-size")
    if any(model.about for model, _ in members):
        words += ["--class-names", str(config.class_names)]
        words += ["--mean", *map(str, config.mean), "--std", *map(str, config.std)]
    taken = {name: default_of(config, name) for name in ("amp", "engine", "exif", "max_pixels")}
    taken |= {name: value for name, value in members[0][0].data_rules.items() if name in taken}
    if any(isinstance(one, SegmentationDataset) for one in config.data):  # it reads its images itself
        del taken["exif"]
    for name, value in taken.items():
        if getattr(config, name) != value:
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


class PlanCounter:
    """Count the confusion of every image under a plan, at the pixels whose probabilities are kept."""

    def __init__(self, probs: MemberProbs, targets: Sequence[np.ndarray], data: SegmentationDataset) -> None:
        self.probs, self.targets, self.data = probs, targets, data
        self._of: tuple | None = None
        self._mixtures: dict[int, np.ndarray] = {}  # shared by plans that differ only in their biases

    def __call__(self, plan: Plan) -> PerImageConfusion:
        views = [
            number
            for number, view in enumerate(self.probs.views)
            if view.scale in plan.scales and view.turn in FLIPS[plan.flips]
        ]
        factors = np.exp(np.array(plan.bias, dtype=np.float32))[:, None]
        weights = np.array(plan.weights) / sum(plan.weights)
        images = _new_confusion(self.data)
        for i, target in enumerate(self.targets):
            biased = self._mixture(i, tuple(weights), tuple(views)) * factors
            images.update(biased[:, None], target[None])
        return images

    def _mixture(self, image: int, weights: tuple[float, ...], views: tuple[int, ...]) -> np.ndarray:
        if self._of != (weights, views):
            self._of, self._mixtures = (weights, views), {}
        found = self._mixtures.get(image)
        if found is None:
            found = self.probs.mixture(image, weights, views)
            if (len(self._mixtures) + 1) * found.nbytes <= KEPT_BYTES:
                self._mixtures[image] = found
        return found


def _keep_probs(
    config: TuneConfig, data: SegmentationDataset, predictor: Predictor, out: Path, console: Console
) -> tuple[MemberProbs, list[np.ndarray]]:
    pixels = sample_pixels([checked_target(data, i).size for i in range(len(data))], config.pixels, config.seed)
    probs = MemberProbs(predictor, pixels, out)
    count, members = sum(map(len, pixels)), counted(len(predictor.members), "member")
    console.print(
        f"probs  {members} x {counted(len(probs.views), 'view')} at {count} pixels of {counted(len(data), 'image')}: "
        f"{probs.bytes / 1e9:.2f} GB in {out} until the end"
    )
    probs.run(data, console.progress)
    return probs, [data.target(i).ravel()[chosen] for i, chosen in enumerate(pixels)]


def _search(config: TuneConfig, data: SegmentationDataset, count: Any) -> HeldOutSearch:
    return HeldOutSearch(count, len(data), folds=config.folds, seed=config.seed)


def _try_all(
    config: TuneConfig,
    search: HeldOutSearch,
    chosen: Chosen,
    ingredients: Iterable[str],
    data: SegmentationDataset,
    console: Console,
) -> tuple[Chosen, dict[str, Interval]]:
    """Try the ingredients one after another, each on top of the ones that were kept."""
    gains = {}
    for ingredient in ingredients:
        steps = steps_of(ingredient, config, chosen.final)
        if all(step(chosen.final) == chosen.final for step in steps):
            continue
        later = search.improve(chosen, steps)
        gains[ingredient] = gain(later, chosen)
        kept = gains[ingredient].estimate > config.margin
        plan, change = later.final, gains[ingredient]
        words = {
            "member weights": [f"{units / sum(plan.weights):.3g}" for units in plan.weights],
            "flips": [plan.flips],
            "scales": [f"{scale:g}" for scale in plan.scales],
            "class bias": bias_words(plan, data.class_names) or ["none"],
            "crf": ["none"] if plan.crf is None else plan.crf or ["seed"],
        }[ingredient]
        numbers = f"{100 * change.estimate:+.2f} [{100 * change.low:+.2f}, {100 * change.high:+.2f}]"
        console.print(f"{ingredient:<14}  {numbers:<22}  {'kept' if kept else 'dropped':<7}  {' '.join(words)}")
        chosen = later if kept else chosen
    return chosen, gains


def count_crfs(
    data: SegmentationDataset, predictor: Predictor, crfs: Mapping[CrfWords, DenseCRF | None], console: Console
) -> dict[CrfWords, PerImageConfusion]:
    """Return the confusion of every image with each CRF, and without."""
    counts = {words: _new_confusion(data) for words in crfs}
    for i in console.progress(range(len(data))):
        image, target = data[i]
        try:
            predictions = predictor.compare_crfs(image, list(crfs.values()))
            for (words, crf), prediction in zip(crfs.items(), predictions, strict=True):
                counts[words].update(prediction.mask, target)
                if crf is not None:
                    crf.close()  # so that the kernels of only one CRF are in memory
        except (DataError, NotFiniteError) as error:
            raise type(error)(f"{data.name(i)}: {error}") from error
    return counts


def planned_predictor(predictor: Predictor, plan: Plan, class_names: Sequence[str]) -> Predictor:
    """Return a Predictor of the same models that predicts by a plan, without its CRF."""
    return Predictor(
        predictor.members,
        member_weights=plan.weights,
        tta=TTA(scales=plan.scales, flips=plan.flips),
        window=predictor.window,
        full_size=predictor.full_size,
        class_bias=dict(zip(class_names, plan.bias, strict=True)),
        device=predictor.device,
        probs="disk" if predictor.probs == "disk" else "none",
    )


def _new_confusion(data: SegmentationDataset) -> PerImageConfusion:
    return PerImageConfusion(len(data.class_names), class_names=data.class_names, exclude=data.ignored_labels)


def _score_line(what: str, images: PerImageConfusion) -> str:
    miou = bootstrap_interval(images)
    return f"mIoU {100 * miou.estimate:.2f} [{100 * miou.low:.2f}, {100 * miou.high:.2f}]  {what}"
