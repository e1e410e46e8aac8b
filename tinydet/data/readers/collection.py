"""A COCO document in the making, which remembers where in the source each box stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinydet.data.coco_rules import NO_AREA, OUTSIDE, Fault, examine, examine_boxes, examine_objects


@dataclass
class Collection:
    """What a reader found.

    Attributes:
        source: the file or folder that was read.
        categories: COCO categories.
        images, annotations: COCO entries; ids count from 1.
        places: where in the source each annotation stands, "labels/7.txt line 3"; parallel to `annotations`.
        notes: what a user should know about the conversion, a sentence each.
        extra: other keys of the document.
    """

    source: Path
    categories: list[dict[str, Any]]
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def add_image(self, file_name: str, size: tuple[int, int], **fields: Any) -> int:
        """Returns its id."""
        width, height = size
        self.images.append(
            {"id": len(self.images) + 1, "file_name": file_name, "width": width, "height": height, **fields}
        )
        return len(self.images)

    def add_box(
        self,
        image_id: int,
        category: int | str,
        xywh: Sequence[float],
        place: str,
        *,
        ignore: bool = False,
        crowd: bool = False,
        **fields: Any,
    ) -> None:
        """An object, or with `ignore` a region where there is nothing to find and nothing to punish.

        Args:
            category: its id, or its name, for `number_categories`.
            xywh: pixels of the image.
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
        self.places.append(place)

    def number_categories(self, published: Sequence[str], listed: Sequence[str] | None) -> None:
        """Give categories their ids, from 1, where the boxes hold names so far.

        Args:
            published: the classes of the published data set, in its order; they keep their number there.
            listed: all classes in the order that the user wants; None for the published numbers, or for the alphabet
                where a name is not among them.

        Raises:
            ValueError: where `listed` lacks a name.
        """
        found = sorted({annotation["category_id"] for annotation in self.annotations})
        if listed is not None:
            if unknown := [name for name in found if name not in listed]:
                place = next(
                    p for a, p in zip(self.annotations, self.places, strict=True) if a["category_id"] == unknown[0]
                )
                raise ValueError(f"{place}: {unknown[0]!r} is not among the classes of --classes: {', '.join(listed)}")
            number = {name: n for n, name in enumerate(listed, 1)}
        elif set(found) <= set(published):
            number = {name: n for n, name in enumerate(published, 1) if name in found}
        else:
            number = {name: n for n, name in enumerate(found, 1)}
        self.categories = [{"id": n, "name": name} for name, n in number.items()]
        for annotation in self.annotations:
            annotation["category_id"] = number[annotation["category_id"]]

    def to_coco(self) -> dict[str, Any]:
        """The document, which `load_dataset` accepts.

        Objects without an area or outside their image, which published sets have too, are left out; a note says so.

        Raises:
            ValueError: the first other fault, naming the source.
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
        lost: set[int] = set()
        for fault in faults:
            if fault.rule not in (NO_AREA, OUTSIDE):
                raise ValueError(f"{self.source}: {fault.first()}")
            what = fault.rule.replace("object", "object" + "s" * (len(fault.entries) > 1), 1)
            self.notes.append(f"{len(fault.entries)} {what} left out, the first of {self.places[fault.entries[0]]}")
            lost.update(fault.entries)
        document["annotations"] = [entry for n, entry in enumerate(self.annotations) if n not in lost]
        faults.clear()
        examine_objects(examine(document, faults.append), faults.append)
        if faults:
            raise ValueError(f"{self.source}: {faults[0].first()}")
        return document
