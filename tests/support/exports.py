"""A small dataset of two splits, written as other programs export it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

CLASSES = ("boat", "person")
WIDTH, HEIGHT = 64, 48
# Image name without suffix: class number, x, y, width, height in pixels. Whole numbers, so that every format is exact.
# `val` has no boat: classes must not depend on what occurs in a split.
TRUTH: dict[str, dict[str, list[tuple[int, int, int, int, int]]]] = {
    "train": {
        "seq1_0001": [(0, 4, 6, 8, 10), (1, 20, 10, 6, 12)],
        "seq1_0002": [(1, 30, 8, 4, 8)],
        "seq2_0001": [],
    },
    "val": {"seq3_0001": [(1, 40, 20, 5, 9)], "seq3_0002": [(1, 10, 12, 6, 6)]},
}


def images(split: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in TRUTH[split]:
        cv2.imwrite(str(folder / f"{name}.png"), np.zeros((HEIGHT, WIDTH, 3), np.uint8))


def coco(split: str, path: Path, prefix: str = "") -> None:
    entries: list[dict[str, Any]] = []
    listed = []
    for n, (name, boxes) in enumerate(TRUTH[split].items(), 1):
        listed.append({"id": n, "file_name": f"{prefix}{name}.png", "width": WIDTH, "height": HEIGHT})
        for number, *box in boxes:
            common = {"iscrowd": 0, "area": box[2] * box[3]}
            entries.append({"id": len(entries) + 1, "image_id": n, "category_id": number + 1, "bbox": box, **common})
    categories = [{"id": n, "name": name} for n, name in enumerate(CLASSES, 1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": listed, "annotations": entries, "categories": categories}))


def yolo(split: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, boxes in TRUTH[split].items():
        lines = [
            f"{number} {(x + w / 2) / WIDTH} {(y + h / 2) / HEIGHT} {w / WIDTH} {h / HEIGHT}"
            for number, x, y, w, h in boxes
        ]
        if lines:  # a program that writes no file for an image without objects
            (folder / f"{name}.txt").write_text("\n".join(lines))


def voc(split: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, boxes in TRUTH[split].items():
        objects = "".join(
            f"<object><name>{CLASSES[number]}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
            f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for number, x, y, w, h in boxes
        )
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        text = f"<annotation><filename>{name}.png</filename>{size}{objects}</annotation>"
        (folder / f"{name}.xml").write_text(text)


def names(split: str, prefix: str) -> str:
    return "".join(f"{prefix}{name}.png\n" for name in TRUTH[split])


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def coco2017(root: Path) -> None:
    for split in TRUTH:
        images(split, root / f"{split}2017")
        coco(split, root / "annotations" / f"instances_{split}2017.json")
    write(root / "annotations" / "captions_train2017.json", '{"images": [], "annotations": [{"caption": "a boat"}]}')


def coco2017_in_images(root: Path) -> None:
    for split in TRUTH:
        images(split, root / "images" / f"{split}2017")
        coco(split, root / "annotations" / f"instances_{split}2017.json")


def coco_folders(root: Path) -> None:
    for split in TRUTH:
        images(split, root / split / "images")
        coco(split, root / split / "annotations.json")


def roboflow_coco(root: Path) -> None:
    for split, folder in (("train", "train"), ("val", "valid")):
        images(split, root / folder)
        coco(split, root / folder / "_annotations.coco.json")
    write(root / "README.roboflow.txt", "exported")


def roboflow_yolo(root: Path) -> None:
    for split, folder in (("train", "train"), ("val", "valid")):
        images(split, root / folder / "images")
        yolo(split, root / folder / "labels")
    paths = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    write(root / "data.yaml", f"{paths}nc: 2\nnames: ['boat', 'person']\n")


def roboflow_voc(root: Path) -> None:
    for split, folder in (("train", "train"), ("val", "valid")):
        images(split, root / folder)
        voc(split, root / folder)


def ultralytics(root: Path, description: str = "path: ../datasets/x\ntrain: images/train\nval: images/val\n") -> None:
    for split in TRUTH:
        images(split, root / "images" / split)
        yolo(split, root / "labels" / split)
    write(root / "data.yaml", f"{description}names:\n  0: boat\n  1: person\n")


def ultralytics_of_another_machine(root: Path) -> None:
    ultralytics(root, "train: /content/drive/x/images/train\nval: C:\\data\\x\\images\\val\n")


def ultralytics_lists(root: Path) -> None:
    ultralytics(root, "train: [train.txt]\nval: val.txt\n")
    for split in TRUTH:
        write(root / f"{split}.txt", names(split, f"./images/{split}/"))


def ultralytics_without_description(root: Path) -> None:
    ultralytics(root)
    (root / "data.yaml").unlink()
    write(root / "classes.txt", "boat\nperson\n")


def cvat_yolo(root: Path) -> None:
    for split, folder in (("train", "obj_train_data"), ("val", "obj_valid_data")):
        images(split, root / folder)
        yolo(split, root / folder)
        write(root / f"{split}.txt", names(split, f"data/{folder}/"))
    write(root / "obj.names", "boat\nperson\n")
    write(root / "obj.data", "classes = 2\ntrain = data/train.txt\nvalid = data/val.txt\nnames = data/obj.names\n")


def cvat_ultralytics(root: Path) -> None:
    ultralytics(root, "path: .\ntrain: train.txt\nval: val.txt\n")
    for split in TRUTH:
        write(root / f"{split}.txt", names(split, f"data/images/{split}/"))


def cvat_xml(root: Path) -> None:
    parts = []
    for split, subset in (("train", "Train"), ("val", "Validation")):
        images(split, root / "images")
        for name, boxes in TRUTH[split].items():
            shapes = "".join(
                f'<box label="{CLASSES[number]}" xtl="{x}.00" ytl="{y}.00" xbr="{x + w}.00" ybr="{y + h}.00"/>'
                for number, x, y, w, h in boxes
            )
            size = f'width="{WIDTH}" height="{HEIGHT}"'
            parts.append(f'<image id="{len(parts)}" name="{name}.png" subset="{subset}" {size}>{shapes}</image>')
    labels = "".join(f"<label><name>{name}</name></label>" for name in CLASSES)
    meta = f"<meta><project><labels>{labels}</labels></project></meta>"
    write(root / "annotations.xml", f"<annotations><version>1.1</version>{meta}{''.join(parts)}</annotations>")


def vocdevkit(root: Path) -> None:
    year = root / "VOCdevkit" / "VOC2012"
    for split in TRUTH:
        images(split, year / "JPEGImages")
        voc(split, year / "Annotations")
        write(year / "ImageSets" / "Main" / f"{split}.txt", "\n".join(TRUTH[split]))
        write(year / "ImageSets" / "Main" / f"boat_{split}.txt", "seq1_0001  1\n")
    write(year / "ImageSets" / "Main" / "trainval.txt", "seq1_0001\n")


def labelme(root: Path) -> None:
    for split in TRUTH:
        images(split, root / split)
        for name, boxes in TRUTH[split].items():
            shapes = [
                {"label": CLASSES[number], "points": [[x + w, y], [x, y + h]], "shape_type": "rectangle"}
                for number, x, y, w, h in boxes
            ]
            content = {"version": "5", "shapes": shapes, "imagePath": f"..\\x\\{name}.png", "imageHeight": HEIGHT}
            write(root / split / f"{name}.json", json.dumps(content))


def dota(root: Path) -> None:
    for split in TRUTH:
        images(split, root / split / "images")
        for name, boxes in TRUTH[split].items():
            lines = [
                f"{x} {y} {x + w} {y} {x + w} {y + h} {x} {y + h} {CLASSES[number]} 0" for number, x, y, w, h in boxes
            ]
            write(root / split / "labelTxt" / f"{name}.txt", "\n".join(["imagesource:GoogleEarth", "gsd:0.1", *lines]))


def visdrone(root: Path) -> None:
    for split in TRUTH:
        folder = root / f"VisDrone2019-DET-{split}"
        images(split, folder / "images")
        for name, boxes in TRUTH[split].items():
            lines = [f"{x},{y},{w},{h},1,{number + 1},0,0" for number, x, y, w, h in boxes]
            write(folder / "annotations" / f"{name}.txt", "\n".join(lines))


# Every layout with its splits `train` and `val`, and the classes of CLASSES.
EXPORTS = {
    each.__name__: each
    for each in (
        coco2017,
        coco2017_in_images,
        coco_folders,
        roboflow_coco,
        roboflow_yolo,
        roboflow_voc,
        ultralytics,
        ultralytics_of_another_machine,
        ultralytics_lists,
        ultralytics_without_description,
        cvat_yolo,
        cvat_ultralytics,
        cvat_xml,
        vocdevkit,
        labelme,
        dota,
    )
}
