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

from tinydet._internal.extras import needs_extra
from tinydet.data.readers.coco_builder import CocoBuilder
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


def _cells(source: Path) -> list[Any]:
    """Return the cells of the only variable of the file."""
    with needs_extra("formats"):
        import scipy.io
    if not source.is_file():
        raise ValueError(f"{source}: no such file; name anno_train.mat or anno_val.mat of CityPersons")
    try:
        content = scipy.io.loadmat(source)
    except Exception as error:  # SciPy raises ValueError, TypeError, struct.error, zlib.error, ...
        raise ValueError(
            f"{source}: not a MATLAB file that SciPy reads ({error or type(error).__name__}); download it again"
        ) from error
    names = [name for name in content if name.startswith("anno_")]
    if len(names) != 1 or content[names[0]].dtype != object:
        variables = ", ".join(name for name in content if not name.startswith("__")) or "nothing"
        raise ValueError(f"{source}: contains {variables}; expected the cells anno_train_aligned or anno_val_aligned")
    return list(content[names[0]].ravel())


def _fields(cell: Any, location: str) -> tuple[str, str, NDArray[np.float64]]:
    """Return the city, the image name and the rows of a cell."""
    names = getattr(getattr(cell, "dtype", None), "names", None) or ()
    city_key = "cityname" if "cityname" in names else "city_name"
    if cell is None or not {city_key, "im_name", "bbs"} <= set(names) or cell.size != 1:
        raise ValueError(f"{location}: has the fields {', '.join(names) or 'none'}; expected cityname, im_name and bbs")
    entry = cell.ravel()[0]
    texts = [str(entry[key].ravel()[0]) if entry[key].size else "" for key in (city_key, "im_name")]
    rows = entry["bbs"]
    if rows.size == 0:
        rows = np.zeros((0, 10))
    if not texts[1] or rows.ndim != 2 or rows.shape[1] != 10 or rows.dtype.kind not in "uif":
        raise ValueError(f"{location}: im_name {texts[1]!r} and bbs of shape {rows.shape}; expected rows of {_ROW}")
    return texts[0], texts[1], rows.astype(np.float64)


def _file_name(city: str, image: str, images: Path | None, location: str) -> str:
    """Return the name under which the image is found in the folder `images`."""
    names = [f"{city}/{image}", f"{image.partition('_')[0]}/{image}", image]
    if images is None:
        return names[0]
    for name in names:
        if (images / name).is_file():
            return name
    raise ValueError(f"{location}: neither {names[0]} nor {image} is in {images}; name leftImg8bit/train or val")
