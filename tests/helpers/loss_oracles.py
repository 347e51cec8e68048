"""The losses again, from their formulas: numpy in float64, pixel by pixel, without torch."""

import math
from typing import NamedTuple

import numpy as np


class Pixel(NamedTuple):
    at: tuple[int, int, int]  # image, row, column
    logits: np.ndarray  # (C,)
    probs: np.ndarray  # (C,)
    target: np.ndarray  # (C,) shares of the classes
    counts: np.ndarray  # (C,) bool, false where ignored
    label: int | None  # None if the target holds shares


def pixels(logits, target, mode, ignore_index):
    n, classes, height, width = logits.shape
    for at in np.ndindex(n, height, width):
        image, y, x = at
        z = logits[image, :, y, x]
        truth = target[at] if target.ndim == 3 else target[image, :, y, x]
        if mode == "multiclass":
            exps = np.array([math.exp(v - max(z)) for v in z])
            probs = exps / sum(exps)
        else:
            probs = np.array([1 / (1 + math.exp(-v)) for v in z])
        labelled = mode == "multiclass" and target.ndim == 3
        if labelled:
            counts = np.full(classes, truth != ignore_index)
            shares = np.array([float(truth == c) for c in range(classes)])
        else:
            shares = np.atleast_1d(truth).astype(float)
            counts = shares != ignore_index
            if mode == "multiclass":
                counts = np.full(classes, counts.any())
        yield Pixel(at, z, probs, np.where(counts, shares, 0.0), counts, int(truth) if labelled else None)


def ce(found, label_smoothing=0.0, class_weights=None):
    """Return the loss of each pixel, and the number that divides their sum for the mean."""
    losses, total = {}, 0.0
    for pixel in found:
        losses[pixel.at] = 0.0
        if not pixel.counts.any():
            continue
        classes = len(pixel.probs)
        for c in range(classes):
            weight = 1.0 if class_weights is None else class_weights[c]
            share = pixel.target[c] * (1 - label_smoothing) + label_smoothing / classes
            losses[pixel.at] -= weight * share * math.log(pixel.probs[c])
        total += 1.0 if class_weights is None or pixel.label is None else class_weights[pixel.label]
    return losses, total


def bce(found, multiclass, label_smoothing=0.0, pos_weight=1.0):
    """Return the loss of each entry, in mode multiclass of each pixel, and their number."""
    losses, total = {}, 0.0
    for pixel in found:
        classes = len(pixel.logits)
        weights = np.broadcast_to(np.asarray(pos_weight, dtype=float), classes)
        own = [0.0] * classes
        for c in range(classes):
            if pixel.counts[c]:
                p = 1 / (1 + math.exp(-pixel.logits[c]))
                share = pixel.target[c] * (1 - label_smoothing) + label_smoothing / 2
                own[c] = -weights[c] * share * math.log(p) - (1 - share) * math.log(1 - p)
        total += pixel.counts.any() if multiclass else pixel.counts.sum()
        _enter(losses, pixel, [sum(own) / classes] if multiclass else own)
    return losses, total


def focal(found, multiclass, gamma=2.0, alpha=None, class_weights=None):
    """Return the loss of each entry, in mode multiclass of each pixel, and the number that divides their sum."""
    losses, total = {}, 0.0
    for pixel in found:
        own = [0.0] * len(pixel.probs)
        for c, (p, share) in enumerate(zip(pixel.probs, pixel.target, strict=True)):
            if not pixel.counts[c]:
                continue
            if multiclass:
                weight = 1.0 if class_weights is None else class_weights[c]
                own[c] = -weight * share * (1 - p) ** gamma * math.log(p)
            else:
                weight = 1.0 if alpha is None else alpha * share + (1 - alpha) * (1 - share)
                own[c] = -(share * math.log(p) + (1 - share) * math.log(1 - p)) * abs(share - p) ** gamma * weight
        if not multiclass:
            total += pixel.counts.sum()
        elif pixel.counts.any():
            total += 1.0 if class_weights is None or pixel.label is None else class_weights[pixel.label]
        _enter(losses, pixel, [sum(own)] if multiclass else own)
    return losses, total


def _enter(losses, pixel, values):
    image, y, x = pixel.at
    for c, value in enumerate(values):
        losses[pixel.at if len(values) == 1 else (image, c, y, x)] = value


class Regions(NamedTuple):
    """Soft counts of one class, without ignored pixels."""

    hits: float
    predicted: float
    true: float
    counted: int


def regions(found, per_image, classes=None):
    """Return a list of `Regions`, one for each class, of the batch or of each image."""
    rows = {}
    for pixel in found:
        row = rows.setdefault(pixel.at[0] if per_image else 0, np.zeros((len(pixel.probs), 4)))
        for c in range(len(pixel.probs)):
            if pixel.counts[c]:
                p, t = pixel.probs[c], pixel.target[c]
                row[c] += min(p, t), p, t, 1
    return [[Regions(*row[c]) for c in (range(len(row)) if classes is None else classes)] for row in rows.values()]


