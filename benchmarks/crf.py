"""Time DenseCRF on photographs against pydensecrf as it is usually called: one call per image, with all classes.

The contenders take turns on small lots of photographs. The figures are median milliseconds per photograph, and the
share of pixels that get the same label as from the plain call. The probabilities come from a model (`--weights`) or
are generated: the blurred ground truth plus noise for the classes in the image and two more, almost 0 for the others.

    pip install pydensecrf2
    python benchmarks/crf.py --data facade/val.json --weights runs/x
    python benchmarks/crf.py --data facade/val.json --preset deeplab_v2_resnet101 --count 8
    python benchmarks/crf.py --data facade/val.json --breakdown
    python benchmarks/crf.py --data facade/val.json --parity --count 50      # labels of both engines
    python benchmarks/crf.py --data facade/val.json --cuda                   # also the torch engine on a GPU
"""

import argparse
import contextlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import cv2
import numpy as np
import torch

from segkit.crf import PRESETS, CRFParameters, DenseCRF
from segkit.data import CocoSegmentation

Photo = tuple[np.ndarray, np.ndarray]  # probabilities (C, H, W) float32, image (H, W, 3) uint8
PARITY_PRESETS = ("seed", "deeplab_v2_resnet101", "pydensecrf_readme")


def plain(photo: Photo, p: CRFParameters) -> np.ndarray:
    """Refine one image as the README of pydensecrf shows."""
    from pydensecrf.utils import unary_from_softmax

    crf = plain_kernels(photo, p)
    crf.setUnaryEnergy(unary_from_softmax(photo[0]))
    return np.array(crf.inference(p.iterations)).reshape(photo[0].shape)


def plain_kernels(photo: Photo, p: CRFParameters) -> object:
    """Return a pydensecrf model with both pairwise terms, without the unary term."""
    import pydensecrf.densecrf

    classes, height, width = photo[0].shape
    crf = pydensecrf.densecrf.DenseCRF2D(width, height, classes)
    crf.addPairwiseGaussian(sxy=p.gaussian_sigma, compat=p.gaussian_weight)
    colour = p.bilateral_colour_sigma
    crf.addPairwiseBilateral(sxy=p.bilateral_sigma, srgb=colour, rgbim=photo[1], compat=p.bilateral_weight)
    return crf


@contextlib.contextmanager
def contenders(preset: str, workers: int, cuda: bool) -> Iterator[dict[str, Callable[[list[Photo]], list]]]:
    """Yield the functions that refine a lot of photographs, by name; the first one is the reference."""
    p, one_call = PRESETS[preset], partial(DenseCRF.preset, preset)
    with contextlib.ExitStack() as stack:
        spawn = multiprocessing.get_context("spawn")
        pool = stack.enter_context(ProcessPoolExecutor(workers, spawn))
        table = {
            "pydensecrf, plain": lambda lot: [plain(photo, p) for photo in lot],
            f"pydensecrf, plain, pool of {workers}": lambda lot: list(pool.map(partial(plain, p=p), lot)),
        }
        for backend in ("pydensecrf", "torch"):
            for count in (0, workers):
                crf = stack.enter_context(one_call(backend=backend, workers=count))
                name = f"segkit, {backend}, {f'{count} workers' if count else 'in process'}"
                table[name] = lambda lot, crf=crf: list(crf.map(lot))
        if cuda:
            table["segkit, torch, CUDA"] = partial(_on_cuda, one_call())
        yield table


def _on_cuda(crf: DenseCRF, lot: list[Photo]) -> list:
    refined = [crf(torch.from_numpy(probs).cuda(), torch.from_numpy(image).cuda()) for probs, image in lot]
    return [q.cpu().numpy() for q in refined]


def compare(photos: list[Photo], preset: str, workers: int, cuda: bool) -> None:
    lots = [photos[start : start + 2 * workers] for start in range(0, len(photos), 2 * workers)]
    with contenders(preset, workers, cuda) as table:
        times, same = {name: [] for name in table}, {name: [] for name in table}
        for refine in table.values():
            refine([photos[0]] * workers)  # starts the workers and loads the libraries
        for number, lot in enumerate(lots):
            names = list(table)
            names = names[number % len(names) :] + names[: number % len(names)]
            refined = {name: timed(table[name], lot, times[name]) for name in names}
            first = refined[next(iter(table))]
            for name, result in refined.items():
                same[name] += [(a.argmax(0) == b.argmax(0)).mean() for a, b in zip(result, first, strict=True)]
    base = statistics.median(next(iter(times.values())))
    for name in table:
        median = statistics.median(times[name])
        print(f"{name:32}{1e3 * median:8.0f} ms{base / median:8.2f}x{100 * np.mean(same[name]):10.4f} % equal labels")


def timed(refine: Callable, lot: list[Photo], times: list[float]) -> list:
    start = time.perf_counter()
    result = refine(lot)
    times.append((time.perf_counter() - start) / len(lot))
    return result


