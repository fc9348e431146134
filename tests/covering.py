"""Of a matrix of cases the default suite runs a covering set, every value of every axis once; `make soak` the rest."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import pytest


def covered(cases: Iterable[Any], kept: Container[Any]) -> list[Any]:
    """The cases as parameters of a test; those whose first argument is not among `kept` are for `make soak`."""
    parameters = []
    for case in cases:
        arguments = case if isinstance(case, tuple) else (case,)
        marks = () if arguments[0] in kept else (pytest.mark.soak,)
        parameters.append(pytest.param(*arguments, marks=marks))
    return parameters
