"""Anchor designs: what they promise, and parity with torchvision and the authors' code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from designs import DESIGNS, FASTER_RCNN, RETINANET, released_design, torchvision_design
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from tinydet.geometry.anchors import AnchorDesign

OCTAVES = [2 ** (k / 3) for k in range(3)]
RETINANET_SIZES = [[base * octave for octave in OCTAVES] for base in (8, 16, 32, 64, 128)]
SIZES = {
    "retinanet": RETINANET_SIZES,
    "retinanet-p3p7": RETINANET_SIZES,
    "faster_rcnn": [[8.31], [12.5], [18.55], [30.23], [60.41]],
}
RATIOS = {"retinanet": [0.5, 1.0, 2.0], "retinanet-p3p7": [0.5, 1.0, 2.0], "faster_rcnn": [0.5, 1.3, 2.0]}
RECORDED = {"retinanet": "retina_S_alpha", "faster_rcnn": "fpn_S_alpha"}


@pytest.mark.parametrize("detector", SIZES)
def test_anchors_have_the_size_and_ratio_asked_for_with_ratios_fastest(detector: str) -> None:
    for level, sizes in enumerate(SIZES[detector]):
        x1, y1, x2, y2 = DESIGNS[detector].cell_anchors(level).T
        width, height = x2 - x1, y2 - y1
        expected = [(size, ratio) for size in sizes for ratio in RATIOS[detector]]
        np.testing.assert_allclose(np.stack([np.sqrt(width * height), height / width], axis=1), expected, rtol=1e-12)
        np.testing.assert_array_equal([x1, y1], [-x2, -y2])


@pytest.mark.parametrize("size", [(64, 128), (65, 1), (500, 333)])
def test_grid_anchors_lie_on_the_cell_centres_row_by_row(size: tuple[int, int]) -> None:
    height, width = size
    for level, anchors in enumerate(RETINANET.grid_anchors(height, width)):
        stride = 4 * 2**level
        assert anchors.dtype == np.float32
        centers = (anchors[:, :2] + anchors[:, 2:]).astype(np.float64) / 2
        expected = [
            ((column + 0.5) * stride, (row + 0.5) * stride)
            for row in range(-(-height // stride))
            for column in range(-(-width // stride))
            for _ in range(9)
        ]
        np.testing.assert_allclose(centers, expected, atol=1e-4)


@pytest.mark.parametrize("side", [1, 63, 64, 97, 500])
def test_there_is_a_cell_for_each_pixel_of_the_feature_maps(side: int) -> None:
    features = torch.zeros(1, 1, side, side)
    for level in range(-1, 5):
        kernel = 1 if level == 4 else 3  # P6 subsamples P5
        features = torch.nn.functional.max_pool2d(features, kernel, stride=2, padding=kernel // 2)
        if level >= 0:
            grid = RETINANET.level_grid(side, side, level)
            assert (int(grid.rows), int(grid.columns)) == features.shape[-2:]


def test_a_level_grid_takes_arrays_of_sizes() -> None:
    heights, widths = np.array([64, 97, 480]), np.array([128, 211, 640])
    for design in (RETINANET, torchvision_design("retinanet"), released_design("retinanet")):
        for level in range(5):
            together = design.level_grid(heights, widths, level)
            for n, (height, width) in enumerate(zip(heights, widths, strict=True)):
                alone = design.level_grid(int(height), int(width), level)
                assert [int(field[n]) for field in together] == [int(field) for field in alone]


@pytest.mark.parametrize("size", [(512, 640), (480, 640), (97, 211), (32, 1000)])
@pytest.mark.parametrize("detector", SIZES)
def test_the_torchvision_preset_is_torchvisions_anchor_generator(detector: str, size: tuple[int, int]) -> None:
    generator = AnchorGenerator(SIZES[detector], [RATIOS[detector]] * 5)
    height, width = (-(-side // 32) * 32 for side in size)  # as its transform pads
    strides = DESIGNS[detector].strides
    features = [torch.zeros(1, 1, -(-height // stride), -(-width // stride)) for stride in strides]
    expected = generator(ImageList(torch.zeros(1, 3, height, width), [size]), features)[0]
    anchors = np.concatenate(torchvision_design(detector).grid_anchors(*size))
    np.testing.assert_array_equal(anchors, expected.numpy())


@pytest.mark.parametrize("detector", RECORDED)
def test_the_released_preset_has_the_recorded_cell_anchors(detector: str, shared: Path) -> None:
    case = json.loads((shared / "cases" / "salpha" / "A_lognormal.json").read_text())
    for level, expected in enumerate(case["cell_anchors"][RECORDED[detector]]):
        np.testing.assert_array_equal(released_design(detector).first_cell(level), np.float32(expected))


@pytest.mark.parametrize("detector", DESIGNS)
@pytest.mark.parametrize("design_of", [DESIGNS.__getitem__, torchvision_design, released_design])
def test_a_design_can_be_given_by_its_cell_anchors(design_of: Callable[[str], AnchorDesign], detector: str) -> None:
    design = design_of(detector)
    cells = [design.first_cell(level).tolist() for level in range(5)]
    given = AnchorDesign.from_cells(cells, design.strides, grid=design.grid, inclusive=design.inclusive)
    assert given.offset == design.offset
    for ours, theirs in zip(given.grid_anchors(256, 320), design.grid_anchors(256, 320), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_an_inclusive_design_spans_the_pixels_of_an_exclusive_one() -> None:
    ours = AnchorDesign(shapes=RETINANET.shapes)
    theirs = AnchorDesign(shapes=RETINANET.shapes, inclusive=True)
    for level in range(5):
        last_pixel = np.array([0, 0, 1, 1])
        np.testing.assert_allclose(theirs.first_cell(level) + last_pixel, ours.first_cell(level), atol=2e-5)


def test_a_design_may_have_other_levels() -> None:
    design = AnchorDesign.from_sizes([[32], [64]], [1.0], levels=("P3", "P4"), strides=(8, 16))
    fine, coarse = design.grid_anchors(16, 32)
    assert fine.tolist()[0] == [-12, -12, 20, 20] and len(fine) == 8
    assert coarse.tolist() == [[-24, -24, 40, 40], [-8, -24, 56, 40]]


def test_faults_of_a_design_are_named() -> None:
    with pytest.raises(ValueError, match="5 levels, 5 strides and 1 sets of shapes"):
        AnchorDesign(shapes=(((8.0, 8.0),),))
    with pytest.raises(ValueError, match="level P2: stride and anchor sides must be positive"):
        AnchorDesign(shapes=(((0.0, 8.0),), *FASTER_RCNN.shapes[1:]))
    with pytest.raises(ValueError, match="share one center"):
        AnchorDesign.from_cells([[[0, 0, 4, 4], [0, 0, 8, 8]]], strides=(4,), levels=("P2",))
    with pytest.raises(ValueError, match="got 1 and 5"):
        AnchorDesign.from_cells([[[0, 0, 4, 4]]])
    for design_of in (torchvision_design, released_design):
        with pytest.raises(ValueError, match=r"unknown detector 'yolo'.*retinanet, retinanet-p3p7, "):
            design_of("yolo")
