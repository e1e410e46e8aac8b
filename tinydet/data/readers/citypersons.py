"""CityPersons: persons in the street scenes of Cityscapes, one MATLAB file for each split.

`anno_train.mat` and `anno_val.mat` hold a cell for each image, of `cityname`, `im_name` and `bbs`, whose rows are
`[class, x, y, w, h, instance, x_vis, y_vis, w_vis, h_vis]`: the whole body, and what is seen of it. Published in
cvgroup-njust/CityPersons. Tiny CityPersons is the same at a quarter of the size (Gong et al., WACV 2021).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.extras import needs_extra
from tinydet.data.readers.collection import Collection
from tinydet.data.readers.text import to_whole

CATEGORIES = ("ignore", "pedestrian", "rider", "sitting_person", "person_unusual", "group")
IGNORED = (0, 5)  # regions that look like people (posters, reflections), and groups that nobody can count
PEDESTRIAN = 1
SIZE = (2048, 1024)
TINY = 4
_ROW = "[class, x, y, w, h, instance, x_vis, y_vis, w_vis, h_vis]"


def read(source: Path, images: Path | None = None, *, shrink: int = 1, pedestrians_only: bool = False) -> Collection:
    """One `.mat` file. `file_name` is `city/picture`, or what of it is found in the folder of images.

    Args:
        images: folder of the pictures; None leaves them out.
        shrink: images and boxes are this many times smaller; `TINY` for Tiny CityPersons.
        pedestrians_only: one class `pedestrian`, of which riders, sitting and unusual persons are ignore regions, as
            in the benchmark's own ground truth: a detection of a rider is then neither right nor wrong.

    Raises:
        ValueError: naming the file, the image and the row.
        ModuleNotFoundError: SciPy is not installed.
    """
    size = (SIZE[0] // shrink, SIZE[1] // shrink)
    kept = [PEDESTRIAN] if pedestrians_only else range(len(CATEGORIES))
    found = Collection(source, [{"id": n, "name": CATEGORIES[n]} for n in kept])
    for number, cell in enumerate(_cells(source), 1):
        where = f"{source}: image {number}"
        city, picture, rows = _fields(cell, where)
        where = f"{source}: image {number} ({picture})"
        image_id = found.add_image(_file_name(city, picture, images, where), size)
        for n, row in enumerate(rows.tolist(), 1):
            place = f"{where} row {n}"
            if not np.isfinite(row).all():
                raise ValueError(f"{place}: {row} is not finite; expected {_ROW}")
            kind = to_whole(row[0], 0, len(CATEGORIES) - 1, place, "class")
            found.add_box(
                image_id,
                PEDESTRIAN if pedestrians_only else kind,
                [side / shrink for side in row[1:5]],
                place,
                ignore=kind in IGNORED or (pedestrians_only and kind != PEDESTRIAN),
                vis_bbox=[side / shrink for side in row[6:10]],
                instance_id=int(row[5]),
            )
    return found


def _cells(source: Path) -> list[Any]:
    """What the variable of the file, a row of cells, holds."""
    with needs_extra("formats"):
        import scipy.io
    if not source.is_file():
        raise ValueError(f"{source}: no such file; name anno_train.mat or anno_val.mat of CityPersons")
    again = "get the file again"
    try:
        content = scipy.io.loadmat(source)
    except Exception as error:  # SciPy raises what it happens on: ValueError, TypeError, struct.error, zlib.error, ...
        raise ValueError(
            f"{source}: not a MATLAB file that SciPy reads ({error or type(error).__name__}); {again}"
        ) from error
    names = [name for name in content if name.startswith("anno_")]
    if len(names) != 1 or content[names[0]].dtype != object:
        held = ", ".join(name for name in content if not name.startswith("__")) or "nothing"
        raise ValueError(f"{source}: holds {held}; expected a row of cells, anno_train_aligned or anno_val_aligned")
    return list(content[names[0]].ravel())


def _fields(cell: Any, where: str) -> tuple[str, str, NDArray[np.float64]]:
    """City, picture and rows of a cell."""
    names = getattr(getattr(cell, "dtype", None), "names", None) or ()
    city_key = "cityname" if "cityname" in names else "city_name"
    if cell is None or not {city_key, "im_name", "bbs"} <= set(names) or cell.size != 1:
        raise ValueError(f"{where}: has the fields {', '.join(names) or 'none'}; expected cityname, im_name and bbs")
    entry = cell.ravel()[0]
    texts = [str(entry[key].ravel()[0]) if entry[key].size else "" for key in (city_key, "im_name")]
    rows = entry["bbs"]
    if rows.size == 0:
        rows = np.zeros((0, 10))
    if not texts[1] or rows.ndim != 2 or rows.shape[1] != 10 or rows.dtype.kind not in "uif":
        raise ValueError(f"{where}: im_name {texts[1]!r} and bbs of shape {rows.shape}; expected rows of {_ROW}")
    return texts[0], texts[1], rows.astype(np.float64)


def _file_name(city: str, picture: str, images: Path | None, where: str) -> str:
    names = [f"{city}/{picture}", f"{picture.partition('_')[0]}/{picture}", picture]
    if images is None:
        return names[0]
    for name in names:
        if (images / name).is_file():
            return name
    raise ValueError(f"{where}: neither {names[0]} nor {picture} is in {images}; name leftImg8bit/train or val")
