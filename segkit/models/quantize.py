"""Int8 forms of ONNX files: static quantisation by onnxruntime, with the ranges that photographs show."""

import ast
import importlib.util
import json
import math
import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from segkit.errors import MissingPackageError, NotFiniteError, UsageError
from segkit.files import check_readable, write_whole
from segkit.models.onnx_model import import_onnxruntime

if TYPE_CHECKING:
    import onnx
    import onnxruntime

# The operators that onnxruntime computes in int8 on a CPU, and those that pass int8 values on. Not here: norms of
# groups and layers, which it computes in float, and Softmax, whose values need more than 256 steps.
OPERATORS = (
    *("Conv", "MatMul", "Gemm", "Add", "Mul", "Sigmoid", "Relu", "Clip", "Concat", "Resize"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "Pad", "Slice", "Split"),
)
# Processors without VNNI add two products uint8 x int8 in 16 bits, and cut off what does not fit. This is the largest
# sum of two weights that fits.
LARGEST_PAIR = 32767 // 255
OLDEST_OPSET = 13
_SCOPES = "pkg.torch.onnx.name_scopes"  # the modules around an operator, as torch's exporter stores them
_FLOAT = 1  # onnx.TensorProto.FLOAT


def quantize_onnx(
    source: str | os.PathLike,
    target: str | os.PathLike,
    images: Iterable[Tensor],
    *,
    float_layers: Collection[str] = (),
) -> "Calibration":
    """Write an int8 form of an ONNX file that `export_onnx` wrote: uint8 maps, int8 weights with a scale per channel.

    It takes the same input, of any size, and keeps the metadata; `quantization` is added. Compare its masks with the
    ones of the float file before you use it: how much accuracy int8 costs depends on the model.

    Args:
        source: The ONNX file in float32.
        target: The file to write; an existing one is replaced.
        images: 40 to 100 normalised photographs (N, 3, H, W) float32, each of any size, as the model gets them in use.
            They must not be the ones on which the accuracy is measured.
        float_layers: Modules that stay in float32, such as `head` or `backbone.net.blocks.0`.

    Returns:
        The ranges of the maps, from which `Calibration.write` makes further forms without the photographs.

    Raises:
        MissingPackageError: onnx or onnxruntime is missing.
        UsageError: The source is not such a file, or there are no images.
        NotFiniteError: The model returns NaN or infinite values for the images.
    """
    calibration = Calibration(source, images)
    calibration.write(target, float_layers=float_layers)
    return calibration


