"""The manifest of background photos: licenses, scale, and what is known about each photo.

A manifest is a JSON file with a list `sets`. All coordinates are fractions of the width and height of the photo, so
they hold for a reduced copy too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinydet._internal.arguments import quoted
from tinydet._internal.json_files import read_json
from tinydet.data.coco import load_dataset
from tinydet.data.composites.background import Real

logger = logging.getLogger(__name__)

Class = Literal["person", "vehicle"]
CATEGORIES: tuple[Class, ...] = ("person", "vehicle")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
Fraction = Annotated[float, Field(ge=0, le=1)]
Box = tuple[Fraction, Fraction, Fraction, Fraction]  # x, y, width, height
Polygon = Annotated[list[tuple[Fraction, Fraction]], Field(min_length=3)]
Degrees = Annotated[float, Field(ge=-360, le=360)]
Sun = tuple[Degrees, Annotated[float, Field(ge=10, le=90)]] | Literal["overcast"]
Surface = Literal["paved", "unpaved"]
Scale = Annotated[float, Field(gt=0.001, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class View(_Strict):
    """What may be said of a set, and again of one of its photos.

    Attributes:
        gsd: ground sample distance at the center of the photo in meters per pixel, or its lowest and highest value
            where it is unknown or the ground shows no scale.
        pitch: of the camera below the horizon in degrees; 90 looks straight down.
        fov: horizontal angle of view in degrees.
        sun: direction of the light: degrees clockwise from the top of the photo, and height above the horizon; or
            "overcast". Default: unknown.
        surfaces: where objects may stand, by an estimate from color and texture: on smooth gray ground ("paved"), on
            smooth ground of another color ("unpaved"), or both; gray roofs look paved, red ones unpaved.
        roughness: contrast up to which ground counts as smooth (default: 0.06 to 0.13, by the photo).
        ground: polygons in which objects may stand, whatever the estimate says.
        blocked: polygons in which nothing stands: roofs, water, trees.
        ignore: boxes around real objects that are not annotated.
        credit: who made this photo and where it is, where the license asks for it by photo.
    """

    gsd: Scale | tuple[Scale, Scale] | None = None
    pitch: Annotated[float, Field(ge=10, le=90)] | None = None
    fov: Annotated[float, Field(ge=5, le=130)] | None = None
    sun: Sun | None = None
    surfaces: tuple[Surface, ...] = ("paved", "unpaved")
    roughness: Annotated[float, Field(gt=0, le=1)] | None = None
    ground: list[Polygon] = []
    blocked: list[Polygon] = []
    ignore: list[Box] = []
    credit: str = ""


class PhotoSet(View):
    """Photos of one origin.

    Attributes:
        license, attribution, url: as the result names them.
        files: paths relative to the photo folder; `*` and `?` stand for any characters.
        weight: share of this set among all backgrounds.
        objects: COCO file with the real objects of the photos, relative to the photo folder.
        classes: the class, person or vehicle, of each category of `objects`.
        paste: classes to render into the photos; none for negatives.
        ignore_objects: whether the real objects become ignore regions.
        photos: what is known of single photos, by file name or path.
    """

    name: Annotated[str, Field(min_length=1, max_length=100)]
    license: Annotated[str, Field(min_length=1)]
    attribution: str = ""
    url: str = ""
    files: Annotated[list[str], Field(min_length=1)]
    weight: Annotated[float, Field(ge=0)] = 1.0
    objects: str | None = None
    classes: dict[str, Class] = {}
    paste: tuple[Class, ...] = CATEGORIES
    ignore_objects: bool = False
    photos: dict[str, View] = {}


class _Manifest(_Strict):
    sets: Annotated[list[PhotoSet], Field(min_length=1)]


@dataclass(frozen=True)
class Photo:
    """A photo of a set.

    Attributes:
        path: of the file.
        name: path relative to the photo folder, as the result names it.
        group: the set that it belongs to.
        view: what is known of it, from the photo and its set.
        real: annotated objects, xyxy in fractions of the photo.
    """

    path: Path
    name: str
    group: PhotoSet
    view: View
    real: tuple[Real, ...] = ()


def read_manifest(path: Path, folder: Path | None = None) -> list[Photo]:
    """Read a manifest and find its photos.

    Args:
        folder: of the photos; None: that of the manifest.

    Returns:
        The photos in a fixed order, those of a set together.

    Raises:
        ValueError: the manifest is malformed, a photo is missing, or two sets have one name. Says what to do.
    """
    content = read_json(path)
    try:
        manifest = _Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise ValueError(f"{path}: {place}: {first['msg']}; see `docs/composites.md` for the format") from error
    folder = path.parent if folder is None else folder
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; name the folder of the photos with --photos")
    names = [group.name for group in manifest.sets]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{path}: two sets are named {quoted(twice[0])}; give each its own name")
    found = [photo for group in manifest.sets for photo in _photos(path, folder, group)]
    if not any(photo.group.weight > 0 for photo in found):
        raise ValueError(f"{path}: all sets have weight 0; give one of them a positive weight")
    return found


def _photos(manifest: Path, folder: Path, group: PhotoSet) -> list[Photo]:
    paths: dict[str, Path] = {}
    for pattern in group.files:
        matches = [each for each in sorted(folder.glob(pattern)) if each.suffix.lower() in IMAGE_SUFFIXES]
        if not matches:
            raise ValueError(f"{folder} has no photo {quoted(pattern)} of the set {quoted(group.name)} in {manifest}; "
                             "name the folder of the photos with --photos, or remove the set")  # fmt: skip
        paths |= {each.relative_to(folder).as_posix(): each for each in matches}
    known = {key: key for key in paths} | {each.name: key for key, each in paths.items()}
    if unknown := [name for name in group.photos if name not in known]:
        raise ValueError(f"{manifest}: the set {quoted(group.name)} describes {quoted(unknown[0])}, which is none of "
                         "its files; correct the name or remove the entry")  # fmt: skip
    own = {known[name]: view for name, view in group.photos.items()}
    real = _real_objects(manifest, folder, group)
    if group.objects is not None and (unlisted := [name for name, file in paths.items() if file.name not in real]):
        logger.warning("%s: %d files of the set %s are left out, such as %s: %s does not list them", manifest,
                       len(unlisted), quoted(group.name), quoted(unlisted[0]), group.objects)  # fmt: skip
        for name in unlisted:
            del paths[name]
        if not paths:
            raise ValueError(f"{manifest}: {group.objects} lists no file of the set {quoted(group.name)}; correct "
                             "`objects` or `files`")  # fmt: skip
    photos = []
    for name, file in paths.items():
        given = own.get(name, View())
        fields = {key: getattr(given, key) if key in given.model_fields_set else getattr(group, key)
                  for key in View.model_fields}  # fmt: skip
        view = View(**fields)
        if isinstance(view.gsd, tuple) and view.gsd[0] > view.gsd[1]:
            raise ValueError(f"{manifest}: the set {quoted(group.name)} has the `gsd` {list(view.gsd)} for "
                             f"{quoted(name)}; give the lowest value first")  # fmt: skip
        if view.gsd is None and group.paste:
            raise ValueError(f"{manifest}: the set {quoted(group.name)} has no `gsd` for {quoted(name)}; add the "
                             "ground sample distance in meters per pixel, or a range")  # fmt: skip
        photos.append(Photo(file, name, group, view, real.get(file.name, ())))
    return photos


def _real_objects(manifest: Path, folder: Path, group: PhotoSet) -> Mapping[str, tuple[Real, ...]]:
    """Return the annotated objects by file name."""
    if group.objects is None:
        return {}
    source = folder / group.objects
    if not source.is_file():
        raise ValueError(f"{source}, the annotations of the set {quoted(group.name)} in {manifest}, is no file; name "
                         "the folder of the photos with --photos, or correct `objects`")  # fmt: skip
    dataset = load_dataset(source)
    classes = {name: name for name in CATEGORIES} | group.classes
    if unknown := [name for name in dataset.classes if name not in classes]:
        raise ValueError(f"{source} has the category {quoted(unknown[0])}; say in `classes` of the set "
                         f"{quoted(group.name)} whether it is a person or a vehicle")  # fmt: skip
    found: dict[str, tuple[Real, ...]] = {}
    for n, image in enumerate(dataset.images):
        entries = dataset.of_image(n)
        boxes = (entries.boxes / np.array((image.width, image.height) * 2, float)).tolist()
        ignored = entries.ignore | group.ignore_objects
        found[Path(image.file_name).name] = tuple(
            Real(classes[dataset.classes[label]] if label >= 0 else "", (x1, y1, x2, y2), bool(skip))
            for (x1, y1, x2, y2), label, skip in zip(boxes, entries.labels.tolist(), ignored.tolist(), strict=True)
        )
    return found
