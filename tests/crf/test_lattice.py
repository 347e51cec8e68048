"""The lattice and both engines against a lattice in float64, point by point in a plain dictionary."""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch

from segkit.crf import DenseCRF
from segkit.crf.lattice import Lattice


def simplex_of(point):
    """Corners of the simplex around a point on the plane of zero sum, and its barycentric weights."""
    axes = len(point)
    corner = np.round(point / axes) * axes
    excess = int(corner.sum()) // axes
    order = by_remainder(point, corner)
    for axis in order[axes - excess :] if excess > 0 else order[:-excess]:
        corner[axis] -= axes * np.sign(excess)
    order = by_remainder(point, corner)
    vertices = []
    for remainder in range(axes):
        vertex = corner + remainder
        vertex[order[axes - remainder :]] -= axes
        vertices.append(vertex)
    equations = np.vstack([np.array(vertices).T, np.ones(axes)])
    weights = np.linalg.lstsq(equations, np.append(point, 1.0), rcond=None)[0]
    return [tuple(vertex.astype(int)) for vertex in vertices], weights


def by_remainder(point, corner):
    """Axes from the largest remainder to the smallest; of equal ones the first comes first."""
    return sorted(range(len(point)), key=lambda axis: corner[axis] - point[axis])


def dictionary_filter(features, values):
    """K values for the features (N, d), where K is the lattice's approximation of the Gaussian kernel."""
    dims = features.shape[1]
    basis = np.array([[0.0] * (axis - 1) + [-axis] * (axis > 0) + [1.0] * (dims - axis) for axis in range(dims + 1)])
    columns = np.array([math.sqrt(axis * (axis + 1)) for axis in range(1, dims + 1)])
    elevated = features / columns * math.sqrt(2 / 3) * (dims + 1) @ basis.T
    simplices = [simplex_of(point) for point in elevated]
    table = defaultdict(lambda: np.zeros(values.shape[1]))
    for (vertices, weights), value in zip(simplices, values, strict=True):
        for vertex, weight in zip(vertices, weights, strict=True):
            table[vertex] = table[vertex] + weight * value
    for axis in range(dims + 1):
        step = -np.ones(dims + 1, dtype=int)
        step[axis] = dims
        blurred = {}
        for vertex, value in table.items():
            both = [table.get(tuple(np.array(vertex) + side * step), 0) for side in (1, -1)]
            blurred[vertex] = value + 0.5 * (both[0] + both[1])
        table = blurred
    scale = 1 / (1 + 2.0**-dims)
    return scale * np.array([sum(w * table[v] for v, w in zip(*simplex, strict=True)) for simplex in simplices])


def normalised(kernel, count):
    """Rows of D K D, D = 1 / sqrt(K 1), from a function that multiplies by K."""
    norm = 1 / np.sqrt(kernel(np.ones((count, 1))))
    return lambda values: norm * kernel(norm * values)


def brute_force(features, values):
    distances = ((features[:, None] - features[None]) ** 2).sum(-1)
    return np.exp(-distances / 2) @ values


def mean_field(crf, probs, image, kernel_of):
    """The CRF in float64, with kernels by `kernel_of(features, values)`."""
    classes, height, width = probs.shape
    y, x = np.mgrid[:height, :width].reshape(2, -1).astype(np.float64)
    colours = image.reshape(-1, 3) / crf.bilateral_colour_sigma
    place = np.stack([x, y], 1)
    kernels = [
        (crf.gaussian_weight, place / crf.gaussian_sigma),
        (crf.bilateral_weight, np.hstack([place / crf.bilateral_sigma, colours])),
    ]
    kernels = [
        (weight, normalised(lambda v, f=features: kernel_of(f, v), height * width)) for weight, features in kernels
    ]
    logits = np.log(np.clip(probs.reshape(classes, -1).T.astype(np.float64), 1e-5, 1))
    q = softmax(logits)
    for _ in range(crf.iterations):
        q = softmax(logits + sum(weight * kernel(q) for weight, kernel in kernels))
    return q.T.reshape(probs.shape)


def softmax(logits):
    q = np.exp(logits - logits.max(1, keepdims=True))
    return q / q.sum(1, keepdims=True)


