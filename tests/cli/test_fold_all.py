"""train.py --fold all: k ordinary runs, out-of-fold scores, resume; and infer.py with all of them."""

import csv
import io
import json
import os
import shutil
import signal
import weakref
from contextlib import nullcontext, redirect_stdout
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers.commands import SMALL, at_forward, fails, signal_at_batch

from segkit.cli import evaluate, infer, train
from segkit.config import TrainConfig, parse_args
from segkit.data import CocoSegmentation
from segkit.folds import Folds
from segkit.metrics import ConfusionMatrix
from segkit.models import create_model, find_folds, load_model, save_model
from segkit.runs import RunLock, check_free, newest_run
from segkit.training import Ranks
from segkit.workflows import crossval
from segkit.workflows.datasets import open_folds
from segkit.workflows.predictors import find_members
from segkit.workflows.train import train_as_configured

K = 3
NAMES = ("background", "square", "disc")


def arguments(shapes, out, *more):
    return ["--data", str(shapes[0]), "--out", str(out), *SMALL, "--folds", str(K), "--epochs", "2", *more]


class Watched(NamedTuple):
    """A cross-validation: its folder, its output, how often it opened the data, the models alive before each fold."""

    out: Path
    printed: str
    opened: int
    alive: list[int]


@pytest.fixture(scope="module")
def watched(shapes, tmp_path_factory):
    out, opened, alive = tmp_path_factory.mktemp("my folds") / "x", [], []
    models, loads = weakref.WeakSet(), json.loads

    def watch(model):
        if model.training and model not in models:
            alive.append(len(models))
        models.add(model)

    def count(text, **options):
        content = loads(text, **options)
        if "annotations" in content:
            opened.append(1)
        return content

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed, at_forward(watch):
        patch.setattr(json, "loads", count)
        train.main(arguments(shapes, out, "--fold", "all"))
    return Watched(out, printed.getvalue(), len(opened), alive)


@pytest.fixture(scope="module")
def whole(watched):
    return watched.out


@pytest.fixture
def out(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "x")


def weights(folder):
    return torch.load(folder / "last.pt", weights_only=True)["model"]


def same_weights(one, other):
    one, other = weights(one), weights(other)
    return all(torch.equal(value, other[key]) for key, value in one.items())


def read(file):
    return list(csv.DictReader(file.open()))


def splits(folder):
    return [entry["val"] for entry in json.loads((folder / "splits.json").read_text())]


def test_every_fold_is_an_ordinary_run_and_each_image_validates_once(whole, shapes):
    names = sorted(path.name for path in whole.iterdir())
    files = ["args.yaml", "infer_command.txt", "oof_confusion.csv", "splits.json", "summary.csv"]
    assert names == sorted([*files, "fold0", "fold1", "fold2"])
    paths = [str(item.path) for item in CocoSegmentation(shapes[0], mask_cache=None).items]
    assert sorted(chain.from_iterable(splits(whole))) == sorted(paths)
    for fold in range(K):
        assert {"best.safetensors", "last.pt", "results.csv"} < {p.name for p in (whole / f"fold{fold}").iterdir()}
    assert "fold: all" in (whole / "args.yaml").read_text()


def test_a_fold_equals_the_run_of_that_fold_only(whole, shapes, tmp_path):
    train.main(arguments(shapes, tmp_path / "one", "--fold", "1"))
    assert same_weights(tmp_path / "one", whole / "fold1")


def write_random_model(folder, seed):
    """Write a model that predicts all classes, and that differs from those of other seeds."""
    torch.manual_seed(seed)
    options = {"pyramid_channels": 16, "channels": 16}
    model = create_model("fpn", backbone="mobilenetv3_small_100", class_names=NAMES, pretrained=False, **options)
    torch.nn.init.normal_(model.head.weight, std=3)
    save_model(model, folder / "best.safetensors", epoch=2)


