"""One scene of the demo: objects laid on a textured ground, with light, shadows and noise."""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from segkit.demo.objects import CANVAS, OBJECTS, colour, noise

CLASSES: tuple[str, ...] = tuple(OBJECTS)
SMALLEST_AREA = 40  # least visible pixels of an object
SMALLEST_SHARE = 0.25  # least visible share of an object


class Placed(NamedTuple):
    """A sprite at its position: category id, then colour, silhouette and opacity (0..1) at the size of the scene."""

    category_id: int
    rgb: np.ndarray
    cover: np.ndarray
    opacity: np.ndarray


def draw_scene(seed: int, size: int = 256) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Draw one scene of waste.

    Args:
        seed: Non-negative number that decides the scene.
        size: Side of the square image in pixels.

    Returns:
        The image, (size, size, 3) uint8 RGB, and the objects from bottom to top: category id (1..11) and
        visible mask, (size, size) bool. The masks are disjoint and none is smaller than 40 pixels.
    """
    rng = np.random.default_rng(seed)
    image = background(rng, size)
    # The sprites are shaded with light from the upper left, so the light of the scene comes from there, too.
    towards_light = rng.uniform(1.1, 1.45) * np.pi
    objects = visible_objects(scatter(rng, size))
    for placed, _ in objects:
        image = lay(image, placed, towards_light)
    image = finish(rng, image, towards_light)
    return image, [(placed.category_id, mask) for placed, mask in objects]


def scatter(rng: np.random.Generator, size: int) -> list[Placed]:
    """Deal three to six different classes from a shuffled deck and put them on a jittered grid."""
    hand = rng.permutation(len(CLASSES))[: rng.integers(3, 7)]
    rows, columns = (2, 2) if len(hand) <= 4 else ((2, 3), (3, 2))[rng.integers(2)]
    spots = rng.permutation(rows * columns)[: len(hand)]
    cells = np.stack([spots % columns, spots // columns], 1) + rng.uniform(0.32, 0.68, (len(hand), 2))
    centres = cells / (columns, rows) * size
    return [place(rng, int(index) + 1, centre, size) for index, centre in zip(hand, centres, strict=True)]


def place(rng: np.random.Generator, category_id: int, centre: np.ndarray, size: int) -> Placed:
    """Draw an object of one class and turn, scale and slightly shear it around `centre` (x, y) in pixels."""
    sprite = OBJECTS[CLASSES[category_id - 1]](rng)
    scale = rng.uniform(0.5, 0.78) * (size / 256)
    angle, shear = rng.uniform(-0.7, 0.7), rng.uniform(-0.12, 0.12)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = scale * turn @ np.array([[1, shear], [0, rng.uniform(0.9, 1.1)]])
    shift = centre - linear @ np.full(2, CANVAS / 2)
    matrix = np.hstack([linear, shift[:, None]])
    rgb = cv2.warpAffine(sprite.rgb.astype(np.float32), matrix, (size, size), borderMode=cv2.BORDER_REPLICATE)
    masks = np.dstack([sprite.cover, sprite.opacity]).astype(np.float32)
    return Placed(category_id, rgb, *np.moveaxis(cv2.warpAffine(masks, matrix, (size, size)), -1, 0))


def visible_objects(placed: list[Placed]) -> list[tuple[Placed, np.ndarray]]:
    """Find the visible part of each object, bottom to top, and drop objects that are nearly hidden.

    Objects are dropped before anything is painted, so that nothing unlabelled is visible.
    """
    covered = np.zeros_like(placed[0].cover, bool)
    kept = []
    for item in reversed(placed):
        whole = item.cover > 0.5
        mask = whole & ~covered
        if mask.sum() >= max(SMALLEST_AREA, SMALLEST_SHARE * whole.sum()):
            kept.append((item, mask))
            covered |= whole
    return kept[::-1]


def lay(image: np.ndarray, placed: Placed, towards_light: float) -> np.ndarray:
    """Paint one object and its soft shadow over a float image."""
    size, reach = len(image), len(image) / 40
    visible = placed.cover * placed.opacity
    away = np.float32([[1, 0, -reach * np.cos(towards_light)], [0, 1, -reach * np.sin(towards_light)]])
    kernel = (max(size // 24, 1),) * 2
    shadow = cv2.blur(cv2.blur(cv2.warpAffine(visible, away, (size, size)), kernel), kernel)
    image = image * (1 - 0.6 * shadow)[..., None]
    return image + (placed.rgb - image) * visible[..., None]


def finish(rng: np.random.Generator, image: np.ndarray, towards_light: float) -> np.ndarray:
    """Light the scene from one side, add sensor noise and convert 0..1 to uint8."""
    size = len(image)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    light = 1 + rng.uniform(0.05, 0.22) * (x * np.cos(towards_light) + y * np.sin(towards_light))
    grain = rng.standard_normal((size, size, 1), dtype=np.float32) * 0.015
    return (np.clip(image * light[..., None] + grain, 0, 1) * 255).astype(np.uint8)


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a textured ground, (size, size, 3) float32 in 0..1, in muted colours of the shared palette."""
    height = GROUNDS[rng.integers(len(GROUNDS))](rng, size)
    base = 0.45 * colour(rng) + 0.55 * rng.uniform(0.25, 0.75)
    return (base * (1 + height)[..., None]).astype(np.float32)