class Calibration:
    """The smallest and the largest value of each map of an ONNX file, on some images.

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", 2018, section 2.1.

    Args:
        source: See `quantize_onnx`.
        images: See `quantize_onnx`; they are taken one after the other.

    Attributes:
        ranges: The smallest and the largest value of each map, by its name in the file.
        count: Number of images.
        layers: The modules with weights, in the order of the computation.
    """

    def __init__(self, source: str | os.PathLike, images: Iterable[Tensor]) -> None:
        check_packages()
        self._model = _read(source)
        self._scopes = {node.name: _scope(node) for node in self._model.graph.node}
        for node in self._model.graph.node:
            del node.metadata_props[:]  # they take more room than the weights in int8
        _pool_means(self._model)
        self.layers = _layers_with_weights(self._model, self._scopes)
        if not self.layers:
            raise UsageError(f"{source} has no layers with weights that int8 could replace")
        self.ranges, self.count = _measure_ranges(self._model, images)

    def write(
        self, target: str | os.PathLike, *, float_layers: Collection[str] = (), facts: Mapping[str, Any] | None = None
    ) -> None:
        """Write an int8 form of the file.

        Args:
            target: The file; an existing one is replaced.
            float_layers: Modules that stay in float32, with all modules below them.
            facts: Plain data that is stored in `quantization` of the metadata too, such as the measured accuracy.

        Raises:
            UsageError: The model has no layer of such a name, or none remains to quantise.
        """
        write_whole(target, self.content(float_layers=float_layers, facts=facts))

    def content(self, *, float_layers: Collection[str] = (), facts: Mapping[str, Any] | None = None) -> bytes:
        """Return the content of the file that `write` writes."""
        version = import_onnxruntime().__version__
        from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType
        from onnxruntime.quantization.calibrate import TensorData, TensorsData

        for layer in float_layers:
            if not any(_is_below(one, [layer]) for one in self.layers):
                raise UsageError(f"the model has no layer {layer!r} with weights; it has {', '.join(self.layers)}")
        if all(_is_below(layer, float_layers) for layer in self.layers):
            raise UsageError("all layers stay in float, so that nothing is left for int8")
        in_float = [name for name, scope in self._scopes.items() if _is_below(scope, float_layers)]
        ranges = {
            name: TensorData(lowest=np.float32(low), highest=np.float32(high))
            for name, (low, high) in self.ranges.items()
        }
        model = type(self._model)()
        model.CopyFrom(self._model)
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
            nodes_to_quantize=[],
            nodes_to_exclude=in_float,
            op_types_to_quantize=list(OPERATORS),
            extra_options={
                "WeightSymmetric": True,
                "ActivationSymmetric": False,
                "MatMulConstBOnly": True,
                "TensorQuantOverrides": _ranges_of_weights(model),
            },
        )
        quantizer.quantize_model()
        result = quantizer.model.model
        del result.metadata_props[:]  # onnxruntime adds a note of its own
        result.metadata_props.extend(self._model.metadata_props)
        about = {
            "activations": "uint8",
            "weights": "int8",
            "per_channel": True,
            "saturates": False,  # on a processor without VNNI
            "images": self.count,
            "float_layers": sorted(float_layers),
            "onnxruntime": version,
            **(facts or {}),
        }
        result.metadata_props.add(key="quantization", value=json.dumps(about))
        return result.SerializeToString()

    def count_layers(self, modules: Collection[str]) -> int:
        """Return how many of `layers` are in some modules."""
        return sum(_is_below(layer, modules) for layer in self.layers)

    def groups(self, count: int) -> list[str]:
        """Divide the layers into at most `count` groups, by the modules that they are in.

        Returns:
            The modules, in the order of the computation; every layer is in one of them.
        """
        found, whole = [""], set[str]()  # `whole` are the modules that cannot be divided further
        while True:
            sizes = {group: sum(_is_below(layer, [group]) for layer in self.layers) for group in found}
            largest = max((group for group in found if group not in whole), key=sizes.__getitem__, default=None)
            if largest is None:
                break
            parts = _parts_of(largest, self.layers)
            if parts == [largest] or len(found) - 1 + len(parts) > count:
                whole.add(largest)
                continue
            at = found.index(largest)
            found[at : at + 1] = parts
        return [group for group in found if group]

    def rank(
        self, images: Sequence[Tensor], groups: Sequence[str], *, seconds: float = math.inf
    ) -> list[tuple[str, float]]:
        """Find out which layers cost most accuracy in int8, by keeping each group in float once.

        Args:
            images: A few of the photographs of the calibration; the true labels are not needed.
            groups: See `groups`.
            seconds: Do not try further groups after this time.

        Returns:
            The groups that were tried, with the share of the difference between the class probabilities of int8 and
            float (their Kullback-Leibler divergence) that remains if the group stays in float; the most sensitive
            group first.
        """
        end = time.monotonic() + seconds
        expected = _log_probs(self._model.SerializeToString(), images)
        in_all = _divergence(expected, _log_probs(self.content(), images))
        remains = {}
        for group in groups:
            if remains and time.monotonic() > end:
                break
            content = self.content(float_layers=[group])
            remains[group] = _divergence(expected, _log_probs(content, images)) / max(in_all, 1e-12)
        return sorted(remains.items(), key=lambda item: item[1])


