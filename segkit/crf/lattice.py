"""The permutohedral lattice: Gaussian filtering in a few dimensions, in time linear in the number of points."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from segkit.errors import UsageError


class WeightedSums(NamedTuple):
    """A sparse matrix: each row of the product is a weighted sum of rows.

    Sums run in the order of the indices, so results are bit for bit the same with any number of threads.

    Attributes:
        indices: (R, K) int32, or one dimension if there are offsets.
        weights: Same shape as `indices`.
        offsets: (R + 1,) start of the indices of each row, and the end of the last one; None if all have K.
    """

    indices: Tensor
    weights: Tensor
    offsets: Tensor | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        ragged = self.offsets is not None
        return F.embedding_bag(
            self.indices, rows, self.offsets, mode="sum", per_sample_weights=self.weights, include_last_offset=ragged
        )


class Lattice:
    """Filter values on points by a Gaussian of the distance, with symmetric normalisation.

    Source: Adams, Baek & Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", 2010;
    normalisation D K D with D = 1 / sqrt(K 1): Krähenbühl & Koltun, "Parameter Learning and Convergent Inference
    for Dense Random Fields", 2013.
    Differs: a sorted list of keys replaces the hash table of the paper.

    Args:
        features: (d, N) float32 coordinates of the points, in standard deviations of the Gaussian.
        weight: Factor for the filtered values.

    Raises:
        UsageError: The coordinates are too far apart for 64-bit keys.
    """

    def __init__(self, features: Tensor, weight: float = 1.0) -> None:
        axes, count = len(features) + 1, features.shape[1]
        corner, rank, weights = _enclosing_simplex(_elevate(features))
        keys, strides = _pack(corner, rank)
        keys, order = keys.flatten().sort(stable=True)
        first = torch.ones_like(keys, dtype=torch.bool)
        torch.ne(keys[1:], keys[:-1], out=first[1:])
        vertices = torch.empty_like(order, dtype=torch.int32)
        vertices.scatter_(0, order, first.cumsum(0, dtype=torch.int32) - 1)
        self._slice = WeightedSums(vertices.view(axes, count).t().contiguous(), weights.t().contiguous())
        self._splat = _splat(order, first, weights)
        self._blurs = _blurs(keys[first], strides)
        self._normalise(weight)

    def __call__(self, values: Tensor) -> Tensor:
        """Filter values (N, C), and return (N, C)."""
        points = self._splat(values)
        for blur in self._blurs:
            points = blur(points)
        return self._slice(points)

    def _normalise(self, weight: float) -> None:
        axes = self._slice.indices.shape[1]
        self._slice.weights.mul_(1 / (1 + 2.0 ** (1 - axes)))
        ones = self._slice.weights.new_ones(len(self._slice.indices), 1)
        norm = (self(ones) + 1e-20).rsqrt_()
        self._slice.weights.mul_(norm * weight)
        self._splat.weights.mul_(norm[:, 0][self._splat.indices])


def _elevate(features: Tensor) -> Tensor:
    """Map (d, N) to (d+1, N) on the plane of zero sum, scaled so that the blur has unit standard deviation."""
    dims = len(features)
    scale = torch.tensor(math.sqrt(2 / 3) * (dims + 1), dtype=torch.float32)
    elevated = features.new_empty(dims + 1, features.shape[1])
    total = torch.zeros_like(features[0])
    for axis in range(dims, 0, -1):
        # Same float32 operations in the same order as pydensecrf: on ties, one bit decides which simplex is chosen.
        value = features[axis - 1] * float(scale / torch.tensor(axis * (axis + 1.0)).sqrt())
        elevated[axis] = total - axis * value
        total = total + value
    elevated[0] = total
    return elevated


def _enclosing_simplex(elevated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the lattice simplex that encloses each point.

    Returns:
        Three (d+1, N) tensors: the lowest corner of the simplex, in units of d+1; the rank of each coordinate
        relative to that corner, 0 for the largest; the barycentric weight of each vertex, by its remainder.
    """
    axes = len(elevated)
    corner = (elevated * (1 / axes)).round_()
    excess = corner.sum(0).to(torch.int8)
    rank = _rank(elevated - corner * axes).add_(excess)
    shift = (rank < 0).to(torch.int8) - (rank >= axes).to(torch.int8)
    rank += shift * axes
    corner += shift
    above = torch.empty_like(elevated).scatter_(0, rank.long(), (elevated - corner * axes).mul_(1 / axes))
    weights = above.flip(0)
    weights[0] += 1 - above[0]
    weights[1:] -= above[1:].flip(0)
    return corner, rank, weights


