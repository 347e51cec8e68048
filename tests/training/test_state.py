"""Seeds, random states, and deterministic kernels."""

import os
import random

import numpy as np
import pytest
import torch

from segkit.training import make_deterministic, seed_all
from segkit.training.state import random_state, set_random_state


def drawn():
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002 - the global state is under test


def test_a_seed_decides_all_random_numbers_and_a_state_continues_them():
    seed_all(7)
    first, state, second = drawn(), random_state(), drawn()
    seed_all(7)
    assert drawn() == first
    set_random_state(state)
    assert drawn() == second
    seed_all(8)
    assert drawn() != first


@pytest.fixture
def settings():
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    variable, benchmark = os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None), torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    torch.backends.cudnn.benchmark = benchmark
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    if variable is not None:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = variable


def test_deterministic_kernels_are_preferred_and_others_are_allowed(settings):
    torch.backends.cudnn.benchmark = True
    make_deterministic()
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()  # other kernels run, with a warning
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
