"""What there is to segment: a file, a folder, a glob, a list in a text file, a COCO JSON, a video."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

import cv2
import numpy as np

from segkit.data import CocoSegmentation, DataError, list_images, read_image
from segkit.data.images import AS_USUAL, Reading

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")


@dataclass(frozen=True)
class SourceImage:
    """An image to segment.

    Attributes:
        name: Relative path that its results are named after.
        path: The file; None for a frame of a video.
        size: (H, W) that a JSON gives it.
        id: In a COCO JSON.
        frame: (H, W, 3) uint8 RGB of a video.
        reading: How the file is read.
    """

    name: Path
    path: Path | None = None
    size: tuple[int, int] | None = None
    id: int | str | None = None
    frame: np.ndarray | None = None
    reading: Reading = AS_USUAL

    def read(self) -> np.ndarray:
        """The image (H, W, 3) uint8 RGB.

        Raises:
            DataError: it cannot be read.
        """
        return read_image(self.path, self.size, reading=self.reading) if self.frame is None else self.frame


class Video(Sequence[SourceImage]):
    """The frames of a video, which are read one after another."""

    def __init__(self, path: Path) -> None:
        self.path = path
        video = cv2.VideoCapture(str(path))
        opened, count = video.isOpened(), int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        video.release()
        if not opened or count < 1:
            raise DataError(f"{path} is not a video that OpenCV can read")
        self._names = [Path(path.stem, f"{i:06d}.png") for i in range(count)]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> SourceImage:
        raise TypeError("the frames of a video are read one after another")

    def __iter__(self) -> Iterator[SourceImage]:
        video = cv2.VideoCapture(str(self.path))
        try:
            for name in self._names:
                there, frame = video.read()
                if not there:  # the count in the file's head is an estimate
                    return
                yield SourceImage(name, frame=cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
        finally:
            video.release()

    def names(self) -> list[Path]:
        return self._names


def open_source(
    source: str | os.PathLike,
    root: Path | None = None,
    class_names: Sequence[str] | None = None,
    reading: Reading = AS_USUAL,
) -> Sequence[SourceImage]:
    """Lists the images of a source; no image is decoded.

    Args:
        source: An image; a folder, with its subfolders; a glob such as `shots/**/*.jpg`; a text file with a
            path a line, relative to it or to `root`; a COCO JSON, whose images lie in `root` or beside it; a
            video.
        root: Folder of the images of a list or a JSON.
        class_names: The model's, which those of a JSON must be.
        reading: How the image files are read.

    Raises:
        DataError: there is no such source, nothing in it, or a JSON of other categories.
    """
    images = _list(Path(source), root, class_names, reading)
    return images if isinstance(images, Video) else [replace(image, reading=reading) for image in images]


def _list(path: Path, root: Path | None, class_names: Sequence[str] | None, reading: Reading) -> Sequence[SourceImage]:
    suffix = path.suffix.lower()
    if not path.exists() and glob.has_magic(str(path)):
        files = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if os.path.isfile(p))
        return _checked(_named(files), f"nothing matches {path}")
    if path.is_dir():
        return _checked([SourceImage(p.relative_to(path), p) for p in list_images(path)], f"no images below {path}")
    if not path.is_file():
        raise DataError(f"there is no file or folder {path}")
    if suffix == ".json":
        return _checked(_coco_images(path, root, class_names, reading), f"no images in {path}")
    if suffix == ".txt":
        return _checked(_listed(path, root), f"no images in {path}")
    return Video(path) if suffix in VIDEO_SUFFIXES else [SourceImage(Path(path.name), path)]


def _checked(images: list[SourceImage], nothing: str) -> list[SourceImage]:
    if not images:
        raise DataError(f"there is nothing to segment: {nothing}")
    return images


def _named(files: Sequence[Path]) -> list[SourceImage]:
    """Names relative to the folder that all files share."""
    if not files:
        return []
    shared = os.path.commonpath([file.absolute().parent for file in files])
    return [SourceImage(file.absolute().relative_to(shared), file) for file in files]


def _listed(file: Path, root: Path | None) -> list[SourceImage]:
    lines = (line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines())
    folder = root or file.parent
    paths = [Path(os.path.normpath(folder / line)) for line in lines if line and not line.startswith("#")]
    return _named(list(dict.fromkeys(paths)))


def _coco_images(
    file: Path, root: Path | None, class_names: Sequence[str] | None, reading: Reading
) -> list[SourceImage]:
    """All images of the JSON; those that cannot be used come without a size, and fail when they are read."""
    data = CocoSegmentation(
        file,
        root=root,
        on_bad="skip",
        max_bad=1.0,
        allow_outside_root=True,
        exif=reading.exif,
        max_pixels=reading.max_pixels,
    )
    if class_names is not None and tuple(class_names) != tuple(data.class_names):
        raise DataError(
            f"the categories of {file} do not match the model's classes: {', '.join(data.class_names)} / "
            f"{', '.join(class_names)}; give --source the image folder to ignore them"
        )
    images = [SourceImage(Path(item.file_name), item.path, item.size, item.id) for item in data.items]
    bad = {f.where: f for f in data.findings if f.kind in ("missing-image", "unreadable-image", "other-size")}
    images += [Unusable(Path(name), (root or file.parent) / name, sentence=bad[name].sentence) for name in bad]
    for image in images:
        name = str(image.name)
        if image.name.is_absolute() or PureWindowsPath(name).is_absolute() or ".." in image.name.parts:
            raise DataError(f"{file} names the image {name}, and results named so would lie outside the output folder")
    return images


@dataclass(frozen=True)
class Unusable(SourceImage):
    """An image that was seen to be missing, damaged or of another size than its JSON says."""

    sentence: str = ""

    def read(self) -> np.ndarray:
        raise DataError(self.sentence)
