"""`nearest_cell` against a search over all cells, in numpy and in torch."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch

import tinydet.geometry.cells
from tinydet.geometry.cells import nearest_cell


@pytest.mark.parametrize(("first", "stride", "cells"), [(2.0, 4, 160), (32.0, 64, 10), (0.0, 60, 8), (4.0, 8, 1)])
def test_no_cell_is_nearer(first: float, stride: int, cells: int) -> None:
    center = np.random.default_rng(0).uniform(-100, cells * stride + 100, 1000)
    distances = np.abs(center[:, None] - (first + stride * np.arange(cells)))
    found = nearest_cell(center, first, stride, cells)
    np.testing.assert_array_equal(found, distances.argmin(axis=1))
    tensor = nearest_cell(torch.from_numpy(center), first, stride, cells)
    np.testing.assert_array_equal(tensor.numpy(), found)


def test_stride_and_cells_may_differ_between_boxes() -> None:
    strides, cells = np.array([8, 60, 64]), np.array([3, 8, 1])
    assert nearest_cell(np.array([70.0, 70.0, 70.0]), 0.0, strides, cells).tolist() == [2, 1, 0]


def test_the_example_in_the_docstring_holds() -> None:
    result = doctest.testmod(tinydet.geometry.cells)
    assert result.attempted >= 1 and result.failed == 0
