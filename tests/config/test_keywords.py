import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from segkit.config import EvaluateConfig, InferConfig, TrainConfig, TuneConfig, from_keywords, takes_settings
from segkit.crf import DenseCRF
from segkit.errors import UsageError
from segkit.tta import TTA


@dataclass(frozen=True)
class Settings:
    data: tuple[Path, ...]
    out: Path | None = None
    lr: float = 0.1
    epochs: int = 3
    exif: Literal["apply", "ignore"] = "apply"
    resume: Path | Literal["auto"] | bool = False
    loss: dict[str, float] = field(default_factory=dict)
    source: str | None = None


def test_text_stands_for_a_path_and_one_value_for_a_list_of_one():
    settings = from_keywords(Settings, {"data": "a.json", "out": "~/runs", "lr": 1, "source": Path("b")})
    assert settings.data == (Path("a.json"),)
    assert settings.out == Path.home() / "runs"
    assert isinstance(settings.lr, float)
    assert settings.source == "b"
    assert from_keywords(Settings, {"data": ["a.json", Path("b.json")]}).data == (Path("a.json"), Path("b.json"))


def test_text_that_may_be_a_path_is_expanded():
    settings = from_keywords(TrainConfig, {"pretrained": "~/w.safetensors", "mask_cache": Path("~/masks")})
    assert settings.pretrained == str(Path.home() / "w.safetensors")
    assert settings.mask_cache == str(Path.home() / "masks")
    assert from_keywords(InferConfig, {"source": "~/photos"}).source == str(Path.home() / "photos")


def test_another_object_is_accepted_as_a_path():
    data = object()
    assert from_keywords(Settings, {"data": data}).data == (data,)


def test_the_first_type_of_a_union_that_fits_is_taken():
    for value, expected in ((True, True), ("auto", "auto"), ("runs/a", Path("runs/a"))):
        assert from_keywords(Settings, {"data": "a", "resume": value}).resume == expected


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"data": "a", "epoch": 3}, "unknown argument 'epoch'; did you mean 'epochs'"),
        ({}, "give `data`"),
        ({"data": 3}, "`data` must be a list of paths, got 3"),
        ({"data": "a", "epochs": 2.5}, "`epochs` must be a whole number, got 2.5"),
        ({"data": "a", "epochs": True}, "`epochs` must be a whole number, got True"),
        ({"data": "a", "lr": "1e-3"}, "`lr` must be a number, got '1e-3'"),
        ({"data": "a", "exif": "no"}, "`exif` must be one of apply, ignore, got 'no'"),
        ({"data": "a", "loss": "ce"}, "`loss` must be a mapping of names to numbers, got 'ce'"),
        ({"data": "a", "loss": {"ce": "much"}}, "`loss` must be a mapping of names to numbers, got {'ce': 'much'}"),
        ({"data": "a", "lr": 10**400}, "`lr` must be a number"),
        ({"data": "a", "out": object()}, "`out` must be a path or null, got <object"),
        ({"data": "a", "out": ""}, "`out` must be a path or null, got ''"),
        ({"data": [None]}, r"`data` must be a list of paths, got \[None\]"),
        ({"data": "a\0b"}, "`data` must be a list of paths"),
    ],
)
def test_what_cannot_be_a_setting_is_named(keywords, message):
    with pytest.raises(UsageError, match=message):
        from_keywords(Settings, keywords)


def test_none_stands_for_an_empty_list_or_mapping():
    settings = from_keywords(TrainConfig, {"val": None, "decoder": None, "milestones": None})
    assert (settings.val, settings.decoder, settings.milestones) == ((), {}, ())


def test_an_object_that_cannot_be_is_shown_on_one_short_line():
    for name in ("images", "init_from"):
        with pytest.raises(UsageError, match=f"`{name}` must be ") as caught:
            from_keywords(TrainConfig, {name: {str(i): "long\n" for i in range(100)}})
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize("cls", [TrainConfig, InferConfig, EvaluateConfig, TuneConfig])
def test_settings_of_a_command_come_back_as_they_are(cls):
    keywords = {"data": ("a.json",)} if cls in (EvaluateConfig, TuneConfig) else {}
    settings = from_keywords(cls, keywords)
    assert from_keywords(cls, vars(settings)) == settings


def test_a_workflow_shows_the_settings_in_its_signature():
    @takes_settings(Settings)
    def work(*, verbose: bool = False, **settings):
        return settings

    signature = inspect.signature(work)
    assert list(signature.parameters)[:3] == ["data", "out", "lr"]
    assert signature.parameters["lr"].default == 0.1
    assert signature.parameters["data"].default is inspect.Parameter.empty
    assert list(signature.parameters)[-1] == "verbose"
    assert work(data="a") == {"data": "a"}


def test_words_of_the_command_line_stand_for_a_mapping():
    assert from_keywords(TrainConfig, {"loss": "dice"}).loss == {"dice": 1.0}
    assert from_keywords(TrainConfig, {"loss": ["ce=0.6", "dice=0.4"]}).loss == {"ce": 0.6, "dice": 0.4}
    assert from_keywords(TrainConfig, {"decoder": "channels=64"}).decoder == {"channels": 64}
    with pytest.raises(UsageError, match="NAME=WEIGHT"):
        from_keywords(TrainConfig, {"loss": "ce=much"})


@pytest.mark.parametrize("value", [True, False])
def test_pretrained_is_a_bool_as_in_create_model(value):
    assert from_keywords(TrainConfig, {"pretrained": value}).pretrained == str(value).lower()


def test_the_name_of_another_tool_leads_to_ours():
    with pytest.raises(UsageError, match="did you mean 'backbone'"):
        from_keywords(TrainConfig, {"encoder": "resnet18"})


def test_a_torch_device_is_its_name():
    assert from_keywords(InferConfig, {"device": torch.device("cuda", 1)}).device == "cuda:1"


def test_a_whole_number_of_numpy_is_one_of_python():
    assert type(from_keywords(TrainConfig, {"seed": np.int64(3)}).seed) is int


@pytest.mark.parametrize(("given", "expected"), [(True, ()), (False, None), ("seed", ("seed",)), (None, None)])
def test_crf_is_also_a_switch(given, expected):
    assert from_keywords(InferConfig, {"crf": given}).crf == expected


def test_one_object_is_taken_as_it_is():
    crf, tta = DenseCRF(iterations=2), TTA(flips="h")
    config = from_keywords(InferConfig, {"crf": crf, "tta": tta})
    assert (config.crf, config.tta) == (crf, tta)
    with pytest.raises(UsageError, match="`tta` sets all test-time options"):
        from_keywords(InferConfig, {"tta": tta, "flips": "h"})
    with pytest.raises(UsageError, match="tune chooses a CRF by words"):
        from_keywords(TuneConfig, {"data": "a", "crf": crf})


@pytest.mark.parametrize("value", [torch.nn.Sequential(torch.nn.ReLU(), torch.nn.ReLU()), np.zeros((9, 9))])
def test_an_object_of_many_lines_is_shown_by_its_type(value):
    with pytest.raises(UsageError, match=f"`lr` must be a number, got a {type(value).__name__}$"):
        from_keywords(TrainConfig, {"lr": value})