def test_the_confusion_counts_every_image_by_the_model_that_has_not_seen_it(out, shapes, capsys):
    for fold in range(K):
        write_random_model(out / f"fold{fold}", seed=fold)
    train.main(["--resume", str(out)])  # the summary is older than the models
    data = CocoSegmentation(shapes[0], mask_cache=None)
    place = {str(item.path): i for i, item in enumerate(data.items)}
    total, rows = ConfusionMatrix(3), read(out / "summary.csv")
    for fold, paths in enumerate(splits(out)):
        model, of_fold = load_model(out / f"fold{fold}").to(memory_format=torch.channels_last), ConfusionMatrix(3)
        for image, target in (data[place[path]] for path in paths):
            with torch.inference_mode():
                logits = model(model.preprocessing(torch.tensor(image).permute(2, 0, 1)[None]))
            of_fold.update(logits, torch.tensor(target)[None])
        assert float(rows[fold]["miou"]) == pytest.approx(of_fold.compute().miou, abs=1e-5)
        total += of_fold
    header, *counts = csv.reader((out / "oof_confusion.csv").open())
    counts = np.array([row[1:] for row in counts], dtype=np.int64)
    assert header == ["truth", *NAMES]
    assert counts.sum() == 12 * 48 * 64
    assert (counts.sum(0) > 0).all()
    assert np.array_equal(counts, total.matrix)
    assert f"mean (mIoU)  {100 * total.compute().miou:7.2f}" in capsys.readouterr().out


def test_the_summary_has_best_epochs_means_and_deviations(whole):
    rows = read(whole / "summary.csv")
    assert [row["fold"] for row in rows] == ["0", "1", "2", "mean", "sd"]
    for fold, row in enumerate(rows[:K]):
        results = read(whole / f"fold{fold}" / "results.csv")
        best = max(results, key=lambda epoch: float(epoch["miou"]))
        assert (best["epoch"], float(best["miou"])) == (row["best_epoch"], pytest.approx(float(row["miou"]), abs=1e-5))
    for key in ("miou", "iou/disc"):
        of_folds = [float(row[key]) for row in rows[:K]]
        assert float(rows[3][key]) == pytest.approx(np.mean(of_folds), rel=1e-4)
        assert float(rows[4][key]) == pytest.approx(np.std(of_folds, ddof=1), rel=1e-3, abs=1e-6)


def test_a_class_that_a_fold_does_not_have_is_skipped_in_the_mean():
    values = np.array([[0.5, 0.4, np.nan], [0.7, 0.8, np.nan], [0.6, np.nan, 0.9]])
    assert np.allclose(crossval.mean_of_folds(values), [0.6, 0.6, 0.9])
    spread = crossval.spread_of_folds(values)
    assert np.allclose(spread[:2], [0.1, 0.4 / 2**0.5])
    assert np.isnan(spread[2])
    rows = crossval.summary_rows(("a", "b"), [1, 2, 3], ["x", "y", "z"], values)
    assert [row["iou/b"] for row in rows] == ["", "", "0.9", "0.9", ""]
    total = ConfusionMatrix(3, class_names=("a", "b", "c"), exclude=(2,))
    total.update(np.array([[0, 0, 1]]), np.array([[0, 1, 1]]))
    table = crossval.summary_table(total, np.full((2, 4), np.nan))
    assert [line.split()[:2] for line in table.splitlines()[1:]] == [
        ["a", "50.00"],
        ["b", "50.00"],
        ["c", "-"],
        ["mean", "(mIoU)"],
    ]


def test_the_plan_is_printed_first_and_the_command_last(watched):
    out, printed = watched.out, watched.printed
    assert f"3 trainings of 2 epochs, one after another, in {out / 'fold0'} to {out / 'fold2'}" in printed
    command = f"python infer.py --weights '{out}'/fold* --source photographs/"
    parts = [
        "12 images, each validates once: 4, 4, 4",
        "fold 0, of 0 to 2",
        "fold 2, of 0 to 2",
        "out of fold",
        command,
    ]
    assert [printed.count(part) for part in parts] == [1] * 5
    assert sorted(parts, key=printed.index) == parts
    assert (out / "infer_command.txt").read_text() == command + "\n"


def test_the_data_is_opened_once_and_no_model_outlives_its_fold(watched):
    assert watched.opened == 1
    assert watched.alive == [0, 0, 0]


# resume


