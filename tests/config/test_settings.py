"""Which of default, recipe, files and command line wins, and what is said about it."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from segkit.cli import evaluate, infer, train
from segkit.config import (
    CheckConfig,
    ConvertConfig,
    EvaluateConfig,
    ExportConfig,
    FoldsConfig,
    InferConfig,
    TrainConfig,
    TuneConfig,
    parse_args,
)
from segkit.config.help import PAGES, help_texts
from segkit.config.yaml_files import format_settings
from segkit.errors import UsageError
from segkit.losses import LOSSES

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with files of settings, and the recipes `quick` and `slow`."""
    (tmp_path / "quick.yaml").write_text(
        "# Quick\nlr: 1e-2\nepochs: 3\ncompile: true\nlayer_decay: 0.9\ndecoder: {channels: 8, norm: group}\n"
        "loss: {ce: 0.6, dice: 0.4}\nignore_classes: [disc]\nout: quick\n"
    )
    (tmp_path / "slow.yaml").write_text("# Slow\nepochs: 300\n")
    (tmp_path / "one.cfg").write_text("epochs: 5\nbatch_size: 4\n")
    (tmp_path / "two.cfg").write_text("# comment\nbatch-size: 6\ndecoder: {channels: 16}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parse(*words, cls=TrainConfig):
    return parse_args(cls, words, prog="train.py", recipes=Path())


def printed(capsys, *words, cls=TrainConfig):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        parse(*words, "--print-config", cls=cls)
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", [("--data", ""), ("--out", ""), ("--recipe", "quick", "")])
def test_an_empty_word_is_not_the_working_folder(folder, words):
    with pytest.raises(UsageError, match="an argument is empty"):
        parse(*words)


def test_the_command_line_wins_over_files_then_the_recipe_then_the_defaults(folder):
    config = parse("--epochs", "7", "--recipe", "quick", "--config", "one.cfg", "two.cfg")
    assert (config.epochs, config.batch_size, config.lr, config.weight_decay) == (7, 6, 0.01, 0.01)
    assert parse("--recipe", "quick", "--config", "one.cfg").epochs == 5
    assert parse("--recipe", "quick").epochs == 3


def test_files_are_merged_from_left_to_right_however_they_are_given(folder):
    assert parse("--config", "two.cfg", "one.cfg").batch_size == 4
    assert parse("--config", "one.cfg", "--epochs", "9", "--config=two.cfg").batch_size == 6


def test_mappings_and_lists_are_replaced_as_a_whole(folder):
    assert parse("--recipe", "quick").loss == {"ce": 0.6, "dice": 0.4}
    assert parse("--recipe", "quick", "--config", "two.cfg").decoder == {"channels": 16}
    assert parse("--recipe", "quick", "--loss", "bce=1").loss == {"bce": 1.0}
    assert parse("--recipe", "quick", "--ignore-classes", "a", "b").ignore_classes == ("a", "b")


def test_what_a_recipe_sets_can_be_switched_off(folder):
    words = ["--no-compile", "--layer-decay", "None", "--decoder", "--ignore-classes", "--out", "None"]
    config = parse("--recipe", "quick", *words)
    assert (config.compile, config.layer_decay, config.out) == (False, None, None)
    assert (config.decoder, config.ignore_classes) == ({}, ())
    assert parse("--recipe", "quick").compile is True


def test_words_that_are_no_paths_are_read_in_files_too(folder):
    Path("a.cfg").write_text("resume: auto\nout: x\nmask_cache: ~/masks\npretrained: ~/w.safetensors")
    config = parse("--config", "a.cfg")
    assert config.resume == "auto"
    assert (config.mask_cache, config.pretrained) == (str(Path.home() / "masks"), str(Path.home() / "w.safetensors"))
    assert parse("--config", "a.cfg", "--resume", "off").resume is False
    Path("b.cfg").write_text("crf: off\nsource: ~/photos")
    config = parse("--config", "b.cfg", cls=InferConfig)
    assert (config.crf, config.source) == (None, str(Path.home() / "photos"))
    assert parse("--crf", "None", cls=InferConfig).crf is None


def test_a_crf_of_a_file_can_be_switched_off(folder):
    Path("crf.cfg").write_text("crf: []")
    assert parse("--config", "crf.cfg", cls=InferConfig).crf == ()
    assert parse("--config", "crf.cfg", "--crf", "off", cls=InferConfig).crf is None


def test_a_file_may_name_the_recipe_that_it_starts_from(folder):
    Path("mine.cfg").write_text("epochs: 4\nrecipe: quick")
    config = parse("--config", "mine.cfg")
    assert (config.recipe, config.lr, config.epochs) == ("quick", 0.01, 4)
    assert parse("--config", "mine.cfg", "--recipe", "slow").lr == TrainConfig().lr
    assert parse("--config", "mine.cfg", "--recipe", "None").recipe is None


def test_a_file_that_says_everything_outlives_its_recipe(folder, capsys):
    text = printed(capsys, "--recipe", "quick")
    Path("args.cfg").write_text(text.replace("recipe: quick", "recipe: gone"))
    assert parse("--config", "args.cfg") == dataclasses.replace(parse("--recipe", "quick"), recipe="gone")
    with pytest.raises(ValueError, match=r"`recipe` takes a name; read your own file with --config mine\.yaml"):
        parse("--config", "args.cfg", "--recipe", "mine.yaml")
    with pytest.raises(ValueError, match=r"unknown recipe 'never' \(command line\)"):
        parse("--config", "args.cfg", "--recipe", "never")
    Path("args.cfg").write_text("recipe: gone")
    with pytest.raises(ValueError, match=r"unknown recipe 'gone' \(args\.cfg:1\); the recipes are\n  quick"):
        parse("--config", "args.cfg")


def test_required_settings_may_stand_in_a_file(folder):
    Path("folds.cfg").write_text("data: a.json\nout: folds")
    assert parse("--config", "folds.cfg", "--k", "3", cls=FoldsConfig) == FoldsConfig(Path("a.json"), Path("folds"), 3)
    Path("export.cfg").write_text("model: runs/x")
    assert parse("--config", "export.cfg", cls=ExportConfig).model == Path("runs/x")
    assert parse("runs/y", "--config", "export.cfg", cls=ExportConfig).model == Path("runs/y")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lrr", "3"], "unknown option --lrr; did you mean --lr?"),
        (["--lerning-rate=3"], "unknown option --lerning-rate; did you mean --lr?"),
        (["--batch_sise", "3"], "unknown option --batch_sise; did you mean --batch-size?"),
        (["--no-ema"], "unknown option --no-ema; did you mean --ema?"),
        (["-lr", "3"], "unknown option -lr; did you mean --lr?"),
        (["--qqq"], "unknown option --qqq; --help lists them all"),
        (["--config"], "--config needs at least one YAML file"),
        (["--config", "none.cfg"], "there is no file none.cfg"),
        (
            ["--recipe", "quik"],
            "unknown recipe 'quik' (command line), did you mean quick? The recipes are\n  quick  Quick\n  slow   Slow",
        ),
        (["--recipe"], "`recipe` needs a name; the recipes are\n  quick  Quick\n  slow   Slow"),
        (["--data", "a", "--epochs", "0"], "`epochs` must be at least 1, got 0"),
        (["--data", "a", "--workers", "-1"], "`workers` must be 0 or more, got -1"),
        (["--data", "a", "--lr", "-1"], "`lr` must be positive, got -1.0"),
        (["--data", "a", "--lr", "inf"], "`lr` must be finite, got inf"),
        (
            ["--data", "a", "--schedule", "multistep", "--milestones", "2", "inf"],
            "`milestones` must be finite, got (2.0, inf)",
        ),
        (["--data", "a", "--seed", str(2**63)], f"`seed` must be less than 2^63, got {2**63}"),
        (
            ["--data", "a", "--schedule", "multistep"],
            '`schedule="multistep"` and `milestones` belong together, such as epochs 20 and 30',
        ),
        (["--data", "a", "--config", "bad.cfg"], "`batch_size` must be at least 1, got 0 (bad.cfg:2)"),
        (["--recipe", "quick", "--min-lr", "1"], "`min_lr` must be between 0 and `lr` (0.01), got 1.0"),
    ],
)
def test_an_error_is_one_sentence(words, message, folder):
    Path("bad.cfg").write_text("lr: 1\nbatch_size: 0")
    with pytest.raises(UsageError) as caught:
        parse(*words)
    assert str(caught.value) == message


