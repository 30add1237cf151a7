"""The examples in the docstrings of the measurement run, and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import rlgns.gradients
import rlgns.noise

MODULES = [
    f"{package.__name__}.{module.name}"
    for package in (rlgns.noise, rlgns.gradients)
    for module in pkgutil.iter_modules(package.__path__)
]


@pytest.mark.parametrize("name", ["rlgns", *MODULES])
def test_examples_in_docstrings_print_what_they_say(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", rlgns.__all__)
def test_every_public_name_of_the_measurement_has_an_example(name):
    public = getattr(rlgns, name)
    if public.__module__ in MODULES:
        assert any(test.examples for test in doctest.DocTestFinder().find(public, name))
