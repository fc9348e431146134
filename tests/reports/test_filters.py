from __future__ import annotations

from itertools import pairwise

import numpy as np

from budgetnet.reports.filters import picture, spread


def test_a_picture_spans_black_to_white_and_is_in_colour_for_three_channels() -> None:
    grey, colour = picture(np.array([[[1.0, -3.0]], [[3.0, -5.0]]])), picture(np.arange(12.0).reshape(3, 2, 2))
    assert grey.tolist() == [[1.0, 0.0]]  # means 2 and -4
    assert colour.shape == (2, 2, 3) and colour.min() == 0 and colour.max() == 1
    assert colour[0, 0].tolist() == [0, 4 / 11, 8 / 11]


def test_a_filter_without_contrast_is_grey() -> None:
    assert picture(np.zeros((1, 2, 2))).tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_of_many_rounds_some_are_drawn_the_first_and_the_last_among_them() -> None:
    assert spread(0) == [] and spread(24) == list(range(24))
    drawn = spread(160)
    assert len(drawn) == 24 and drawn[0] == 0 and drawn[-1] == 159
    assert {b - a for a, b in pairwise(drawn)} == {6, 7}
