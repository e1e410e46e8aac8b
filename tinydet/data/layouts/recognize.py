"""Recognize how a dataset is laid out, from what its folder holds. No annotations are read completely."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tinydet._internal.suggestions import did_you_mean_path
from tinydet.data.image_checks import check_image_folder
from tinydet.data.layouts import coco_files, text_files, xml_files, yolo_files
from tinydet.data.layouts.layout import Layout, Split, coco_reader, folders_below
from tinydet.data.readers.text_files import YAML_SUFFIXES
from tinydet.runtime.scenes.sources import IMAGES

_FINDERS: tuple[Callable[[Path], Layout | None], ...] = (
    coco_files.find_coco,
    yolo_files.find_yaml,
    yolo_files.find_darknet,
    xml_files.find_cvat,
    xml_files.find_voc,
    text_files.find_visdrone,
    text_files.find_dota,
    text_files.find_labelme,
)
_MANY, _DEPTH = 50, 2  # folders that are searched for a dataset, and how deep
_NO_DATASET = dict.fromkeys((".pth", ".pt", ".onnx", ".engine"), "a model") | dict.fromkeys(
    (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"), "an image"
)
_EXPORT = "export it as COCO or YOLO"
_KNOWN = (
    "COCO (annotations.json and images/, or annotations/instances_*.json), YOLO (data.yaml, or images/ and labels/), "
    "Pascal VOC, VisDrone, DOTA, CVAT or labelme"
)


def recognize(path: Path, images: Path | None = None) -> Layout:
    """Recognize the layout of a dataset.

    Args:
        path: folder, annotation file, or description such as data.yaml.
        images: image folder, if it is given apart.

    Raises:
        ValueError: `path` does not exist, or has no layout or several that are known.
    """
    path = Path(path)
    if images is not None and path.exists():
        check_image_folder(path, images)
    if path.is_dir():
        return _folder(path) if images is None else _two_folders(path, images)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; name a dataset folder or an annotation file{did_you_mean_path(path)}")
    suffix = path.suffix.lower()
    if kind := _NO_DATASET.get(suffix):
        raise ValueError(f"{path}: {kind}, not a dataset; name a dataset folder or an annotation file")
    if suffix in YAML_SUFFIXES:
        return yolo_files.yaml_layout(path)
    if path.name == "obj.data" and (found := yolo_files.find_darknet(path.parent)):
        return found
    if suffix == ".xml" and xml_files.is_cvat(path):
        return xml_files.cvat_layout(path, images)
    if suffix == ".xml":
        return xml_files.voc_layout(path, images)
    if suffix in (".zip", ".tar", ".tgz", ".rar", ".7z"):
        raise ValueError(f"{path}: an archive; unpack it and name the folder")
    if suffix == ".geojson":
        raise ValueError(f"{path}: annotations as a map are not read; {_EXPORT}")
    _refuse_json(path)
    return Layout("COCO file", "coco", (Split(None, path, images, coco_reader(path)),))


def _folder(root: Path, depth: int = _DEPTH) -> Layout:
    """Return the layout of a folder, or else of the only dataset in the folders below it, to a depth."""
    if (layout := coco_files.find_tinyperson(root)) is not None:
        return layout
    found = []
    for find in _FINDERS:
        layout = find(root)
        if layout is not None:
            found.append(layout)
            if layout.name == "COCO folder":  # annotations.json in the folder itself is what its name says
                return layout
    if not found and (layout := yolo_files.find_folders(root)):
        found.append(layout)
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(f"{layout.name} ({layout.splits[0].annotations})" for layout in found)
        raise ValueError(f"{root} has several layouts: {listed}; name the file or folder of one of them")
    return _below(root, depth)


def _below(root: Path, depth: int) -> Layout:
    """Return the layout of the only dataset in the folders of a folder, as of an archive that was unpacked there.

    Raises:
        ValueError: there is none, or there are several.
    """
    inner = [each for each in folders_below(root, 1)[1:] if each.name != "__MACOSX"]
    if (
        depth
        and len(inner) == 1
        and not any(each.is_file() and not each.name.startswith(".") for each in root.iterdir())
    ):
        return _folder(inner[0], depth - 1)  # with the errors of that folder
    found = {}
    for folder in inner[:_MANY] if depth else ():
        try:
            found[folder] = _folder(folder, depth - 1)
        except (ValueError, OSError):
            continue
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        listed = ", ".join(f"{folder} ({layout.name})" for folder, layout in list(found.items())[:8])
        raise ValueError(f"{root} has several datasets: {listed}; name one of them")
    raise ValueError(f"{root}: {_unknown(root)}")


def _unknown(root: Path) -> str:
    """Return what a folder without a known layout holds, and the way out."""
    for _, files in coco_files.json_files(root):
        for path in files[:3]:
            _refuse_json(path)
    if videos := text_files.video_annotations(root):
        return f"annotations of videos ({videos}) are not read; {_EXPORT}, with one image per frame"
    if maps := sorted({each.name for pattern in ("*.geojson", "*/*.geojson") for each in root.glob(pattern)}):
        return f"annotations as a map ({maps[0]}) are not read; {_EXPORT}"
    tables = sorted({each.name for pattern in ("*.csv", "*/*.csv") for each in root.glob(pattern)})
    if tables:
        return f"annotations as a table ({tables[0]}) are not read; {_EXPORT}"
    if (form := text_files.text_format(root)) is not None or xml_files.xml_folder(root):
        form = {"visdrone": "VisDrone", "dota": "DOTA", "yolo": "YOLO"}.get(form or "", "Pascal VOC")
        return f"{form} annotations without their images; name the folder of the images with --images"
    if any(root.glob("*.tfrecord")) or any(root.glob("*/*.tfrecord")):
        return f"TFRecord files are not read; {_EXPORT}"
    if any(root.glob("*.zip")):
        return "an archive; unpack it and name the folder"
    pictures = [each for folder in (root, *folders_below(root, 1)[1:]) for each in folder.iterdir()
                if each.suffix.lower() in IMAGES]  # fmt: skip
    what = "images without annotations" if pictures else "no dataset that is known"
    return f"{what}; expected {_KNOWN}; or name a COCO file with --annotations FILE --images DIR"


def _refuse_json(path: Path) -> None:
    match coco_files.kind_of(path):
        case "label studio":
            raise ValueError(f"{path}: an export of Label Studio in its own JSON; {_EXPORT} with images there")
        case "via":
            raise ValueError(f"{path}: a project of VGG Image Annotator; export the annotations as COCO there")
        case "datumaro":
            raise ValueError(f"{path}: an export in the format Datumaro; {_EXPORT}")
        case "labelme":
            if len(list(path.parent.glob("*.json"))) == 1:
                raise ValueError(f"{path}: a labelme file of one image; name its folder")


def _two_folders(path: Path, images: Path) -> Layout:
    """Return the layout of a folder of annotations whose images are in another one."""
    if xml_files.xml_folder(path):
        return xml_files.voc_layout(path, images)
    if (found := text_files.text_layout(path, images)) is not None:
        return found
    layout = _folder(path)
    if len(layout.splits) == 1 and layout.form == "coco":
        split = layout.splits[0]
        return Layout(layout.name, "coco", (Split(split.name, split.annotations, images, split.read),))
    raise ValueError(f"{path} ({layout.name}) has its own images; leave out --images, or name one annotation file")
