"""What there is to segment: a file, a folder, a glob, a list in a text file, a COCO JSON, a video."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

import cv2
import numpy as np

from segkit.data import list_images, read_image
from segkit.data.coco_file import Allowed, read_coco
from segkit.data.findings import raise_errors
from segkit.data.images import AS_USUAL, Reading
from segkit.errors import DataError, UsageError
from segkit.labels import BACKGROUND

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")
COUNTED = (".mp4", ".m4v", ".mov", ".avi")  # their head counts frames; others give a length, which sound may exceed


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
    """The frames of a video, which are read one after another; where it breaks off, one more that cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        count, breaks_off = _count_frames(path)
        if not count:
            raise DataError(f"{path} is not a video that OpenCV can read")
        self._names = [Path(path.stem, f"{i:06d}.png") for i in range(count + breaks_off)]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> SourceImage:
        raise TypeError("the frames of a video are read one after another")

    def __iter__(self) -> Iterator[SourceImage]:
        video = _open_video(self.path)
        try:
            for name in self._names:
                there, frame = video.read()
                if there:
                    yield SourceImage(name, frame=cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
                else:
                    sentence = f"{self.path} breaks off or is damaged: by its head it goes on, with frame {name.stem}"
                    yield Unusable(name, sentence=sentence)
        finally:
            video.release()

    def names(self) -> list[Path]:
        return self._names


def _open_video(path: Path, *options: Any) -> cv2.VideoCapture:
    """Open a video; OpenCV crashes on a str that is not UTF-8, and takes bytes from 4.12 on."""
    name = os.fspath(path)
    if name == name.encode(errors="replace").decode():
        return cv2.VideoCapture(name, *options)
    try:
        return cv2.VideoCapture(os.fsencode(path), *options)
    except cv2.error as error:
        raise UsageError(
            f"OpenCV {cv2.__version__} cannot open {path}, whose name is not UTF-8; rename the file, or "
            "pip install 'opencv-python-headless>=4.12'"
        ) from error


def _count_frames(path: Path) -> tuple[int, bool]:
    """How many frames can be read, whatever the head says, and whether that is for want of the file's end."""
    video = _open_video(path)
    claimed, rate = video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)
    count, last = 0, 0.0
    while video.grab():
        count, last = count + 1, video.get(cv2.CAP_PROP_POS_MSEC) / 1000
    video.release()
    # By time: where frames come at any rate there are fewer, though none is missing.
    missing = claimed - 1 - last * rate
    return count, missing > (0.5 if path.suffix.lower() in COUNTED else rate) and _count_packets(path) < claimed


def _count_packets(path: Path) -> int:
    """The frames that lie in the file, also those that are not shown since the video was trimmed."""
    video = _open_video(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])
    count = 0
    while video.grab():
        count += 1
    video.release()
    return count


def open_source(
    source: str | os.PathLike,
    root: Path | None = None,
    class_names: Sequence[str] | None = None,
    reading: Reading = AS_USUAL,
) -> Sequence[SourceImage]:
    """Lists the images of a source; none is decoded, but the frames of a video are counted.

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
    """Names relative to the folder that all files share; each file once."""
    if not files:
        return []
    by_place = {file.absolute(): file for file in files}
    shared = os.path.commonpath([place.parent for place in by_place])
    return [SourceImage(place.relative_to(shared), file) for place, file in by_place.items()]


def _listed(file: Path, root: Path | None) -> list[SourceImage]:
    lines = (line.strip() for line in file.read_text("utf-8-sig", "surrogateescape").splitlines())
    folder = root or file.parent
    paths = [Path(os.path.normpath(folder / line)) for line in lines if line and not line.startswith("#")]
    return _named(paths)


def _coco_images(
    file: Path, root: Path | None, class_names: Sequence[str] | None, reading: Reading
) -> list[SourceImage]:
    """The images of the JSON, each file once; those that cannot be used come without a size, and fail when read."""
    data = read_coco(file, root, reading=reading, allowed=Allowed(allow_outside_root=True, merge_same_name=True))
    raise_errors([f for f in data.findings if f.kind in ("bad-name", "url", "duplicate-image-id")])
    known = (BACKGROUND, *data.class_names)
    if class_names is not None and tuple(class_names) != known:
        raise DataError(
            f"the categories of {file} do not match the model's classes: {', '.join(known)} / "
            f"{', '.join(class_names)}; give --source the image folder to ignore them"
        )
    images = [SourceImage(Path(item.file_name), item.path, item.size, item.id) for item in data.items]
    bad = {f.where: f for f in data.findings if f.kind in ("missing-image", "unreadable-image", "other-size")}
    images += [Unusable(Path(name), (root or file.parent) / name, sentence=bad[name].sentence) for name in bad]
    once: dict[Path, SourceImage] = {}
    for image in images:
        once.setdefault(image.name, image)
        name = str(image.name)
        if image.name.is_absolute() or PureWindowsPath(name).is_absolute() or ".." in image.name.parts:
            raise DataError(f"{file} names the image {name}, and results named so would lie outside the output folder")
    return list(once.values())


@dataclass(frozen=True)
class Unusable(SourceImage):
    """An image that was seen to be missing, damaged or of another size than its JSON says."""

    sentence: str = ""

    def read(self) -> np.ndarray:
        raise DataError(self.sentence)
