"""infer: photographs and trained models in, label maps and what is made of them out."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segkit.cli.infer_results import Result, conclude
from segkit.cli.process import SOME_FAILED, errors_as_sentences
from segkit.cli.shards import Shard, shard_of_this_process
from segkit.config import InferConfig, parse_args
from segkit.errors import DataError

if TYPE_CHECKING:
    import torch

    from segkit.inference import Clock, PredictionWriter, Predictor, PseudoLabels, Segmented, SourceImage

WRITERS = 2
FILES = ("mask", "overlay", "probs")  # of --save: those that each image has of its own


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; `argv` is the process's own by default."""
    with errors_as_sentences("infer", InferConfig):
        failed = infer(parse_args(InferConfig, argv, prog="infer.py"))
    if failed:
        sys.exit(SOME_FAILED)


def infer(config: InferConfig) -> int:
    """Segments every image of the source; gives the number of images that could not be read."""
    from segkit.cli.predictors import load_predictor, with_members
    from segkit.inference import Clock, PredictionWriter, segment
    from segkit.models.model_file import find_model_file
    from segkit.workflows.devices import pick_workers

    config = with_members(config)
    config = replace(config, weights=tuple(map(find_model_file, config.weights)))  # before anything is written
    images = _open_source(config)
    names = [source.name for source in images] if isinstance(images, list) else images.names()
    ids = _submission_ids(config, names)
    with shard_of_this_process() as shard:
        device = _device(config, shard)
        predictor = load_predictor(
            config,
            device=device,
            crf_workers=pick_workers(config.workers) if len(images) > 1 else 0,
            probs="memory" if config.crf is not None or {"probs", "pseudo"} & set(config.save) else "none",
        )
        pseudo = _pseudo_labels(config, predictor)
        out = shard.from_first(_open_out(config) if shard.is_first else None)
        kinds = [kind for kind in FILES if kind in (*config.save, *_needed(config))]
        writer = PredictionWriter(out, predictor.class_names, names, kinds)
        clock = Clock()
        todo, done = _divide(shard.share(images), writer, config.skip_existing)
        segmented = _shown(segment(todo, predictor, clock), len(names) // shard.count, clock, shard)
        written = list(_write(segmented, writer, pseudo, clock))
        results = shard.gather([*done, *written])
        if not shard.is_first:
            return 0
        if clock.seconds:
            print(f"time   {clock.shares()}")
        return conclude(config, out, writer, results, ids)


def _open_source(config: InferConfig) -> Sequence["SourceImage"]:
    from segkit.data import write_demo
    from segkit.data.images import Reading
    from segkit.inference import open_source
    from segkit.models import read_header
    from segkit.runs import DEMO

    source = write_demo(DEMO)[1] if config.source is None else config.source
    class_names = read_header(config.weights[0])["class_names"]
    images = open_source(source, config.images, class_names, Reading(config.exif, config.max_pixels))
    if not config.skip_existing or not isinstance(images, list):
        return images
    own = {(config.out / kind).resolve() for kind in FILES}  # the results so far, where --out lies in the source
    return [image for image in images if own.isdisjoint(image.path.resolve().parents)]


def _device(config: InferConfig, shard: Shard) -> "torch.device":
    from segkit.workflows.devices import pick_device

    device = pick_device(config.device)
    several = shard.count > 1 and config.device == "auto" and device.type == "cuda"
    return pick_device(f"cuda:{shard.local_rank}") if several else device


def _open_out(config: InferConfig) -> Path:
    from segkit.runs import create_run_folder

    if config.skip_existing and config.out.is_dir():
        return config.out
    return create_run_folder(config.out, "infer")


def _submission_ids(config: InferConfig, names: Sequence[Path]) -> list[str]:
    from segkit.inference import check_sample

    ids = [name.as_posix() for name in names]
    return check_sample(config.submission_sample, ids) if config.submission_sample else ids


def _pseudo_labels(config: InferConfig, predictor: "Predictor") -> "PseudoLabels | None":
    from segkit.inference import PseudoLabels
    from segkit.inference.coco_results import check_background

    if "coco" in config.save:
        check_background(predictor.class_names)
    if "pseudo" not in config.save:
        return None
    return PseudoLabels(
        predictor.class_names, config.pseudo_threshold, config.pseudo_class_thresholds, config.pseudo_min_share
    )


def _needed(config: InferConfig) -> list[str]:
    """The files of single images from which the others are made."""
    return ["mask"] if {"coco", "submission"} & set(config.save) else []


def _divide(
    images: Iterable["SourceImage"], writer: "PredictionWriter", skip_existing: bool
) -> tuple[Iterable["SourceImage"], list[Result]]:
    """What is to be segmented, and the results that are there already, as they are found on the way."""
    done: list[Result] = []

    def todo() -> Iterator["SourceImage"]:
        for source in images:
            row = _row_if_done(source.name, writer) if skip_existing else None
            if row is None:
                yield source
            else:
                done.append(Result(replace(source, frame=None), row))

    return todo(), done


def _row_if_done(name: Path, writer: "PredictionWriter") -> dict[str, Any] | None:

    try:
        return writer.row(name) if writer.is_done(name) else None
    except DataError:  # a mask that cannot be read is made anew
        return None


def _shown(segmented: Iterable["Segmented"], count: int, clock: "Clock", shard: Shard) -> Iterator["Segmented"]:
    """The same, under a progress bar that names what takes longest."""
    from tqdm import tqdm

    hidden = not sys.stderr.isatty() or not shard.is_first
    with tqdm(segmented, total=count, unit="image", dynamic_ncols=True, disable=hidden) as bar:
        for one in bar:
            bar.set_postfix_str(f"limited by {clock.bottleneck()}", refresh=False)
            yield one


def _write(
    segmented: Iterable["Segmented"], writer: "PredictionWriter", pseudo: "PseudoLabels | None", clock: "Clock"
) -> Iterator[Result]:
    from segkit.inference.stream import ahead

    def write(one: "Segmented") -> Result:
        if one.error is not None:
            return Result(one.source, None, str(one.error))
        row = writer.write(one.source.name, one.image, one.prediction)
        return Result(one.source, row, pseudo=None if pseudo is None else pseudo(one.prediction))

    def submitted() -> Iterator[tuple["SourceImage", Future]]:
        for one in segmented:
            yield one.source, pool.submit(write, one)

    with ThreadPoolExecutor(WRITERS) as pool:
        for _, result in ahead(submitted(), 2 * WRITERS, clock, "writing"):
            yield result._replace(source=replace(result.source, frame=None))
