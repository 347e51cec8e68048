import numpy as np
import pytest
import torch

from segkit.errors import UsageError
from segkit.models import DECODERS, Segmenter, create_model, load_model


def with_heads(name="fpn"):
    return create_model(name, backbone="resnet18", num_classes=3, aux_head=True, image_head=True)


def test_a_model_returns_a_tensor_unless_extras_are_requested():
    model = with_heads().eval()
    with torch.inference_mode():
        logits = model(torch.randn(2, 3, 50, 70))
        outputs = model(torch.randn(2, 3, 50, 70), extras=True)
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == outputs.logits.shape == outputs.aux_logits.shape == (2, 3, 50, 70)
    assert outputs.image_logits.shape == (2, 3)


def test_the_output_of_a_missing_head_is_none():
    outputs = create_model("fpn", backbone="resnet18", num_classes=3)(torch.randn(2, 3, 32, 32), extras=True)
    assert outputs.aux_logits is None
    assert outputs.image_logits is None


@pytest.mark.parametrize("name", DECODERS)
def test_every_parameter_gets_a_gradient_with_all_heads(name):
    model = with_heads(name).train()
    sum(output.sum() for output in model(torch.randn(2, 3, 64, 64), extras=True)).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


def test_a_frozen_backbone_stays_in_eval_mode_through_train_and_eval():
    model = create_model("fpn", backbone="tf_efficientnet_b0", num_classes=2).freeze_backbone()
    for call in (model.train, model.eval, model.train, lambda: model.train(False), model.train):
        call()
        assert not any(layer.training for layer in model.backbone.modules())
    assert model.decoder.training
    assert not any(p.requires_grad for p in model.backbone.parameters())
    model.freeze_backbone(False)
    assert all(layer.training for layer in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_a_frozen_backbone_keeps_its_running_statistics():
    model = create_model("fpn", backbone="resnet18", num_classes=2).freeze_backbone().train()
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in model.backbone.state_dict().items())


def test_the_keys_of_the_file_follow_the_roles():
    prefixes = {key.split(".")[0] for key in with_heads().state_dict()}
    assert prefixes == {"backbone", "decoder", "head", "aux_head", "image_head"}


def test_save_pretrained_and_from_pretrained_need_no_network(tmp_path, no_network):
    model, images = with_heads().eval(), torch.randn(1, 3, 33, 40)
    model.save_pretrained(tmp_path / "m")
    for loaded in (Segmenter.from_pretrained(tmp_path / "m"), load_model(tmp_path / "m")):
        with torch.inference_mode():
            for ours, theirs in zip(model(images, extras=True), loaded(images, extras=True), strict=True):
                assert torch.equal(ours, theirs)


def test_a_model_that_create_model_did_not_build_says_so_when_it_is_saved(tmp_path):
    model = create_model("fpn", backbone="resnet18", num_classes=2)
    own = Segmenter(model.backbone, model.decoder, model.head, class_names=("a", "b"))
    assert own.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 2, 32, 32)
    with pytest.raises(ValueError, match="create_model did not build"):
        own.save_pretrained(tmp_path / "m")


@pytest.mark.parametrize("name", DECODERS)
def test_heads_start_near_zero_so_that_training_begins_at_even_probabilities(name):
    model = with_heads(name).eval()
    for conv in (model.head, model.aux_head[-1]):
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.3)
        assert (conv.bias == 0).all()
    with torch.inference_mode():
        probs = model(torch.randn(1, 3, 64, 64)).softmax(1)
    assert (probs - 1 / 3).abs().mean() < 0.1


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"\(1, 3, 8, 8\) torch.uint8"),
        (torch.zeros(3, 8, 8), r"\(3, 8, 8\) torch.float32"),
        (torch.zeros(1, 4, 8, 8), r"\(1, 4, 8, 8\) torch.float32"),
        (np.zeros((8, 8, 3), np.uint8), "ndarray"),
    ],
)
def test_images_that_are_not_normalised_are_one_sentence(images, got):
    model = create_model("fpn", backbone="test_resnet", num_classes=2)
    with pytest.raises(UsageError, match=rf"takes normalised images \(N, 3, H, W\) float, got {got}"):
        model(images)
