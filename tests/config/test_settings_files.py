"""YAML files of settings: what their values become, and what is refused with which words."""

from dataclasses import replace
from pathlib import Path

import pytest

from segkit.config import (
    CheckConfig,
    ConvertConfig,
    EvaluateConfig,
    ExportConfig,
    FoldsConfig,
    InferConfig,
    TrainConfig,
    TuneConfig,
    format_settings,
    parse_args,
    read_settings,
    write_yaml,
)
from segkit.errors import UsageError

TRAIN = TrainConfig(
    data=(Path("a b.json"), Path("no")),
    ignore_classes=("UNKNOWN", "no", "12", "a: b", "# c", "유리", "two\nlines"),
    recipe="demo",
    pretrained="false",
    output_stride=16,
    decoder={"channels": 64, "norm": "group", "dropout": 1e-5, "align": True, "rates": [1, 2], "x": None},
    layer_decay=0.9,
    lr=1e-5,
    loss={"ce": 0.6, "dice": 0.4},
    amp="off",
    compile=True,
    resume=Path("runs/x"),
)
WHOLE = [
    TrainConfig(),
    TRAIN,
    replace(TRAIN, resume=True, out=Path("null"), workers=0),
    InferConfig(weights=(Path("m"),), crf=(), class_bias={"a=b": -0.5, "on": 1.0}, save=("mask", "coco")),
    InferConfig(crf=("deeplab_v2_resnet101", "iterations=5"), source="*.jpg", scales=(0.75, 1.0)),
    EvaluateConfig(data=(Path("v.json"),), amp="bf16", compare=(Path("old"),)),
    TuneConfig(data=(Path("v.json"),), crf=()),
    ExportConfig(model=Path("runs/x"), onnx=Path("m.onnx")),
    FoldsConfig(data=Path("a.json"), out=Path("folds"), group_by="scene"),
    ConvertConfig(data=Path("a.json"), to="yolo", out=Path("o")),
    CheckConfig(data=(Path("a.json"),), full=True),
]


def read(tmp_path, text, cls=TrainConfig):
    file = tmp_path / "cfg.yaml"
    file.write_text(text, encoding="utf-8")
    return {name: setting.value for name, setting in read_settings(cls, file).items()}


def error(tmp_path, text, cls=TrainConfig):
    with pytest.raises(ValueError, match=r"cfg\.yaml") as caught:
        read(tmp_path, text, cls)
    return str(caught.value).replace(str(tmp_path), "")


