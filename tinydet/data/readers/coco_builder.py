"""Build a COCO document from another format, with the location of each box for error messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from tinydet._internal.names import printable
from tinydet.data.coco_entries import Fault
from tinydet.data.coco_rules import NO_AREA, OUTSIDE, examine, examine_boxes, examine_objects, read_corner
from tinydet.data.image_files import image_size
from tinydet.runtime.scenes.window import size_mismatch

_MANY = 0.05  # share of objects outside their images above which the images are probably the wrong ones


@dataclass
class CocoBuilder:
    """A COCO document under construction.

    Attributes:
        source: the file or folder that is read.
        categories: COCO categories.
        images, annotations: COCO entries; ids count from 1.
        locations: of each annotation in the source, such as "labels/7.txt line 3"; parallel to `annotations`.
        notes: messages to the user about the conversion.
        extra: other keys of the document.
    """

    source: Path
    categories: list[dict[str, Any]]
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    locations: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def add_image(self, file_name: str, size: tuple[int, int], **fields: Any) -> int:
        """Add an image and return its id.

        Raises:
            ValueError: the name is not valid UTF-8, or leaves the image folder.
        """
        width, height = size
        try:
            file_name.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"{self.source}: the image name {printable(file_name)} is not UTF-8; rename the file"
            ) from None
        if PurePosixPath(file_name).is_absolute() or ".." in PurePosixPath(file_name).parts:
            raise ValueError(f"{self.source}: the image name {file_name!r} leaves the image folder; correct it")
        self.images.append(
            {"id": len(self.images) + 1, "file_name": file_name, "width": width, "height": height, **fields}
        )
        return len(self.images)

    def add_box(
        self,
        image_id: int,
        category: int | str,
        xywh: Sequence[float],
        location: str,
        *,
        ignore: bool = False,
        crowd: bool = False,
        **fields: Any,
    ) -> None:
        """Add an object, or an ignore region.

        Args:
            category: id of the category, or its name if `number_categories` follows.
            xywh: x, y, width, height in pixels of the image.
            location: file and line of the box in the source.
        """
        self.annotations.append(
            {
                "id": len(self.annotations) + 1,
                "image_id": image_id,
                "category_id": category,
                "bbox": list(xywh),
                "area": xywh[2] * xywh[3],
                "iscrowd": int(crowd),
                "ignore": int(ignore),
                **fields,
            }
        )
        self.locations.append(location)

    def check_sizes(self, images: Path, sources: Sequence[object] = ()) -> None:
        """Check that every image file has the size that the annotations record.

        Args:
            images: folder of the images.
            sources: where the size of each image is recorded, for error messages; empty for `source`.

        Raises:
            ValueError: an image has another size; names the first and counts the others.
            OSError: an image file is missing or cannot be read.
        """
        wrong = []
        for n, entry in enumerate(self.images):
            path = images / entry["file_name"]
            actual = image_size(path)
            size = int(entry["width"]), int(entry["height"])
            if (recorded := size_mismatch(size, read_corner(entry.get("corner")), *actual)) is not None:
                where = sources[n] if sources else f"{self.source}: image {entry['id']}"
                wrong.append(f"{where} {recorded}, but {path} is {actual[0]}x{actual[1]} pixels")
        if wrong:
            more = f" (and {len(wrong) - 1} more like it)" if len(wrong) > 1 else ""
            raise ValueError(
                f"{wrong[0]}{more}: the boxes would be misplaced; use the images that were annotated, or correct "
                "the recorded size"
            )

    def number_categories(
        self, published: Sequence[str], listed: Sequence[str] | None, also: Iterable[str] = ()
    ) -> None:
        """Number the categories from 1 and replace their names in the annotations by the ids.

        Args:
            published: classes of the published dataset in the order of their numbers.
            listed: all classes in the order that the user wants. None keeps the published numbers, or numbers the
                classes alphabetically if one of them is not published.
            also: classes that occur in other splits of the dataset.

        Raises:
            ValueError: `listed` lacks a name.
        """
        found = sorted({annotation["category_id"] for annotation in self.annotations}.union(also))
        if listed is not None:
            if unknown := [name for name in found if name not in listed]:
                named = (n for n, entry in enumerate(self.annotations) if entry["category_id"] == unknown[0])
                first = next((self.locations[n] for n in named), str(self.source))
                raise ValueError(f"{first}: {unknown[0]!r} is not among the classes: {', '.join(listed)}")
            number = {name: n for n, name in enumerate(listed, 1)}
        elif set(found) <= set(published):
            number = {name: n for n, name in enumerate(published, 1) if name in found}
        else:
            number = {name: n for n, name in enumerate(found, 1)}
        self.categories = [{"id": n, "name": name} for name, n in number.items()]
        for annotation in self.annotations:
            annotation["category_id"] = number[annotation["category_id"]]

    def to_coco(self) -> dict[str, Any]:
        """Return the document, which `load_dataset` accepts.

        Objects without an area or outside their image, which occur in published datasets, are removed with a note.

        Raises:
            ValueError: the first other fault.
        """
        document: dict[str, Any] = {
            **self.extra,
            "images": self.images,
            "annotations": self.annotations,
            "categories": self.categories,
        }
        faults: list[Fault] = []
        contents = examine(document, faults.append)
        examine_boxes(contents, faults.append)
        removed: set[int] = set()
        for fault in faults:
            if fault.rule not in (NO_AREA, OUTSIDE):
                raise ValueError(f"{self.source}: {fault.first()}")
            what = fault.rule.replace("object", "object" + "s" * (len(fault.entries) > 1), 1)
            first = self.locations[fault.entries[0]]
            many = fault.rule == OUTSIDE and len(fault.entries) > _MANY * len(self.annotations)
            doubt = "; are these the annotated images, at their original size?" if many else ""
            self.notes.append(f"{len(fault.entries)} {what} left out, the first of {first}{doubt}")
            removed.update(fault.entries)
        document["annotations"] = [entry for n, entry in enumerate(self.annotations) if n not in removed]
        faults.clear()
        examine_objects(examine(document, faults.append), faults.append)
        if faults:
            raise ValueError(f"{self.source}: {faults[0].first()}")
        return document