@pytest.mark.parametrize("cls", [EvaluateConfig, TuneConfig])
def test_scoring_needs_data(cls):
    with pytest.raises(UsageError, match=r"^`data` needs at least one COCO JSON file or folder$"):
        parse(cls=cls)


def test_a_command_ends_with_that_sentence(capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--data", "a", "--epochs", "0"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "segkit train: error: --epochs must be at least 1, got 0\n"


def test_values_that_yaml_does_not_read_are_named(capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--decoder", "atrous_rates=[6,12"])
    assert stop.value.code == 2
    assert "expected NAME=VALUE with values as in YAML" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("command", [infer, evaluate])
def test_other_commands_say_so_too(command, folder, capsys):
    with pytest.raises(SystemExit):
        command.main(["--wieghts", "x"])
    assert "unknown option --wieghts; did you mean --weights?" in capsys.readouterr().err


def test_a_recipe_is_only_for_training(folder, capsys):
    with pytest.raises(ValueError, match="unknown option --recipe"):
        parse("--recipe", "quick", cls=InferConfig)


def test_recipe_help_lists_the_recipes(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--recipe", "help")
    assert stop.value.code == 0
    assert capsys.readouterr().out == "  quick  Quick\n  slow   Slow\n"


def test_printed_settings_say_where_they_come_from(folder, capsys):
    lines = printed(capsys, "--recipe", "quick", "--config", "one.cfg", "two.cfg", "--lr", "1e-3").splitlines()
    for line in (
        "recipe: quick  # command line",
        "epochs: 5  # one.cfg:1",
        "batch_size: 6  # two.cfg:2",
        "lr: 0.001  # command line",
        "loss: {ce: 0.6, dice: 0.4}  # recipe quick",
        "weight_decay: 0.01",
    ):
        assert line in lines


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (TrainConfig, ["--recipe", "quick", "--config", "two.cfg", "--data", "a # b.json", "--no-compile"]),
        (TrainConfig, ["--resume", "runs/x", "--loss", "ce=1e-3", "--decoder", "x=1e-4"]),
        (InferConfig, ["--crf", "seed", "iterations=5", "--class-bias", "a=-1", "--save", "mask"]),
        (CheckConfig, ["a.json", "--full"]),
    ],
)
def test_printed_settings_are_a_file_of_the_same_settings(cls, words, folder, capsys):
    text = printed(capsys, *words, cls=cls)
    Path("printed.cfg").write_text(text)
    assert parse("--config", "printed.cfg", cls=cls) == parse(*words, cls=cls)


def test_printing_reads_no_data_and_loads_no_torch(tmp_path):
    words = ["--data", "no.json", "--recipe", "demo", "--print-config"]
    code = (
        "import sys\nfrom segkit.cli import train\n"
        f"try: train.main({words})\nfinally: assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert list(tmp_path.iterdir()) == []


def test_a_default_on_the_command_line_that_replaces_a_recipes_value_has_an_origin(capsys):
    with pytest.raises(SystemExit):
        train.main(["--recipe", "fast", "--data", "a.json", "--crop", "512", "--print-config"])
    assert "crop: 512  # command line" in capsys.readouterr().out.splitlines()


def test_without_data_the_settings_are_the_demos_unless_a_recipe_is_named(capsys):
    for words, expected in (
        ([], ["recipe: demo  # no data given", "crop: 192  # recipe demo"]),
        (["--crop", "64"], ["crop: 64  # command line", "epochs: 12  # recipe demo"]),
        (["--recipe", "waste1-fpn-b4"], ["recipe: waste1-fpn-b4  # command line", "crop: 512  # recipe waste1-fpn-b4"]),
        (["--data", "a.json"], ["recipe: null", "crop: 512"]),
    ):
        with pytest.raises(SystemExit):
            train.main([*words, "--print-config"])
        assert set(expected) <= set(capsys.readouterr().out.splitlines())


def test_the_settings_of_an_older_run_gain_nothing_from_its_recipe(folder):
    text = format_settings(parse("--recipe", "quick"))
    lines = [line for line in text.splitlines() if not line.startswith("loss_option:")]
    Path("old.yaml").write_text("\n".join(lines))
    with Path("quick.yaml").open("a") as recipe:
        recipe.write("loss_option: {dice.absent: zero}\n")
    assert parse("--recipe", "quick").loss_option == {"dice.absent": "zero"}
    assert parse("--config", "old.yaml").loss_option == {}


def test_options_of_losses_are_settings(folder):
    words = ["--loss", "ce", "dice", "--loss-option", "dice.absent=zero", "log=true"]
    assert parse(*words).loss_option == {"dice.absent": "zero", "log": True}
    with pytest.raises(UsageError, match="`loss_option` does not take class_weights; it is set by `class_weights`"):
        parse("--loss-option", "ce.class_weights=[1]")
    with pytest.raises(UsageError, match=r"`loss_option` has dice\.absent, but the loss is ce"):
        parse("--loss", "ce", "--loss-option", "dice.absent=zero")


def test_a_resumed_run_prints_its_own_settings(tmp_path, capsys):
    (tmp_path / "args.yaml").write_text("data: [a.json]\nepochs: 4\nout: elsewhere\nresume: false\nrecipe: gone\n")
    with pytest.raises(SystemExit):
        train.main(["--resume", str(tmp_path), "--workers", "0", "--print-config"])
    lines = capsys.readouterr().out.splitlines()
    assert f"epochs: 4  # {tmp_path}/args.yaml:2" in lines
    assert "workers: 0  # command line" in lines
    assert "out: null" in lines


def help_of(cls, capsys, monkeypatch, *words, width=80):
    """The lines that --help prints in a terminal of this width."""
    monkeypatch.setenv("COLUMNS", str(width))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        parse(*words, "--help", cls=cls)
    assert stop.value.code == 0
    return capsys.readouterr().out.splitlines()


def boxes(lines):
    """The options in each box of a help page, by the title of the box."""
    found = {}
    for line in lines[1:]:
        if re.fullmatch("(([a-z]+ )?options|positional arguments)", title := line.strip("╭╮─ ")):
            options = found.setdefault(title, [])
        elif match := re.match("(?:│ |  )--([a-z0-9-]+)", line):
            options.append(match[1].replace("-", "_"))
    return found


COMMANDS = [TrainConfig, InferConfig, EvaluateConfig, TuneConfig, CheckConfig, FoldsConfig, ConvertConfig, ExportConfig]


@pytest.mark.parametrize("cls", COMMANDS)
def test_help_shows_every_option_once_the_first_ones_first_and_ends_with_an_example(cls, capsys, monkeypatch):
    lines = help_of(cls, capsys, monkeypatch)
    shown = boxes(lines)
    page, names = PAGES[cls], {field.name for field in dataclasses.fields(cls)}
    positional = {name for name in names if name in page.first[:1]} if "positional arguments" in shown else set()
    options = [option for box in shown.values() for option in box]
    assert sorted(options) == sorted((names - positional - set(page.hidden)) | {"config", "print_config"})
    assert shown["options"] == [name for name in page.first if name not in positional]
    assert lines[lines.index("example:") + 1].startswith("  python")
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("cls", COMMANDS)
def test_every_option_has_a_short_help_text(cls):
    texts = help_texts(cls)
    for field in dataclasses.fields(cls):
        assert 8 < len(texts[field.name]) <= 130
        assert texts[field.name].endswith((".", "..."))


def test_help_lists_every_loss():
    text = help_texts(TrainConfig)["loss"]
    assert text.removeprefix("Weighted sum of ").removesuffix(".").split(", ") == list(LOSSES)


def test_help_shows_what_a_recipe_sets_instead_of_the_default(folder, capsys, monkeypatch):
    text = " ".join(help_of(TrainConfig, capsys, monkeypatch, "--recipe", "quick", width=120))
    assert "(default: 0.01)" in text
    assert "Run folder. (default: quick)" in text
    assert "Run folder. By default a new folder in runs/." in " ".join(
        help_of(TrainConfig, capsys, monkeypatch, width=120)
    )


def test_help_of_tune_does_not_show_what_it_chooses_itself(capsys, monkeypatch):
    shown = boxes(help_of(TuneConfig, capsys, monkeypatch))
    assert not {"merge", "class_bias", "brightness"}.intersection(*shown.values())
    assert shown["prediction options"] == ["full_size", "window", "window_overlap", "margin"]
    with pytest.raises(UsageError, match="`merge` does not go with tune"):
        parse("--data", "a.json", "--merge", "max", cls=TuneConfig)