@pytest.mark.parametrize("settings", WHOLE, ids=lambda settings: type(settings).__name__)
def test_settings_of_every_command_are_read_as_they_were_written(settings, tmp_path):
    write_yaml(settings, tmp_path / "args.yaml")
    for path in (tmp_path / "args.yaml", tmp_path):
        found = read_settings(type(settings), path)
        assert type(settings)(**{name: setting.value for name, setting in found.items()}) == settings


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("lr: 1e-4", 1e-4),
        ("lr: '0.5'", 0.5),
        ("batch-size: 8", 8),
        ('epochs: "50"', 50),
        ("ema: 0", 0.0),
        ("compile: yes", True),
        ("compile: 'off'", False),
        ("amp: off", "off"),
        ("mix: none", "none"),
        ("pretrained: true", "true"),
        ("output_stride: 16", 16),
        ("output_stride: null", None),
        ("layer_decay: ~", None),
        ("layer_decay: None", None),
        ("layer_decay:", None),
        ("out: runs/x", Path("runs/x")),
        ("out: ~/x", Path("~/x").expanduser()),
        ("data: a.json", (Path("a.json"),)),
        ("data: [a.json, b.json]", (Path("a.json"), Path("b.json"))),
        ("data: []", ()),
        ("ignore_classes:\n- no\n- 12", ("no", "12")),
        ("loss: {ce: 1, dice: 5e-1}", {"ce": 1.0, "dice": 0.5}),
        ("decoder: {a: 1, b: 1e-4, c: yes, d: '1'}", {"a": 1, "b": 1e-4, "c": True, "d": "1"}),
        ("decoder: {a: null, b: x, c: [1]}", {"a": None, "b": "x", "c": [1]}),
        ("resume: true", True),
        ("resume: runs/x", Path("runs/x")),
        ("%YAML 1.1\n---\nlr: 2", 2.0),
        ("\ufeffepochs: 3", 3),
    ],
)
def test_the_declared_type_decides_what_a_value_is(line, value, tmp_path):
    (found,) = read(tmp_path, line).values()
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: fast", "/cfg.yaml:1: lr must be a number, got fast"),
        ("lr: null", "/cfg.yaml:1: lr must be a number, got null"),
        ("lr:", "/cfg.yaml:1: lr must be a number, got null"),
        ("lr: .inf", "/cfg.yaml:1: lr must be a number, got .inf"),
        ("lr: nan", "/cfg.yaml:1: lr must be a number, got nan"),
        ("lr: yes", "/cfg.yaml:1: lr must be a number, got yes"),
        ("epochs: 4\nepochs: 5", "/cfg.yaml:2: epochs occurs twice, first in /cfg.yaml:1"),
        ("batch_size: 4\nbatch-size: 5", "/cfg.yaml:2: batch_size occurs twice, first in /cfg.yaml:1"),
        ("epochs: 4.0", "/cfg.yaml:1: epochs must be a whole number, got 4.0"),
        ("epochs: 'four'", "/cfg.yaml:1: epochs must be a whole number, got 'four'"),
        ("\nepochs: [4]", "/cfg.yaml:2: epochs must be a whole number, got [4]"),
        ("compile: 1", "/cfg.yaml:1: compile must be true or false, got 1"),
        ("amp: yes", "/cfg.yaml:1: amp must be one of auto, off, bf16, fp16, got yes"),
        ("output_stride: 12", "/cfg.yaml:1: output_stride must be one of 8, 16, 32 or null, got 12"),
        ("layer_decay: no", "/cfg.yaml:1: layer_decay must be a number or null, got no"),
        ("model: null", "/cfg.yaml:1: model must be text, got null"),
        ("out: ''", "/cfg.yaml:1: out must be a path or null, got ''"),
        ("data: {a: b}", "/cfg.yaml:1: data must be a list of paths, got {a: b}"),
        ("val: null", "/cfg.yaml:1: val must be a list of paths, got null"),
        ("loss: ce", "/cfg.yaml:1: loss must be a mapping of names to numbers, got ce"),
        ("loss: {ce: much}", "/cfg.yaml:1: loss must be a mapping of names to numbers, got {ce: much}"),
        ("loss: {ce: 1, ce: 2}", "/cfg.yaml:1: loss: 'ce' occurs twice"),
        ("leraning_rate: 1", "/cfg.yaml:1: unknown setting 'leraning_rate', did you mean lr?"),
        ("batchsize: 1", "/cfg.yaml:1: unknown setting 'batchsize', did you mean batch_size?"),
        ("qqq: 1", "/cfg.yaml:1: unknown setting 'qqq'"),
        ("[a]: 1", "/cfg.yaml:1: unknown setting '[a]'"),
        ("<<: {lr: 1}", "/cfg.yaml:1: the tag !!merge is refused; a setting is a plain value"),
        ("a: &x 1\nlr: *y", "/cfg.yaml:2: not YAML: found undefined alias 'y'"),
        ("lr: [1", "/cfg.yaml:1: not YAML: expected ',' or ']', but got '<stream end>'"),
        ("lr: 1\n---\nlr: 2", "/cfg.yaml:2: not YAML: but found another document"),
        ("", "/cfg.yaml is empty, expected lines such as `epochs: 40`"),
        ("# lr: 1", "/cfg.yaml is empty, expected lines such as `epochs: 40`"),
        ("- lr", "/cfg.yaml holds [lr], expected lines such as `epochs: 40`"),
        ("data: " + 1200 * "[", "/cfg.yaml: lists and mappings are nested too deeply"),
        ("epochs: " + 400 * "{a: " + "1" + 400 * "}", "/cfg.yaml: lists and mappings are nested too deeply"),
        ("data: &a [*a]", "/cfg.yaml:1: an alias is used for this value; write the value itself in each place"),
        ("lr: &a 1\nmin_lr: *a", "/cfg.yaml:1: an alias is used for this value; write the value itself in each place"),
    ],
)
def test_a_bad_value_is_refused_with_key_file_line_and_expected_type(text, message, tmp_path):
    assert error(tmp_path, text) == message


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system [touch ran]", "!!python/name:os.system", "!!binary aa"]
)
def test_a_tag_is_refused_and_nothing_runs(tag, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = error(tmp_path, f"lr: 1\nmodel: {tag}")
    assert message == f"/cfg.yaml:2: the tag {tag.split()[0]} is refused; a setting is a plain value"
    assert not (tmp_path / "ran").exists()


def test_settings_of_another_command_are_unknown(tmp_path):
    assert "unknown setting 'epochs'" in error(tmp_path, "epochs: 4", InferConfig)


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("out: für".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.yaml: it is not text in UTF-8$"):
        read_settings(TrainConfig, tmp_path / "latin.yaml")
    with pytest.raises(ValueError, match=r"there is no file .*no\.yaml$"):
        read_settings(TrainConfig, tmp_path / "no.yaml")


def test_origins_are_comments_at_the_ends_of_the_lines():
    lines = format_settings(FoldsConfig(Path("a.json"), Path("o")), {"k": "cfg.yaml:3"}).splitlines()
    assert lines[:3] == ["data: a.json", "out: o", "k: 5  # cfg.yaml:3"]


def test_a_file_does_not_decide_which_code_runs(tmp_path):
    write_yaml(TrainConfig(imports=("mine",)), tmp_path / "args.yaml")
    assert "imports" not in (tmp_path / "args.yaml").read_text()
    (tmp_path / "args.yaml").write_text("epochs: 1\nimports: [os]\n")
    with pytest.raises(UsageError, match=r"args\.yaml:2: imports runs code, so it is not read from a file"):
        read_settings(TrainConfig, tmp_path / "args.yaml")


@pytest.mark.parametrize("cls", [EvaluateConfig, TuneConfig, InferConfig, CheckConfig, FoldsConfig])
def test_a_run_as_config_says_how_images_and_labels_are_read(cls, tmp_path):
    # All else in it is of the training: its data, its seed, its folder.
    run = TrainConfig(data=(Path("train.json"),), overlap="last", merge_same_name=True, exif="ignore", seed=7)
    write_yaml(run, tmp_path / "args.yaml")
    own = ["a.json", "--out", "x"] if cls is FoldsConfig else ["a.json"] if cls is CheckConfig else ["--data", "a.json"]
    words = [*([] if cls is InferConfig else own), "--config", str(tmp_path)]
    found, otherwise = parse_args(cls, words, prog="x"), parse_args(cls, words[:-2], prog="x")
    changed = {name for name, value in vars(found).items() if value != getattr(otherwise, name)}
    assert changed == {"overlap", "merge_same_name", "exif"} & set(vars(found))
    assert changed
    if hasattr(found, "overlap"):
        assert parse_args(cls, [*words, "--overlap", "max-id"], prog="x").overlap == "max-id"


def test_a_command_without_such_settings_takes_no_run_as_config(tmp_path):
    write_yaml(TrainConfig(), tmp_path / "args.yaml")
    with pytest.raises(UsageError, match="this command shares no setting with training"):
        parse_args(ExportConfig, ["m.safetensors", "--config", str(tmp_path)], prog="x")