def breakdown(photos: list[Photo], preset: str) -> None:
    """Split the time into lattice and iterations: a second call of DenseCRF on the same image reuses its lattice."""
    parts = {"pydensecrf, plain": [plain_parts(photo, PRESETS[preset]) for photo in photos]}
    for backend in ("pydensecrf", "torch"):
        crf = DenseCRF.preset(preset, backend=backend)
        crf(*photos[0])
        parts[f"segkit, {backend}"] = [our_parts(crf, photo) for photo in photos[1:]]
    for name, rows in parts.items():
        lattice, steps = (1e3 * statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{name:32}lattice {lattice:6.0f} ms   {PRESETS[preset].iterations} iterations {steps:6.0f} ms")


def plain_parts(photo: Photo, p: CRFParameters) -> tuple[float, float]:
    """Return the seconds that pydensecrf takes for the lattice and for the iterations."""
    start = time.perf_counter()
    plain_kernels(photo, p)
    lattice = time.perf_counter() - start
    plain(photo, p)
    return lattice, time.perf_counter() - start - 2 * lattice


def our_parts(crf: DenseCRF, photo: Photo) -> tuple[float, float]:
    """Return the seconds that DenseCRF takes for the lattice and for the iterations."""
    times: list[float] = []
    for _ in range(2):
        timed(lambda lot: [crf(*lot[0])], [photo], times)
    first, again = times
    return first - again, again


def parity(photos: list[Photo], workers: int) -> None:
    """Compare the labels of the two engines of DenseCRF, for several presets."""
    for preset in PARITY_PRESETS:
        results = []
        for backend in ("pydensecrf", "torch"):
            with DenseCRF.preset(preset, backend=backend, workers=workers) as crf:
                results.append([q.argmax(0) for q in crf.map(photos)])
        same = [(a == b).mean() for a, b in zip(*results, strict=True)]
        mean, worst = 100 * np.mean(same), 100 * min(same)
        print(f"{preset:24}{len(same)} photographs   {mean:9.5f} % equal labels, worst photograph {worst:9.5f} %")


def load_photos(data: Path, weights: Path | None, count: int) -> list[Photo]:
    dataset = CocoSegmentation(data)
    places = np.linspace(0, len(dataset) - 1, count).astype(int)
    probs_of = partial(drawn_probs, classes=len(dataset.class_names)) if weights is None else predictor(weights)
    photos = []
    for place in places:
        image, mask = dataset[int(place)]
        photos.append((np.ascontiguousarray(probs_of(image, mask), np.float32), image))
    return photos


def predictor(weights: Path) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    from segkit import Predictor, load_model

    predict = Predictor(load_model(weights))
    return lambda image, mask: predict(image).probs


def drawn_probs(image: np.ndarray, mask: np.ndarray, classes: int) -> np.ndarray:
    """Return (C, H, W) probabilities like those of a model that is unsure at borders and wrong in some patches."""
    rng = np.random.default_rng(int(image.sum()) % 2**32)
    size = mask.shape[::-1]
    logits = np.full((classes, *mask.shape), -12.0, np.float32)
    present = np.union1d(np.unique(mask[mask < classes]), rng.choice(classes, 2, replace=False))
    for label in present:
        truth = cv2.GaussianBlur((mask == label).astype(np.float32), (0, 0), 5)
        patches = cv2.resize(rng.normal(0, 1.2, (12, 12)).astype(np.float32), size, interpolation=cv2.INTER_CUBIC)
        fine = cv2.GaussianBlur(rng.normal(0, 4, mask.shape).astype(np.float32), (0, 0), 2)
        logits[label] = 5 * truth - 4 + patches + fine
    return torch.from_numpy(logits).softmax(0).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="COCO JSON of the photographs")
    parser.add_argument("--weights", type=Path, help="model file or run folder that predicts the probabilities")
    parser.add_argument("--preset", choices=PRESETS, default="seed", help="parameters of the CRF")
    parser.add_argument("--count", type=int, default=12, help="number of photographs")
    parser.add_argument("--workers", type=int, default=2, help="worker processes, on both sides")
    parser.add_argument("--breakdown", action="store_true", help="split the time into lattice and iterations")
    parser.add_argument("--parity", action="store_true", help="compare the labels of both engines")
    parser.add_argument("--cuda", action="store_true", help="also time the torch engine on a GPU")
    args = parser.parse_args()
    photos = load_photos(args.data, args.weights, args.count)
    active = statistics.mean((probs.max((1, 2)) >= DenseCRF.active_threshold).sum() for probs, _ in photos)
    print(f"{len(photos)} photographs, {active:.1f} of {len(photos[0][0])} classes above the threshold on average")
    if args.parity:
        parity(photos, args.workers)
    elif args.breakdown:
        breakdown(photos, args.preset)
    else:
        compare(photos, args.preset, args.workers, args.cuda)


if __name__ == "__main__":
    main()
