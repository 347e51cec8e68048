import numpy as np
import pytest
import torch

from segkit.errors import UsageError
from segkit.losses import class_weights, create_loss


@pytest.mark.parametrize(
    ("scheme", "options", "ratios"),
    [
        ("inverse", {}, [1 / 100, 1 / 4]),
        ("sqrt", {}, [1 / 10, 1 / 2]),
        ("effective", {"beta": 0.5}, [1 / (2 - 2 * 0.5**100), 1 / (2 - 2 * 0.5**4)]),
        ("effective", {"beta": 0.0}, [1, 1]),
        ("effective", {"beta": 1 - 1e-9}, [1 / 100, 1 / 4]),
    ],
)
def test_weights_worked_out_by_hand(scheme, options, ratios):
    weights = class_weights([100, 4], scheme, **options)
    expected = [2 * ratio / sum(ratios) for ratio in ratios]  # Their mean is 1.
    assert weights.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("counts", [[9, 0, 1], np.array([9, 0, 1], np.uint8), torch.tensor([9, 0, 1])])
@pytest.mark.parametrize("scheme", ["inverse", "sqrt", "effective"])
def test_a_class_that_does_not_occur_weighs_nothing_and_the_others_1_on_average(counts, scheme):
    weights = class_weights(counts, scheme)
    assert weights.dtype == torch.float32
    assert weights[1] == 0
    assert weights[0] < weights[2]
    assert weights.sum().item() == pytest.approx(2)


def test_counts_of_a_large_data_set_are_exact():
    assert class_weights([10**12, 10**10], "inverse").tolist() == pytest.approx([2 / 101, 200 / 101])


@pytest.mark.parametrize("name", ["ce", "focal"])
def test_weights_go_into_a_loss_as_they_are(name):
    logits, target = torch.zeros(1, 2, 1, 4), torch.tensor([[[0, 0, 0, 1]]])
    logits[:, 1] = 1.0
    single = create_loss(name, reduction="none")(logits, target)[0, 0]
    weights = class_weights([3, 1], "inverse")  # Both classes then have the same total weight.
    loss = create_loss(name, class_weights=weights)(logits, target)
    torch.testing.assert_close(loss, (single[0] + single[3]) / 2)


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ([1, -1], {}, "`counts` must be"),
        ([0, 0], {}, "`counts` must be"),
        ([[1, 2]], {}, "`counts` must be"),
        ([1, 2], {"scheme": "log"}, "`scheme` must be one of inverse, sqrt, effective, got 'log'"),
        ([1, 2], {"scheme": "effective", "beta": 1.0}, r"`beta` must be in \[0, 1\), got 1.0"),
    ],
)
def test_a_wrong_argument_is_named(counts, options, message):
    with pytest.raises(UsageError, match=message):
        class_weights(counts, **options)
