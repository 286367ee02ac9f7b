"""The examples in the docstrings of the Python API run and give what they say."""

from __future__ import annotations

import doctest

import inflcli.ekfac
import inflcli.validation


def test_examples_of_ekfac():
    found = doctest.testmod(inflcli.ekfac, optionflags=doctest.ELLIPSIS)
    assert found.attempted > 10 and not found.failed


def test_examples_of_validation():
    found = doctest.testmod(inflcli.validation, optionflags=doctest.ELLIPSIS)
    assert found.attempted > 5 and not found.failed
