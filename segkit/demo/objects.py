"""The eleven kinds of waste of the demo, each drawn by one function as a sprite on a small square canvas.

Coordinates run from -1 to 1 (x right, y down), colours are RGB from 0 to 1. All classes share one palette,
so that shape and material tell them apart and colour does not.
"""

import colorsys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

CANVAS = 192
PIXEL = 2 / CANVAS
Y, X = (np.mgrid[:CANVAS, :CANVAS].astype(np.float32) + 0.5) * PIXEL - 1

Points = Sequence[tuple[float, float]]


class Sprite(NamedTuple):
    """One drawn object: colour (S, S, 3), silhouette (S, S) and opacity of the material (S, S), all 0..1."""

    rgb: np.ndarray
    cover: np.ndarray
    opacity: np.ndarray


def colour(rng: np.random.Generator) -> np.ndarray:
    """Draw an RGB colour from the palette that all classes and backgrounds share."""
    # Waste is seldom magenta, and half of it is nearly grey or white.
    hue = rng.uniform(-0.06, 0.72) % 1
    saturation = rng.uniform(0.0, 0.2) if rng.random() < 0.5 else rng.uniform(0.25, 0.8)
    return np.float32(colorsys.hsv_to_rgb(hue, saturation, rng.uniform(0.3, 0.97)))


def contrasting(rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    """Draw a few palette colours and keep the one that differs most from `other`."""
    return max((colour(rng) for _ in range(4)), key=lambda candidate: np.abs(candidate - other).max())


def solid(paint: np.ndarray) -> np.ndarray:
    """Fill a canvas (S, S, 3) with one colour."""
    return np.broadcast_to(paint, (CANVAS, CANVAS, 3))


def noise(rng: np.random.Generator, rows: int, columns: int, size: int = CANVAS) -> np.ndarray:
    """Return smooth noise (size, size) of about -1..1 whose grain is `size / rows` by `size / columns` pixels."""
    grid = rng.uniform(-1, 1, (rows + 1, columns + 1)).astype(np.float32)
    return cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)


def mix(rgb: np.ndarray, paint: np.ndarray | float, mask: np.ndarray) -> np.ndarray:
    """Blend `paint` over `rgb` with the weights `mask` (0..1)."""
    return rgb + (paint - rgb) * mask[..., None]


def within(distance: np.ndarray, half_width: np.ndarray | float) -> np.ndarray:
    """Draw the anti-aliased mask (0..1) of `|distance| < half_width`, both in canvas units."""
    return np.clip((half_width - np.abs(distance)) / PIXEL + 0.5, 0, 1)


def polygon(points: Points) -> np.ndarray:
    """Draw the anti-aliased mask (0..1) of a filled polygon."""
    corners = np.round(((np.asarray(points) + 1) / PIXEL - 0.5) * 16).astype(np.int32)
    mask = np.zeros((CANVAS, CANVAS), np.uint8)
    cv2.fillPoly(mask, [corners], 255, cv2.LINE_AA, 4)
    return mask.astype(np.float32) / 255


def smooth_polygon(points: Points) -> np.ndarray:
    """Draw the anti-aliased mask of a polygon whose corners are rounded by Chaikin's corner cutting."""
    curve = np.asarray(points, float)
    for _ in range(3):
        following = np.roll(curve, -1, axis=0)
        curve = np.stack([0.75 * curve + 0.25 * following, 0.25 * curve + 0.75 * following], 1).reshape(-1, 2)
    return polygon(curve)


def strokes(segments: Sequence[tuple[float, float, float, float]], width: float) -> np.ndarray:
    """Draw the anti-aliased mask of straight lines (x0, y0, x1, y1) of one width."""
    mask = np.zeros((CANVAS, CANVAS), np.uint8)
    for segment in segments:
        x0, y0, x1, y1 = (round(((value + 1) / PIXEL - 0.5) * 16) for value in segment)
        cv2.line(mask, (x0, y0), (x1, y1), 255, max(round(width / PIXEL), 1), cv2.LINE_AA, 4)
    return mask.astype(np.float32) / 255