def overlap(found, score, *, absent="skip", per_image=False, log=False, classes=None, power=1.0):
    """Return the mean of the class losses over classes and images."""
    means = []
    for row in regions(found, per_image, classes):
        losses = []
        for region in row:
            if region.true > 0 or absent == "penalise":
                value = score(region)
                losses.append((-math.log(max(value, 1e-7)) if log else 1 - value) ** power)
            elif absent == "zero":
                losses.append(0.0)
        if losses and any(region.counted for region in row):
            means.append(sum(losses) / len(losses))
    return sum(means) / len(means) if means else 0.0


def dice(found, smooth=0.0, **options):
    return overlap(found, lambda r: (2 * r.hits + smooth) / (r.predicted + r.true + smooth), **options)


def tversky(found, alpha=0.5, beta=0.5, gamma=1.0, smooth=0.0, **options):
    def score(r):
        below = r.hits + alpha * (r.predicted - r.hits) + beta * (r.true - r.hits) + smooth
        return (r.hits + smooth) / below

    return overlap(found, score, power=1 / gamma, **options)


def jaccard(found, **options):
    return tversky(found, alpha=1.0, beta=1.0, **options)


def focal_tversky(found, alpha=0.3, beta=0.7, gamma=4 / 3, **options):
    return tversky(found, alpha=alpha, beta=beta, gamma=gamma, **options)


def generalized_dice(found, per_image=False, classes=None):
    losses = []
    for row in regions(found, per_image, classes):
        present = [r for r in row if r.true > 0]
        if present:
            above = sum(2 * r.hits / r.true**2 for r in present)
            below = sum((r.predicted + r.true) / r.true**2 for r in present)
            losses.append(1 - above / below)
    return sum(losses) / len(losses) if losses else 0.0


def mcc(found, **options):
    def score(r):
        tp, fp, fn = r.hits, r.predicted - r.hits, r.true - r.hits
        tn = r.counted - tp - fp - fn
        return (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))

    return overlap(found, score, **options)


def lovasz(found, multiclass, per_image=False, classes="present"):
    """Return the sum of errors, each times the increase of the Jaccard loss when its pixel becomes wrong too."""
    found, means = list(found), []
    for image in sorted({pixel.at[0] for pixel in found}) if per_image else [None]:
        counted = [pixel for pixel in found if image in (None, pixel.at[0])]
        losses = []
        for c in range(len(counted[0].probs)):
            entries = [(pixel.target[c] == 1, pixel) for pixel in counted if pixel.counts[c]]
            if not entries or (multiclass and classes == "present" and not any(true for true, _ in entries)):
                continue
            if multiclass:
                errors = [(abs(true - pixel.probs[c]), true) for true, pixel in entries]
            else:
                errors = [(max(0.0, 1 - (1 if true else -1) * pixel.logits[c]), true) for true, pixel in entries]
            losses.append(_extension(sorted(errors, key=lambda entry: -entry[0])))
        if losses:
            means.append(sum(losses) / len(losses))
    return sum(means) / len(means) if means else 0.0


def _extension(errors):
    region = {i for i, (_, true) in enumerate(errors) if true}
    total, before, wrong = 0.0, 0.0, set()
    for i, (error, _) in enumerate(errors):
        wrong.add(i)
        jaccard_loss = 1 - len(region - wrong) / len(region | wrong)
        total += error * (jaccard_loss - before)
        before = jaccard_loss
    return total


def ohem(found, multiclass, threshold=0.7, min_kept=100_000):
    losses = []
    for pixel in found:
        own = [
            -(t * math.log(p) + (0 if multiclass else (1 - t) * math.log(1 - p)))
            for p, t, counts in zip(pixel.probs, pixel.target, pixel.counts, strict=True)
            if counts
        ]
        losses += [sum(own)] if multiclass and own else own
    hardest = sorted(losses, reverse=True)[:min_kept]
    kept = [loss for loss in losses if loss > -math.log(threshold) or loss >= hardest[-1]]
    return sum(kept) / len(kept) if kept else 0.0


def boundary(found, distance_maps):
    total, number = 0.0, 0
    for pixel in found:
        image, y, x = pixel.at
        products = [p * d for p, d in zip(pixel.probs, distance_maps[image, :, y, x], strict=True)]
        total += sum(product for product, counts in zip(products, pixel.counts, strict=True) if counts)
        number += pixel.counts.sum()
    return total / number


SUMS = {"ce": ce, "bce": bce, "focal": focal}  # losses with reduction="none"
SCORES = {
    "dice": dice,
    "jaccard": jaccard,
    "tversky": tversky,
    "focal_tversky": focal_tversky,
    "generalized_dice": generalized_dice,
    "lovasz": lovasz,
    "ohem": ohem,
    "mcc": mcc,
}
DEPEND_ON_MULTICLASS = ("bce", "focal", "lovasz", "ohem")
