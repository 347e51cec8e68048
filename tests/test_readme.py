"""The README's Python examples run, and its commands are understood, as they stand there."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.shapes import write_shapes
from PIL import Image

import segkit
from segkit.losses import LOSSES, create_loss
from segkit.models import DECODERS

README = (Path(segkit.__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMAND_LINES = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
CONFIGS = {
    "train": "TrainConfig",
    "infer": "InferConfig",
    "evaluate": "EvaluateConfig",
    "tune": "TuneConfig",
    "check": "CheckConfig",
    "folds": "FoldsConfig",
    "convert": "ConvertConfig",
    "export": "ExportConfig",
}


def block_with(text: str) -> str:
    (block,) = [block for block in BLOCKS if text in block]
    return block


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with what the examples name: scans, a photograph, and a trained model in runs/x."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    Path("scans").mkdir()
    for i in range(8):
        image = random.integers(0, 255, (40, 48, 3), dtype=np.uint8)
        np.savez(f"scans/{i}.npz", image=image, labels=random.integers(0, 3, (40, 48), dtype=np.uint8))
    Image.fromarray(random.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save("photo.jpg")
    Path("runs/x").mkdir(parents=True)
    model = segkit.create_model("fpn", backbone="test_resnet", num_classes=12, pretrained=False)
    segkit.models.save_model(model, "runs/x/best.safetensors")
    return tmp_path


def small(code: str) -> str:
    """The same code with networks that need no download and seconds of training."""
    code = re.sub(r'backbone="[a-z0-9_]+"', 'backbone="test_resnet"', code)
    code = code.replace("pretrained=True", "pretrained=False").replace("crop=512", "crop=32")
    return code.replace("epochs=40", 'epochs=1, backbone="test_resnet", pretrained=False, crop=32, workers=0')


def test_the_first_example_predicts_and_scores(folder):
    names = {
        "uint8_images": torch.randint(0, 255, (2, 3, 40, 48), dtype=torch.uint8),
        "target": torch.randint(0, 12, (2, 40, 48)),
        "photograph": np.zeros((40, 48, 3), dtype=np.uint8),
    }
    exec(small(block_with("uint8_images")), names)
    assert names["logits"].shape == (2, 12, 40, 48)
    assert names["probs"].sum(1).sub(1).abs().max() < 1e-5
    assert names["prediction"].mask.shape == (40, 48)
    assert (folder / "mask.png").is_file()


def test_the_data_set_of_ones_own_trains(folder):
    names = {}
    exec(small(block_with("class Scans")), names)
    images, target = next(iter(names["loader"]))
    assert images.shape[1:] == (3, 32, 32)
    assert target.shape[1:] == (32, 32)
    exec(small(block_with("data=train_set")), names)
    assert Path("runs/scans/best.safetensors").is_file()
    assert names["model"].class_names == ("background", "leaf", "stem")


def test_the_commands_are_functions(folder):
    write_shapes(folder, "train", 8, seed=1)
    write_shapes(folder, "val", 2, seed=2)
    (folder / "images").rename("photographs")
    for name in ("train.json", "val.json"):
        Path(name).write_text(Path(name).read_text().replace("images/", ""))
    names = {"segkit": segkit}
    exec(small(block_with("segkit.evaluate(")), names)
    assert 0 <= names["result"].scores["miou"] <= 1
    assert len(list(Path("masks/mask").iterdir())) == 10


def test_the_smp_call_has_arguments_that_exist():
    (call,) = [line for line in BLOCKS if "load_smp_checkpoint(" in line]
    arguments = re.search(r"load_smp_checkpoint\((.*)\)", call, re.DOTALL)[1]
    with pytest.raises(FileNotFoundError):
        eval(f"segkit.models.load_smp_checkpoint({arguments})")


def test_the_decoder_conforms():
    names = {}
    try:
        exec(small(block_with("check_decoder(")), names)
        assert names["model"].decoder.out_channels == 32
    finally:
        DECODERS.pop("hypercolumn", None)


def test_the_loss_conforms_and_trains(folder):
    write_shapes(folder, "train", 4, seed=1)
    write_shapes(folder, "val", 1, seed=2)
    names = {}
    try:
        exec(block_with("check_loss("), names)
        logits, target = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
        mine, dice = (create_loss(name)(logits, target) for name in ("mine", "dice"))
        torch.testing.assert_close(names["loss"](logits, target), mine + dice)
        settings = {"loss": {"mine": 1, "dice": 1}, "backbone": "test_resnet", "pretrained": False}
        settings |= {"epochs": 1, "crop": 32, "batch_size": 2, "workers": 0, "device": "cpu"}
        segkit.train(data="train.json", val="val.json", out="runs/mine", **settings)
        assert "mine" in Path("runs/mine/args.yaml").read_text()
        assert Path("runs/mine/best.safetensors").is_file()
    finally:
        LOSSES.pop("mine", None)


def test_the_losses_are_numbers():
    names = {
        "pixels_of_each_class": [10, 20, 30],
        "logits": torch.randn(2, 3, 8, 8),
        "target": torch.randint(0, 2, (2, 3, 8, 8)),
    }
    exec(block_with("class_weights(pixels_of_each_class"), names)
    assert names["value"].isfinite()
    assert names["loss"](names["logits"], torch.randint(0, 3, (2, 8, 8))).isfinite()


def test_the_metrics_are_printed(capsys):
    loader = [(torch.randn(2, 12, 16, 16), torch.randint(0, 12, (2, 16, 16)))]
    exec(block_with("for logits, target in loader"), {"loader": loader})
    assert "mIoU" in capsys.readouterr().out


@pytest.mark.parametrize("line", [line for line in COMMAND_LINES if re.search(r"train\.py|infer\.py|-m segkit", line)])
def test_each_command_is_understood(line, monkeypatch, tmp_path):
    from segkit import config

    words = shlex.split(line)
    number = next(i for i, word in enumerate(words) if word in ("train.py", "infer.py", "segkit"))
    name = words[number + 1] if words[number] == "segkit" else words[number].removesuffix(".py")
    arguments = [word for word in words[number + 1 + (words[number] == "segkit") :] if word != "..."]
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("epochs: 3\n")
    Path("map.csv").write_text("can,metal\n")
    if "--print-config" in arguments:
        with pytest.raises(SystemExit) as stop:
            config.parse_args(getattr(config, CONFIGS[name]), arguments, prog=name)
        assert stop.value.code == 0
    else:
        assert config.parse_args(getattr(config, CONFIGS[name]), arguments, prog=name)


def test_every_block_is_tested():
    tested = ("uint8_images", "class Scans", "data=train_set", "segkit.evaluate(", "load_smp_checkpoint(")
    tested += ("check_decoder(", "check_loss(")
    tested += ("class_weights(pixels_of_each_class", "for logits, target in loader")
    assert [block for block in BLOCKS if not any(text in block for text in tested)] == []
    assert {name for name in CONFIGS} == set(import_module("segkit.cli").COMMANDS)
