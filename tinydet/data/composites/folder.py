"""The folder of a run: images, a journal that lets an interrupted run resume, annotations and attribution."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinydet._internal.atomic import write_json, write_text
from tinydet.data.composites.manifest import CATEGORIES, Photo, PhotoSet
from tinydet.data.composites.scene import Composite
from tinydet.data.composites.streets import SOURCE

VERSION = 1  # of the generator; raise it when a seed gives other pixels
JOURNAL = "composites.jsonl"
ATTRIBUTION = "ATTRIBUTION.md"
UNLABELED = "unlabeled"  # category of ignore regions around real objects that are not annotated
MESH_CREDIT = "MakeHuman base mesh and rig, CC0 1.0, https://github.com/makehumancommunity/makehuman"


@dataclass(frozen=True)
class Settings:
    """What determines every image, besides its number.

    Attributes:
        streets: share of images with drawn streets.
        photos: hash of the manifest and of the photos' names and sizes; empty without photos.
    """

    seed: int
    width: int
    height: int
    streets: float
    photos: str
    version: int = VERSION


def hash_of_photos(photos: Sequence[Photo]) -> str:
    """Return a hash of what the manifest says about the photos, and of their names and sizes."""
    digest = hashlib.sha256()
    for photo in photos:
        digest.update(f"{photo.name} {photo.path.stat().st_size} {photo.view.model_dump_json()}\n".encode())
        digest.update(f"{photo.group.model_dump_json(exclude={'photos'})} {photo.real}\n".encode())
    return digest.hexdigest()[:16] if photos else ""


def image_name(n: int) -> str:
    return f"{n:06d}.jpg"


def entry_of(n: int, composite: Composite) -> dict[str, Any]:
    """Return the line of the journal for image `n`."""
    return {"image": n, "source": composite.source, "photo": composite.photo, "px_per_m": composite.scale,
            "labels": [list(label) for label in composite.labels]}  # fmt: skip


def read_journal(folder: Path, settings: Settings) -> dict[int, dict[str, Any]]:
    """Return the entries of the images that an earlier run finished, by number; none for a new folder.

    Raises:
        ValueError: the folder has other content, or was begun with other settings.
    """
    journal = folder / JOURNAL
    if not folder.exists() or (folder.is_dir() and not any(each.name != ".lock" for each in folder.iterdir())):
        return {}
    if not journal.is_file():
        what = "is a file" if folder.is_file() else f"has no {JOURNAL}: it was not begun by this command"
        raise ValueError(f"{folder} {what}; name a new folder")
    lines = journal.read_text(encoding="utf-8").splitlines()
    begun, *entries = [_parsed(line) for line in lines] or [None]
    if begun is None or "seed" not in begun:
        raise ValueError(f"{journal} is damaged; name a new folder, or remove {folder}")
    wanted = asdict(settings)
    if changed := [name for name in wanted if begun.get(name) != wanted[name]]:
        shown = ", ".join(f"{name} {begun.get(name)}, now {wanted[name]}" for name in changed)
        raise ValueError(f"{folder} was begun with other settings ({shown}); give the same ones to continue it, or "
                         "name a new folder")  # fmt: skip
    done = {entry["image"]: entry for entry in entries if entry is not None}
    return {n: entry for n, entry in done.items() if (folder / "images" / image_name(n)).is_file()}


def begin(folder: Path, settings: Settings, done: Iterable[dict[str, Any]]) -> None:
    """Rewrite the journal with the finished images only, which removes a line that a crash cut off."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = [asdict(settings), *done]
    write_text(folder / JOURNAL, "".join(json.dumps(line) + "\n" for line in lines))


def finish(folder: Path, settings: Settings, entries: Sequence[dict[str, Any]], photos: Sequence[Photo]) -> None:
    """Write the annotations and the attribution of all images in the journal."""
    groups = {photo.group.name: photo.group for photo in photos}
    used = sorted({entry["source"] for entry in entries}, key=lambda name: (name != SOURCE, name))
    licenses = [{"id": n + 1, "name": _license(groups.get(name)), "url": _url(groups.get(name))}
                for n, name in enumerate(used)]  # fmt: skip
    number = {name: n + 1 for n, name in enumerate(used)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    names = [*CATEGORIES, UNLABELED]
    for entry in entries:
        n = entry["image"]
        images.append({"id": n + 1, "file_name": image_name(n), "width": settings.width, "height": settings.height,
                       "license": number[entry["source"]], "source": entry["source"], "photo": entry["photo"],
                       "px_per_m": entry["px_per_m"]})  # fmt: skip
        for category, box, ignore, kind in entry["labels"]:
            annotations.append({"id": len(annotations) + 1, "image_id": n + 1,
                                "category_id": names.index(category or UNLABELED) + 1, "bbox": box,
                                "area": round(box[2] * box[3], 2), "iscrowd": int(ignore), "ignore": int(ignore),
                                "kind": kind})  # fmt: skip
    occurring = {annotation["category_id"] for annotation in annotations}
    categories = [{"id": n + 1, "name": name, "supercategory": name} for n, name in enumerate(names)
                  if name in CATEGORIES or n + 1 in occurring]  # fmt: skip
    what = "People and vehicles rendered into aerial photos and drawn streets by tinydet"
    info = {"description": f"{what}; sources and licenses in {ATTRIBUTION}", **asdict(settings)}
    write_text(folder / ATTRIBUTION, _attribution(groups, entries, used, photos))
    write_json(folder / "annotations.json", {"info": info, "licenses": licenses, "categories": categories,
                                             "images": images, "annotations": annotations})  # fmt: skip


def _attribution(
    groups: Mapping[str, PhotoSet], entries: Sequence[dict[str, Any]], used: Sequence[str], photos: Sequence[Photo]
) -> str:
    """Return a table of the sets, and the credits of single photos, in Markdown."""
    counts = {name: sum(entry["source"] == name for entry in entries) for name in used}
    lines = ["# Attribution", "", "Images composed by tinydet: rendered people and vehicles on the backgrounds "
             "below.", "", "| set | images | license | attribution | source |", "| --- | --- | --- | --- "
             "| --- |"]  # fmt: skip
    for name in used:
        group = groups.get(name)
        if group is None:
            lines.append(f"| {name} | {counts[name]} | drawn by tinydet | | |")
        else:
            cells = (name, counts[name], group.license, group.attribution, group.url)
            lines.append("| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |")
    shown = {entry["photo"] for entry in entries}
    credits = [f"- {photo.name}: {photo.view.credit}" for photo in photos if photo.view.credit and photo.name in shown]
    by_photo = ["", "Single photos:", "", *credits] if credits else []
    return "\n".join([*lines, *by_photo, "", f"People: {MESH_CREDIT}", ""])


def _license(group: PhotoSet | None) -> str:
    return "drawn by tinydet" if group is None else group.license


def _url(group: PhotoSet | None) -> str:
    return "" if group is None else group.url


def _parsed(line: str) -> dict[str, Any] | None:
    """Return the content of a line; None if it was cut off."""
    try:
        content = json.loads(line)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
