"""Time the whole inference against a script on SMP, ttach and pydensecrf as people write it.

Both sides average DeepLabV3+ on resnext50_32x4d and FPN on tf_efficientnet_b4, over a vertical flip and the scales
0.75, 1 and 1.25, refine with a dense CRF with the parameters of the script, and write PNG files. Both use the same
weights: SMP models that are first trained here for some steps, so that their probabilities are realistic; segkit
reads them with load_smp_checkpoint. The sides take turns on small lots of photographs, in a random order within each
lot. Compile time is reported separately.

On a GPU the models of both sides run there; the CRF of the script runs on the CPU, and ours on the GPU. Our images run
in batches, the script's one by one. Without --data both segment drawn scenes. Without ttach the script turns and
resizes by itself, and without pydensecrf its CRF is ours on the CPU, which takes less time; the table says so.

    python benchmarks/inference.py --data facade/train.json --photographs 40
    python benchmarks/inference.py --data facade/train.json --tta
    python benchmarks/inference.py --data facade/train.json --bound
    python benchmarks/inference.py --window
    python benchmarks/inference.py --device cuda --workers 16
    python benchmarks/inference.py --data facade/val.json --train facade/train.json --photographs 89 --steps 400
        --sides script "segkit, compiled" "segkit, onnxruntime" "segkit, int8"
"""

import argparse
import random
import resource
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from losses import installed
from torch.utils.flop_counter import FlopCounterMode

from segkit.crf import DenseCRF
from segkit.data import CocoSegmentation, create_transform, read_image, train_loader
from segkit.demo import write_demo
from segkit.inference import BatchSize, Clock, PredictionWriter, Predictor, Segmented, SourceImage, segment
from segkit.inference.stream import ahead
from segkit.losses import create_loss
from segkit.metrics import ConfusionMatrix
from segkit.models import (
    Preprocessing,
    Segmenter,
    create_model,
    export_onnx,
    load_model,
    load_smp_checkpoint,
    optimize,
)
from segkit.models.quantize import quantize_onnx
from segkit.sliding_window import SlidingWindow
from segkit.tta import TTA
from segkit.workflows.predictors import pick_threads

ttach, pydensecrf = installed("ttach"), installed("pydensecrf.densecrf") and installed("pydensecrf.utils")
MEMBERS = {
    "deeplabv3plus": ("DeepLabV3Plus", "resnext50_32x4d"),
    "fpn": ("FPN", "tu-tf_efficientnet_b4"),
}
SMALL_MEMBERS = {"deeplabv3plus": ("DeepLabV3Plus", "resnet18"), "fpn": ("FPN", "resnet18")}
SCALES = (0.75, 1.0, 1.25)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Stages = Counter[str]
BF16 = torch.bfloat16


def trained(data: Path, cache: Path, steps: int, device: str, small: bool = False) -> list[torch.nn.Module]:
    """Return the SMP models; they are trained once, then read from the cache folder."""
    cache.mkdir(parents=True, exist_ok=True)
    models = []
    for name, (architecture, encoder) in (SMALL_MEMBERS if small else MEMBERS).items():
        classes = len(CocoSegmentation(data).class_names)
        model = getattr(smp, architecture)(encoder, encoder_weights=None, classes=classes)
        file = cache / f"{name}-{encoder}-{data.parent.name}-{steps}.pt"
        if not file.exists():
            print(f"training {name} for {steps} steps", flush=True)
            train(model.to(device), data, steps, device)
            torch.save(model.state_dict(), file)
        model.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
        models.append(model.cpu().eval())
    return models


