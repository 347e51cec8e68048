import csv
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.commands import at_forward
from PIL import Image, features
from pycocotools import mask as coco_mask

import segkit
from segkit.cli import infer, train
from segkit.config import InferConfig
from segkit.crf import DenseCRF
from segkit.data import CocoSegmentation
from segkit.errors import DataWarning, UsageError
from segkit.folds import read_fold_source
from segkit.inference import Prediction, PredictionWriter, SourceImage
from segkit.models import create_model, load_model, save_model
from segkit.models.preprocessing import Preprocessing
from segkit.runs import RunLock
from segkit.workflows.infer import _divide
from segkit.workflows.predictors import build_crf, find_members
from segkit.workflows.results_folder import open_results

ROOT = Path(__file__).parents[2]
NAMES = ("background", "square", "disc")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A network of random weights whose classes are far apart, so that each occurs and some pixels are sure."""
    torch.manual_seed(3)
    options = {"pyramid_channels": 16, "channels": 16}
    made = create_model("fpn", backbone="mobilenetv3_small_100", class_names=NAMES, pretrained=False, **options)
    torch.nn.init.normal_(made.head.weight, std=3)
    file = tmp_path_factory.mktemp("model") / "m.safetensors"
    save_model(made.eval(), file)
    assert made.preprocessing == Preprocessing()
    return file


def run(model, source, out, *more):
    infer.main(
        ["--weights", str(model), "--source", str(source), "--out", str(out), "--device", "cpu", *map(str, more)]
    )


def fails(*arguments):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    return stop.value.code


def read_mask(file):
    return np.asarray(Image.open(file))


def test_all_kinds_of_results_agree(model, shapes, tmp_path):
    kinds = ("mask", "overlay", "probs", "coco", "submission")
    run(model, shapes[1], tmp_path / "o", "--save", *kinds, "--submission-size", "16")
    mask = read_mask(tmp_path / "o/mask/images/val1.png")
    assert len(np.unique(mask)) > 1
    with np.load(tmp_path / "o/probs/images/val1.npz") as stored:
        assert stored["probs"].dtype == np.float16
        assert (stored["probs"].argmax(0) == mask).mean() > 0.999
        assert stored["class_names"].tolist() == list(NAMES)
    coco = CocoSegmentation(tmp_path / "o/predictions.json", root=shapes[1].parent)
    assert np.array_equal(coco.target(1), mask)
    assert [item.id for item in coco.items] == [item.id for item in CocoSegmentation(shapes[1]).items]
    rows = list(csv.reader((tmp_path / "o/submission.csv").open()))
    assert rows[2][0] == "images/val1.png"
    assert len(rows[2][1].split()) == 256
    assert not (tmp_path / "o/failed.csv").exists()


def test_pseudo_labels_can_be_trained_on_and_no_class_is_shifted(model, shapes, tmp_path, capsys):
    run(
        model, shapes[1], tmp_path / "o", "--save", "mask", "pseudo", "--pseudo-threshold", 0.5, "--pseudo-min-share", 0
    )
    assert "sure enough for pseudo labels: 4 of 4 images" in capsys.readouterr().out
    pseudo = CocoSegmentation([shapes[0], tmp_path / "o/pseudo.json"], root=[shapes[0].parent, shapes[1].parent])
    assert pseudo.class_names == NAMES
    for i in range(4):
        mask, target = read_mask(tmp_path / f"o/mask/images/val{i}.png"), pseudo.target(12 + i)
        assert set(np.unique(mask)) <= {0, 1, 2}
        assert np.array_equal(np.where(target == 255, mask, target), mask)
        assert (target == 255).any()
    train.main(
        [
            *("--data", str(shapes[0]), "--train-only", str(tmp_path / "o/pseudo.json"), "--val", str(shapes[1])),
            *("--images", str(shapes[0].parent), str(shapes[1].parent), str(shapes[1].parent)),
            *("--model", "fpn", "--backbone", "mobilenetv3_small_100", "--pretrained", "false", "--crop", "32"),
            *("--decoder", "pyramid_channels=8", "channels=8", "--batch-size", "4", "--epochs", "1", "--workers", "0"),
            *("--augment", "none", "--mask-cache", "off", "--device", "cpu", "--out", str(tmp_path / "run")),
        ]
    )
    assert (tmp_path / "run/best.safetensors").exists()


def test_an_interrupted_run_that_continues_ends_like_an_uninterrupted_one(model, shapes, tmp_path):
    kinds = ("--save", "mask", "overlay", "submission")
    run(model, shapes[1], tmp_path / "whole", *kinds)
    run(model, shapes[1], tmp_path / "parts", *kinds)
    kept = tmp_path / "parts/mask/images/val0.png"
    before = kept.stat().st_mtime_ns
    for lost in ("mask/images/val2.png", "overlay/images/val3.jpg", "manifest.csv"):
        (tmp_path / "parts" / lost).unlink()
    run(model, shapes[1], tmp_path / "parts", *kinds, "--skip-existing")
    assert kept.stat().st_mtime_ns == before
    files = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*.*"))
    assert files == sorted(p.relative_to(tmp_path / "parts") for p in (tmp_path / "parts").rglob("*.*"))
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()


def test_failures_are_listed_and_a_later_run_without_any_removes_the_list(model, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (20, 30)).save(tmp_path / "in/good.png")
    (tmp_path / "in/bad.jpg").write_text("no image")
    arguments = (model, tmp_path / "in", tmp_path / "o", "--save", "mask", "submission")
    assert fails(*arguments) == 5
    (row,) = csv.DictReader((tmp_path / "o/failed.csv").open())
    assert row["image"] == "bad.jpg"
    assert "bad.jpg is not an image" in row["error"]
    assert not (tmp_path / "o/submission.csv").exists()
    assert "warning: no submission.csv, which would lack 1 image" in capsys.readouterr().err
    Image.new("RGB", (20, 30)).save(tmp_path / "in/bad.jpg")
    run(*arguments, "--skip-existing")
    assert not (tmp_path / "o/failed.csv").exists()
    assert [row["image"] for row in csv.DictReader((tmp_path / "o/manifest.csv").open())] == ["bad.jpg", "good.png"]


def test_a_window_and_test_time_augmentation_reach_the_model(model, shapes, tmp_path, capsys):
    run(model, shapes[1], tmp_path / "a", "--window", 32, "--flips", "d4", "--scales", 1, 0.5, "--merge", "gmean")
    printed = capsys.readouterr().out
    assert "views  16 views: scales 1, 0.5 x turns identity, h, v, " in printed
    assert "gmean; windows of 32 pixels" in printed
    run(model, shapes[1], tmp_path / "b", "--tta", "seed_vflip_multiscale")
    assert "6 views" in capsys.readouterr().out


def test_member_weights_are_normalised_and_printed(model, shapes, tmp_path, capsys):
    run(model, shapes[1], tmp_path / "o", "--weights", model, model, "--member-weights", 1, 3)
    printed = capsys.readouterr().out
    assert "weight 0.250" in printed
    assert "weight 0.750" in printed


@pytest.mark.slow
def test_torchrun_divides_the_images_with_the_same_results(model, shapes, tmp_path):
    kinds = ("--save", "mask", "coco", "pseudo", "submission")
    run(model, shapes[0], tmp_path / "one", *kinds)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", "infer.py"]
    arguments = ["--weights", model, "--source", shapes[0], "--out", tmp_path / "three", "--device", "cpu", *kinds]
    subprocess.run([*command, *map(str, arguments)], cwd=ROOT, check=True, timeout=300)
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 18
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "three" / file).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--skip-existing", "--save", "overlay"], "add mask to --save"),
        (["--skip-existing", "--save", "mask", "pseudo"], "does not go with --save pseudo"),
        (["--submission-sample", "x.csv"], "needs --save submission"),
        (["--tta", "seed_vflip_multiscale", "--flips", "h"], "does not go with --flips"),
        (["--tta", "seed"], "unknown preset 'seed'"),
        (["--window", "-1"], "--window must be 0 or more"),
        (["--crf", "seeed"], "did you mean 'seed'"),
        (["--crf", "iterations=many"], "--crf: iterations must be a number"),
        (["--crf", "iteration=3"], "no parameter 'iteration'"),
        (["--save", "pseudo", "--pseudo-class-thresholds", "can=0.5"], "no class 'can'"),
    ],
)
def test_wrong_settings_are_named_and_nothing_is_written(model, shapes, tmp_path, capsys, arguments, message):
    assert fails(model, shapes[1], tmp_path / "o", *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())  # tyro breaks lines
    assert not (tmp_path / "o").exists()


def test_a_sample_submission_that_does_not_fit_is_a_wrong_setting(shapes, model, tmp_path, capsys):
    (tmp_path / "sample.csv").write_text("image_id,PredictionString\nelsewhere.jpg,0\n")
    options = ("--save", "submission", "--submission-sample", tmp_path / "sample.csv")
    assert fails(model, shapes[1], tmp_path / "o", *options) == 2
    assert "1 of its ids are not images of the source: elsewhere.jpg" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "o").exists()


def test_results_have_the_category_ids_and_all_image_ids_of_the_source(model, shapes, tmp_path):
    source = json.loads(shapes[1].read_text())
    source["images"].append(source["images"][0] | {"id": "again"})
    file = shapes[1].with_name("twice.json")
    file.write_text(json.dumps(source))
    options = ("--save", "coco", "pseudo", "--pseudo-threshold", 0, "--pseudo-min-share", 0)
    run(model, file, tmp_path / "o", *options)
    file.unlink()
    found, pseudo = (json.loads((tmp_path / f"o/{name}.json").read_text()) for name in ("predictions", "pseudo"))
    for content in (found, pseudo):
        assert content["categories"] == [{"id": 3, "name": "square"}, {"id": 7, "name": "disc"}]
        assert {annotation["category_id"] for annotation in content["annotations"]} == {3, 7}
    assert sorted(map(str, (image["id"] for image in found["images"]))) == ["100", "101", "102", "103", "again"]
    of_image = {i: [a["segmentation"] for a in found["annotations"] if a["image_id"] == i] for i in (100, "again")}
    assert of_image[100] == of_image["again"] != []
    assert [image["id"] for image in pseudo["images"]] == [100, 101, 102, 103], "no image trains twice"


def test_results_of_a_folder_have_the_category_ids_of_the_training(model, shapes, tmp_path):
    trained = load_model(model)
    trained.category_ids = CocoSegmentation(shapes[0]).category_ids
    save_model(trained, tmp_path / "m.safetensors")
    photographs = shapes[1].parent / "images"
    options = ("--save", "mask", "pseudo", "--pseudo-threshold", 0, "--pseudo-min-share", 0)
    run(tmp_path / "m.safetensors", photographs, tmp_path / "o", *options)
    file = photographs / "pseudo.json"
    shutil.copy(tmp_path / "o/pseudo.json", file)
    assert json.loads(file.read_text())["categories"] == [{"id": 3, "name": "square"}, {"id": 7, "name": "disc"}]
    with pytest.warns(DataWarning, match="listed as several images"):
        joined = CocoSegmentation([shapes[0], file])
    source = read_fold_source(shapes[0], [file])
    file.unlink()
    assert joined.class_names == NAMES
    mask = read_mask(tmp_path / "o/mask" / joined.name(12))
    assert np.array_equal(joined.mask(12), mask)
    assert len(np.unique(mask)) > 1
    assert {row["category_id"] for rows in source.annotations for row in rows} == {3, 7}


def test_a_model_whose_first_class_is_not_background_writes_all_classes(shapes, model, tmp_path):
    trained = load_model(model)
    trained.class_names = ("road", "sky", "tree")
    save_model(trained, tmp_path / "x.safetensors")
    run(tmp_path / "x.safetensors", shapes[1].parent / "images", tmp_path / "o", "--save", "coco", "overlay")
    content = json.loads((tmp_path / "o/predictions.json").read_text())
    assert content["categories"] == [{"id": i, "name": name} for i, name in enumerate(trained.class_names, start=1)]
    image = content["images"][0]
    area = sum(row["area"] for row in content["annotations"] if row["image_id"] == image["id"])
    assert area == image["height"] * image["width"]


def test_results_of_300_classes_agree(shapes, tmp_path, capsys):
    torch.manual_seed(0)
    names = [f"class {i}" for i in range(300)]
    made = create_model("fpn", backbone="mobilenetv3_small_100", class_names=names, pretrained=False, channels=16)
    torch.nn.init.normal_(made.head.weight, std=3)
    save_model(made.eval(), tmp_path / "m.safetensors")
    source = shapes[1].parent / "images/val0.png"
    kinds = ("mask", "overlay", "probs", "coco", "submission")
    run(tmp_path / "m.safetensors", source, tmp_path / "o", "--save", *kinds, "--submission-size", 16)
    assert "warning: predictions.json has 300 categories; other tools read it" in capsys.readouterr().err
    with pytest.raises(UsageError, match="`save` has pseudo, but the model has 300 classes besides background"):
        segkit.predict(weights=made, source=source, out=tmp_path / "p", save="pseudo")
    mask = read_mask(tmp_path / "o/mask/val0.png")
    assert mask.max() > 255
    with np.load(tmp_path / "o/probs/val0.npz") as stored:
        assert (stored["probs"].argmax(0) == mask).mean() > 0.99
    content = json.loads((tmp_path / "o/predictions.json").read_text())
    label = {category["id"]: names.index(category["name"]) for category in content["categories"]}
    drawn = np.zeros(mask.shape, int)
    for row in content["annotations"]:
        drawn[coco_mask.decode(row["segmentation"]) > 0] = label[row["category_id"]]
    assert np.array_equal(drawn, mask)
    (tmp_path / "o/manifest.csv").unlink()
    run(
        tmp_path / "m.safetensors", source, tmp_path / "o", "--save", *kinds, "--submission-size", 16, "--skip-existing"
    )
    (row,) = csv.DictReader((tmp_path / "o/manifest.csv").open())
    shares = [float(row[f"share/{name}"]) for name in names]
    assert shares == pytest.approx(np.bincount(mask.ravel(), minlength=300) / mask.size, abs=1e-5)
    labels = list(csv.reader((tmp_path / "o/submission.csv").open()))[1][1].split()
    assert set(map(int, labels)) <= set(mask.ravel().tolist())
    assert max(map(int, labels)) > 255


def test_crf_words_name_a_preset_and_changes():
    pytest.importorskip("pydensecrf")
    assert build_crf(None) is None
    assert build_crf(()) == build_crf(("seed",))
    crf = build_crf(("deeplab_v2_resnet101", "iterations=3", "gaussian_weight=2.5"), workers=2)
    assert (crf.iterations, crf.gaussian_weight, crf.workers) == (3, 2.5, 2)


def test_the_crf_is_printed_in_words():
    assert str(build_crf(("seed", "iterations=3", "tolerance=0.01"), workers=2)) == (
        "3 iterations; smoothness of weight 10 and sigma 3; appearance of weight 10, sigma 10 and colour sigma 5; "
        "stops below 0.01 changed labels"
    )


def test_the_records_are_plain_json(model, shapes, tmp_path):
    run(model, shapes[1], tmp_path / "o", "--save", "coco")
    content = json.loads((tmp_path / "o/predictions.json").read_text())
    assert [c["name"] for c in content["categories"]] == ["square", "disc"]


def test_images_with_the_same_name_in_two_folders_stay_apart(model, tmp_path):
    for folder, value in (("a", 20), ("b", 230)):
        (tmp_path / "in" / folder).mkdir(parents=True)
        picture = np.full((24, 32, 3), value, np.uint8)
        picture[:, 16:] = 255 - value
        Image.fromarray(picture).save(tmp_path / "in" / folder / "x.png")
    run(model, tmp_path / "in", tmp_path / "out")
    masks = [read_mask(tmp_path / f"out/mask/{folder}/x.png") for folder in "ab"]
    assert not np.array_equal(*masks)
    rows = list(csv.DictReader((tmp_path / "out/manifest.csv").open()))
    assert len({row["mask"] for row in rows}) == 2


def test_only_the_image_that_is_larger_than_allowed_fails(model, shapes, tmp_path):
    (tmp_path / "in").mkdir()
    for name, side in (("small.png", 16), ("large.png", 64)):
        Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(tmp_path / "in" / name)
    assert fails(model, tmp_path / "in", tmp_path / "out", "--max-pixels", "1000") == 5
    assert (tmp_path / "out/mask/small.png").is_file()
    assert "max_pixels" in (tmp_path / "out/failed.csv").read_text()


def test_only_the_image_that_is_too_large_for_the_crf_fails(model, tmp_path, monkeypatch):
    monkeypatch.setattr(DenseCRF, "max_pixels", 1000)
    (tmp_path / "in").mkdir()
    for name, side in (("small.png", 16), ("large.png", 64)):
        Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(tmp_path / "in" / name)
    assert fails(model, tmp_path / "in", tmp_path / "out", "--crf", "iterations=1", "--workers", 0) == 5
    assert [row["image"] for row in csv.DictReader((tmp_path / "out/manifest.csv").open())] == ["small.png"]
    assert "more than the 1000 of a CRF" in (tmp_path / "out/failed.csv").read_text()


def test_a_name_that_is_not_utf_8_is_written_unchanged(model, tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (20, 30)).save(tmp_path / "in" / os.fsdecode(b"caf\xe9.png"))
    run(model, tmp_path / "in", tmp_path / "out", "--save", "mask", "coco", "submission")
    for name in ("manifest.csv", "submission.csv"):
        assert b"\ncaf\xe9.png," in (tmp_path / "out" / name).read_bytes()
    assert len(CocoSegmentation(tmp_path / "out/predictions.json", root=tmp_path / "in")) == 1


def test_the_frames_of_a_video_that_is_cut_off_are_segmented(model, tmp_path):
    file = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 5, (32, 24))
    for frame in np.random.default_rng(0).integers(0, 256, (9, 24, 32, 3), dtype=np.uint8):
        writer.write(frame)
    writer.release()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * 3 // 4])
    assert fails(model, file, tmp_path / "out", "--save", "mask", "submission") == 5
    (row,) = csv.DictReader((tmp_path / "out/failed.csv").open())
    masks = sorted(path.name for path in (tmp_path / "out/mask/clip").iterdir())
    assert row["image"] == f"clip/{len(masks):06d}.png"
    assert "clip.avi is cut off" in row["error"]
    file.write_bytes(whole)
    run(model, file, tmp_path / "out", "--save", "mask", "submission", "--skip-existing")
    assert len(list((tmp_path / "out/mask/clip").iterdir())) == 9
    assert len((tmp_path / "out/submission.csv").read_text().splitlines()) == 10
    assert not (tmp_path / "out/failed.csv").exists()


def test_existing_results_are_found_while_the_source_is_read(tmp_path):
    names = [Path(f"{i}.png") for i in range(4)]
    writer, taken = PredictionWriter(tmp_path, NAMES, names, ["mask"]), []
    for name in names[::2]:
        writer.write(name, None, Prediction(np.zeros((4, 5), np.uint8), None))

    def frames():
        for name in names:
            taken.append(name)
            yield SourceImage(name, lambda: np.zeros((4, 5, 3), np.uint8))

    todo, seen = _divide(frames(), writer, skip_existing=True)
    assert taken == []
    assert next(todo).name == names[1]
    assert taken == names[:2]
    assert [source.name for source in todo] == [names[3]]
    assert [result.name for result in seen.done] == names[::2]


def test_results_inside_the_source_are_not_segmented(model, tmp_path, capsys):
    Image.new("RGB", (20, 30)).save(tmp_path / "a.png")
    for line in ("1 of 1 image segmented. In", "0 of 1 image segmented, 1 already there. In"):
        run(model, tmp_path, tmp_path / "out", "--skip-existing")
        assert line in capsys.readouterr().out


def test_results_may_be_next_to_their_images(model, tmp_path, capsys):
    Image.new("RGB", (20, 30)).save(tmp_path / "a.png")
    for line in ("1 of 1 image segmented. In", "0 of 1 image segmented, 1 already there. In"):
        run(model, tmp_path, tmp_path, "--skip-existing")
        assert line in capsys.readouterr().out


def test_what_is_in_the_source_and_not_read_is_named_in_the_last_line(model, tmp_path, capsys):
    for name in ("a.jpg", "more/b.gif", "more/c.jp2"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True, parents=True)
        Image.new("RGB", (20, 30)).save(tmp_path / "in" / name)
    for name in ("d.psd", "more/e.txt"):
        (tmp_path / "in" / name).touch()
    for number, out in enumerate(("out", "in/out", "in/out", "in", "in")):
        if out == "in":
            shutil.rmtree(tmp_path / "in/out", ignore_errors=True)
        run(model, tmp_path / "in", tmp_path / out, "--save", "mask", "--skip-existing")  # results are not named
        last = capsys.readouterr().out.splitlines()[-1]
        is_new = number in (0, 1, 3)
        assert last.startswith("3 of 3 images segmented. In" if is_new else "0 of 3 images segmented, 3 already there")
        assert last.endswith(
            "manifest.csv, classes.csv. Not read, as no image of a known format: 2 files (d.psd, more/e.txt)"
        )


def test_only_the_first_page_is_segmented_with_a_warning(model, tmp_path, capsys):
    pages = [Image.new("RGB", (20, 30), colour) for colour in ("red", "blue")]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "b.tif")
    run(model, tmp_path, tmp_path / "out", "--save", "mask")
    assert "warning: only the first page or frame is segmented of 1 image (a.tif)\n" in capsys.readouterr().err


def test_images_that_cannot_be_decoded_are_listed_and_the_others_segmented(model, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "good.png")
    bad = ["cut.jpg", "photo.heic", "text.jpg"]
    kind = "AVIF" if features.check("avif") else "WEBP"
    Image.fromarray(pixels).save(tmp_path / "whole", kind)
    whole = (tmp_path / "whole").read_bytes()
    # Without its item "pitm", an AVIF is a RuntimeError of Pillow, not one of the errors of other damaged files.
    (tmp_path / "cut.jpg").write_bytes(whole[:-40].replace(b"pitm", b"xxxx"))
    (tmp_path / "photo.heic").write_bytes(bytes(4) + b"ftypheic" + bytes(12))
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "whole").unlink()
    assert fails(model, tmp_path, tmp_path / "out", "--save", "mask") == 5
    listed = list(csv.DictReader((tmp_path / "out/failed.csv").open()))
    assert [row["image"] for row in listed] == bad
    assert "convert it to JPEG" in listed[1]["error"]
    assert [row["image"] for row in csv.DictReader((tmp_path / "out/manifest.csv").open())] == ["good.png"]


@pytest.fixture
def fails_to_open(monkeypatch):
    """Let the opening of a file fail with a code of the system, until another file and code are named."""

    def fail(path, code):
        def opening(file, *mode, **options):
            if file == path:
                raise OSError(code, os.strerror(code), str(file))
            return open(file, *mode, **options)

        for module in (segkit.data.images, segkit.files):
            monkeypatch.setattr(module, "open", opening, raising=False)

    return fail


def write_photographs(folder, names):
    folder.mkdir()
    for name in names:
        Image.fromarray(np.random.default_rng(ord(name)).integers(0, 256, (30, 20, 3), np.uint8)).save(
            folder / f"{name}.png"
        )


def images_in(table):
    return [row["image"] for row in csv.DictReader(table.open())]


def test_a_file_that_the_disk_cannot_read_fails_and_the_others_are_segmented(model, tmp_path, fails_to_open, capsys):
    write_photographs(tmp_path / "in", "abc")
    out = tmp_path / "out"
    for more in ((), ("--skip-existing",)):
        fails_to_open(tmp_path / "in/b.png", errno.EIO)
        assert fails(model, tmp_path / "in", out, "--save", "mask", *more) == 5
        assert images_in(out / "manifest.csv") == ["a.png", "c.png"]
        assert images_in(out / "failed.csv") == ["b.png"]
        assert "Input/output error; this is a fault of the machine" in (out / "failed.csv").read_text()
    fails_to_open(out / "mask/a.png", errno.EIO)  # a mask that cannot be read is made again
    run(model, tmp_path / "in", out, "--save", "mask", "--skip-existing")
    assert images_in(out / "manifest.csv") == ["a.png", "b.png", "c.png"]


def test_classes_csv_has_the_pixels_of_each_class_in_each_image(model, tmp_path):
    write_photographs(tmp_path / "in", "ab")
    out = tmp_path / "out"
    run(model, tmp_path / "in", out)
    rows = list(csv.DictReader((out / "classes.csv").open()))
    assert list(rows[0]) == ["image", "class", "pixels", "percent"]
    masks = {f"{name}.png": read_mask(out / f"mask/{name}.png") for name in "ab"}
    expected = [(name, label, int((mask == i).sum())) for name, mask in masks.items() for i, label in enumerate(NAMES)]
    assert [(row["image"], row["class"], int(row["pixels"])) for row in rows] == expected
    assert [float(row["percent"]) for row in rows] == pytest.approx([n / 6 for *_, n in expected], abs=5e-4)
    first = (out / "classes.csv").read_bytes()
    (out / "classes.csv").unlink()  # an older version wrote none
    (out / "mask/b.png").unlink()
    run(model, tmp_path / "in", out, "--skip-existing")
    assert (out / "classes.csv").read_bytes() == first


def test_a_classes_csv_of_somebody_else_is_kept(model, tmp_path, capsys):
    write_photographs(tmp_path / "in", "a")
    for out in (tmp_path / "out", tmp_path / "new"):
        run(model, tmp_path / "in", tmp_path / "out", "--save", "mask") if out.name == "out" else out.mkdir()
        (out / "classes.csv").write_text("name,colour\ncan,red\n")
        assert fails(model, tmp_path / "in", out, "--save", "mask", "--skip-existing") == 2
        assert "classes.csv is not a table of this command, which would replace it" in capsys.readouterr().err
        assert (out / "classes.csv").read_text() == "name,colour\ncan,red\n"


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM, errno.ENOSPC])
def test_a_machine_that_fails_stops_the_command_and_the_manifest_has_what_was_done(
    model, tmp_path, fails_to_open, code
):
    write_photographs(tmp_path / "in", "abc")
    out = tmp_path / "out"
    fails_to_open(tmp_path / "in/b.png", code)
    assert fails(model, tmp_path / "in", out, "--save", "mask") == 1
    assert images_in(out / "manifest.csv") == ["a.png"]
    assert not (out / "failed.csv").exists()
    fails_to_open(None, 0)
    run(model, tmp_path / "in", out, "--save", "mask", "--skip-existing")
    whole, shares = (out / "manifest.csv").read_text(), (out / "classes.csv").read_text()
    (out / "mask/c.png").unlink()
    fails_to_open(tmp_path / "in/a.png", code)
    assert fails(model, tmp_path / "in", out, "--save", "mask", "--skip-existing") == 1
    assert (out / "manifest.csv").read_text() == "".join(whole.splitlines(keepends=True)[:3])  # a and b are there
    assert (out / "classes.csv").read_text() == "".join(shares.splitlines(keepends=True)[: 1 + 2 * len(NAMES)])
    assert sorted(path.name for path in (out / "mask").iterdir()) == ["a.png", "b.png"]


def test_damaged_and_empty_results_are_made_again(model, shapes, tmp_path):
    kinds = ("--save", "mask", "overlay", "probs", "coco")
    run(model, shapes[1], tmp_path / "o", *kinds)
    lost = [
        tmp_path / "o" / name for name in ("mask/images/val0.png", "overlay/images/val1.jpg", "probs/images/val2.npz")
    ]
    whole = [file.read_bytes() for file in lost]
    empty = tmp_path / "o/mask/images/val3.png"
    lost[0].write_bytes(whole[0][:70])
    for file in (*lost[1:], empty):
        file.write_bytes(b"")
    run(model, shapes[1], tmp_path / "o", *kinds, "--skip-existing")
    assert [file.read_bytes() for file in lost] == whole
    assert read_mask(empty).shape == (48, 64)


# Continuing in a folder: it knows what made it.


def other_model(file, folder, **changes):
    """Write a model like the one in `file` with other weights or class names, and return its file."""
    made = load_model(file)
    made.head.bias.data += torch.tensor([0.0, 1.0, 2.0])
    for name, value in changes.items():
        setattr(made, name, value)
    save_model(made, folder / "other.safetensors")
    return folder / "other.safetensors"


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*.*")}


def test_results_of_other_weights_are_not_continued(model, shapes, tmp_path, capsys):
    run(model, shapes[1], tmp_path / "o", "--save", "mask")
    before = contents(tmp_path / "o")
    assert fails(other_model(model, tmp_path), shapes[1], tmp_path / "o", "--save", "mask", "--skip-existing") == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert f"cannot continue in {tmp_path / 'o'}: other weights made its results ({model} then, " in printed
    assert printed.endswith("choose another --out")
    assert contents(tmp_path / "o") == before


def test_results_of_other_settings_are_not_continued(model, tmp_path):
    def open_with(**settings):
        settings = {"weights": (model,), **settings}
        config, members = InferConfig(out=tmp_path / "o", **settings), find_members(settings["weights"])
        with RunLock() as lock:
            return open_results(config, members, NAMES, lock)

    open_with(crf=("seed",))
    open_with(crf=("seed",), skip_existing=True, device="cuda", workers=3, compile=True, source="x", save=("mask",))
    for settings, sentence in (
        ({"weights": (model, model)}, "other weights made its results"),
        ({"flips": "h"}, "flips is none there, h here"),
        ({"scales": (1.0, 0.5)}, "scales is 1.0 there, 1.0 0.5 here"),
        ({"class_bias": {"disc": 1.0}}, "class_bias is not set there, disc=1.0 here"),
        ({"crf": None}, "crf is seed there, off here"),
        ({"exif": "ignore"}, "exif is apply there, ignore here"),
        ({"window": 32}, "window is 0 there, 32 here"),  # as older versions wrote it: the model has no window
        ({"amp": "bf16"}, "amp is off there, bf16 here"),
    ):
        with pytest.raises(UsageError, match=f"cannot continue in .*/o: .*{sentence}.*; choose another `out`"):
            open_with(**{"crf": ("seed",), **settings}, skip_existing=True)


def test_a_setting_that_an_older_version_did_not_have_had_its_default(model, tmp_path):
    config, members = InferConfig(weights=(model,), out=tmp_path, skip_existing=True), find_members([model])
    with RunLock() as lock:
        open_results(config, members, NAMES, lock)
    stored = json.loads((tmp_path / "infer.json").read_text())
    del stored["settings"]["merge"]
    (tmp_path / "infer.json").write_text(json.dumps(stored))
    with RunLock() as lock:
        open_results(config, members, NAMES, lock)
    with RunLock() as lock, pytest.raises(UsageError, match="merge is mean there, max here"):
        open_results(replace(config, merge="max"), members, NAMES, lock)


def test_a_copy_of_the_weights_continues(model, shapes, tmp_path, capsys):
    run(model, shapes[1], tmp_path / "o", "--save", "mask")
    copied = shutil.copy(model, tmp_path / "copied.safetensors")
    run(copied, shapes[1], tmp_path / "o", "--save", "mask", "coco", "--skip-existing")
    assert "0 of 4 images segmented, 4 already there" in capsys.readouterr().out


def test_an_image_that_was_replaced_is_segmented_again(model, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 30, 40, 3), dtype=np.uint8)
    for i, name in enumerate("abc"):
        Image.fromarray(pixels[i]).save(tmp_path / f"in/{name}.png")
    run(model, tmp_path / "in", tmp_path / "o", "--save", "mask", "coco")
    times = os.stat(tmp_path / "in/b.png")
    Image.fromarray(pixels[1, :20, ::-1]).save(tmp_path / "in/b.png")
    os.utime(tmp_path / "in/b.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    run(model, tmp_path / "in", tmp_path / "o", "--save", "mask", "coco", "--skip-existing")
    printed = capsys.readouterr()
    assert "warning: results of images that have changed since were made again: 1 image (b.png)" in printed.err
    assert "1 of 3 images segmented, 2 already there" in printed.out
    run(model, tmp_path / "in", tmp_path / "fresh", "--save", "mask", "coco")
    fresh = {path.relative_to(tmp_path / "fresh"): text for path, text in contents(tmp_path / "fresh").items()}
    assert {path.relative_to(tmp_path / "o"): text for path, text in contents(tmp_path / "o").items()} == fresh
    for row in csv.DictReader((tmp_path / "o/manifest.csv").open()):
        source = (tmp_path / "in" / row["image"]).read_bytes()
        assert (row["source_bytes"], row["source_sha256"]) == (str(len(source)), hashlib.sha256(source).hexdigest())


def test_results_that_are_not_made_again_are_named_if_something_is_new(model, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (20, 30)).save(tmp_path / "in/a.png")
    run(model, tmp_path / "in", tmp_path / "o", "--save", "mask", "overlay", "coco")
    run(model, tmp_path / "in", tmp_path / "o", "--save", "mask", "--skip-existing")
    assert "earlier run" not in capsys.readouterr().err
    Image.new("RGB", (20, 30)).save(tmp_path / "in/b.png")
    run(model, tmp_path / "in", tmp_path / "o", "--save", "mask", "--skip-existing")
    stale = "overlay/, predictions.json; name them in --save"
    assert f"warning: results of an earlier run, which lack what is new: {stale}" in capsys.readouterr().err


def test_a_frame_that_was_replaced_is_segmented_again(model, tmp_path, capsys):
    def write(*values):
        writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (32, 24))
        for value in values:
            writer.write(np.full((24, 32, 3), value, np.uint8))
        writer.release()

    write(10, 120)
    run(model, tmp_path / "a.avi", tmp_path / "o", "--save", "mask")
    write(10, 250)
    run(model, tmp_path / "a.avi", tmp_path / "o", "--save", "mask", "--skip-existing")
    assert "made again: 1 image (a/000001.png)" in capsys.readouterr().err


def test_results_of_an_older_version_are_continued_with_a_warning(model, shapes, tmp_path, capsys):
    out = tmp_path / "o"
    run(model, shapes[1], out, "--save", "mask")
    (out / "infer.json").unlink()
    for file in (out / "mask").rglob("*.png"):
        with Image.open(file) as mask:
            mask.save(file)  # without the text
    before = contents(out / "mask")
    run(model, shapes[1], out, "--save", "mask", "--skip-existing")
    printed = capsys.readouterr()
    assert f"warning: {out} was made by an older segkit and does not say by which model" in printed.err
    assert "0 of 4 images segmented, 4 already there" in printed.out
    other = other_model(model, tmp_path, class_names=("background", "box", "disc"))
    assert fails(other, shapes[1].parent / "images", out, "--save", "mask", "--skip-existing") == 2
    assert contents(out / "mask") == before


def test_masks_that_infer_did_not_write_are_never_replaced(model, tmp_path, capsys):
    Image.new("RGB", (20, 30)).save(tmp_path / "a.png")
    (tmp_path / "mask").mkdir()
    Image.new("L", (20, 30), 1).save(tmp_path / "mask/a.png")
    before = contents(tmp_path)
    assert fails(model, tmp_path / "a.png", tmp_path, "--skip-existing") == 2
    assert f"{tmp_path / 'mask'} exists, and no infer.json says" in capsys.readouterr().err
    assert contents(tmp_path) == before
    run(model, tmp_path / "a.png", tmp_path / "o", "--save", "mask")
    corrected = Image.new("L", (20, 30), 2)
    corrected.save(tmp_path / "o/mask/a.png")
    run(model, tmp_path / "a.png", tmp_path / "o", "--save", "mask", "--skip-existing")
    assert (read_mask(tmp_path / "o/mask/a.png") == 2).all()
    corrected.point(lambda _: 3).save(tmp_path / "o/mask/a.png")
    assert fails(model, tmp_path / "a.png", tmp_path / "o", "--save", "mask", "--skip-existing") == 2
    assert "a.png is not a label map with the 3 classes" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[]", '{"weights": 3, "settings": {}}', '{"weights": [], "settings": 1}'])
def test_a_damaged_record_of_the_results_is_named(model, tmp_path, capsys, text):
    Image.new("RGB", (20, 30)).save(tmp_path / "a.png")
    (tmp_path / "o").mkdir()
    (tmp_path / "o/infer.json").write_text(text)
    assert fails(model, tmp_path / "a.png", tmp_path / "o", "--skip-existing") == 2
    assert "o/infer.json " in capsys.readouterr().err


def test_a_folder_of_results_that_is_removed_meanwhile_is_not_made_again(model, shapes, tmp_path, capsys):
    out = tmp_path / "o"
    with at_forward(lambda model: shutil.rmtree(out, ignore_errors=True)):
        assert fails(model, shapes[1], out, "--save", "mask") == 2
    assert f"the folder {out} was removed or renamed while results were written to it" in capsys.readouterr().err
    assert not out.exists()


def test_a_result_that_is_removed_meanwhile_is_not_in_the_manifest(model, shapes, tmp_path, capsys, monkeypatch):
    write, lost = PredictionWriter.write, tmp_path / "o/mask/images/val0.png"

    def write_and_remove(writer, name, *more):
        row = write(writer, name, *more)
        if name.stem == "val0":
            lost.unlink()
        return row

    with monkeypatch.context() as patch:
        patch.setattr(PredictionWriter, "write", write_and_remove)
        assert fails(model, shapes[1], tmp_path / "o", "--save", "mask") == 2
    assert f"results were removed while others were written: 1 of 4, such as {lost}" in capsys.readouterr().err
    run(model, shapes[1], tmp_path / "o", "--save", "mask", "--skip-existing")
    assert "1 of 4 images segmented, 3 already there" in capsys.readouterr().out


def test_pseudo_labels_without_an_image_are_a_warning_and_training_names_the_file(model, shapes, tmp_path, capsys):
    run(model, shapes[1], tmp_path / "o", "--save", "pseudo", "--pseudo-threshold", "1", "--pseudo-min-share", "1")
    assert "warning: pseudo.json has no images, so that no training can use it" in capsys.readouterr().err
    pseudo = tmp_path / "o/pseudo.json"
    with pytest.raises(SystemExit) as stop:
        train.main(["--data", str(shapes[0]), "--train-only", str(pseudo), "--val", str(shapes[1])])
    assert stop.value.code == 3
    assert f"--train-only {pseudo} has no images" in capsys.readouterr().err