def test_an_interrupted_run_resumes_in_its_fold_and_equals_one_that_was_not(whole, shapes, tmp_path, capsys):
    out = tmp_path / "x"
    with signal_at_batch(5):
        assert fails(train, *arguments(shapes, out, "--fold", "all")) == 130
    assert f"stopped by SIGINT; saved. To resume: python train.py --resume {out}\n" in capsys.readouterr().err
    assert (out / "fold1" / "last.pt").is_file()
    assert not (out / "fold2").exists()
    finished = (out / "fold0" / "last.pt").stat().st_mtime_ns
    train.main(["--resume", str(out)])
    printed = capsys.readouterr().out
    assert f"{out / 'fold0'} is already finished" in printed
    assert f"resuming {out / 'fold1'} after epoch" in printed
    assert (out / "fold0" / "last.pt").stat().st_mtime_ns == finished
    assert all(same_weights(out / f"fold{fold}", whole / f"fold{fold}") for fold in range(K))
    for name in ("summary.csv", "oof_confusion.csv"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_a_fold_that_was_never_saved_starts_again(out, whole):
    for name in ("last.pt", "last.prev.pt", "results.csv"):
        (out / "fold2" / name).unlink(missing_ok=True)
    (out / "summary.csv").unlink()
    train.main(["--resume", str(out)])
    assert same_weights(out / "fold2", whole / "fold2")


def test_a_finished_run_says_so(out, capsys):
    before = (out / "summary.csv").stat().st_mtime_ns
    train.main(["--resume", str(out)])
    printed = capsys.readouterr().out
    assert f"{out} is already finished, all 3 folds of 2 epochs\n" in printed
    assert f"train it longer: python train.py --resume {out} --epochs 4\n" in printed
    assert (out / "summary.csv").stat().st_mtime_ns == before


def test_resume_auto_resumes_the_folds_that_exist(out, shapes, capsys):
    train.main(arguments(shapes, out, "--fold", "all", "--resume", "auto"))
    assert f"{out} is already finished, all 3 folds" in capsys.readouterr().out


@pytest.mark.slow
def test_more_epochs_go_to_every_fold_and_into_the_summary(out, capsys):
    train.main(["--resume", str(out), "--epochs", "3"])
    assert capsys.readouterr().err.count("--epochs was 2, is 3") == K
    assert [len(read(out / f"fold{fold}" / "results.csv")) for fold in range(K)] == [3, 3, 3]
    assert (out / "infer_command.txt").is_file()


def test_a_summary_of_another_model_is_made_again_and_times_do_not_matter(out, capsys):
    later = (out / "summary.csv").stat().st_mtime + 5
    os.utime(out / "fold1" / "best.safetensors", (later, later))
    train.main(["--resume", str(out)])
    assert "all 3 folds" in capsys.readouterr().out
    shutil.copy(out / "fold0" / "best.safetensors", out / "fold1" / "best.safetensors")
    train.main(["--resume", str(out)])
    assert capsys.readouterr().out.count("is already finished, at 2/2 epochs") == K
    first, second, *_ = read(out / "summary.csv")
    assert first["model"] == second["model"] != ""


def test_a_model_without_its_epoch_is_scored_and_named(out, capsys):
    model = load_model(out / "fold1")
    save_model(model, out / "fold1/best.safetensors")
    train.main(["--resume", str(out)])
    assert (
        f"warning: {out / 'fold1/best.safetensors'} was not written by this run; nothing was" in capsys.readouterr().err
    )
    assert [row["best_epoch"] for row in read(out / "summary.csv")][1] == ""


def test_a_model_of_other_classes_is_not_scored(out, capsys):
    model = load_model(out / "fold1")
    model.class_names = ("background", "disc", "square")
    save_model(model, out / "fold1/best.safetensors", epoch=1, miou=0.5, weights="raw")
    assert fails(train, "--resume", out) == 3
    assert "best.safetensors are background, disc, square, but the classes of --data are" in capsys.readouterr().err


def test_a_summary_that_is_damaged_is_made_again(out):
    (out / "summary.csv").write_text("fold\n")
    train.main(["--resume", str(out)])
    assert len(read(out / "summary.csv")) == 5


def test_one_fold_resumes_as_an_ordinary_run(out):
    train.main(["--resume", str(out / "fold1"), "--epochs", "3"])
    assert [len(read(out / f"fold{fold}" / "results.csv")) for fold in range(K)] == [2, 3, 2]


def test_ctrl_c_while_the_folds_are_scored_says_how_to_resume(out, capsys):
    (out / "summary.csv").unlink()
    with at_forward(lambda model: signal.raise_signal(signal.SIGINT)):
        assert fails(train, "--resume", out) == 130
    assert f"to resume this run: --resume {out}\n" in capsys.readouterr().err


def test_other_settings_or_another_split_are_errors_before_the_training(out, shapes, tmp_path, capsys):
    shutil.rmtree(out / "fold2")
    assert fails(train, "--resume", out, "--lr", "0.5") == 2
    assert "cannot resume with other settings: --lr was 0.003, is 0.5" in capsys.readouterr().err
    content = json.loads(shapes[0].read_text())
    content["images"] = content["images"][:-1]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 111]
    other = shapes[0].with_name("other.json")
    other.write_text(json.dumps(content))
    assert fails(train, "--resume", out, "--data", other) == 2
    assert "the data is not what fold 0 was trained on" in capsys.readouterr().err
    assert fails(train, "--resume", out, "--data", other, "--allow-data-change") == 2
    assert "no longer divided as" in capsys.readouterr().err
    assert not (out / "fold2").exists()


