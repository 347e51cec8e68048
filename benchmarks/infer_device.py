"""Time inference on a GPU with and without a dense CRF, and count the bytes that are copied to the host.

DeepLabV3+ on resnext50_32x4d with random weights and 12 classes segments drawn scenes. With `probs="disk"` the CRF
reads its probabilities on the host and runs in processes on the CPU, as it does without a GPU; with `probs="none"`
everything stays on the GPU except the label map. The labels of the two are compared.

    python benchmarks/infer_device.py --device cuda
    python benchmarks/infer_device.py --device cpu --images 8 --side 256
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from segkit.crf import DenseCRF
from segkit.data import read_image, write_image
from segkit.inference import Clock, Predictor, SourceImage, segment
from segkit.models import create_model, optimize

CLASSES = 12


class HostBytes(TorchDispatchMode):
    """Count the bytes of all copies from a GPU to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        source = arguments[1] if function is torch.ops.aten.copy_.default else next(iter(arguments), None)
        both = isinstance(source, torch.Tensor) and isinstance(result, torch.Tensor)
        if both and source.is_cuda and not result.is_cuda:
            self.bytes += source.numel() * source.element_size()
        return result


def draw_scenes(folder: Path, count: int, side: int) -> list[SourceImage]:
    """Write images of coloured rectangles with noise, and return them as a source."""
    random = np.random.default_rng(0)
    images = []
    for number in range(count):
        scene = np.full((side, side, 3), random.integers(0, 256, 3), dtype=np.float32)
        for _ in range(20):
            top, left = random.integers(0, side, 2)
            scene[top : top + side // 4, left : left + side // 4] = random.integers(0, 256, 3)
        scene += random.normal(0, 8, scene.shape)
        path = folder / f"{number:04d}.png"
        write_image(path, scene.clip(0, 255).astype(np.uint8))
        images.append(SourceImage(Path(path.name), partial(read_image, path), path))
    return images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="where the models run")
    parser.add_argument("--images", type=int, default=200, help="number of images")
    parser.add_argument("--side", type=int, default=512, help="height and width of the images, in pixels")
    parser.add_argument("--workers", type=int, default=8, help="processes of the CRF on the CPU")
    parser.add_argument("--small", action="store_true", help="a small model, to try this program")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = create_model(
        "deeplabv3plus", backbone="resnet18" if args.small else "resnext50_32x4d", num_classes=CLASSES, pretrained=False
    )
    torch.nn.init.normal_(model.head.weight, std=1)
    fast = optimize(model.eval().to(args.device), compile=False)
    sides = {
        "no CRF, probabilities kept": {"probs": "memory"},
        "no CRF, label map only": {"probs": "none"},
        "CRF in processes on the CPU": {"probs": "disk", "crf": DenseCRF(workers=args.workers)},
        "CRF where the models run": {"probs": "none", "crf": DenseCRF(workers=args.workers)},
    }
    masks = {}
    with tempfile.TemporaryDirectory() as folder:
        images = draw_scenes(Path(folder), args.images, args.side)
        for name, options in sides.items():
            predictor = Predictor(fast, device=args.device, **options)
            list(segment(images[:8], predictor))
            clock, started = Clock(), time.perf_counter()
            with HostBytes() as copied:
                masks[name] = [one.prediction.mask for one in segment(images, predictor, clock)]
            seconds = time.perf_counter() - started
            print(
                f"{name:<28} {len(images) / seconds:7.1f} images/s, {copied.bytes / len(images) / 1e6:8.3f} MB to the "
                f"host per image; {clock.shares()}",
                flush=True,
            )
            if predictor.crf is not None:
                predictor.crf.close()
    on_cpu, on_gpu = (np.stack(masks[name]) for name in list(sides)[2:])
    print(f"the CRFs agree on {100 * (on_cpu == on_gpu).mean():.4f} % of the pixels")
    if args.device.startswith("cuda"):
        print(torch.cuda.get_device_name(), f"peak {torch.cuda.max_memory_allocated() / 2**30:.2f} GB of GPU memory")


if __name__ == "__main__":
    main()
