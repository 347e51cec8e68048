"""Metadata of ONNX files, read without any package of ONNX and without the weights."""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from segkit.errors import UsageError
from segkit.files import check_readable

SUFFIX = ".onnx"
# Numbers of fields in onnx.proto.
_GRAPH, _METADATA = 7, 14  # of ModelProto
_NODE, _INITIALIZER = 1, 5  # of GraphProto
_OUTPUT, _OPERATOR = 2, 4  # of NodeProto
_EXTERNAL = 13  # of TensorProto
_OF_MODEL = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, _GRAPH: 2, 8: 2, _METADATA: 2, 20: 2, 25: 2, 26: 2}  # with wire types

Field = tuple[int, int, int, int]  # number, wire type, start and end of the value


def is_onnx(path: str | os.PathLike) -> bool:
    """Return whether a file is an ONNX file by its name."""
    return Path(path).suffix.lower() == SUFFIX


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Return the metadata of an ONNX file, texts by key.

    Raises:
        UsageError: The file cannot be opened, is cut off, or is not an ONNX file.
    """
    found, has_graph = {}, False
    with _Content(path) as content:
        fields = content.fields(0, len(content))
        for number, wire, start, end in fields:
            if _OF_MODEL.get(number) != wire:
                raise UsageError(f"{path} is not an ONNX file, or is damaged")
            if end > len(content):
                raise UsageError(
                    f"{path} is cut off: it has {len(content):,} bytes and should have at least {end:,}; copy it again"
                )
            has_graph = has_graph or number == _GRAPH
            if number == _METADATA:
                key, value = content.pair(start, end)
                found[key] = value
    if not has_graph:
        raise UsageError(f"{path} is not an ONNX file, or is damaged")
    return found


def is_of_other_program(path: str | os.PathLike) -> bool:
    """Return whether a file is an ONNX file that `export_onnx` has not written."""
    return is_onnx(path) and "segkit" not in read_metadata(path)


def data_files(path: str | os.PathLike) -> list[Path]:
    """Return the files next to an ONNX file that hold its weights, whether they exist or not; often there are none."""
    names: dict[str, None] = {}
    with _Content(path) as content:
        graphs = [field for field in content.fields(0, len(content)) if field[0] == _GRAPH]
        tensors = [field for graph in graphs for field in content.fields(*graph[2:]) if field[0] == _INITIALIZER]
        for tensor in tensors:
            pairs = [content.pair(*field[2:]) for field in content.fields(*tensor[2:]) if field[0] == _EXTERNAL]
            names.update({value: None for key, value in pairs if key == "location"})
    return [Path(path).parent / name for name in names]


def operator_of(path: str | os.PathLike, output: str) -> str | None:
    """Return the operator that computes an output of an ONNX file, such as `Softmax`; None if no operator does."""
    with _Content(path) as content:
        graphs = [field for field in content.fields(0, len(content)) if field[0] == _GRAPH]
        nodes = [field for graph in graphs for field in content.fields(*graph[2:]) if field[0] == _NODE]
        for node in reversed(nodes):  # the last ones compute the outputs
            fields = list(content.fields(*node[2:]))
            if any(number == _OUTPUT and content.text(a, b) == output for number, _, a, b in fields):
                return next((content.text(a, b) for number, _, a, b in fields if number == _OPERATOR), None)
    return None


class _Content:
    """The bytes of a file in protobuf's format; the pages of the weights are skipped, not read."""

    def __init__(self, path: str | os.PathLike) -> None:
        check_readable(path)
        self._path = path
        self._bytes: mmap.mmap | bytes = b""

    def __enter__(self) -> "_Content":
        with open(self._path, "rb") as file:
            if os.fstat(file.fileno()).st_size:  # an empty file cannot be mapped
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self

    def __exit__(self, *error: object) -> None:
        if isinstance(self._bytes, mmap.mmap):
            self._bytes.close()

    def __len__(self) -> int:
        return len(self._bytes)

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """Yield the fields of the message in these bytes; if the file is cut off, the last one may end after `end`."""
        while start < end:
            tag, start = self._number(start)
            number, wire = tag >> 3, tag & 7
            if wire == 2:
                length, start = self._number(start)
                yield number, wire, start, start + length
                start += length
            elif wire in (0, 1, 5):
                value_end = self._number(start)[1] if wire == 0 else start + (8 if wire == 1 else 4)
                yield number, wire, start, value_end
                start = value_end
            else:
                raise UsageError(f"{self._path} is not an ONNX file, or is damaged")

    def pair(self, start: int, end: int) -> tuple[str, str]:
        """Return the key and the value in a StringStringEntryProto."""
        texts = {number: bytes(self._bytes[a:b]) for number, _, a, b in self.fields(start, end)}
        try:
            return texts.get(1, b"").decode(), texts.get(2, b"").decode()
        except UnicodeDecodeError as error:
            raise UsageError(f"{self._path} is damaged: its metadata is not text") from error

    def text(self, start: int, end: int) -> str:
        """Return these bytes as text."""
        return bytes(self._bytes[start:end]).decode(errors="replace")

    def _number(self, start: int) -> tuple[int, int]:
        """Return the varint that begins at `start`, and the position after it."""
        value = 0
        for shift, byte in enumerate(self._bytes[start : start + 10]):
            value |= (byte & 0x7F) << (7 * shift)
            if byte < 0x80:
                return value, start + shift + 1
        raise UsageError(f"{self._path} is not an ONNX file, or is damaged")