def test_photographs_that_changed_since_the_folds_were_finished_are_one_warning(out, capsys):
    (out / "summary.csv").unlink()
    photograph = Path(splits(out)[1][0])  # validates in fold 1, and trains in the others
    times = photograph.stat()
    os.utime(photograph, (0, 0))
    try:
        train.main(["--resume", str(out)])
    finally:
        os.utime(photograph, ns=(times.st_atime_ns, times.st_mtime_ns))
    warned = capsys.readouterr().err
    assert warned.count("have other names, sizes or times") == 1
    assert f"train photographs have other names, sizes or times than when {out / 'fold0'} was trained" in warned
    assert len(read(out / "summary.csv")) == K + 2


def test_a_cross_validation_that_began_by_the_earlier_rule_keeps_its_division(out, shapes, capsys, monkeypatch):
    def by_rule(folds, rule):
        assert rule in (1, 2)
        return Folds(folds.data, k=K, seed=folds.seed + 1)  # the rules agree on these images

    monkeypatch.setattr(Folds, "by_rule", by_rule)
    folds = open_folds(parse_args(TrainConfig, [*arguments(shapes, out), "--fold", "all"], prog="train.py"))
    earlier = folds.by_rule(1).validated()
    assert earlier != folds.validated()
    (out / "splits.json").write_text(json.dumps([{"fold": i, "val": names} for i, names in enumerate(earlier)]))
    shutil.rmtree(out / "fold2")
    (out / "summary.csv").unlink()
    train.main(["--resume", str(out)])
    assert (out / "fold2/best.safetensors").is_file()
    assert [entry["val"] for entry in json.loads((out / "splits.json").read_text())] == earlier
    capsys.readouterr()


def test_a_fold_whose_checkpoints_were_removed_keeps_its_model(out, capsys):
    for name in ("last.pt", "last.prev.pt"):
        (out / "fold1" / name).unlink()
    (out / "fold1" / "notes.txt").write_text("mine")
    before = (out / "fold1" / "best.safetensors").read_bytes()
    names = sorted(path.name for path in out.iterdir())
    assert fails(train, "--resume", out) == 2
    assert sorted(path.name for path in out.iterdir()) == names  # summary.csv and the other results of all folds
    assert f"{out / 'fold1'} holds a model, but no checkpoint to resume" in capsys.readouterr().err
    assert (out / "fold1" / "best.safetensors").read_bytes() == before
    assert (out / "fold1" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("text", ["{", "3", "[]", "[{}]", '{"fold": 0}', '[{"fold": 0, "val": "a.png"}]', "[" * 10_000])
def test_damaged_splits_are_named_before_the_training(out, capsys, text):
    (out / "splits.json").write_text(text)
    assert fails(train, "--resume", out, "--epochs", "3") == 2
    assert f"{out / 'splits.json'} " in capsys.readouterr().err
    assert (out / "summary.csv").is_file()


def test_a_single_run_is_not_a_run_of_all_folds(out, shapes, capsys):
    assert fails(train, "--resume", out / "fold0", "--fold", "all") == 2
    assert "is not a run of all folds, it has no splits.json" in capsys.readouterr().err
    assert fails(train, *arguments(shapes, out, "--fold", "all")) == 2
    assert "exists already; choose another --out, or resume it with --resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--folds", "5", "--fold", "al"], "--fold"),
        (["--folds", "5", "--fold", "5"], "--fold must be in 0..4, or all, got 5"),
        (["--fold", "all"], "--folds and --fold belong together"),
        (["--folds", "13", "--fold", "all"], "13 folds need at least 13 images, got 12"),
        (["--folds", "2", "--fold", "all", "--val", "x.json"], "drop --val, or --folds and --fold"),
    ],
)
def test_wrong_folds_are_one_sentence_and_write_nothing(shapes, tmp_path, capsys, flags, message):
    assert fails(train, "--data", shapes[0], "--out", tmp_path / "x", *SMALL, *flags) == 2
    error = capsys.readouterr().err
    assert message in " ".join(error.split())
    assert "Traceback" not in error
    assert not (tmp_path / "x").exists()