def check_packages() -> None:
    """Raise MissingPackageError unless the packages that quantise are installed."""
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(f"int8 needs packages that are not installed: pip install {' '.join(missing)}")


def _read(source: str | os.PathLike) -> "onnx.ModelProto":
    """Return the model with the type and shape of each map.

    Raises:
        UsageError: The file is not an ONNX model in float32 of ours.
    """
    import onnx
    from google.protobuf.message import DecodeError

    check_readable(source)
    try:
        model = onnx.shape_inference.infer_shapes(onnx.load(source))
    except (DecodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UsageError(f"{source} is not an ONNX file, or it is damaged: {error}") from error
    if "segkit" not in {entry.key for entry in model.metadata_props}:
        raise UsageError(f"{source} was not exported by segkit: its metadata lacks the classes and the preprocessing")
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < OLDEST_OPSET:
        raise UsageError(f"{source} has opset {opset}; a scale for each channel needs {OLDEST_OPSET}, export it again")
    if any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        raise UsageError(f"{source} is an int8 model already; give the file in float32, or the model file")
    return model


def _scope(node: "onnx.NodeProto") -> str:
    """Return the module of an operator, such as `decoder.branch.0`; its own name if the file has no modules."""
    stored = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "")
    try:
        scopes = ast.literal_eval(stored)
    except (SyntaxError, ValueError):
        scopes = []
    modules = [scope for scope in scopes[:-1] if isinstance(scope, str) and scope] if isinstance(scopes, list) else []
    return modules[-1] if modules else node.name


def _layers_with_weights(model: "onnx.ModelProto", scopes: Mapping[str, str]) -> tuple[str, ...]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return tuple(
        dict.fromkeys(
            scopes[node.name]
            for node in model.graph.node
            if node.op_type in ("Conv", "MatMul", "Gemm") and node.input[1] in constants
        )
    )


def _ranges_of_weights(model: "onnx.ModelProto") -> dict[str, list[dict[str, Any]]]:
    """Return the range of each channel of the weights that int8 has room for without saturation, for onnxruntime.

    On processors without VNNI (AVX2, AVX-512 of the first generation), onnxruntime multiplies by `vpmaddubsw`, which
    adds the products of inputs 2 k and 2 k + 1 in 16 bits. The range is the largest sum of two such weights of the same
    sign, so that the sum of two int8 weights is at most 128, and the result is the same to the last bit as with VNNI.
    Weights of 7 bits (`reduce_range`) would do, too, but their steps are twice as large in every channel.
    """
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "MatMul", "Gemm") or node.input[1] not in constants:
            continue
        weight = numpy_helper.to_array(constants[node.input[1]]).astype(np.float64)
        if node.op_type == "Conv":  # (out, in, height, width), where the inputs of a tap are neighbours
            axis, rows = 0, np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
        elif weight.ndim == 2:
            is_transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            axis, rows = (0, weight) if is_transposed else (1, weight.T)
        else:
            continue
        if rows.shape[1] % 2:
            rows = np.pad(rows, ((0, 0), (0, 1)))
        largest = np.zeros(len(rows))
        for sign in (1, -1):
            largest = np.maximum(largest, np.maximum(sign * rows, 0).reshape(len(rows), -1, 2).sum(2).max(1))
        limit = largest * 127 / (LARGEST_PAIR - 1)  # both weights may be rounded up by half a step
        found[node.input[1]] = [
            {"axis": axis, "rmin": np.float32(-value), "rmax": np.float32(value)} for value in limit
        ]
    return found


def _is_below(scope: str, modules: Collection[str]) -> bool:
    return any(not module or scope == module or scope.startswith(f"{module}.") for module in modules)


