"""The examples in the docstrings are what the package does."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import tandem_ext as te

MODULES = [
    "tandem_ext",
    *(m.name for m in pkgutil.walk_packages(te.__path__, "tandem_ext.") if m.name != "tandem_ext._C"),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    results = doctest.testmod(module, extraglobs={"torch": torch, "te": te})
    assert results.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=False)
    for function in (getattr(te.functional, name) for name in te.functional.__all__):
        assert any(test.examples for test in finder.find(function)), function.__name__