def ellipse(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    """Draw the anti-aliased mask of a filled ellipse."""
    return np.clip((1 - np.hypot((X - x) / rx, (Y - y) / ry)) * min(rx, ry) / PIXEL + 0.5, 0, 1)


def relief(height: np.ndarray, strength: float) -> np.ndarray:
    """Return the brightness factor (..., 1) of a height map that is lit from the upper left."""
    slope = cv2.filter2D(height, -1, np.float32([[1, 1, 0], [1, 0, -1], [0, -1, -1]]))
    return np.clip(1 - strength * slope, 0.35, 1.7)[..., None]


def pillow(cover: np.ndarray, width: float) -> np.ndarray:
    """Return a height map that rises from the outline inwards over `width`."""
    kernel = (round(width / PIXEL),) * 2
    return cv2.blur(cv2.blur(cover, kernel), kernel)


def cells(rng: np.random.Generator, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Return Voronoi cells about `spacing` apart: (distance to the cell's centre in canvas units, cell number)."""
    ticks = np.arange(-1 + spacing / 2, 1, spacing)
    centres = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    centres += rng.uniform(-0.45, 0.45, centres.shape) * spacing
    columns, rows = np.clip((centres + 1) / PIXEL, 0, CANVAS - 1).astype(int).T
    seeds = np.ones((CANVAS, CANVAS), np.uint8)
    seeds[rows, columns] = 0
    distance, label = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    return distance * PIXEL, label


def revolve(profile: Points, bulge: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the silhouette of a turned body with the radii `profile` [(y, radius), ...] down an upright axis.

    Returns (cover, u, v): `u` runs from -1 to 1 across the body, `v` is y along the curved horizontal rings.
    """
    heights, radii = np.transpose(profile)
    radius = np.interp(Y[:, 0], heights, radii).astype(np.float32)[:, None]
    u = np.clip(X / radius, -1, 1)
    v = Y - bulge * radius * np.sqrt(1 - u * u)
    middle, half = (heights[0] + heights[-1]) / 2, (heights[-1] - heights[0]) / 2
    return within(X, radius) * within(v - middle, half), u, v


def gleam(u: np.ndarray, at: float, width: float) -> np.ndarray:
    """Draw a soft highlight (0..1) along the line `u == at`."""
    return np.exp(-(((u - at) / width) ** 2))


def text(rng: np.random.Generator, left: float, right: float, rows: np.ndarray, width: float) -> np.ndarray:
    """Draw a mask of lines of illegible words at the heights `rows` between two margins."""
    words = []
    for y in rows:
        x, end = left, right - rng.uniform(0, 0.35) * (right - left)
        while x < end:
            stop = min(x + rng.uniform(0.08, 0.26), end)
            words.append((x, y, stop, y))
            x = stop + 0.07
    return strokes(words, width)


def unknown(rng: np.random.Generator) -> Sprite:
    """Draw a lumpy, mottled lump bound with adhesive tape."""
    angles = np.arange(14) * (2 * np.pi / 14)
    radii = rng.uniform(0.62, 0.92, 14)
    cover = smooth_polygon(np.stack([radii * np.cos(angles), rng.uniform(0.75, 1) * radii * np.sin(angles)], 1))
    mottle = noise(rng, 9, 9) + 0.7 * noise(rng, 26, 26)
    base = colour(rng)
    rgb = mix(solid(base), contrasting(rng, base), np.clip(mottle + 0.3, 0, 1))
    rgb = rgb * relief(mottle, 0.3)
    tape, angle = contrasting(rng, base), rng.uniform(0, np.pi)
    for turn in (angle, angle + rng.uniform(1.0, 2.0)):
        across = X * np.cos(turn) + Y * np.sin(turn) + rng.uniform(-0.25, 0.25)
        rgb = mix(rgb, 0.35 * tape, 0.7 * within(across, 0.17))
        rgb = mix(rgb, tape * (1 + 0.25 * np.cos(across * 70))[..., None], within(across, 0.14))
    return Sprite(rgb * relief(pillow(cover, 0.5), 12), cover, np.ones_like(cover))


def general_trash(rng: np.random.Generator) -> Sprite:
    """Draw a crumpled, star-like wad of flat facets in several colours."""
    count = rng.integers(11, 16)
    angles = (np.arange(count) + rng.uniform(-0.3, 0.3, count)) * (2 * np.pi / count)
    radii = np.where(np.arange(count) % 2, rng.uniform(0.5, 0.68, count), rng.uniform(0.75, 0.95, count))
    cover = polygon(np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1))
    distance, label = cells(rng, 0.34)
    facets = label.max() + 1
    tilt = rng.uniform(-0.5, 0.5, (3, facets)).astype(np.float32)[:, label]
    light = np.clip(0.95 + 0.8 * tilt[0] + tilt[1] * X + tilt[2] * Y - 0.5 * distance, 0.35, 1.6)
    palette = np.stack([colour(rng) for _ in range(3)])
    rgb = palette[rng.choice(3, facets, p=[0.6, 0.25, 0.15])][label] * light[..., None]
    rgb = cv2.blur(rgb, (3, 3)) * relief(noise(rng, 30, 30), 0.06)
    return Sprite(rgb * relief(pillow(cover, 0.3), 5), cover, np.ones_like(cover))


def paper(rng: np.random.Generator) -> Sprite:
    """Draw a flat printed sheet with a curled corner."""
    w, h, c = rng.uniform(0.6, 0.72), rng.uniform(0.8, 0.92), rng.uniform(0.25, 0.4)
    cover = polygon([(-w, -h), (w - c, -h), (w, c - h), (w, h), (-w, h)])
    sheet = colour(rng)
    ink = contrasting(rng, sheet)
    rgb = solid(sheet) * relief(noise(rng, 2, 2), 2.0)
    left, right = 0.1 - w, w - 0.1
    rgb = mix(rgb, ink, text(rng, left, right - c, np.array([0.17 - h]), 0.1))
    rgb = mix(rgb, ink, 0.85 * text(rng, left, right, np.arange(0.46 - h, h - 0.08, 0.13), 0.045))
    if rng.random() < 0.5:
        picture = within(X - left - 0.22, 0.22) * within(Y - h + 0.35, 0.25)
        rgb = mix(rgb, colour(rng) * (1 + 0.4 * noise(rng, 4, 4))[..., None], picture)
    shadow = polygon([(w - c - 0.1, -h), (w, c - h + 0.12), (w - 1.2 * c, 1.2 * c - h)])
    curl = polygon([(w - c, -h), (w, c - h), (w - 0.95 * c, 0.95 * c - h)])
    rgb = mix(rgb * (1 - 0.4 * cv2.blur(shadow, (9, 9)))[..., None], 0.35 + 0.65 * sheet, curl)
    fold = 0.85 + 0.3 * np.clip((X - Y - w - h + c) / c + 1, 0, 1)
    return Sprite(rgb * (1 + (fold - 1) * curl)[..., None], cover, np.ones_like(cover))


def carton_print(rng: np.random.Generator) -> np.ndarray:
    """Draw the print of a milk carton that runs around the edge between front and side at x = 0.2."""
    base = colour(rng)
    ink, accent = contrasting(rng, base), contrasting(rng, base)
    level = Y + 0.28 * np.maximum(X - 0.2, 0) + rng.uniform(0.03, 0.12) * np.sin(5 * X)
    rgb = mix(solid(base), ink, within(level - 0.62, 0.2))
    rgb = mix(rgb, accent, np.maximum(within(level + 0.2, 0.06), ellipse(-0.19, 0.16, 0.25, 0.22)))
    rgb = mix(rgb, ink, text(rng, -0.4, 0.05, np.array([0.1, 0.22]), 0.05))
    rgb = mix(rgb, ink, strokes([(0.41, -0.1, 0.41, 0.3)], 0.14))
    return mix(rgb, accent, strokes([(-0.36, -0.8, 0.3, -0.8)], 0.04))


def paper_pack(rng: np.random.Generator) -> Sprite:
    """Draw a gable-top milk carton that shows its front and one side."""
    front = polygon([(-0.58, -0.3), (0.2, -0.3), (0.2, 0.88), (-0.58, 0.88)])
    side = polygon([(0.2, -0.3), (0.62, -0.4), (0.62, 0.72), (0.2, 0.88)])
    roof = polygon([(-0.58, -0.3), (0.2, -0.3), (0.36, -0.7), (-0.4, -0.7)])
    gable = polygon([(0.2, -0.3), (0.62, -0.4), (0.36, -0.7)])
    fin = polygon([(-0.42, -0.92), (0.38, -0.92), (0.38, -0.69), (-0.42, -0.69)])
    rgb = carton_print(rng) * (1.05 - 0.15 * Y)[..., None]
    for face, light in ((front, 1.0), (side, 0.6), (roof, 1.2), (gable, 0.42), (fin, 0.9)):
        rgb = rgb * (1 + (light - 1) * face)[..., None]
    edges = [(-0.58, -0.3, 0.2, -0.3), (0.2, -0.3, 0.2, 0.88), (-0.42, -0.69, 0.38, -0.69)]
    rgb = mix(rgb, 1.0, 0.45 * strokes(edges, 0.02))
    cover = np.max([front, side, roof, gable, fin], axis=0)
    return Sprite(rgb, cover, np.ones_like(cover))


def metal(rng: np.random.Generator) -> Sprite:
    """Draw a drink can of brushed, printed aluminium with a pull tab on its lid."""
    cover, u, v = revolve([(-0.9, 0.4), (-0.78, 0.4), (-0.62, 0.52), (0.62, 0.52), (0.72, 0.46)], 0.3)
    bare = 0.6 + 0.3 * colour(rng)
    print_ = colour(rng)
    rgb = mix(solid(bare), print_, 0.85 * within(v, 0.52))
    wave = v + rng.uniform(0.1, 0.3) * np.sin(rng.uniform(2, 4) * u + rng.uniform(0, 6))
    rgb = mix(rgb, bare, within(wave - rng.uniform(-0.2, 0.2), rng.uniform(0.08, 0.2)))
    sheen = 0.35 + 0.95 * gleam(u, -0.45, 0.16) + 0.5 * gleam(u, 0.05, 0.3) + 0.75 * gleam(u, 0.62, 0.1)
    rgb = rgb * (sheen + 0.16 * noise(rng, 2, 90))[..., None] + (0.35 * gleam(u, -0.45, 0.1))[..., None]
    lid, rim, well = (ellipse(0, -0.78, 0.42 * s, 0.15 * s) for s in (1.0, 0.92, 0.8))
    disc = bare * (0.9 + 0.35 * np.sin(3 * np.arctan2(Y + 0.78, X)))[..., None]
    rgb = mix(mix(mix(rgb, 1.0, lid), 0.35, rim), disc, well)
    tab = np.maximum(ellipse(-0.02, -0.76, 0.17, 0.055) - ellipse(0.05, -0.76, 0.06, 0.025), 0)
    rgb = mix(mix(rgb, 0.2, ellipse(0.2, -0.77, 0.1, 0.05)), 0.95 * bare + 0.1, tab)
    return Sprite(rgb, np.maximum(cover, lid), np.ones_like(cover))


def glass(rng: np.random.Generator) -> Sprite:
    """Draw a see-through bottle with a slim neck, a bright rim and a streak of light."""
    belly, shoulder = rng.uniform(0.36, 0.46), rng.uniform(-0.3, -0.05)
    neck = [(-0.95, 0.17), (-0.86, 0.17), (-0.84, 0.125), (shoulder - 0.18, 0.14), (shoulder - 0.08, 0.19)]
    body = [(shoulder + 0.06, 0.9 * belly), (shoulder + 0.16, belly), (0.74, belly), (0.8, 0.85 * belly)]
    cover, u, v = revolve(neck + body, 0.25)
    tint = colour(rng)
    rim = np.abs(u) ** 5
    rgb = tint * (0.75 - 0.45 * rim)[..., None]
    edge = gleam(np.abs(u), 0.86, 0.05)
    streak = gleam(u, -0.55, 0.09) * within(v - 0.1, 0.62) + 0.6 * gleam(u, 0.5, 0.05) * within(v + 0.1, 0.7)
    foot = gleam(v, 0.66, 0.04) + gleam(v, -0.84, 0.03)
    shine = np.clip(0.9 * streak + 0.55 * edge + 0.5 * foot, 0, 1)
    opacity = np.clip(0.28 + 0.6 * rim + shine, 0, 1)
    return Sprite(mix(rgb, 1.0, shine), cover, opacity)


def plastic(rng: np.random.Generator) -> Sprite:
    """Draw a ribbed PET bottle with a screw cap and a label band."""
    ribs = [(y, 0.42 + 0.03 * (-1) ** i) for i, y in enumerate(np.arange(0.12, 0.72, 0.06))]
    neck = [(-0.95, 0.2), (-0.76, 0.2), (-0.75, 0.15), (-0.68, 0.15)]
    cover, u, v = revolve([*neck, (-0.42, 0.42), (-0.2, 0.44), (0.05, 0.36), *ribs, (0.78, 0.36)], 0.2)
    ridge = np.sin(v * (2 * np.pi / 0.12)) * np.clip(v * 20, 0, 1)
    light = 0.75 + 0.25 * ridge + 0.4 * gleam(u, -0.4, 0.25) - 0.4 * np.abs(u) ** 3
    shine = 0.8 * gleam(u, -0.5, 0.1) * (0.6 + 0.6 * ridge) + 0.3 * gleam(u, 0.6, 0.07)
    rgb = mix((0.25 + 0.7 * colour(rng)) * light[..., None], 1.0, np.clip(shine, 0, 1))
    label, band = colour(rng), within(v + 0.22, 0.17)
    printed = mix(solid(label), contrasting(rng, label), within(v + 0.22 + 0.06 * np.sin(9 * u), 0.05))
    rgb = mix(rgb, printed * (0.6 + 0.6 * gleam(u, -0.35, 0.4))[..., None], band)
    lid = np.clip(0.5 - (Y + 0.76) / PIXEL, 0, 1)
    rgb = mix(rgb, colour(rng) * (0.85 + 0.35 * np.cos(u * 16) - 0.4 * u * u)[..., None], lid)
    opacity = np.clip(0.62 + 0.25 * ridge + 0.3 * np.abs(u) ** 3 + band + lid, 0, 1)
    return Sprite(rgb, cover, opacity)


def styrofoam(rng: np.random.Generator) -> Sprite:
    """Draw a chunky foam tray of coarse beads with a broken edge."""
    w, h = rng.uniform(0.78, 0.92), rng.uniform(0.55, 0.75)
    chip, bite = rng.uniform(-0.4, 0.4), rng.uniform(0.08, 0.22)
    edge = [(w, -h), (w, h), (chip + bite, h), (chip, h - bite), (chip - bite, h), (-w, h), (-w, -h)]
    cover = polygon(edge)
    distance, label = cells(rng, 0.095)
    bead = 1.12 - 55 * distance**2 + rng.uniform(-0.1, 0.1, label.max() + 1).astype(np.float32)[label]
    rgb = (0.25 + 0.75 * colour(rng)) * np.clip(bead, 0.5, 1.25)[..., None]
    well = within(X, w - 0.24) * within(Y, h - 0.24)
    depth = pillow(well, 0.12) if rng.random() < 0.7 else np.zeros_like(well)
    rgb = rgb * relief(pillow(cover, 0.14) - 1.3 * depth, 4) * (1 - 0.2 * depth)[..., None]
    return Sprite(rgb, cover, np.ones_like(cover))


def bag_outline(rng: np.random.Generator) -> np.ndarray:
    """Draw the silhouette of a carrier bag with two handle loops."""
    low, high = rng.uniform(0.72, 0.92, 2), rng.uniform(0.45, 0.62, 2)
    sides = [(high[1], -0.3), (low[1], 0.2), (low[0], 0.8), (0.1, 0.95), (-low[0], 0.85), (-low[1], 0.2)]
    cover = smooth_polygon([(-high[0], -0.3), (0, -0.15), *sides])
    loop = np.array([(1.1, -0.1), (1.15, -0.6), (0.95, -1.0), (0.4, -0.95), (0.3, -0.5), (0.25, 0.0)])
    hole = np.array([(0.92, -0.28), (0.98, -0.6), (0.85, -0.84), (0.6, -0.8), (0.52, -0.5), (0.55, -0.2)])
    for reach in (-high[0], high[1]):
        cover = np.maximum(cover, smooth_polygon(loop * (reach, 1)))
        cover = cover * (1 - smooth_polygon(hole * (reach, 1)))
    return cover


def plastic_bag(rng: np.random.Generator) -> Sprite:
    """Draw a billowing, wrinkled, translucent carrier bag."""
    cover = bag_outline(rng)
    wrinkles = np.abs(noise(rng, 3, 8)) + 0.5 * np.abs(noise(rng, 7, 7)) + 0.3 * np.abs(noise(rng, 5, 20))
    light = relief(-wrinkles, 1.1) * relief(pillow(cover, 0.2), 2)
    shine = np.clip(light[..., 0] - 1.12, 0, 0.4) * 2
    rgb = mix((0.15 + 0.85 * colour(rng)) * light, 1.0, shine)
    film = rng.uniform(0.35, 0.55) + shine + 0.6 * np.abs(light[..., 0] - 1)
    return Sprite(rgb, cover, np.clip(film, 0, 1))


def battery(rng: np.random.Generator) -> Sprite:
    """Draw a two-tone cell with a nub terminal and a plus sign."""
    cover, u, v = revolve([(-0.98, 0.14), (-0.87, 0.14), (-0.86, 0.4), (0.8, 0.4), (0.84, 0.38)], 0.2)
    body = colour(rng)
    crown, mark = contrasting(rng, body), contrasting(rng, body)
    rgb = mix(solid(body), crown, within(v + 0.7, 0.36))
    rgb = mix(rgb, mark, np.maximum(within(v + 0.31, 0.025), within(v - 0.68, 0.03)))
    plus = strokes([(-0.13, -0.02, 0.13, -0.02), (0, -0.15, 0, 0.11)], 0.08)
    minus = strokes([(-0.13, 0.56, 0.13, 0.56)], 0.08)
    bolt = polygon([(0.06, 0.18), (-0.14, 0.36), (-0.02, 0.36), (-0.07, 0.5), (0.14, 0.3), (0.02, 0.3)])
    rgb = mix(rgb, mark, np.max([plus, minus, bolt], axis=0))
    steel = np.maximum(within(Y + 1, 0.15), within(v - 0.84, 0.06))
    rgb = mix(rgb, 0.75, steel)
    light = 0.45 + 0.6 * np.sqrt(1 - u * u) + 0.25 * gleam(u, -0.3, 0.3)
    return Sprite(mix(rgb * light[..., None], 1.0, 0.65 * gleam(u, -0.4, 0.09)), cover, np.ones_like(cover))


def clothing(rng: np.random.Generator) -> Sprite:
    """Draw a T-shirt of woven cloth, striped or checked, with soft folds."""
    right = [(0.24, -0.8), (0.5, -0.72), (0.97, -0.28), (0.74, -0.02), (0.52, -0.22), (0.54, 0.88)]
    cover = polygon([(0, -0.68), *right, *((-x, y) for x, y in reversed(right))])
    base = colour(rng)
    dye, period = contrasting(rng, base), rng.uniform(0.16, 0.28)
    bend = 0.05 * noise(rng, 3, 3)
    stripe = within((Y + bend) % period - period / 2, period / 4)
    crossing = within((X + bend) % period - period / 2, period / 4)
    rgb = mix(solid(base), dye, stripe if rng.random() < 0.5 else 0.5 * (stripe + crossing))
    weave = 1 + 0.13 * np.sin(X * 150) * np.sin(Y * 150)
    rgb = rgb * (weave * (1 + 0.12 * noise(rng, 60, 60)))[..., None]
    rgb = mix(rgb, 0.7 * dye, np.maximum(ellipse(0, -0.82, 0.3, 0.24), within(Y - 0.88, 0.05)))
    folds = noise(rng, 2, 5) + 0.5 * noise(rng, 5, 3)
    return Sprite(rgb * relief(folds, 1.2) * relief(pillow(cover, 0.15), 2.5), cover, np.ones_like(cover))


OBJECTS: dict[str, Callable[[np.random.Generator], Sprite]] = {
    "UNKNOWN": unknown,
    "General trash": general_trash,
    "Paper": paper,
    "Paper pack": paper_pack,
    "Metal": metal,
    "Glass": glass,
    "Plastic": plastic,
    "Styrofoam": styrofoam,
    "Plastic bag": plastic_bag,
    "Battery": battery,
    "Clothing": clothing,
}
