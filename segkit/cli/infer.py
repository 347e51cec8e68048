"""infer: photographs and trained models in, label maps and overlays out."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from segkit.cli.errors import reported_errors
from segkit.config import InferConfig, parse_args

if TYPE_CHECKING:
    from segkit.inference import Predictor

SOME_FAILED = 5  # exit code


class SourceImage(NamedTuple):
    """An image to segment, and its (H, W) where a JSON gives it."""

    path: Path
    size: tuple[int, int] | None = None


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; `argv` is the process's own by default."""
    with reported_errors("infer"):
        failed = infer(parse_args(InferConfig, argv, prog="infer.py"))
    if failed:
        sys.exit(SOME_FAILED)


def infer(config: InferConfig) -> int:
    """Segments every image of the source; gives the number of images that could not be read."""
    from tqdm import tqdm

    from segkit.cli.run_folder import create_run_folder
    from segkit.data import DataError, read_image
    from segkit.inference import PredictionWriter

    predictor = _load_predictor(config)
    images = _list_source(config, predictor.class_names)
    out = create_run_folder(config.out, "infer")
    writer = PredictionWriter(out, predictor.class_names, list(images))
    failures = []
    for name, source in tqdm(images.items(), unit="image", dynamic_ncols=True, disable=not sys.stderr.isatty()):
        try:
            image = read_image(source.path, source.size)
        except DataError as error:
            failures.append(str(error))
            continue
        writer.write(name, image, predictor(image))
    writer.close()
    for failure in failures:
        print(f"segkit infer: left out: {failure}", file=sys.stderr)
    done = len(images) - len(failures)
    print(f"{done} of {len(images)} images segmented: {out}/mask, {out}/overlay, {out}/manifest.csv")
    return len(failures)


def _load_predictor(config: InferConfig) -> "Predictor":
    from segkit.cli.devices import pick_device
    from segkit.cli.run_folder import newest_run
    from segkit.crf import DenseCRF
    from segkit.inference import Predictor
    from segkit.models import load_model
    from segkit.tta import TTA

    weights = config.weights or (newest_run(),)
    models = [load_model(path) for path in weights]
    print(f"model  {', '.join(map(str, weights))}")
    return Predictor(
        models,
        member_weights=config.member_weights or None,
        tta=TTA(scales=config.scales, flips=config.flips),
        crf=DenseCRF() if config.crf else None,
        device=pick_device(config.device),
    )


def _list_source(config: InferConfig, class_names: Sequence[str]) -> dict[Path, SourceImage]:
    """The images of the source, by the name that their results get."""
    from segkit.cli.run_folder import DEMO
    from segkit.data import DataError, list_images, write_demo

    source = config.source
    if source is None:
        _, source = write_demo(DEMO)
    if source.suffix.lower() == ".json":
        return _list_coco(source, config.images, class_names)
    if source.is_dir():
        found = {path.relative_to(source): SourceImage(path) for path in list_images(source)}
        if not found:
            raise DataError(f"there are no images below {source}")
        return found
    if not source.is_file():
        raise DataError(f"--source {source}: there is no such file or folder")
    return {Path(source.name): SourceImage(source)}


def _list_coco(source: Path, root: Path | None, class_names: Sequence[str]) -> dict[Path, SourceImage]:
    from segkit.data import CocoSegmentation, DataError

    data = CocoSegmentation(source, root=root)
    if data.class_names != tuple(class_names):
        raise DataError(
            f"the categories of {source} do not match the model's classes: {', '.join(data.class_names)} / "
            f"{', '.join(class_names)}; give --source the image folder to ignore them"
        )
    images = {Path(item.file_name): SourceImage(item.path, item.size) for item in data.items}
    for name in images:
        if name.is_absolute() or ".." in name.parts:
            raise DataError(f"{source} names the image {name}, which lies outside the image folder")
    return images
