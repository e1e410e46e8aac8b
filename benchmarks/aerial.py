"""Make the data of the model `aerial` (people and vehicles in visible light from above), and train it.

    python benchmarks/aerial.py data --data DIR     composes the training images
    python benchmarks/aerial.py val --data DIR      writes the real validation images
    python benchmarks/aerial.py train --weights-backbone mobilenet_v2.pth

Each step can be interrupted and run again: it continues. DIR contains these folders:

- makehuman-cc0: `makehuman/data` of makehumancommunity/makehuman (CC0);
- rgb-backgrounds: drone photos by set, with `index.json`, which lists regions with real, unlabeled cars. What else is
  known of the photos, such as their scale, license and free ground, is in aerial_backgrounds.json;
- aerialcars-kitais: aerial photos with annotated vehicles (CC BY 3.0), into which people are pasted;
- rgb-coco-by: photos of COCO under CC BY 2.0; those without people and vehicles are negatives;
- bigscene-plaza, rgb-minsk-train, rgb-minsk-val: real drone photos, for validation only.

The frames of Minsk and the plaza are CC BY-SA without a version. Nothing is trained on them: weights that learn from
share-alike material may have to carry its license. They are the real validation instead. The people in the frames of
Minsk are not annotated, so a region over the whole image excludes them from the scores. Infrared photos of
rgb-backgrounds (seneca) and its validation photos are left out too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
from environment import ROOT

from tinydet._internal.atomic import write_json
from tinydet._internal.command import command
from tinydet.data.output_folder import new_folder

MANIFEST = Path(__file__).with_name("aerial_backgrounds.json")
IMAGES = 4000
CLASSES = ("person", "vehicle")
PLAZA_SCALES = (0.5, 0.75)  # people of about 15 and 22 pixels
MINSK = (("rgb-minsk-val", 1), ("rgb-minsk-train", 5))  # folder, and which frames: each, or every fifth
RECIPE = ["--salpha", "--preset", "small", "--detector", "retinanet", "--epochs", "20", "--decay", "cosine",
          "--ema", "0.999", "--augment", "scale,photometric", "--validate-every", "4",
          "--categories", ",".join(CLASSES)]  # fmt: skip


@command("benchmarks/aerial.py")
def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    if args.step == "data":
        manifest = args.work / "backgrounds.json"
        write_json(manifest, manifest_of(args.data))
        run("tinydet", "data", "compose", args.work / "train", "--mesh", args.data / "makehuman-cc0", "--backgrounds",
            manifest, "--photos", args.data, "--images", args.images, "--seed", args.seed, "--streets", args.streets,
            "--workers", args.threads)  # fmt: skip
    elif args.step == "val":
        write_validation(args.data, args.work / "val")
    else:
        output = args.work / "aerial.pth"
        resume = ["--resume"] if output.with_suffix(".resume.pth").exists() else []
        run("tinydet.train", *RECIPE, "--data", args.work / "train", "--val", args.work / "val", "--weights-backbone",
            args.weights_backbone, "--output", output, "--json", output.with_suffix(".json"), "--no-tensorboard",
            "--threads", args.threads, *resume)  # fmt: skip
    return 0


def manifest_of(data: Path) -> dict[str, Any]:
    """Return the manifest with the ignore regions and credits that the folders of the photos hold."""
    manifest: dict[str, Any] = json.loads(MANIFEST.read_text())
    unlabeled = json.loads((data / "rgb-backgrounds" / "index.json").read_text())["ign"]
    coco = json.loads((data / "rgb-coco-by" / "annotations.json").read_text())
    occupied = {entry["image_id"] for entry in coco["annotations"]}
    negatives = [image for image in coco["images"] if image["id"] not in occupied]
    for group in manifest["sets"]:
        photos = group.setdefault("photos", {})
        for name in group["files"]:
            if boxes := unlabeled.get(name.removeprefix("rgb-backgrounds/")):
                inside = [[min(max(value, 0.0), 1.0) for value in box] for box in boxes]
                photos.setdefault(Path(name).name, {})["ignore"] = inside
        if group["name"] == "coco-by":
            group["files"] = [f"rgb-coco-by/images/{image['file_name']}" for image in negatives]
            photos |= {image["file_name"]: {"credit": image["flickr_url"]} for image in negatives}
    return manifest


def write_validation(data: Path, folder: Path) -> None:
    """Write the real validation set, reduced photos of the plaza and frames of Minsk, as a COCO folder."""
    if folder.exists():
        print(f"{folder} exists already")
        return
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    with new_folder(folder) as work:
        (work / "images").mkdir()
        sources = [("bigscene-plaza", 2, scale) for scale in PLAZA_SCALES]  # the second file is the same photo
        sources += [(name, step, 1.0) for name, step in MINSK]
        for name, step, scale in sources:
            document = json.loads((data / name / "annotations.json").read_text())
            names = {entry["id"]: "person" if entry["name"] == "person" else "vehicle"
                     for entry in document["categories"]}  # fmt: skip
            for image in document["images"][::step]:
                pixels = cv2.imread(str(data / name / "images" / image["file_name"]))
                reduced = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
                number, (height, width) = len(images) + 1, reduced.shape[:2]
                file_name = f"{name}-{scale:g}-{Path(image['file_name']).stem}.jpg"
                cv2.imwrite(str(work / "images" / file_name), reduced, [cv2.IMWRITE_JPEG_QUALITY, 95])
                images.append({"id": number, "file_name": file_name, "width": width, "height": height})
                boxes = [(names[entry["category_id"]], [value * scale for value in entry["bbox"]], 0)
                         for entry in document["annotations"] if entry["image_id"] == image["id"]]  # fmt: skip
                if name != "bigscene-plaza":
                    boxes.append(("person", [0.0, 0.0, width, height], 1))
                for label, box, ignore in boxes:
                    entry = {"id": len(annotations) + 1, "image_id": number, "category_id": CLASSES.index(label) + 1}
                    flags = {"area": box[2] * box[3], "iscrowd": ignore, "ignore": ignore}
                    annotations.append({**entry, "bbox": box, **flags})
        categories = [{"id": n + 1, "name": name, "supercategory": name} for n, name in enumerate(CLASSES)]
        write_json(work / "annotations.json", {"images": images, "annotations": annotations, "categories": categories})
    print(f"{folder}: {len(images)} images, {len(annotations)} boxes")


def run(module: str, *options: object) -> None:
    done = subprocess.run([sys.executable, "-m", module, *map(str, options)], cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"python -m {module} {options[0]} failed; its message is above")


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("step", choices=("data", "val", "train"), help="what to make")
    add("--data", type=Path, default=ROOT.parent / "shared" / "data", metavar="DIR",
        help="folder of the sources (default: ../shared/data)")  # fmt: skip
    add("--images", type=int, default=IMAGES, help=f"training images to compose (default: {IMAGES})")
    add("--streets", type=float, default=0.4, help="share of images with drawn streets (default: 0.4)")
    add("--seed", type=int, default=16, help="seed of the training images (default: 16)")
    add("--weights-backbone", default="default", metavar="default|FILE",
        help="ImageNet weights of MobileNetV2, or default to download them (default: default)")  # fmt: skip
    add("--threads", type=int, default=os.cpu_count(), help="processes and CPU threads (default: all cores)")
    add("--work", type=Path, default=ROOT / "runs" / "aerial", metavar="DIR",
        help="folder of images, models and logs (default: runs/aerial)")  # fmt: skip
    args = parser.parse_args(argv)
    args.data, args.work = args.data.resolve(), args.work.resolve()
    if args.step != "train" and not args.data.is_dir():
        parser.error(f"{args.data} does not exist; name the folder of the sources with --data")
    return args


if __name__ == "__main__":
    sys.exit(main())
