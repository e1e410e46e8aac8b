"""Options that several export commands have in common."""

from __future__ import annotations

import argparse
from pathlib import Path

from tinydet._internal.arguments import fraction, positive_int, whole
from tinydet.export.int8 import METHODS
from tinydet.export.verify import MAX_DROP
from tinydet.spec import GRID_ROIS, NMS_ROUNDS, PRECISIONS

SIDE = whole(64, 8192)
MOST_NMS_ROUNDS = 128  # that an export tries


def add_shape_options(parser: argparse.ArgumentParser, *, several_tiles: bool = False) -> None:
    """Add the options that are fixed when a checkpoint is exported to ONNX.

    Args:
        several_tiles: whether `--tile` names all tiles that an engine takes, else the default tile of an ONNX file.
    """
    if several_tiles:
        parser.add_argument(
            "--tile",
            type=tiles,
            metavar="A,B",
            help="sides of the square input in pixels that the engine takes, each from 64 to 8192 and a multiple of 32 "
            "(Libra R-CNN: 64), the default first; one optimization profile each (default: the tile of the model)",
        )
    else:
        parser.add_argument(
            "--tile",
            type=SIDE,
            metavar="PIXELS",
            help="default side of the square input in pixels, from 64 to 8192, a multiple of 32 (Libra R-CNN: 64); the "
            "file takes any such tile (default: as trained)",
        )
    parser.add_argument(
        "--max-detections",
        type=whole(1, 3840),
        metavar="K",
        help="largest number of boxes per tile, up to 3840; for Faster R-CNN and Libra R-CNN also at most proposals "
        "times classes (default: 3840; Faster R-CNN and Libra R-CNN: 1000; Grid R-CNN: --grid-rois)",
    )
    parser.add_argument(
        "--nms-rounds",
        type=whole(1, 1000),
        metavar="N",
        help="two-stage detectors: rounds of suppression among the proposals; the export fails if they are not enough "
        f"(default: {NMS_ROUNDS}, doubled up to {MOST_NMS_ROUNDS} until they are enough)",
    )
    parser.add_argument(
        "--grid-rois",
        type=whole(1, 1000),
        metavar="N",
        help="Grid R-CNN: run the grid branch on the best N proposals of each tile, the most boxes that it can return; "
        f"the time of the branch is proportional to N; at most --max-detections (default: {GRID_ROIS})",
    )


def tiles(text: str) -> tuple[int, ...]:
    """Parse sides of tiles separated by commas, without repetitions.

    >>> tiles("640,1024,640")
    (640, 1024)
    """
    return tuple(dict.fromkeys(SIDE(part) for part in text.split(",")))


def add_precision_options(parser: argparse.ArgumentParser, default: str | None, default_text: str) -> None:
    """Add the options of a conversion to FP16 or INT8."""
    group = parser.add_argument_group("precision")
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=default,
        help=f"precision of the convolutions (default: {default_text})",
    )
    group.add_argument(
        "--calibration",
        type=Path,
        metavar="DIR",
        help="INT8: folder of images to measure activation ranges on (default: the training images of the checkpoint)",
    )
    group.add_argument(
        "--calibration-method",
        choices=tuple(METHODS),
        default="max",
        help="INT8 calibration method; entropy and percentile clip large activations (default: max)",
    )


def add_verification_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the images of a verification and how strict it is."""
    group = parser.add_argument_group("verification")
    group.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="dataset to verify on (default: the validation images of the checkpoint, else its training images)",
    )
    group.add_argument(
        "--images", type=Path, nargs="+", metavar="FILE", help="verify on these images instead, without measuring AP"
    )
    group.add_argument(
        "--limit",
        type=positive_int,
        default=50,
        metavar="N",
        help="use the first N images of the dataset (default: 50)",
    )
    group.add_argument(
        "--max-drop",
        type=fraction,
        default=MAX_DROP,
        metavar="F",
        help=f"largest allowed drop of AP-tiny, as a fraction (default: {MAX_DROP})",
    )
