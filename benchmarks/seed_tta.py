"""Compare the test-time augmentation of the recycled-waste solutions with what segkit recommends.

For each preset of `segkit.tta.engine.PRESETS`, the same views are also merged with bilinear resizing and the mean of
the probabilities. Prints how many labels differ, without and with a dense CRF, and the mIoU of both.

    python benchmarks/seed_tta.py --weights runs/a runs/b --data val.json --images photographs/
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from segkit.crf import DenseCRF
from segkit.data import CocoSegmentation
from segkit.inference import Predictor
from segkit.metrics import ConfusionMatrix
from segkit.models import load_model
from segkit.tta import TTA
from segkit.tta.engine import PRESETS


def compare(models: list, data: CocoSegmentation, images: list[int], name: str, tta: TTA) -> None:
    recommended = replace(tta, merge="mean", resize="bilinear", brightness_of="image", align_corners=False)
    crfs = {"no CRF": None, "CRF": DenseCRF()}
    scores = {(rule, crf): ConfusionMatrix(len(data.class_names)) for rule in ("preset", "mean") for crf in crfs}
    different, pixels = dict.fromkeys(crfs, 0), 0
    for i in images:
        image, target = data.image(i), torch.from_numpy(data.target(i))
        masks = {}
        for rule, views in (("preset", tta), ("mean", recommended)):
            found = Predictor(models, tta=views).compare_crfs(image, list(crfs.values()))
            for crf, prediction in zip(crfs, found, strict=True):
                masks[rule, crf] = prediction.mask
                scores[rule, crf].update(torch.from_numpy(prediction.mask)[None], target[None])
        pixels += target.numel()
        for crf in crfs:
            different[crf] += np.count_nonzero(masks["preset", crf] != masks["mean", crf])
    for crf in crfs:
        preset, mean = (100 * scores[rule, crf].compute().miou for rule in ("preset", "mean"))
        share = 100 * different[crf] / pixels
        print(f"{name:<24} {crf:<7} {share:6.2f} % of the labels differ; mIoU {preset:.2f}, recommended {mean:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, nargs="+", required=True, help="run folders or model files")
    parser.add_argument("--data", type=Path, required=True, help="COCO JSON")
    parser.add_argument("--images", type=Path, help="folder of its images")
    parser.add_argument("--photographs", type=int, default=40, help="number of images, evenly spaced")
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=list(PRESETS))
    args = parser.parse_args()
    models = [load_model(weights) for weights in args.weights]
    data = CocoSegmentation(args.data, args.images)
    images = np.unique(np.linspace(0, len(data) - 1, args.photographs).round().astype(int)).tolist()
    for name in args.presets:
        compare(models, data, images, name, PRESETS[name])


if __name__ == "__main__":
    main()
