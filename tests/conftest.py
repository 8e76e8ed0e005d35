"""Shared by all tests: the device under test, reproducible random numbers, hypothesis without a deadline."""

import contextlib
import os

import pytest
import torch
from hypothesis import HealthCheck, settings

# The same examples every time: a failure is then the change's fault. `--hypothesis-profile=random` explores.
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=100)
settings.register_profile("random", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(  # under qemu, where each takes seconds
    "emulated", deadline=None, derandomize=True, max_examples=10, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where the ops run: cpu (default) or cuda")


def pytest_collection_modifyitems(items):
    if os.environ.get("TANDEM_KERNELS") == "0":
        for item in items:
            if item.get_closest_marker("kernels"):
                item.add_marker(pytest.mark.skip(reason="it is about the kernels, which TANDEM_KERNELS=0 turns off"))


@pytest.fixture(scope="session")
def device(request):
    torch.backends.cudnn.enabled = False  # a GPU's convolutions would round operands to TF32, or by Winograd
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="module")
def on_device(device):
    """For a module of tests: what they make without naming a device is made on the one under test."""
    with device if device.type != "cpu" else contextlib.nullcontext():
        yield


@pytest.fixture(scope="session", params=["step", "window"])
def timing(request):
    return request.param


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def digits():
    """Handwritten digits, all of whose training samples are trained on."""
    from data import load
    from recipe import Recipe

    return load(Recipe(validation=False), None)
