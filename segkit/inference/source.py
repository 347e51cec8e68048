"""The images to segment: a file, a folder, a glob, a list in a text file, a COCO JSON, a video."""

import glob
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PureWindowsPath
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np

from segkit.data import list_images, read_image
from segkit.data.coco_file import Allowed, ids_by_name, read_coco
from segkit.data.findings import UNUSABLE_IMAGES, Finding, raise_errors, summarise
from segkit.data.image_names import ImageNames
from segkit.data.images import AS_USUAL, Reading
from segkit.errors import DataError, DataWarning, UnreadableFileError, UsageError, as_segkit_error
from segkit.files import Fingerprint, check_readable, fingerprint, is_file

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")
# Files whose headers count the frames. Other headers have the duration, and the sound may be longer than the frames.
COUNTED = (".mp4", ".m4v", ".mov", ".avi")


@dataclass(frozen=True)
class SourceImage:
    """An image to segment, which is read when its turn comes.

    Attributes:
        name: Relative path; its results are named after it.
        read: Returns the image, (H, W, 3) uint8 RGB; raises DataError if the file is not an image, UnreadableFileError
            if the disk cannot read it.
        path: The file, or None for a frame of a video and an image of a data set.
        ids: Its ids in a COCO JSON, which may list a file several times.
    """

    name: Path
    read: Callable[[], np.ndarray]
    path: Path | None = None
    ids: tuple[int | str, ...] = ()

    def fingerprint(self) -> Fingerprint | None:
        """Return size and digest of the file, or of the pixels if there is none; None if it cannot be read.

        Raises:
            MachineError: The machine cannot read it, for example because too many files are open.
        """
        try:
            if self.path is not None:
                return fingerprint(self.path)
            pixels = np.ascontiguousarray(self.read())
            return Fingerprint(pixels.nbytes, hashlib.sha256(pixels).hexdigest())
        except (DataError, UnreadableFileError):
            return None
        except OSError as error:
            fault = as_segkit_error(error)
            if fault is not None and not isinstance(fault, UnreadableFileError):
                raise fault from error
            return None

    @classmethod
    def unusable(cls, name: Path, reason: str, path: Path | None = None) -> "SourceImage":
        """Return an image whose `read` raises DataError with a reason that is known already."""

        def fail() -> np.ndarray:
            raise DataError(reason)

        return cls(name, fail, path)


class CocoImages(list[SourceImage]):
    """The images of a COCO JSON, and the ids of its categories by name."""

    category_ids: Mapping[str, int | str] = MappingProxyType({})


class Video(Sequence[SourceImage]):
    """The frames of a video, which are read in order; if the file is cut off, the last one cannot be read."""

    def __init__(self, path: Path) -> None:
        check_readable(path)
        self.path = path
        count, is_cut_off = _count_frames(path)
        if not count:
            raise DataError(f"{path} is not a video that OpenCV can read")
        self._names = [Path(path.stem, f"{i:06d}.png") for i in range(count + is_cut_off)]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> SourceImage:
        raise TypeError("the frames of a video are read in order")

    def __iter__(self) -> Iterator[SourceImage]:
        video = _open_video(self.path)
        try:
            for name in self._names:
                found, frame = video.read()
                if found:
                    yield SourceImage(name, partial(cv2.cvtColor, frame, cv2.COLOR_BGR2RGB))
                else:
                    reason = f"{self.path} is cut off or damaged: by its header it continues, at frame {name.stem}"
                    yield SourceImage.unusable(name, reason)
        finally:
            video.release()

    def names(self) -> list[Path]:
        """Return the names of the frames, without reading them."""
        return self._names


def _open_video(path: Path, *options: Any) -> cv2.VideoCapture:
    """Open a video; OpenCV crashes on a str that is not UTF-8, and takes bytes only from 4.12 on."""
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
    """Return the number of frames that can be read, and whether the end of the file is missing."""
    video = _open_video(path)
    claimed, rate = video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)
    count, last = 0, 0.0
    while video.grab():
        count, last = count + 1, video.get(cv2.CAP_PROP_POS_MSEC) / 1000
    video.release()
    # Compare by time stamps: a video of variable rate has fewer frames than rate x duration.
    missing = claimed - 1 - last * rate
    return count, missing > (0.5 if path.suffix.lower() in COUNTED else rate) and _count_packets(path) < claimed


