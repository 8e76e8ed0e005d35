"""The examples in the docstrings of tandem_snn are what it does."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import tandem_ext as te
import tandem_snn
import tandem_snn.nn as tnn

OWN = (
    *("ann", "container", "convert", "data", "errors", "exchange", "frozen", "measure", "memory", "models", "nn"),
    *("plots", "results", "training"),
)
MODULES = [m.name for m in pkgutil.walk_packages(tandem_snn.__path__, "tandem_snn.") if m.name.split(".")[1] in OWN]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    for package in ("nir", "onnx", "snntorch", "spikingjelly"):
        if name.endswith(package):
            pytest.importorskip(package, reason=f"the package {package} is not installed")
    names = {"torch": torch, "nn": torch.nn, "te": te, "tnn": tnn, "tandem_snn": tandem_snn}
    results = doctest.testmod(module, extraglobs=names)
    assert results.failed == 0


@pytest.mark.parametrize("name", [name for name in tnn.__all__ if name != "SpikingLayer"])
def test_every_layer_has_one(name):
    tests = doctest.DocTestFinder().find(getattr(tnn, name), name)
    assert any(test.examples for test in tests)
