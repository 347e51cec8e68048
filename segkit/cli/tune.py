"""tune: trained models and images whose truth is known in; the infer command that helps on images held out, out."""

from collections.abc import Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segkit.cli.evaluate import open_predictor, show_progress
from segkit.cli.process import errors_as_sentences
from segkit.config import TuneConfig, parse_args
from segkit.errors import UsageError

if TYPE_CHECKING:
    from segkit.cli.tune_plan import Plan
    from segkit.data import SegmentationDataset
    from segkit.inference import MemberProbs, Predictor
    from segkit.metrics import Chosen, HeldOutSearch, Interval, PerImageConfusion

KEPT_BYTES = 2**30  # of mixtures in memory


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; `argv` is the process's own by default."""
    with errors_as_sentences("tune", TuneConfig):
        tune(parse_args(TuneConfig, argv, prog="segkit tune"))


def tune(config: TuneConfig) -> "Plan":
    """Prints what each ingredient brings, and the infer command; gives the plan behind it."""
    from segkit.cli.predictors import with_members
    from segkit.cli.scored_data import open_scored
    from segkit.cli.tune_plan import first_plan, infer_command
    from segkit.runs import create_run_folder

    config = with_members(config)
    data = open_scored(config)
    _check_early(config, data)
    predictor = open_predictor(replace(config, crf=None), data)
    out = create_run_folder(config.out, "tune")
    probs, targets = _keep_probs(config, data, predictor, out)
    search = _search(config, data, PlanCounter(probs, targets, data))
    chosen = search.fixed(first_plan(config, len(predictor.members), len(data.class_names)))
    _describe_start(config, search, chosen)
    chosen, gains = _try_all(config, search, chosen, ("member weights", "flips", "scales", "class bias"), data)
    print(_score_line("on images held out, with what is kept", chosen.held_out))
    plan = chosen.final
    if config.crf is not None:
        plan, more = _try_crf(config, data, predictor, plan)
        gains |= more
    command = infer_command(plan, config, data.class_names)
    _write(out / "tune.json", plan, chosen.held_out, gains, command)
    print(f"\n{command}\n\n{out}: tune.json")
    return plan


def _check_early(config: TuneConfig, data: "SegmentationDataset") -> None:
    """Errors that would otherwise come after the models have run."""
    from segkit.cli.predictors import build_crf

    build_crf(config.crf)
    if config.folds > len(data):
        raise UsageError(f"--folds must be no more than the {len(data)} images, got {config.folds}")


class PlanCounter:
    """The confusion of every image under a plan, at the pixels whose probabilities were kept."""

    def __init__(self, probs: "MemberProbs", targets: Sequence[np.ndarray], data: "SegmentationDataset") -> None:
        self.probs, self.targets, self.data = probs, targets, data
        self._of: tuple | None = None
        self._mixtures: dict[int, np.ndarray] = {}  # plans that differ in their biases alone share them

    def __call__(self, plan: "Plan") -> "PerImageConfusion":
        from segkit.tta import FLIPS

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
    config: TuneConfig, data: "SegmentationDataset", predictor: "Predictor", out: Path
) -> tuple["MemberProbs", list[np.ndarray]]:
    from segkit.inference import MemberProbs, sample_pixels

    pixels = sample_pixels([data.target(i).size for i in range(len(data))], config.pixels, config.seed)
    probs = MemberProbs(predictor, pixels, out)
    count = sum(map(len, pixels))
    print(
        f"probs  {len(predictor.members)} members x {len(probs.views)} views at {count} pixels of {len(data)} images: "
        f"{probs.bytes / 1e9:.2f} GB in {out} until the end",
        flush=True,
    )
    probs.run(data, show_progress)
    return probs, [data.target(i).ravel()[chosen] for i, chosen in enumerate(pixels)]


def _search(config: TuneConfig, data: "SegmentationDataset", count: Any) -> "HeldOutSearch":
    from segkit.metrics import HeldOutSearch

    return HeldOutSearch(count, len(data), folds=config.folds, seed=config.seed)


def _describe_start(config: TuneConfig, search: "HeldOutSearch", start: "Chosen") -> None:
    """The members one by one, and all of them with equal weights."""
    from segkit.cli.tune_plan import steps_of

    if len(config.weights) > 1:
        for path, alone in zip(config.weights, steps_of("member weights", config, start.final), strict=False):
            print(_score_line(f"{path} alone", search.count(alone(start.final))))
    print(_score_line("to begin with: equal weights, one view", start.held_out), flush=True)
    print(f"\nan ingredient is kept if it brings more than {100 * config.margin:g} points of mIoU on images held out")


