import numpy as np
import pytest
from PIL import Image

from segkit.cli import train
from segkit.data import CocoSegmentation, DataError
from segkit.models import load_model
from segkit.visualize import create_palette
from segkit.workflows.datasets import load_data

COLOURS = {"background": (0, 0, 0), "square": (200, 0, 0), "disc": (0, 0, 200)}
SMALL = [
    *("--backbone", "mobilenetv3_small_100", "--pretrained", "false", "--crop", "48", "--augment", "none"),
    *("--decoder", "pyramid_channels=16", "channels=16", "--batch-size", "4", "--epochs", "1"),
    *("--workers", "0", "--device", "cpu"),
]


@pytest.fixture(scope="module")
def folders(shapes, tmp_path_factory):
    """The drawn shapes as folders of images, of index masks and of coloured masks."""
    root = tmp_path_factory.mktemp("folders")
    for part, file in zip(("train", "val"), shapes, strict=True):
        data = CocoSegmentation(file)
        for kind in ("images", "masks", "coloured"):
            (root / part / kind).mkdir(parents=True)
        for i, (image, mask) in enumerate(data):
            Image.fromarray(image).save(root / part / f"images/{i}.jpg")
            index = Image.fromarray(mask)
            index.putpalette(create_palette(3).tobytes())
            index.save(root / part / f"masks/{i}.png")
            Image.fromarray(np.uint8(list(COLOURS.values()))[mask]).save(root / part / f"coloured/{i}.png")
    (root / "names.txt").write_text("\n".join(COLOURS))
    (root / "palette.txt").write_text("\n".join(f"{name} {r} {g} {b}" for name, (r, g, b) in COLOURS.items()))
    return root


def arguments(root, kind, *more):
    parts = [root / "train", root / "val"]
    data, val = ([str(part / "images")] for part in parts)
    masks = [str(part / kind) for part in parts]
    return ["--data", *data, "--val", *val, "--masks", *masks, *map(str, more)]


def load(*words):
    return load_data(train.parse_args(train.TrainConfig, words, prog="train.py"))


def fails(*words):
    with pytest.raises(SystemExit) as stop:
        train.main([str(word) for word in words])
    return stop.value.code


def test_a_run_on_folders_has_the_classes_of_the_names_file(folders, tmp_path):
    train.main([*arguments(folders, "masks", "--class-names", folders / "names.txt", "--out", tmp_path / "a"), *SMALL])
    assert load_model(tmp_path / "a").class_names == tuple(COLOURS)


def test_index_masks_and_coloured_masks_are_the_same_data(folders):
    index = load(*arguments(folders, "masks", "--class-names", folders / "names.txt"))
    coloured = load(*arguments(folders, "coloured", "--palette", folders / "palette.txt"))
    for one, other in zip(index, coloured, strict=True):
        assert (one.class_names, len(one)) == (other.class_names, len(other))
        assert all(np.array_equal(one.mask(i), other.mask(i)) for i in range(len(one)))


def test_without_val_a_share_is_split_off(folders):
    parts = load("--data", f"{folders}/train/images", "--masks", f"{folders}/train/masks", "--class-names",
                 f"{folders}/names.txt", "--val-fraction", "0.25")  # fmt: skip
    assert [len(part) for part in parts] == [9, 3]


def test_what_does_not_go_together_ends_in_one_sentence(folders, shapes, capsys):
    images, masks, names = folders / "train/images", folders / "train/masks", folders / "names.txt"
    for words, code, message in (
        (("--data", images), 3, "images with the folder of their masks as --masks, or with their names as --mask-name"),
        (("--data", images, "--masks", masks), 3, "masks do not name their classes; give --class-names"),
        (("--data", images, images, "--masks", masks), 2, "--masks needs one folder for each of the 2 sources, got 1"),
        (("--data", shapes[0], "--masks", masks), 3, "is not a folder; with --masks"),
        (("--data", shapes[0], "--class-names", names), 2, "--class-names and --palette belong to --masks"),
        (("--data", images, "--masks", masks, "--images", images), 2, "--images belongs to JSON files"),
    ):
        assert fails(*words) == code
        assert message in capsys.readouterr().err


def test_on_bad_skip_drops_images_without_a_mask(folders, tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        for i in range(4 if kind == "images" else 3):
            suffix = "jpg" if kind == "images" else "png"
            (tmp_path / kind / f"{i}.{suffix}").write_bytes((folders / f"train/{kind}/{i}.{suffix}").read_bytes())
    words = ["--data", f"{tmp_path}/images", "--masks", f"{tmp_path}/masks", "--class-names", f"{folders}/names.txt"]
    assert sum(map(len, load(*words, "--on-bad", "skip"))) == 3
    with pytest.raises(DataError, match=r"3\.jpg has no mask"):
        load(*words)
