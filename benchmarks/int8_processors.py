"""Compare the logits of an int8 file on two processors; the second may be one that valgrind imitates.

Processors without VNNI add two products of uint8 and int8 in 16 bits, which saturates if the weights use all of their
8 bits. valgrind shows programs a processor with AVX2 and without VNNI, and computes its instructions exactly.

    python benchmarks/int8_processors.py small.onnx logits.npy                       # writes logits.npy
    valgrind --tool=none python benchmarks/int8_processors.py small.onnx logits.npy  # compares with it; takes minutes

FPN on tf_efficientnet_lite0, trained on facade, two crops of photographs: no difference in any bit. With all 8 bits
(quantize_static of onnxruntime, uint8 x int8, per channel) the logits differ by up to 0.67 of their standard deviation,
and 4.1 % of the labels.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from segkit.models import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="int8 file of `segkit export --int8`")
    parser.add_argument("logits", type=Path, help=".npy file to write, or to compare with if it exists")
    parser.add_argument("--images", type=Path, help=".npy file of normalised images (N, 3, H, W); by default noise")
    args = parser.parse_args()
    torch.set_num_threads(1)
    noise = np.random.default_rng(0).normal(size=(2, 3, 128, 160)).astype(np.float32)
    images = noise if args.images is None else np.load(args.images)
    logits = load_model(args.file)(torch.from_numpy(images)).numpy()
    if not args.logits.exists():
        np.save(args.logits, logits)
        print(f"wrote {args.logits}")
        return
    expected = np.load(args.logits)
    difference = np.abs(logits - expected).max() / expected.std()
    labels = np.mean(logits.argmax(1) == expected.argmax(1))
    print(f"largest difference {difference:.2g} of the standard deviation, equal labels {100 * labels:.2f} %")


if __name__ == "__main__":
    main()