def _count_packets(path: Path) -> int:
    """Return the number of frames in the file, including frames that a trimmed video does not show."""
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
    """List the images of a source. None is decoded; only the frames of a video are counted.

    Args:
        source: An image; a folder with its subfolders, also by links; a glob such as `shots/**/*.jpg`; a text file with
            one path per line, relative to the file or to `root`; a COCO JSON, whose images are in `root` or next to it;
            a video.
        root: Folder of the images of a list or a JSON.
        class_names: The classes of the model; a JSON has no other categories.
        reading: How to read the image files.

    Raises:
        DataError: The source does not exist or is empty, or a JSON has other categories.
    """
    path = Path(source)
    suffix = path.suffix.lower()
    if not path.exists() and glob.has_magic(str(path)):
        files = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if os.path.isfile(p))
        return _not_empty(_named_from_common_folder(files, reading), f"nothing matches {path}")
    if path.is_dir():
        found = [_file(p.relative_to(path), p, reading) for p in list_images(path)]
        return _not_empty(found, f"no images below {path}")
    if not path.is_file():
        raise DataError(f"there is no file or folder {path}")
    if suffix == ".json":
        return _not_empty(_coco_images(path, root, class_names, reading), f"no images in {path}")
    if suffix == ".txt":
        check_readable(path)
        lines = (line.strip() for line in path.read_text("utf-8-sig", "surrogateescape").splitlines())
        listed = [line for line in lines if line and not line.startswith("#")]
        files = _listed_files(listed, root or path.parent)
        return _not_empty(_named_from_common_folder(files, reading), f"no images in {path}")
    return Video(path) if suffix in VIDEO_SUFFIXES else [_file(Path(path.name), path, reading)]


def _listed_files(names: Sequence[str], root: Path) -> list[Path]:
    """Return the files that a list names, also if another system has spelt the names."""
    files = [Path(os.path.normpath(root / name)) for name in names]
    lost = [i for i, file in enumerate(files) if not is_file(file)]
    taken = {name for name, file in zip(names, files, strict=True) if is_file(file)} if lost else set()
    found: list[Finding] = []
    for i, file in zip(lost, ImageNames(root).find([names[i] for i in lost], taken), strict=True):
        if file is not None:
            found.append(Finding("respelt", names[i], f"the image {names[i]} is taken to be {root / file}"))
            files[i] = root / file
    _warn_of_respelt(found)
    return files


def _warn_of_respelt(findings: Sequence[Finding]) -> None:
    for note in summarise([finding for finding in findings if finding.kind == "respelt"]):
        warnings.warn(str(note), DataWarning, stacklevel=4)


def _file(
    name: Path, path: Path, reading: Reading, size: tuple[int, int] | None = None, ids: tuple[int | str, ...] = ()
) -> SourceImage:
    return SourceImage(name, partial(read_image, path, size, reading=reading), path, ids)


def _not_empty(images: list[SourceImage], nothing: str) -> list[SourceImage]:
    if not images:
        raise DataError(f"there is nothing to segment: {nothing}")
    return images


def _named_from_common_folder(files: Sequence[Path], reading: Reading) -> list[SourceImage]:
    """Return each file once, with a name relative to the folder that all files share."""
    if not files:
        return []
    by_place = {file.absolute(): file for file in files}
    shared = os.path.commonpath([place.parent for place in by_place])
    return [_file(place.relative_to(shared), file, reading) for place, file in by_place.items()]


def _coco_images(file: Path, root: Path | None, class_names: Sequence[str] | None, reading: Reading) -> CocoImages:
    """Return the images of the JSON, each file once with all its ids; reading one that cannot be used fails."""
    data = read_coco(file, root, reading=reading, allowed=Allowed(allow_outside_root=True, merge_same_name=True))
    raise_errors([f for f in data.findings if f.kind in ("bad-name", "url", "duplicate-image-id")])
    new = [] if class_names is None else [name for name in data.class_names if name not in class_names]
    if new:
        raise DataError(
            f"{file} has the category {new[0]!r}, but the classes of the model are {', '.join(class_names)}; give the "
            "folder of the images as `source` to ignore the categories"
        )
    _warn_of_respelt(data.findings)
    images = [_file(Path(item.file_name), item.path, reading, item.size, (item.id,)) for item in data.items]
    bad = {f.where: f for f in data.findings if f.kind in UNUSABLE_IMAGES}
    for name, finding in bad.items():
        images.append(SourceImage.unusable(Path(name), finding.sentence, (root or file.parent) / name))
    once: dict[Path, SourceImage] = {}
    for image in images:
        if image.name in once and not image.ids:
            again = f"{file} lists {image.name} again as an image that cannot be used, which has no result"
            warnings.warn(again, DataWarning, stacklevel=4)
        first = once.setdefault(image.name, image)
        if first is not image:
            once[image.name] = replace(first, ids=first.ids + image.ids)
        name = str(image.name)
        if image.name.is_absolute() or PureWindowsPath(name).is_absolute() or ".." in image.name.parts:
            raise DataError(
                f"{file} names the image {name}, and results with this name would lie outside the output folder"
            )
    found = CocoImages(once.values())
    found.category_ids = ids_by_name([data.categories])
    return found