def _try_all(
    config: TuneConfig, search: "HeldOutSearch", chosen: "Chosen", ingredients: Sequence[str], data: Any
) -> tuple["Chosen", dict[str, "Interval"]]:
    """Goes on from each ingredient that is worth it."""
    from segkit.cli.tune_plan import steps_of
    from segkit.metrics import gain

    gains = {}
    for ingredient in ingredients:
        steps = steps_of(ingredient, config, chosen.final)
        if all(step(chosen.final) == chosen.final for step in steps):
            continue
        later = search.improve(chosen, steps)
        gains[ingredient] = gain(later, chosen)
        kept = gains[ingredient].estimate > config.margin
        print(_gain_line(ingredient, later.final, gains[ingredient], kept, data.class_names), flush=True)
        chosen = later if kept else chosen
    return chosen, gains


def _try_crf(
    config: TuneConfig, data: "SegmentationDataset", predictor: "Predictor", plan: "Plan"
) -> tuple["Plan", dict[str, "Interval"]]:
    """Runs the models once more, now as planned, on whole images: only the CRF is chosen by folds here."""
    counts = _count_crfs(config, data, _as_planned(predictor, plan, data.class_names))
    search = _search(config, data, lambda plan: deepcopy(counts[plan.crf]))
    chosen, gains = _try_all(config, search, search.fixed(plan), ("crf",), data)
    return chosen.final, gains


def _count_crfs(
    config: TuneConfig, data: "SegmentationDataset", predictor: "Predictor"
) -> dict[tuple[str, ...] | None, "PerImageConfusion"]:
    """The confusion of every image with each CRF, and without."""
    from segkit.cli.predictors import build_crf
    from segkit.cli.tune_plan import crf_words

    crfs = {words: build_crf(words) for words in crf_words(config.crf)}
    counts = {words: _new_confusion(data) for words in crfs}
    for i in show_progress(range(len(data)), len(data)):
        image, target = data[i]
        before = predictor(image)
        for words, crf in crfs.items():
            with crf or nullcontext():  # of kernels, those of one CRF are in memory
                counts[words].update(before.mask if crf is None else crf(before.probs, image), target)
    return counts


def _as_planned(predictor: "Predictor", plan: "Plan", class_names: Sequence[str]) -> "Predictor":
    from segkit.inference import Predictor
    from segkit.tta import TTA

    return Predictor(
        predictor.members,
        member_weights=plan.weights,
        tta=TTA(scales=plan.scales, flips=plan.flips),
        window=predictor.window,
        class_bias=dict(zip(class_names, plan.bias, strict=True)),
        device=predictor.device,
        probs=predictor.probs,
    )


def _new_confusion(data: "SegmentationDataset") -> "PerImageConfusion":
    from segkit.metrics import PerImageConfusion

    return PerImageConfusion(len(data.class_names), class_names=data.class_names, exclude=data.ignored_labels)


def _score_line(what: str, images: "PerImageConfusion") -> str:
    from segkit.metrics import bootstrap_interval

    miou = bootstrap_interval(images)
    return f"mIoU {100 * miou.estimate:.2f} [{100 * miou.low:.2f}, {100 * miou.high:.2f}]  {what}"


def _gain_line(ingredient: str, plan: "Plan", gain: "Interval", kept: bool, class_names: Sequence[str]) -> str:
    from segkit.cli.tune_plan import bias_words

    chosen = {
        "member weights": [f"{units / sum(plan.weights):.3g}" for units in plan.weights],
        "flips": [plan.flips],
        "scales": [f"{scale:g}" for scale in plan.scales],
        "class bias": bias_words(plan, class_names) or ["none"],
        "crf": ["none"] if plan.crf is None else plan.crf or ["seed"],
    }[ingredient]
    numbers = f"{100 * gain.estimate:+.2f} [{100 * gain.low:+.2f}, {100 * gain.high:+.2f}]"
    return f"{ingredient:<14}  {numbers:<22}  {'kept' if kept else 'left out':<8}  {' '.join(chosen)}"


def _write(file: Path, plan: "Plan", held_out: "PerImageConfusion", gains: dict[str, "Interval"], command: str) -> None:
    from segkit.cli.score_tables import write_json

    numbers = {name: {k: float(v) for k, v in asdict(interval).items()} for name, interval in gains.items()}
    miou = held_out.total().compute().miou
    write_json(file, {"held_out_miou": miou, "gains": numbers, "plan": asdict(plan), "command": command})