def _parts_of(module: str, layers: Sequence[str]) -> list[str]:
    """Return the modules below one that have layers, as deep as there is only one; or the module itself."""
    below = [layer for layer in layers if _is_below(layer, [module])]
    if module in below:
        return [module]
    depth = len(module.split(".")) if module else 0
    parts = list(dict.fromkeys(".".join(layer.split(".")[: depth + 1]) for layer in below))
    return _parts_of(parts[0], layers) if len(parts) == 1 else parts


def _pool_means(model: "onnx.ModelProto") -> None:
    """Replace means over height and width by global average pooling, the same in other words, which int8 has."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.value_info}
    for node in model.graph.node:
        if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in constants:
            continue
        axes = numpy_helper.to_array(constants[node.input[1]])
        keeps = all(attribute.i == 1 for attribute in node.attribute if attribute.name == "keepdims")
        if ranks.get(node.input[0]) == 4 and sorted(axes % 4) == [2, 3] and keeps:
            node.op_type = "GlobalAveragePool"
            del node.input[1:], node.attribute[:]


def _log_probs(content: bytes, images: Sequence[Tensor]) -> list[Tensor]:
    """Return the log-probabilities (N, C, H, W) of the labels of each image."""
    session = open_session(content)
    name = session.get_inputs()[0].name
    found = []
    for batch in images:
        logits = torch.from_numpy(session.run(None, {name: batch.numpy()})[0])
        if logits.shape[1] == 1:  # its only class against the background, whose logit is 0
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        found.append(logits.log_softmax(1))
    return found


def _divergence(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the mean Kullback-Leibler divergence of a pixel."""
    parts = [(p.exp() * (p - q)).sum(1).mean().item() for p, q in zip(expected, found, strict=True)]
    return sum(parts) / len(parts)


def _measure_ranges(model: "onnx.ModelProto", images: Iterable[Tensor]) -> tuple[dict[str, tuple[float, float]], int]:
    """Return the smallest and the largest value of each map on the images, and the number of images."""
    import onnx
    from onnx import helper

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    names = _maps(probe)
    del probe.graph.output[:]
    for name in names:
        for kind in ("ReduceMin", "ReduceMax"):
            probe.graph.node.append(helper.make_node(kind, [name], [f"{kind} {name}"], keepdims=0))
            probe.graph.output.append(helper.make_tensor_value_info(f"{kind} {name}", _FLOAT, []))
    session = open_session(probe.SerializeToString())
    low, high, count = np.full(len(names), np.inf), np.full(len(names), -np.inf), 0
    for batch in images:
        if not isinstance(batch, Tensor) or batch.ndim != 4:
            raise UsageError(f"`images` must be tensors (N, 3, H, W), got {getattr(batch, 'shape', type(batch))}")
        values = np.array(session.run(None, {model.graph.input[0].name: batch.float().cpu().numpy()}), dtype=np.float64)
        if not np.isfinite(values).all():
            raise NotFiniteError(f"image {count + 1} of the calibration makes values that are not finite")
        low, high, count = np.minimum(low, values[::2]), np.maximum(high, values[1::2]), count + len(batch)
    if not count:
        raise UsageError("int8 needs photographs to calibrate with, got none")
    return {name: (lo, hi) for name, lo, hi in zip(names, low.tolist(), high.tolist(), strict=True)}, count


def _maps(model: "onnx.ModelProto") -> list[str]:
    """Return the names of the float maps that the operators of `OPERATORS` take or return."""
    graph = model.graph
    is_float = {
        value.name: value.type.tensor_type.elem_type == _FLOAT
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    constants = {tensor.name for tensor in graph.initializer}
    near = (name for node in graph.node if node.op_type in OPERATORS for name in (*node.input, *node.output))
    return [name for name in dict.fromkeys(near) if name not in constants and is_float.get(name, False)]


def open_session(model: bytes | str | os.PathLike) -> "onnxruntime.InferenceSession":
    """Return a session on the CPU, with as many threads as torch has."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # its warnings are about the file's spare initialisers
    return onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else os.fspath(model), options, providers=["CPUExecutionProvider"]
    )