def train(model: torch.nn.Module, data: Path, steps: int, device: str) -> None:
    torch.manual_seed(0)
    model.train().to(memory_format=torch.channels_last)
    loader = train_loader(
        CocoSegmentation(data, mask_cache="memory"), create_transform("light", crop=160), batch_size=8
    )
    optimizer, loss_fn = torch.optim.AdamW(model.parameters(), 5e-4), create_loss("ce")
    preprocessing, step = Preprocessing(MEAN, STD), 0
    while step < steps:
        for images, target in loader:
            images, target = images.to(device), target.to(device)
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                logits = model(preprocessing(images))
            loss = loss_fn(logits.float(), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % 25 == 0:
                print(f"  step {step}, loss {loss.item():.3f}", flush=True)
            if step == steps:
                return


@contextmanager
def timed(stages: Stages, stage: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        stages[stage] += time.perf_counter() - started


class ViewsByHand(torch.nn.Module):
    """Averages logits over a vertical flip and the scales, as ttach does."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        total = 0
        for flipped in (False, True):
            for scale in SCALES:
                view = images.flip(2) if flipped else images
                view = F.interpolate(view, scale_factor=scale, mode="bilinear")
                logits = F.interpolate(self.model(view), size=images.shape[2:], mode="bilinear")
                total = total + (logits.flip(2) if flipped else logits)
        return total / (2 * len(SCALES))


class Reference:
    """The script as usual: image by image; with `workers` its CRF runs in a pool of processes."""

    def __init__(self, models: list[torch.nn.Module], out: Path, device: str, workers: int = 0) -> None:
        if ttach is None:
            self.models = [ViewsByHand(model) for model in models]
        else:
            transforms = ttach.Compose([ttach.VerticalFlip(), ttach.Scale(SCALES, interpolation="bilinear")])
            self.models = [ttach.SegmentationTTAWrapper(model, transforms, merge_mode="mean") for model in models]
        self.models = [model.to(device) for model in self.models]
        self.out, self.device = out, device
        self.pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn")) if workers else None
        self.stages: Stages = Counter()

    def run(self, paths: list[Path]) -> dict[Path, np.ndarray]:
        pending = [self._image(path) for path in paths]
        masks = {}
        for path, image, probs in pending if self.pool is None else self._pooled(pending):
            if self.pool is None:
                with timed(self.stages, "CRF"):
                    probs = reference_crf(probs, image)
            with timed(self.stages, "argmax, PNG"):
                masks[path] = probs.argmax(0).astype(np.uint8)
                cv2.imwrite(str(self.out / f"{path.stem}.png"), masks[path])
        return masks

    def _image(self, path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
        with timed(self.stages, "reading, normalising"):
            image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
            x = (torch.from_numpy(image).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
            x = x.permute(2, 0, 1)[None].to(self.device)
        with timed(self.stages, "models"), torch.no_grad():
            logits = sum(model(x) for model in self.models) / len(self.models)
            return path, image, logits.softmax(1)[0].cpu().numpy()

    def _pooled(self, pending: list) -> Iterator[tuple[Path, np.ndarray, np.ndarray]]:
        with timed(self.stages, "CRF"):
            refined = list(self.pool.map(reference_crf, [p[2] for p in pending], [p[1] for p in pending]))
        for (path, image, _), probs in zip(pending, refined, strict=True):
            yield path, image, probs


def reference_crf(probs: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Refine (C, H, W) probabilities with the calls and parameters of the script."""
    if pydensecrf is None:
        torch.set_num_threads(1)
        return DenseCRF()(probs, image)
    classes, height, width = probs.shape
    crf = installed("pydensecrf.densecrf").DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(np.ascontiguousarray(pydensecrf.unary_from_softmax(probs)))
    crf.addPairwiseGaussian(sxy=3, compat=10)
    crf.addPairwiseBilateral(sxy=10, srgb=5, rgbim=np.ascontiguousarray(image), compat=10)
    return np.array(crf.inference(10)).reshape(probs.shape)


class Ours:
    """segkit's Predictor, stream and writer, with the same views and CRF parameters."""

    def __init__(
        self, models: list[Segmenter], names: list[Path], out: Path, *, workers: int, tta: TTA, device: str
    ) -> None:
        self.predictor = Predictor(models, tta=tta, crf=DenseCRF(workers=workers), device=device, probs="none")
        self.writer = PredictionWriter(out, self.predictor.class_names, names, kinds=["mask"])
        self.clock, self.batch_size = Clock(), BatchSize(self.predictor)
        self.threads = pick_threads(self.predictor.device)

    @property
    def stages(self) -> Stages:
        return self.clock.seconds

    def run(self, paths: list[Path]) -> dict[Path, np.ndarray]:
        images = [SourceImage(Path(p.name), partial(read_image, p), p) for p in paths]
        found = segment(images, self.predictor, self.clock, self.batch_size, threads=self.threads)

        def submitted(pool: ThreadPoolExecutor) -> Iterator[tuple[Segmented, Future]]:
            for one in found:
                yield one, pool.submit(self.writer.write, one.source.name, one.image, one.prediction)

        with ThreadPoolExecutor(self.threads) as pool:
            written = ahead(submitted(pool), lambda: 2 * self.threads + self.batch_size.largest, self.clock, "PNG")
            return {one.source.path: one.prediction.mask for one, _ in written}


def segmenters(models: list[torch.nn.Module], small: bool, device: str, **options: object) -> list[torch.nn.Module]:
    """Load the weights of the SMP models into segkit and optimize them with `options`."""
    return [
        optimize(
            load_smp_checkpoint(model.state_dict(), *names, num_classes=model.segmentation_head[0].out_channels).to(
                device
            ),
            **options,
        )
        for model, names in zip(models, (SMALL_MEMBERS if small else MEMBERS).values(), strict=True)
    ]


def in_onnx(models: list[torch.nn.Module], small: bool, folder: Path) -> list[torch.nn.Module]:
    """Return the models as ONNX files in `folder`, run by onnxruntime."""
    folder.mkdir(exist_ok=True)
    loaded = []
    for number, names in enumerate((SMALL_MEMBERS if small else MEMBERS).values()):
        file = folder / f"{number}.onnx"
        if not file.exists():
            model = models[number]
            classes = model.segmentation_head[0].out_channels
            export_onnx(load_smp_checkpoint(model.state_dict(), *names, num_classes=classes), file)
        loaded.append(load_model(file))
    return loaded


def in_int8(
    models: list[torch.nn.Module], small: bool, folder: Path, photographs: list[Path], count: int = 64
) -> list[torch.nn.Module]:
    """Return the models in int8, calibrated on photographs that are not measured."""
    chosen = random.Random(0).sample(photographs, min(count, len(photographs)))
    quantised = []
    for number, model in enumerate(in_onnx(models, small, folder)):
        images = (
            model.preprocessing.normalise(torch.from_numpy(read_image(path)).permute(2, 0, 1)[None].float())
            for path in chosen
        )
        file = folder / f"{number}.int8.onnx"
        quantize_onnx(model.path, file, images)
        quantised.append(load_model(file))
    return quantised


def warmed_up(name: str, make: Callable[[], object], paths: list[Path]) -> object:
    """Make a side and run it on some photographs, so that compiling and first calls are not timed."""
    started = time.perf_counter()
    side = make()
    side.run(paths)
    print(f"{name}: built, compiled and warmed up in {time.perf_counter() - started:.0f} s", flush=True)
    side.stages.clear()
    return side


def measure(args: argparse.Namespace, out: Path) -> None:
    started = time.perf_counter()
    models = trained(args.train or args.data, args.cache, args.steps, args.device, args.small)
    data = CocoSegmentation(args.data)
    chosen = np.linspace(0, len(data) - 1, args.photographs).round().astype(int)
    paths = [data.items[i].path for i in chosen]
    names = [Path(path.name) for path in paths]
    tta = TTA(scales=SCALES, flips="v", merge="gmean")
    options = {"workers": args.workers, "tta": tta, "device": args.device}
    load = partial(segmenters, models, args.small, args.device)
    files = out / "models"
    measured = {path.resolve() for path in paths}
    calibration = [item.path for item in CocoSegmentation(args.train or args.data).items]
    calibration = [path for path in calibration if path.resolve() not in measured]
    makers = {
        "script": lambda: Reference(models, out, args.device),
        "script, CRF in a pool": lambda: Reference(models, out, args.device, args.workers),
        "segkit": lambda: Ours(load(compile=False), names, out, **options),
        "segkit, bf16": lambda: Ours(load(compile=False, dtype=BF16), names, out, **options),
        "segkit, compiled": lambda: Ours(load(compile=True), names, out, **options),
        "segkit, compiled, bf16": lambda: Ours(load(compile=True, dtype=BF16), names, out, **options),
        "segkit, onnxruntime": lambda: Ours(in_onnx(models, args.small, files), names, out, **options),
        "segkit, int8": lambda: Ours(in_int8(models, args.small, files, calibration), names, out, **options),
    }
    on_gpu = args.device != "cpu"
    lot_size = args.lot or (40 if on_gpu else 8)
    # Ours allocates the memory of a batch at first. The script has no batches, and its CRF takes long.
    first = {name: paths[:lot_size] if on_gpu and name.startswith("segkit") else paths[:1] * 2 for name in makers}
    sides = {name: warmed_up(name, make, first[name]) for name, make in makers.items() if name in args.sides}
    seconds, masks = defaultdict(list), defaultdict(dict)
    for start in range(0, len(paths), lot_size):
        lot = paths[start : start + lot_size]
        for name in random.Random(start).sample(list(sides), len(sides)):
            begun = time.perf_counter()
            masks[name] |= sides[name].run(lot)
            seconds[name].append((time.perf_counter() - begun) / len(lot))
        done = start + len(lot)
        print(f"{done} of {len(paths)}", {n: f"{s[-1]:.3f} s" for n, s in seconds.items()}, flush=True)
        if args.minutes and time.perf_counter() - started > 60 * args.minutes:
            break
    targets = {data.items[i].path: data.target(i) for i in chosen[:done]}
    report(sides, seconds, masks, targets, data.class_names, args.device)


def report(sides: dict, seconds: dict, masks: dict, targets: dict, class_names: Sequence[str], device: str) -> None:
    base, count = next(iter(sides)), len(targets)
    where = f"{torch.get_num_threads()} threads" if device == "cpu" else torch.cuda.get_device_name(device)
    print(f"\n{count} photographs, {where}; median of the lots, ratio to {base}")
    if missing := [name for name, package in (("ttach", ttach), ("pydensecrf", pydensecrf)) if package is None]:
        print(f"not installed, so that the script does without: {', '.join(missing)}")
    for name, side in sides.items():
        ratio = statistics.median(b / s for b, s in zip(seconds[base], seconds[name], strict=True))
        equal = np.mean([np.mean(masks[name][path] == masks[base][path]) for path in masks[base]])
        scores = ConfusionMatrix(len(class_names), class_names=class_names)
        for path, target in targets.items():
            scores.update(masks[name][path], target)
        print(
            f"  {name:<22} {statistics.median(seconds[name]):7.3f} s per photograph  {ratio:5.2f} x  "
            f"equal labels {100 * equal:.3f} %  mIoU {100 * scores.compute().miou:.2f}"
        )
        for stage, total in side.stages.most_common():
            print(f"      {stage:<22} {total / count:6.3f} s")


def measure_bound(args: argparse.Namespace) -> None:
    """Print a lower bound: the multiplications of all views of a photograph, at the speed of a large matmul."""
    models = trained(args.train or args.data, args.cache, args.steps, "cpu")
    a = torch.randn(2048, 2048)
    speed = max(2 * 2048**3 / seconds_of(lambda: a @ a) for _ in range(20))
    total = 0
    for model in models:
        for scale in SCALES:
            side = int(512 * scale)
            with FlopCounterMode(display=False) as counter, torch.inference_mode():
                model(torch.randn(1, 3, side, side))
            total += 2 * counter.get_total_flops()  # each scale runs plain and flipped
    print(
        f"{total / 1e9:.0f} GFLOP per photograph at {speed / 1e9:.0f} GFLOP/s of a 2048 x 2048 matmul: "
        f"{total / speed:.2f} s, without CRF, reading and writing"
    )


def seconds_of(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure_tta(args: argparse.Namespace) -> None:
    """Time only the test-time augmentation, with the same SMP model: ttach against segkit's TTA."""
    (model, _) = trained(args.train or args.data, args.cache, args.steps, "cpu")
    images = torch.randn(1, 3, 512, 512)
    transforms = ttach.Compose([ttach.VerticalFlip(), ttach.Scale(SCALES, interpolation="bilinear")])
    theirs, ours = ttach.SegmentationTTAWrapper(model, transforms), TTA(scales=SCALES, flips="v", merge="logits")
    calls = {"ttach": lambda: theirs(images), "segkit": lambda: ours(model, images)}
    seconds = defaultdict(list)
    with torch.no_grad():
        found = {name: call() for name, call in calls.items()}
        for run in range(args.runs):
            for name in random.Random(run).sample(list(calls), 2):
                started = time.perf_counter()
                calls[name]()
                seconds[name].append(time.perf_counter() - started)
    ratio = statistics.median(s / t for s, t in zip(seconds["segkit"], seconds["ttach"], strict=True))
    difference = (found["ttach"] - found["segkit"]).abs().max() / found["ttach"].abs().max()
    print(
        f"TTA only: ttach {statistics.median(seconds['ttach']):.2f} s, segkit {ratio:.2f} of that time; "
        f"logits differ by {difference:.1e} of the largest logit"
    )


def measure_window() -> None:
    """Measure the memory above a small model for an image of 8000 x 6000 pixels, 12 classes, windows of 512."""
    model = create_model("fpn", backbone="mobilenetv3_small_100", num_classes=12, pretrained=False).eval()
    predictor = Predictor(model, window=SlidingWindow(512, overlap=0.25), probs="none")
    predictor(np.zeros((600, 600, 3), dtype=np.uint8))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    image = np.random.default_rng(0).integers(0, 256, (6000, 8000, 3), dtype=np.uint8)
    started = time.perf_counter()
    predictor(image)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    print(f"8000 x 6000: {time.perf_counter() - started:.0f} s, {peak:.2f} GB above the model, image included")


def main() -> None:
    sides = ["script", "script, CRF in a pool", "segkit", "segkit, bf16", "segkit, compiled", "segkit, compiled, bf16"]
    engines = ["segkit, onnxruntime", "segkit, int8"]  # on a CPU
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--window", action="store_true", help="measure the memory of a sliding window")
    parser.add_argument("--data", type=Path, help="COCO JSON of photographs of 512 x 512 pixels; without, drawn scenes")
    parser.add_argument("--train", type=Path, help="COCO JSON to train on and to calibrate int8; by default --data")
    parser.add_argument("--device", default="cpu", help="where the models of both sides run")
    parser.add_argument("--side", type=int, default=512, help="height and width of drawn scenes")
    parser.add_argument("--small", action="store_true", help="two small models, to try this program")
    parser.add_argument("--minutes", type=float, help="end after the lot that reaches this time")
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir(), "segkit-benchmark"), help="keeps the models"
    )
    parser.add_argument("--steps", type=int, default=150, help="training steps for each model")
    parser.add_argument("--photographs", type=int, default=40, help="number of photographs")
    parser.add_argument("--lot", type=int, help="photographs per turn; by default 8 on the CPU and 40 on a GPU")
    parser.add_argument("--workers", type=int, default=2, help="CRF processes on both sides")
    parser.add_argument("--sides", nargs="+", default=sides, choices=sides + engines)
    parser.add_argument("--tta", action="store_true", help="time only the test-time augmentation")
    parser.add_argument("--bound", action="store_true", help="print a lower bound from the multiplications")
    parser.add_argument("--runs", type=int, default=5, help="timed rounds of --tta")
    args = parser.parse_args()
    if args.window:
        measure_window()
        return
    if args.data is None:
        scenes = args.cache / f"scenes-{args.photographs}-{args.side}"
        args.data = write_demo(scenes, train=args.photographs, val=1, size=args.side)[0]
    if args.bound:
        measure_bound(args)
        return
    if args.tta and ttach is None:
        parser.error("--tta needs ttach")
    if args.tta:
        measure_tta(args)
        return
    with tempfile.TemporaryDirectory() as out:
        measure(args, Path(out))


if __name__ == "__main__":
    main()