# infer


def test_the_folder_stands_for_its_folds(whole, shapes, tmp_path, capsys):
    common = ["--source", str(shapes[1]), "--device", "cpu"]
    infer.main(["--weights", str(whole), *common, "--out", str(tmp_path / "a")])
    printed = capsys.readouterr().out
    assert all(f"model  {whole / f'fold{fold}' / 'best.safetensors'}, weight 0.333" in printed for fold in range(K))
    infer.main(["--weights", *(str(whole / f"fold{i}") for i in range(K)), *common, "--out", str(tmp_path / "b")])
    for mask in (tmp_path / "a" / "mask").rglob("*.png"):
        assert mask.read_bytes() == (tmp_path / "b" / mask.relative_to(tmp_path / "a")).read_bytes()
    evaluate.main(["--weights", str(whole), "--data", str(shapes[1]), "--out", str(tmp_path / "c"), "--device", "cpu"])
    assert (tmp_path / "c" / "scores.json").is_file()


def test_folds_share_the_weight_of_their_folder(whole):
    members = find_members([whole / "fold0", whole], [0.4, 0.6])
    assert [member.name for member in members] == [str(whole / f"fold{i}") for i in (0, *range(K))]
    assert [member.weight for member in members] == pytest.approx([0.4, 0.2, 0.2, 0.2])


def test_a_folder_with_a_missing_fold_says_how_to_get_it(out, shapes, capsys):
    with pytest.raises(FileNotFoundError, match=r"holds a model for each fold; choose one, such as .*fold0"):
        load_model(out)
    shutil.rmtree(out / "fold1")
    with pytest.raises(FileNotFoundError, match="no model of fold1 yet; resume the cross-validation"):
        find_folds(out)


def test_the_newest_run_may_be_one_of_all_folds(out, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    shutil.copytree(out / "fold0", tmp_path / "runs" / "single")
    shutil.move(out, tmp_path / "runs" / "x")
    os.utime(tmp_path / "runs" / "x" / "summary.csv")
    monkeypatch.chdir(tmp_path)
    assert newest_run().name == "x"
    (tmp_path / "runs" / "x" / "summary.csv").unlink()
    assert newest_run().name == "single"


def test_fold_all_can_be_set_in_a_file(tmp_path):
    (tmp_path / "a.yaml").write_text("folds: 5\nfold: all\ndata: x.json\n")
    assert parse_args(TrainConfig, ["--config", str(tmp_path / "a.yaml")], prog="train.py").fold == "all"
    (tmp_path / "a.yaml").write_text("folds: 5\nfold: 3\ndata: x.json\n")
    assert parse_args(TrainConfig, ["--config", str(tmp_path / "a.yaml")], prog="train.py").fold == 3


def test_the_folder_of_all_folds_is_locked(tmp_path):
    config = TrainConfig(data=(tmp_path / "a.json",), fold="all", folds=2, out=tmp_path, resume=tmp_path)
    with RunLock() as lock:
        lock.take(tmp_path)
        with pytest.raises(ValueError, match=f"another process writes to {tmp_path}"):
            train_as_configured(config)


def test_leftovers_of_a_killed_writer_do_not_occupy_a_folder(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/.splits.json.7.tmp").write_text("[")
    check_free(tmp_path / "x")
    (tmp_path / "x/splits.json").write_text("[]")
    with pytest.raises(ValueError, match="exists already; choose another `out`, or resume it with `resume`"):
        check_free(tmp_path / "x", can_resume=True)
    with pytest.raises(ValueError, match=r"exists already; choose another `out`$"):
        check_free(tmp_path / "x")  # a command without `resume` does not speak of it


def test_all_folds_under_torchrun_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("segkit.workflows.train.ranks_of_torchrun", lambda device: nullcontext(Ranks(0, 2)))
    monkeypatch.setattr(Ranks, "on_first", lambda self, act: act())
    assert fails(train, "--data", tmp_path / "x.json", "--folds", "3", "--fold", "all") == 2
    error = capsys.readouterr().err
    assert "--fold all trains in one process; under torchrun, train each --fold by its number" in error
