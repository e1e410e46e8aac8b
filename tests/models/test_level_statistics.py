"""The counts of FCOS: numeric cases, and the points that the detector itself trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detector_cases import cases_of, point_design

from tinydet.data.samples import Sample
from tinydet.models.batch import collate
from tinydet.models.build import DetectorConfig, build_detector
from tinydet.models.level_statistics import point_statistics
from tinydet.models.registry import detector_info, detector_options
from tinydet.salpha.factors import raw_alpha


def test_the_numeric_cases(shared: Path) -> None:
    for case in cases_of(shared, "salpha_points"):
        given, expected = case["input"], case["expected"]
        design = replace(point_design(given), radius=None)
        options = {"assign": "points", "center_radius": given["centre_sampling_radius"] or 0, "without_point": "none"}
        boxes, sizes = np.array(given["boxes"]), np.array([given["size"][::-1]])
        for rule, statistic in point_statistics(design).items():
            counts = statistic.counts(boxes, sizes, np.zeros(len(boxes), int), options)
            assert statistic.checked(counts, design.levels) == tuple(expected[rule]["counts"])
            first = len(design.levels) - design.unfused
            of_edges = (*np.asarray(counts[:first]).tolist(), int(sum(counts[first:])))
            for ratio, wanted in zip(raw_alpha(of_edges), expected[rule]["raw"], strict=True):
                assert ratio == (None if wanted is None else pytest.approx(wanted, abs=case["tolerance"]))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fcos", {}),
        ("fcos", {"center_radius": 0.0, "without_point": "none"}),
        ("fcos", {"assign": "nwd", "assign_rank": 3}),
        ("fcos", {"assign": "iou", "assign_rank": 2}),
        ("fcos-p3p7", {}),
        ("fcos-p3p7", {"center_radius": 1.0, "without_point": "nearest"}),
        ("fcos-p3p7", {"assign": "rfd", "assign_rank": 1}),
    ],
)
def test_they_are_the_points_that_the_detector_trains(name: str, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    sides, images = np.exp(rng.uniform(1, 5, (24, 2))), np.repeat([0, 1, 1], 8)
    low = rng.uniform(0, 1, (24, 2)) * (256 - sides).clip(0)
    if "assign" in options:  # apart, because an object that loses its best points to others gets another one
        low = np.stack([np.arange(24) % 4, np.arange(24) % 16 // 4], axis=1) * 64 + rng.uniform(4, 20, (24, 2))
        sides = sides.clip(4, 40)
    boxes = np.concatenate([low, np.minimum(low + sides, 256)], axis=1).astype(np.float32)
    samples = [
        Sample(np.zeros((256, 256, 3), np.uint8), boxes[images == n], np.zeros((images == n).sum(), np.int64),
               np.zeros((0, 4), np.float32))
        for n in range(2)
    ]  # fmt: skip
    config = DetectorConfig("mobilenet_v2", 32, "batch", 1, name, options={"head_convs": 1, **options})
    detector = build_detector(config)
    found = detector.matches(collate(samples, torch.device("cpu"), detector.backbone.pixels))  # type: ignore[operator]
    trained = tuple(torch.bincount(found.level, minlength=5).tolist())
    statistic = detector_info(name).statistics["anchor"]
    sizes = np.array([[256, 256]] * 2)
    counts = statistic.counts(boxes.astype(np.float64), sizes, images, detector_options(name, options))
    assert statistic.checked(counts, detector.design.levels) == trained
