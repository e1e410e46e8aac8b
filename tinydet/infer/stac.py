"""Describe the detections of a scene as a STAC item (1.1.0), whose assets are the files of the run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

import tinydet
from tinydet._internal.stores import is_store
from tinydet.infer.chunks import Tally
from tinydet.infer.jobs import Job
from tinydet.runtime.scan import SceneScan
from tinydet.spec import ModelSpec

MEDIA = {
    ".json": "application/json",
    ".geojson": "application/geo+json",
    ".gpkg": "application/geopackage+sqlite3",
    ".csv": "text/csv",
    ".parquet": "application/vnd.apache.parquet",
    ".txt": "text/plain",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".tif": "image/tiff",
    ".webp": "image/webp",
}
PROCESSING = "https://stac-extensions.github.io/processing/v1.2.0/schema.json"


def detections_item(
    job: Job, files: Sequence[Path], scan: SceneScan, tally: Tally, spec: ModelSpec, model_hash: str
) -> dict[str, Any]:
    """Return the STAC item of a scene's detections as JSON values.

    Its geometry is the outline of the scene; null if that has no longitude and latitude. Its time is that of the STAC
    item that the scene is from; else that of the run.

    Args:
        files: of the detections, which become assets.
        model_hash: SHA-256 of the model file.
    """
    assert job.stac is not None
    now = datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
    source, counts = job.source, tally.by_class.tolist()
    properties: dict[str, Any] = {"datetime": now}
    links = [{"rel": "via", "href": _href(source.path, job.stac), "title": "scene"}]
    if source.item is not None:
        properties = {"datetime": None, **dict(source.item.properties)}
        if source.item.address:
            links.append({"rel": "derived_from", "href": source.item.address, "type": "application/geo+json"})
    properties |= {
        "created": now,
        "processing:datetime": now,
        "processing:software": {"tinydet": tinydet.__version__},
        "tinydet:model_sha256": model_hash,
        "tinydet:detections": sum(counts),
        "tinydet:by_class": dict(zip(spec.classes, counts, strict=True)),
    }
    geometry, bounds = _outline(scan)
    name = source.name if source.item is None else source.item.id
    item: dict[str, Any] = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [PROCESSING],
        "id": f"{name}-detections",
        "geometry": geometry,
        **({} if bounds is None else {"bbox": bounds}),
        "properties": properties,
        "links": links,
        "assets": {},
    }
    for path in files:
        kind = path.suffix.lower()
        role = "overview" if kind in (".jpg", ".jpeg", ".png", ".webp", ".tif") else "data"
        asset = {"href": _href(path, job.stac), "roles": [role]}
        if kind in MEDIA:
            asset["type"] = MEDIA[kind]
        key = "crops" if path == job.crops else "drawing" if path == job.drawing else kind.removeprefix(".")
        item["assets"][key] = asset
    return item


def _outline(scan: SceneScan) -> tuple[dict[str, Any] | None, list[float] | None]:
    """Return the outline of a scene as a GeoJSON geometry, and its bounds; None without longitude and latitude."""
    georeference = getattr(scan, "georeference", None)
    if georeference is None:
        return None, None
    whole = np.array([[0.0, 0.0, scan.scene.width, scan.scene.height]])
    rings = [np.round(ring, 9) for ring in next(iter(georeference.polygons(whole)))]
    if not rings:
        return None, None
    west, east = rings[0][:, 0].min(), rings[-1][:, 0].max()
    if len(rings) > 1:  # across the antimeridian, where the west is greater than the east (RFC 7946, 5.2)
        west, east = max(ring[:, 0].min() for ring in rings), min(ring[:, 0].max() for ring in rings)
    latitudes = np.concatenate(rings)[:, 1]
    bounds = [float(west), float(latitudes.min()), float(east), float(latitudes.max())]
    if len(rings) == 1:
        return {"type": "Polygon", "coordinates": [rings[0].tolist()]}, bounds
    return {"type": "MultiPolygon", "coordinates": [[ring.tolist()] for ring in rings]}, bounds


def _href(path: Path, item: Path) -> str:
    """Return the location of a file, relative to the item if both are on this machine or in one folder."""
    if path.parent == item.parent:
        return f"./{path.name}"
    if is_store(path) or is_store(item):
        return str(path) if is_store(path) else path.absolute().as_uri()
    return Path(os.path.relpath(path, item.parent)).as_posix()
