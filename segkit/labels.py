"""What the labels of a mask mean."""

from collections.abc import Sequence

from segkit.errors import UsageError

IGNORE_INDEX = 255  # pixels with this label are neither trained on nor scored
BACKGROUND = "background"  # name of class 0 of COCO data: every pixel without an annotation


def label_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Return the name of each label in the masks of a model that has one channel per name in `class_names`.

    A model with one channel separates its class, label 1, from the background, label 0.
    """
    return (BACKGROUND, *class_names) if len(class_names) == 1 else tuple(class_names)


def check_ignore_index(num_classes: int, ignore_index: int | None) -> None:
    """Raise UsageError if the usual label of ignored pixels, 255, is a class: its pixels would be ignored silently."""
    if ignore_index == IGNORE_INDEX < num_classes:
        raise UsageError(
            f"`ignore_index` is {IGNORE_INDEX}, but with {num_classes} classes that is the label of a class; give "
            "another one, such as -100 or 65535, or None"
        )


def is_background(name: str) -> bool:
    """Return whether a class is called background, in any case, or `_background_`, as labelme calls it."""
    return name.strip(" _").casefold() == BACKGROUND


def background_of(class_names: Sequence[str]) -> int | None:
    """Return the label of the class called background; None if there is none, as with the classes road and sky."""
    return next((label for label, name in enumerate(class_names) if is_background(name)), None)


def foreground_of(class_names: Sequence[str]) -> list[int]:
    """Return all labels except background."""
    background = background_of(class_names)
    return [label for label in range(len(class_names)) if label != background]
