"""Read catalogues of scenes: STAC items and item collections, and Parquet tables.

The location of a scene in a catalogue is an address, a path, or relative to the catalogue. A Parquet table has one row
per scene, with its location in the column `location`, `path`, `href`, `url` or `scene`; or it is a table of STAC items
(stac-geoparquet), with their assets in the column `assets`.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urljoin

from tinydet._internal.errors import name_failures
from tinydet._internal.extras import needs_extra
from tinydet._internal.json_files import read_json
from tinydet._internal.names import printable
from tinydet._internal.stores import StorePath, is_store, to_path

TABLES = (".parquet", ".geoparquet")
LOCATIONS = ("location", "path", "href", "url", "scene")  # columns of a table, in the order in which they are tried
VISUAL, DATA = "visual", "data"  # roles
NO_SCENE = frozenset({"thumbnail", "overview", "metadata", "mask", "saturation", "cloud", "cloud-shadow"})  # roles
MEDIA = re.compile(r"image/(tiff|jp2|jpeg|png|webp|vnd\.stac\.geotiff)", re.IGNORECASE)
SUFFIX = re.compile(r"\.(tiff?|jp2|jpe?g|png|webp)$", re.IGNORECASE)
MOST_NAMED = 12  # assets that a message lists


@dataclass(frozen=True)
class CatalogueItem:
    """A STAC item that a scene is from.

    Attributes:
        id: its id.
        address: where it was read from, or its own link `self`; empty if unknown. It has no secrets.
        properties: `datetime`, `start_datetime`, `end_datetime`, `platform`, `constellation`, `instruments` and `gsd`.
        collection: the id of its collection; None without one.
    """

    id: str
    address: str
    properties: tuple[tuple[str, Any], ...] = field(default=(), hash=False)  # values may be lists
    collection: str | None = None


KEPT = ("datetime", "start_datetime", "end_datetime", "platform", "constellation", "instruments", "gsd")


@dataclass(frozen=True)
class Entry:
    """A scene that an input names.

    Attributes:
        location: as in `Source`.
        is_scene: whether a catalogue says that it is an image.
        state: size and version, if a listing gave them.
        item: of a STAC item, where the scene is from.
    """

    location: str
    is_scene: bool = False
    state: tuple[int, int] | None = None
    item: CatalogueItem | None = None


def read_catalogue(path: Path, asset: str | None = None) -> list[Entry] | None:
    """Return the scenes of a catalogue, in its order; None if a path is not one.

    Args:
        asset: name or role of the asset of each STAC item. Default: the only image of an item, or `visual`.

    Raises:
        ValueError: the catalogue is damaged or empty, an item lacks the asset, or it has several images and none is
            chosen. Names the catalogue and the item.
        OSError: it cannot be read.
        ModuleNotFoundError: a Parquet table needs pyarrow.
    """
    if path.suffix.lower() in TABLES:
        if not isinstance(path, StorePath) and not path.is_file():
            return None
        return _not_empty(path, _of_table(path, asset))
    if path.suffix.lower() not in (".json", ".geojson") or not (isinstance(path, StorePath) or path.is_file()):
        return None
    try:
        content = read_json(path)
    except ValueError:
        if isinstance(path, StorePath):
            raise
        return None  # which the caller reports as a file that is no image
    if not isinstance(content, dict) or not _is_stac(content):
        return None
    return _not_empty(path, _of_stac(path, content, asset))


def _is_stac(content: dict[str, Any]) -> bool:
    features = content.get("features")
    first = features[0] if isinstance(features, list) and features else content
    return isinstance(first, dict) and ("stac_version" in first or "stac_version" in content)


def _of_stac(path: Path, content: dict[str, Any], asset: str | None) -> Iterator[Entry]:
    kind = content.get("type")
    if kind in ("Catalog", "Collection"):
        raise ValueError(
            f"{path}: a STAC {kind.lower()}, which only links to items; name its items, or save a search as an item "
            "collection"
        )
    features = content.get("features") if kind == "FeatureCollection" else [content]
    if not isinstance(features, list):
        raise ValueError(f"{path}: an item collection without a list of features; get it again")
    links = content.get("links") if kind == "FeatureCollection" else None
    if any(isinstance(link, dict) and link.get("rel") == "next" for link in links or []):
        raise ValueError(f"{path}: one page of a search, which has more; save all items in one item collection")
    for number, item in enumerate(features):
        if not isinstance(item, dict) or not isinstance(item.get("assets"), dict) or not item.get("id"):
            raise ValueError(f"{path}: features[{number}] is not a STAC item with an id and assets; get it again")
        own = [each for each in item.get("links") or [] if isinstance(each, dict) and each.get("rel") == "self"]
        address = str(own[0].get("href", "")) if own else ""
        base = to_path(address) if is_store(address) else path
        properties = item.get("properties") or {}
        yield _entry(path, base, item["id"], item["assets"], asset, properties, item.get("collection"))


def _of_table(path: Path, asset: str | None) -> Iterator[Entry]:
    with needs_extra("tables"):
        import pyarrow.parquet
    with name_failures(path, "read", "it is not a Parquet table"), path.open("rb") as file:
        table = pyarrow.parquet.ParquetFile(file)
        names = table.schema_arrow.names
        chosen = [name for name in ("assets", *LOCATIONS) if name in names][:1]
        if not chosen:
            raise ValueError(
                f"{path}: no column names the scenes ({', '.join(LOCATIONS)}, or assets of STAC items); it has "
                f"{printable(', '.join(names[:MOST_NAMED]))}"
            )
        columns = [name for name in (*chosen, "id", "collection", *KEPT) if name in names]
        rows = [row for batch in table.iter_batches(columns=columns) for row in batch.to_pylist()]
    for number, row in enumerate(rows):
        found = row[chosen[0]]
        if chosen == ["assets"]:
            pairs = found.items() if isinstance(found, Mapping) else found or []
            assets = {name: value for name, value in pairs if value is not None}
            yield _entry(path, path, row.get("id") or number, assets, asset, row, row.get("collection"))
        elif not isinstance(found, str) or not found:
            raise ValueError(f"{path}: row {number} has no {chosen[0]}, got {found!r}; name a file or an address")
        else:
            yield Entry(_absolute(found, path), is_scene=True)


def _entry(
    path: Path,
    base: Path,
    name: Any,
    assets: Mapping[str, Any],
    asset: str | None,
    properties: Mapping[str, Any],
    collection: Any,
) -> Entry:
    """Return the scene of a STAC item.

    Args:
        path: of the catalogue, for messages.
        base: what the locations of assets are relative to.
    """
    where = f"{path}: item {printable(str(name))}"
    key = _choose(where, assets, asset)
    location = assets[key].get("href") if isinstance(assets[key], Mapping) else None
    if not isinstance(location, str) or not location:
        raise ValueError(f"{where}: its asset {key} has no href; get the catalogue again")
    kept = {each: properties[each] for each in KEPT if properties.get(each) is not None}
    plain = tuple((each, value.isoformat() if hasattr(value, "isoformat") else value) for each, value in kept.items())
    item = CatalogueItem(str(name), str(base) if is_store(base) else "", plain, collection and str(collection))
    return Entry(_absolute(location, base), is_scene=True, item=item)


def _choose(where: str, assets: Mapping[str, Any], asset: str | None) -> str:
    """Return the name of the asset that holds the scene."""

    def roles(name: str) -> set[str]:
        found = assets[name].get("roles") if isinstance(assets[name], Mapping) else None
        return set(map(str, found or []))

    listed = ", ".join(f"{printable(name)}" for name in list(assets)[:MOST_NAMED]) or "none"
    if asset is not None:
        if asset in assets:
            return asset
        found = [name for name in assets if asset in roles(name)]
        if len(found) == 1:
            return found[0]
        what = "no asset has" if not found else f"{len(found)} assets have"
        raise ValueError(f"{where}: {what} the name or role {asset!r}; choose one with --asset: {listed}")
    images = [name for name in assets if _is_image(assets[name]) and not roles(name) & NO_SCENE]
    for found in ([name for name in images if name == VISUAL], images):
        for role in (VISUAL, DATA, None):
            chosen = [name for name in found if role is None or role in roles(name)]
            if len(chosen) == 1:
                return chosen[0]
    what = "several images" if images else "no image among its assets"
    raise ValueError(f"{where} has {what}; choose an asset by name or role with --asset: {listed}")


def _is_image(asset: Any) -> bool:
    if not isinstance(asset, Mapping):
        return False
    kind, place = asset.get("type"), str(asset.get("href", "")).partition("?")[0]
    return bool(MEDIA.match(kind) if isinstance(kind, str) else SUFFIX.search(place))


def _absolute(location: str, base: Path) -> str:
    """Return a location that may be relative to a catalogue as one that is not.

    Raises:
        ValueError: a catalogue from a store or server names a file of this machine.
    """
    if isinstance(base, StorePath) and location.lower().startswith(("file:", "/")):
        raise ValueError(
            f"{base}: names a file of this machine, {printable(location)}; a catalogue on a server names addresses"
        )
    if "://" in location:
        return location
    if not isinstance(base, StorePath):
        return os.path.normpath(base.parent / location)
    if base.scheme.startswith("http"):
        return urljoin(base.address, location)
    bucket, _, key = base.key.partition("/")
    joined = posixpath.normpath(posixpath.join(posixpath.dirname(key), unquote(location)))
    if joined.startswith(".."):
        raise ValueError(f"{base}: {printable(location)} is outside its bucket; get the catalogue again")
    return f"{base.scheme}://{bucket}/{PurePosixPath(joined)}"


def _not_empty(path: Path, entries: Iterable[Entry]) -> list[Entry]:
    found = list(entries)
    if not found:
        raise ValueError(f"{path}: a catalogue without scenes; name another")
    return found
