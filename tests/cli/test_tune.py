import json
import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch

from segkit.cli import tune
from segkit.config import InferConfig, TuneConfig, parse_args
from segkit.console import Console
from segkit.crf import DenseCRF
from segkit.data import CocoSegmentation
from segkit.inference import MemberProbs, Predictor
from segkit.metrics import ConfusionMatrix
from segkit.models import create_model, load_model, save_model
from segkit.sliding_window import SlidingWindow
from segkit.training_scale import TrainingScale
from segkit.workflows.predictors import ModelSource
from segkit.workflows.tune import Plan, PlanCounter, count_crfs, crf_words, first_plan, infer_command, steps_of

NAMES = ("background", "square", "disc")


class Brightness(torch.nn.Module):
    """A decoder that distinguishes the shapes by their brightness, without training."""

    def __init__(self, in_channels, strides):
        super().__init__()
        self.out_channels = 3
        self.scale = torch.nn.Parameter(torch.tensor(8.0))

    def forward(self, features):
        grey = self.scale * features[0].mean(1, keepdim=True)
        return torch.cat([torch.zeros_like(grey), grey - 6.0, -grey - 8.0], dim=1)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A good model, a broken one that always predicts discs, and the good one made blind to squares."""
    from segkit.models import DECODERS

    DECODERS["brightness"] = Brightness
    folder = tmp_path_factory.mktemp("tuned")
    options = {"backbone": "mobilenetv3_small_100", "class_names": NAMES, "pretrained": False}
    good = create_model("brightness", **options).eval()
    with torch.no_grad():
        good.head.weight.copy_(torch.eye(3).reshape(good.head.weight.shape))
        good.head.bias.zero_()
    broken, blind = create_model("brightness", **options), create_model("brightness", **options)
    broken.load_state_dict(good.state_dict())
    blind.load_state_dict(good.state_dict())
    with torch.no_grad():
        broken.head.bias.copy_(torch.tensor([0.0, 0.0, 40.0]))
        blind.head.bias.copy_(torch.tensor([0.0, -10.4, 0.0]))
    files = [folder / f"{name}.safetensors" for name in ("good", "broken", "blind")]
    for model, file in zip((good, broken, blind), files, strict=True):
        save_model(model.eval(), file)
    yield files
    del DECODERS["brightness"]


def member(name):
    return ModelSource(name, create_model("fpn", backbone="test_resnet", class_names=NAMES, pretrained=False), 1.0)


def run(weights, data, out, *more):
    words = ["--weights", *weights, "--data", data, "--out", out, "--device", "cpu", "--mask-cache", "off", *more]
    tune.main([str(word) for word in words])
    return json.loads((out / "tune.json").read_text())


def fails(*arguments):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    return stop.value.code


def infer_config(command):
    program, script, *words = shlex.split(command)
    assert (program, script) == ("python", "infer.py")
    return parse_args(InferConfig, words, prog="infer.py")


def miou(predictor, data):
    confusion = ConfusionMatrix(3)
    for image, target in data:
        confusion.update(predictor(image).mask, target)
    return confusion.compute().miou


def test_a_broken_member_gets_no_weight_and_is_not_in_the_command(models, shapes, tmp_path, capsys):
    found = run(models[:2], shapes[0], tmp_path / "o", "--flips", "none", "--scales", 1)
    assert found["plan"]["weights"] == [40, 0]
    assert found["gains"]["member weights"]["low"] > 0.1
    config = infer_config(found["command"])
    assert config.weights == (models[0],)
    printed = capsys.readouterr().out
    assert found["command"] in printed
    assert "member weights" in printed
    assert f"only {models[1]}" in printed
    assert [file.name for file in (tmp_path / "o").iterdir()] == ["tune.json"]


def test_a_plan_without_a_member_has_the_score_of_the_other_model_alone(models, shapes, tmp_path):
    kept, dropped = load_model(models[0]), load_model(models[2])
    kept.training_scale = TrainingScale(factor=(0.6, 0.6))  # its windows show more of the photograph
    members, data, window = [kept, dropped], CocoSegmentation(shapes[1]), SlidingWindow(16)
    targets = [data.target(i).ravel() for i in range(len(data))]
    probs = MemberProbs(Predictor(members, window=window), [np.arange(target.size) for target in targets], tmp_path)
    probs.run(data)
    found = PlanCounter(probs, targets, data)(Plan((40, 0), "none", (1.0,), (0.0,) * 3))
    assert found.total().compute().miou == miou(Predictor(kept, window=window), data)


def test_a_class_that_is_found_too_rarely_gets_a_bias_also_in_the_command(models, shapes, tmp_path):
    found = run(models[2:], shapes[0], tmp_path / "o", "--flips", "none", "--scales", 1)
    config = infer_config(found["command"])
    bias = config.class_bias
    assert bias.get("square", 0) > bias.get("background", 0)
    data, model = CocoSegmentation(shapes[0]), load_model(models[2])
    before, after = miou(Predictor(model), data), miou(Predictor(model, class_bias=config.class_bias), data)
    assert after > before + found["gains"]["class bias"]["estimate"] / 2


def test_an_ingredient_that_does_not_help_held_out_is_dropped(models, shapes, tmp_path, capsys):
    found = run(models[:1], shapes[0], tmp_path / "o", "--scales", 0.25, 1, "--margin", 0.05)
    assert found["plan"] == {"weights": [20], "flips": "none", "scales": [1.0], "bias": [0.0] * 3, "crf": None}
    config = infer_config(found["command"])
    assert (config.flips, config.scales, config.member_weights, config.class_bias) == ("none", (1.0,), (), {})
    assert "dropped" in capsys.readouterr().out


def test_a_crf_is_tried_only_if_it_is_asked_for(models, shapes, tmp_path):
    options = ("--flips", "none", "--scales", 1, "--folds", 2)
    found = run(models[:1], shapes[1], tmp_path / "o", *options, "--crf", "seed", "iterations=2")
    assert "crf" in found["gains"]
    assert "crf" not in run(models[:1], shapes[1], tmp_path / "p", *options)["gains"]
    assert crf_words(None) == [None]
    assert ("seed", "gaussian_weight=3.33", "bilateral_weight=3.33") in crf_words(())


def test_only_one_of_several_crfs_holds_its_kernels_at_a_time(models, shapes):
    used = []

    class Watched(DenseCRF):
        def submit(self, probs, image):
            assert not any("_engine" in vars(other) for other in used)
            used.append(self)
            return super().submit(probs, image)

    crfs = {None: None, ("1",): Watched(iterations=1), ("2",): Watched(iterations=2)}
    counts = count_crfs(CocoSegmentation(shapes[1]), Predictor(load_model(models[0])), crfs, Console())
    assert len(used) == 8
    assert list(counts) == list(crfs)


def test_the_command_contains_everything_in_a_plan(tmp_path):
    options = {"window": 512, "full_size": True, "amp": "bf16", "exif": "ignore", "max_pixels": 1000}
    config = TuneConfig(data=(tmp_path,), **options)
    plan = Plan((15, 0, 45), "hv", (0.75, 4 / 3), (0.0, 0.5, -0.25), ("deeplab_v1", "iterations=3"))
    members = [member(name) for name in ("a", "b", "c d")]
    read = infer_config(infer_command(plan, config, members, ("background", "a=b", "two words")))
    assert [str(path) for path in read.weights] == ["a", "c d"]
    assert read.member_weights == (1, 3)
    assert (read.flips, read.scales, read.window, read.amp) == ("hv", (0.75, 4 / 3), 512, "bf16")
    assert (read.full_size, read.exif, read.max_pixels) == (True, "ignore", 1000)
    assert read.class_bias == {"a=b": 0.5, "two words": -0.25}
    assert read.crf == ("deeplab_v1", "iterations=3")
    for window in (None, 0):
        assert infer_config(infer_command(plan, replace(config, window=window), members, "abc")).window == window


@pytest.mark.parametrize("given", ["apply", "ignore"])
@pytest.mark.parametrize("rules", [{}, {"exif": "apply", "overlap": "max-id"}, {"exif": "ignore"}])
def test_the_command_reads_images_as_tune_did_not_as_the_model_was_trained(given, rules, tmp_path):
    unused, used = (member(name) for name in ("a", "b"))
    unused.model.data_rules, used.model.data_rules = {"exif": given}, rules
    config = TuneConfig(data=(tmp_path,), exif=given)
    command = infer_command(Plan((0, 40), "none", (1.0,), (0.0, 0.0)), config, [unused, used], ("a", "b"))
    assert ("--exif" in command) == (given != rules.get("exif", "apply"))
    assert infer_config(command.replace("infer.py", f"infer.py --exif {rules.get('exif', 'apply')}")).exif == given


def test_every_step_returns_a_plan_that_can_run(tmp_path):
    config = TuneConfig(data=(tmp_path,), flips="d4", scales=(0.5, 1.0, 2.0), crf=())
    plan = first_plan(config, 3, 4)
    assert plan.scales == (1.0,)
    for ingredient in ("member weights", "flips", "scales", "class bias", "crf"):
        after = [step(plan) for step in steps_of(ingredient, config, plan)]
        assert len({*after, plan}) > 1
        for changed in after:
            assert sum(changed.weights) == 60
            assert min(changed.weights) >= 0
            assert changed.scales
            assert np.abs(changed.bias).max() <= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--member-weights", "1"], "--member-weights does not go with tune"),
        (["--tta", "seed_vflip_multiscale", "--class-bias", "disc=1"], "does not go with tune"),
        (["--folds", "5"], "--folds must be no more than the 4 images"),
        (["--folds", "1"], "--folds must be at least 2"),
        (["--pixels", "0"], "--pixels must be at least 1"),
        (["--crf", "seeed"], "did you mean 'seed'"),
    ],
)
def test_wrong_settings_are_named(models, shapes, tmp_path, capsys, arguments, message):
    assert fails(models[:1], shapes[1], tmp_path / "o", *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "o").exists()


def test_models_of_other_classes_are_refused(shapes, models, tmp_path, capsys):
    content = json.loads(shapes[1].read_text())
    content["categories"][0]["name"] = "can"
    (shapes[1].parent / "other.json").write_text(json.dumps(content))
    assert fails(models[:1], shapes[1].parent / "other.json", tmp_path / "o", "--folds", 2) == 3
    assert "do not match the classes square, disc: 'can' is new here, 'disc' is missing here" in capsys.readouterr().err