def planks(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw wooden boards with grain along them and dark joints."""
    boards = int(rng.integers(4, 7))
    tone = np.repeat(rng.uniform(-0.12, 0.12, boards), -(-size // boards))[:size, None]
    grain = 0.12 * noise(rng, size // 3, 3, size) + 0.1 * noise(rng, 12, 2, size)
    joint = np.arange(size)[:, None] % (size / boards) < max(size / 100, 1)
    return np.where(joint, -0.55, tone + grain)


def concrete(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw blotchy cast concrete with pores."""
    fine = noise(rng, size // 2, size // 2, size)
    return 0.1 * noise(rng, 5, 5, size) + 0.07 * noise(rng, 20, 20, size) + 0.1 * fine - 0.35 * (fine > 0.85)


def belt(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a conveyor belt with cross ribs and stains."""
    ribs = np.sin(np.arange(size) * (2 * np.pi * rng.integers(14, 22) / size))
    return 0.16 * np.clip(3 * ribs, -1, 1)[None, :] + 0.1 * noise(rng, 6, 6, size) + 0.05 * noise(rng, 90, 90, size)


def tiles(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw square tiles of slightly different tones with pale joints."""
    count = int(rng.integers(3, 7))
    tone = cv2.resize(rng.uniform(-0.1, 0.1, (count, count)), (size, size), interpolation=cv2.INTER_NEAREST)
    line = np.arange(size) % (size / count) < max(size / 64, 1)
    return np.where(line[:, None] | line[None, :], 0.3, tone + 0.06 * noise(rng, 40, 40, size))


def grass(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw short blades: noise that is much finer across than along."""
    blades = np.maximum(noise(rng, size // 9, size // 2, size), noise(rng, size // 7, size // 3, size))
    return 0.4 * blades - 0.1 + 0.1 * noise(rng, 6, 6, size)


def cardboard(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw corrugated board with faint flutes and fibres."""
    flutes = np.sin(np.arange(size) * (2 * np.pi * rng.integers(28, 44) / size))
    return 0.05 * flutes[:, None] + 0.06 * noise(rng, size // 2, size // 8, size) + 0.08 * noise(rng, 4, 4, size)


def cloth(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw coarse plain weave."""
    phase = np.arange(size) * (2 * np.pi / size * rng.integers(40, 64))
    return 0.14 * np.sin(phase)[:, None] * np.sin(phase)[None, :] + 0.1 * noise(rng, 5, 5, size)


GROUNDS: tuple[Callable[[np.random.Generator, int], np.ndarray], ...] = (
    planks,
    concrete,
    belt,
    tiles,
    grass,
    cardboard,
    cloth,
)
