"""Writes fixtures/smp_*.npz: what SMP returns for weights that can be drawn again without it.

Needs `pip install segmentation-models-pytorch==0.6.0`; run as `python tests/models/make_smp_fixtures.py`.
"""

import json
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent / "fixtures"
CLASSES = 3
CASES = {
    "unet_resnet18": ("Unet", "resnet18", {}),
    "fpn_timm-efficientnet-b0": (
        "FPN",
        "timm-efficientnet-b0",
        {"decoder_pyramid_channels": 64, "decoder_segmentation_channels": 64, "decoder_merge_policy": "cat"},
    ),
    "deeplabv3plus_efficientnet-b0": (
        "DeepLabV3Plus",
        "efficientnet-b0",
        {"encoder_output_stride": 16, "decoder_channels": 32, "decoder_atrous_rates": [1, 2, 3]},
    ),
}


def draw_weights(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Random weights and running statistics; small variances keep the maps of a deep network from fading."""
    random = np.random.default_rng(0)
    weights = {}
    for key, shape in shapes.items():
        numbers = random.random(shape, dtype=np.float32)
        if key.endswith("num_batches_tracked"):
            weights[key] = torch.tensor(7)
            continue
        if len(shape) > 1:
            numbers = (numbers - 0.5) * (12 / np.prod(shape[1:])) ** 0.5  # variance 1 / fan in
        elif key.endswith("running_var"):
            numbers = 0.3 + 0.6 * numbers
        else:
            numbers = (numbers - 0.5) * 0.6 + (1 if key.endswith("weight") else 0)
        weights[key] = torch.from_numpy(np.asarray(numbers, dtype=np.float32))
    return weights


def draw_images(channels: int = 3, size: tuple[int, int] = (64, 96)) -> torch.Tensor:
    numbers = np.random.default_rng(1).random((1, channels, *size), dtype=np.float32)
    return torch.from_numpy((numbers - 0.5) * 4)


def pick(logits: torch.Tensor) -> np.ndarray:
    """Every third pixel: enough to see a shift, small enough to store."""
    return logits[..., ::3, ::3].numpy()


def main() -> None:
    import segmentation_models_pytorch as smp

    FOLDER.mkdir(exist_ok=True)
    for name, (architecture, encoder, options) in CASES.items():
        model = getattr(smp, architecture)(encoder, encoder_weights=None, classes=CLASSES, **options).eval()
        shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
        model.load_state_dict(draw_weights(shapes))
        with torch.inference_mode():
            logits = pick(model(draw_images()))
        file = FOLDER / f"smp_{name}.npz"
        np.savez_compressed(file, shapes=json.dumps(shapes), logits=logits)
        print(f"{file.name}  {file.stat().st_size / 1000:.0f} kB  logits {logits.min():.2f} to {logits.max():.2f}")


if __name__ == "__main__":
    main()
