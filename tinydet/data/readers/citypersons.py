"""CityPersons: people in the street scenes of Cityscapes, one MATLAB file per split.

`anno_train.mat` and `anno_val.mat` hold a cell per image with `cityname`, `im_name` and `bbs`. The rows of `bbs` are
`[class, x, y, w, h, instance, x_vis, y_vis, w_vis, h_vis]`, the box of the full body and that of its visible part. The
files are published in cvgroup-njust/CityPersons. Tiny CityPersons has a quarter of the size (Gong et al., WACV 2021).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.input_files import check_file
from tinydet.data.readers.coco_builder import CocoBuilder
from tinydet.data.readers.mat_file import read_structures
from tinydet.data.readers.text_files import to_integer

CATEGORIES = ("ignore", "pedestrian", "rider", "sitting_person", "person_unusual", "group")
IGNORED = (0, 5)  # people on posters and in reflections; groups that are too dense to count
PEDESTRIAN = 1
SIZE = (2048, 1024)  # width and height of all images
TINY = 4  # `shrink` of Tiny CityPersons
_ROW = "[class, x, y, w, h, instance, x_vis, y_vis, w_vis, h_vis]"


def read(source: Path, images: Path | None = None, *, shrink: int = 1, pedestrians_only: bool = False) -> CocoBuilder:
    """Read a `.mat` file. `file_name` is `city/image`, or the image alone if that is what the folder has.

    Args:
        images: folder of the images, to look up their names and check their size; None takes `city/image` without a
            check.
        shrink: factor by which images and boxes are smaller; `TINY` for Tiny CityPersons.
        pedestrians_only: one class `pedestrian`. Riders, sitting and unusual persons become its ignore regions, as in
            the ground truth of the benchmark: a detection of a rider is then neither right nor wrong.

    Raises:
        ValueError: the file, an image or a row is invalid; the message names it.
        ModuleNotFoundError: SciPy is not installed.
    """
    size = (SIZE[0] // shrink, SIZE[1] // shrink)
    kept = [PEDESTRIAN] if pedestrians_only else range(len(CATEGORIES))
    coco = CocoBuilder(source, [{"id": n, "name": CATEGORIES[n]} for n in kept])
    for number, cell in enumerate(_cells(source), 1):
        location = f"{source}: image {number}"
        city, name, rows = _fields(cell, location)
        location = f"{source}: image {number} ({name})"
        image_id = coco.add_image(_file_name(city, name, images, location), size)
        for n, row in enumerate(rows.tolist(), 1):
            row_location = f"{location} row {n}"
            if not np.isfinite(row).all():
                raise ValueError(f"{row_location}: {row} is not finite; expected {_ROW}")
            kind = to_integer(row[0], 0, len(CATEGORIES) - 1, row_location, "class")
            coco.add_box(
                image_id,
                PEDESTRIAN if pedestrians_only else kind,
                [side / shrink for side in row[1:5]],
                row_location,
                ignore=kind in IGNORED or (pedestrians_only and kind != PEDESTRIAN),
                vis_bbox=[side / shrink for side in row[6:10]],
                instance_id=int(row[5]),
            )
    if images is not None:
        coco.check_sizes(images)
    return coco


def _cells(source: Path) -> list[dict[str, Any]]:
    """Return the cells of the only variable of the file."""
    check_file(source, "name anno_train.mat or anno_val.mat of CityPersons")
    variables = read_structures(source)
    names = [name for name in variables if name.startswith("anno_")]
    if len(names) != 1 or variables[names[0]] is None:
        found = ", ".join(variables)[:200] or "nothing"
        raise ValueError(f"{source}: contains {found}; expected the cells anno_train_aligned or anno_val_aligned")
    return variables[names[0]]  # type: ignore[no-any-return]


def _fields(cell: dict[str, Any], location: str) -> tuple[str, str, NDArray[np.float64]]:
    """Return the city, the image name and the rows of a cell."""
    city_key = "cityname" if "cityname" in cell else "city_name"
    if not {city_key, "im_name", "bbs"} <= set(cell):
        found = ", ".join(cell)[:200] or "none"
        raise ValueError(f"{location}: has the fields {found}; expected cityname, im_name and bbs")
    city, name, rows = cell[city_key] or "", cell["im_name"], cell["bbs"]
    table = np.array([] if rows is None or rows == [[]] else rows, np.float64)
    is_table = rows is not None and (table.size == 0 or (table.ndim == 2 and table.shape[1] == 10))
    if not isinstance(city, str) or not isinstance(name, str) or not name or not is_table:
        raise ValueError(
            f"{location}: im_name {str(name)[:100]!r} and bbs of shape {table.shape}; expected rows of {_ROW}"
        )
    return city, name, table.reshape(-1, 10)


def _file_name(city: str, image: str, images: Path | None, location: str) -> str:
    """Return the name under which the image is found in the folder `images`."""
    names = [f"{city}/{image}", f"{image.partition('_')[0]}/{image}", image]
    if images is None:
        return names[0]
    for name in names:
        if (images / name).is_file():
            return name
    raise ValueError(f"{location}: neither {names[0]} nor {image} is in {images}; name leftImg8bit/train or val")