def scene(size=(14, 18), classes=3, seed=0):
    rng = np.random.default_rng(seed)
    tones = rng.integers(40, 215, (20, 20, 3)).repeat(6, 0).repeat(6, 1)[: size[0], : size[1]]
    image = (tones + rng.integers(-9, 10, (*size, 3))).astype(np.uint8)
    return rng.dirichlet(np.ones(classes), size).astype(np.float32).transpose(2, 0, 1).copy(), image


@pytest.mark.parametrize("dims", [1, 2, 3, 5])
def test_the_filter_equals_a_dictionary_implementation(dims):
    rng = np.random.default_rng(dims)
    features, values = rng.normal(0, 2, (120, dims)).astype(np.float32), rng.random((120, 4))
    expected = normalised(lambda v: dictionary_filter(features.astype(np.float64), v), 120)(values)
    got = Lattice(torch.from_numpy(features.T.copy()), weight=3)(torch.from_numpy(values).float())
    np.testing.assert_allclose(got / 3, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "pydensecrf"])
@pytest.mark.parametrize("preset", ["seed", "deeplab_v2_resnet101", "pydensecrf_readme"])
def test_the_crf_equals_a_dictionary_implementation(backend, preset):
    if backend == "pydensecrf":
        pytest.importorskip("pydensecrf")
    probs, image = scene()
    crf = DenseCRF.preset(preset, backend=backend, iterations=3)
    expected = mean_field(crf, probs, image, dictionary_filter)
    np.testing.assert_allclose(crf(probs, image), expected, atol=2e-3)


def test_the_crf_resembles_the_sum_over_all_pairs():
    probs, image = scene(seed=3)
    crf = DenseCRF(gaussian_weight=2, bilateral_weight=3)
    exact = mean_field(crf, probs, image, brute_force)
    assert (crf(probs, image).argmax(0) == exact.argmax(0)).mean() > 0.97


def test_the_filter_returns_the_same_bits_with_any_number_of_threads():
    rng = np.random.default_rng(0)
    features, values = torch.from_numpy(rng.normal(0, 3, (3, 5000))).float(), torch.from_numpy(rng.random((5000, 5)))
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(Lattice(features)(values.float()))
    torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize("preset", ["seed", "deeplab_v2_resnet101", "pydensecrf_readme"])
def test_both_engines_return_the_same_labels(preset):
    pytest.importorskip("pydensecrf")
    probs, image = scene((96, 88), classes=5)
    image[:18, :18] = np.random.default_rng(0).integers(0, 256, (18, 18, 3))
    ours, theirs = (DenseCRF.preset(preset, backend=backend)(probs, image) for backend in ("torch", "pydensecrf"))
    assert (ours.argmax(0) != theirs.argmax(0)).mean() < 1e-3
    assert np.abs(ours - theirs).mean() < 1e-4


@pytest.mark.parametrize("flip", [np.s_[:, ::-1], np.s_[:, :, ::-1]])
def test_a_flipped_image_returns_nearly_the_flipped_result(flip):
    probs, image = scene((40, 36))
    crf = DenseCRF(gaussian_weight=2, bilateral_weight=3)
    flipped = crf(probs[flip], image[flip[1:]])
    assert (flipped[flip].argmax(0) == crf(probs, image).argmax(0)).mean() > 0.9


def test_on_an_image_of_one_colour_the_appearance_kernel_is_a_smoothness_kernel():
    probs, image = scene((30, 36))
    image[:] = 77
    appearance = DenseCRF(gaussian_weight=0, bilateral_weight=3, bilateral_sigma=4)(probs, image)
    smoothness = DenseCRF(bilateral_weight=0, gaussian_weight=3, gaussian_sigma=4)(probs, image)
    assert (appearance.argmax(0) == smoothness.argmax(0)).mean() > 0.95


def test_sigmas_too_small_for_the_keys_are_named():
    with pytest.raises(ValueError, match="sigmas are too small"):
        DenseCRF(bilateral_sigma=1e-4, bilateral_colour_sigma=1e-4)(*scene())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_returns_the_labels_of_the_cpu_and_stays_on_the_device():
    probs, image = map(torch.from_numpy, scene((64, 72), classes=5))
    on_gpu = DenseCRF()(probs.cuda(), image)
    assert on_gpu.is_cuda
    assert (on_gpu.cpu().argmax(0) == DenseCRF()(probs, image).argmax(0)).float().mean() > 0.999
    assert torch.equal(on_gpu, DenseCRF(workers=2)(probs.cuda(), image.cuda()))