def _rank(values: Tensor) -> Tensor:
    """Count how many other coordinates are larger, (d+1, N) int8; among equal ones the first ranks first."""
    axes, count = values.shape
    rank = torch.arange(axes, dtype=torch.int8, device=values.device)[:, None].repeat(1, count)
    for i in range(axes):
        for j in range(i + 1, axes):
            less = (values[i] < values[j]).view(torch.int8)
            rank[i] += less
            rank[j] -= less
    return rank


def _pack(corner: Tensor, rank: Tensor) -> tuple[Tensor, list[int]]:
    """Encode the vertices of the simplices as integer keys.

    A vertex of remainder r has coordinates (d+1) q + r with the same r on all axes. Its key is r and q in mixed
    radix. The last coordinate is not stored, because the coordinates sum to zero.

    Returns:
        (d+1, N) int64 keys, one row per remainder, and the increment of the key for a step along each axis.
    """
    axes = len(corner)
    low, high = (bound(corner[:-1], 1).long() for bound in (torch.amin, torch.amax))
    # Room for one more below (the other vertices of a simplex), and one on each side (their neighbours).
    extent = (high - low + 4).tolist()
    strides = [math.prod(extent[axis + 1 :]) for axis in range(axes - 1)]
    volume = math.prod(extent)
    if volume * axes >= 2**63:
        raise UsageError("the sigmas are too small for this image: its lattice needs more than 64-bit keys")
    # From one remainder to the next, the remaining coordinate of highest rank goes down by one.
    step = torch.tensor([*strides, 0], device=corner.device)[:, None].expand(axes, corner.shape[1])
    step = torch.empty_like(rank, dtype=torch.int64).scatter_(0, rank.long(), step)
    keys = torch.empty_like(step)
    keys[0] = sum((corner[a].long() - (low[a] - 2)) * stride for a, stride in enumerate(strides))
    for remainder in range(1, axes):
        torch.sub(keys[remainder - 1] + volume, step[axes - remainder], out=keys[remainder])
    return keys, [*strides, volume]


def _splat(order: Tensor, first: Tensor, weights: Tensor) -> WeightedSums:
    """Return the map from points to lattice vertices, plus a last row that stays zero."""
    axes, count = weights.shape
    # The remainder is the leading digit of the key, so each run of `count` sorted keys has one remainder.
    rows = torch.arange(0, axes * count, count, device=order.device)[:, None]
    pixels = (order.view(axes, count) - rows).flatten().int()
    offsets = F.pad(first.nonzero()[:, 0].int(), (0, 2), value=axes * count)
    return WeightedSums(pixels, weights.flatten()[order], offsets)


def _blurs(points: Tensor, strides: list[int]) -> list[WeightedSums]:
    """Return, for each axis, the blur that adds half of both neighbours; a missing neighbour is the row of zeros."""
    count, axes = len(points), len(strides)
    *strides, volume = strides
    own = torch.arange(count + 1, dtype=torch.int32, device=points.device)
    weights = torch.tensor([1.0, 0.5, 0.5], device=points.device).repeat(count + 1, 1)
    padded = F.pad(points, (0, 1), value=-1)
    # A step down subtracts 1 from all coordinates and adds d+1 to one: remainder r becomes r - 1, and 0 becomes d.
    down = torch.where(points < volume, (axes - 1) * volume - sum(strides), -volume).add_(points)
    blurs = []
    for step in [*strides, 0]:
        target = down + step
        found = torch.searchsorted(points, target)
        lower = found.masked_fill_(padded[found] != target, count)
        rows = torch.full((count + 1, 3), count, dtype=torch.int32, device=points.device)
        rows[:, 0], rows[:-1, 1] = own, lower
        rows[:, 2].scatter_(0, lower, own[:-1])  # the upper neighbour of `lower` is this row
        rows[count, 2] = count
        blurs.append(WeightedSums(rows, weights))
    return blurs
