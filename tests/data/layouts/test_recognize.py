"""Datasets as other programs export them are recognized, with the same boxes, classes and splits in every layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import exports
import numpy as np
import pytest
from exports import CLASSES, EXPORTS, TRUTH

from tinydet.data.coco import Dataset
from tinydet.data.source import find_source, validation_of

Boxes = dict[str, list[tuple[str, int, int, int, int]]]


def truth(split: str) -> Boxes:
    found = TRUTH[split].items()
    return {name: sorted((CLASSES[number], *box) for number, *box in boxes) for name, boxes in found}  # type: ignore


def boxes_of(dataset: Dataset) -> Boxes:
    found: Boxes = {}
    for i, image in enumerate(dataset.images):
        assert dataset.image_path(i).is_file() and (image.width, image.height) == (64, 48)
        rows = zip(dataset.of_image(i).labels.tolist(), dataset.of_image(i).boxes.tolist(), strict=True)
        found[Path(image.file_name).stem] = sorted(
            (dataset.classes[label], round(x, 9), round(y, 9), round(right - x, 9), round(bottom - y, 9))  # type: ignore
            for label, (x, y, right, bottom) in rows
        )
    return found


@pytest.mark.parametrize("name", EXPORTS)
def test_every_layout_gives_the_same_boxes_classes_and_splits(name: str, tmp_path: Path) -> None:
    EXPORTS[name](tmp_path / "data")
    train = find_source(tmp_path / "data", prefer=("train",), needs_images=True)
    val = validation_of(train)
    assert val is not None
    datasets = train.load(), val.load()
    assert [boxes_of(dataset) for dataset in datasets] == [truth("train"), truth("val")]
    assert datasets[0].classes == datasets[1].classes == CLASSES
    assert datasets[0].category_ids == datasets[1].category_ids
    assert "\n" not in train.describe() and "split train" in train.describe() and "split val" in val.describe()
    assert find_source(tmp_path / "data", split="val").load().images == datasets[1].images


def test_a_split_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    exports.coco2017(tmp_path)
    with pytest.raises(ValueError, match="has train, val; not 'test'"):
        find_source(tmp_path, split="test")
    with pytest.raises(ValueError, match="has train, val; name one with --split"):
        find_source(tmp_path)


def test_a_split_that_a_description_names_but_that_is_not_there_is_refused_when_it_is_needed(tmp_path: Path) -> None:
    exports.roboflow_yolo(tmp_path)
    with pytest.raises(ValueError, match=r"data.yaml: test is ../test/images, which does not exist"):
        find_source(tmp_path, split="test")
    shutil.rmtree(tmp_path / "valid")
    train = find_source(tmp_path, prefer=("train",))
    with pytest.raises(ValueError, match="val is ../valid/images"):
        validation_of(train)


def test_a_description_can_be_named_itself(tmp_path: Path) -> None:
    exports.ultralytics(tmp_path)
    exports.cvat_xml(tmp_path / "cvat")
    for path in (tmp_path / "data.yaml", tmp_path / "cvat" / "annotations.xml"):
        assert boxes_of(find_source(path, split="train").load()) == truth("train")


def test_visdrone_folders_are_splits_or_neighbors(tmp_path: Path) -> None:
    exports.visdrone(tmp_path)
    for path in (tmp_path, tmp_path / "VisDrone2019-DET-train"):
        train = find_source(path, prefer=("train",))
        val = validation_of(train)
        assert val is not None
        assert [len(source.load().images) for source in (train, val)] == [3, 2]
        assert train.load().classes == val.load().classes
    alone = find_source(tmp_path / "VisDrone2019-DET-train", prefer=("val",))  # what was named, not its neighbor
    assert len(alone.load().images) == 3


@pytest.mark.parametrize("place", ["", "images", "photos", "deep/photos"])
@pytest.mark.parametrize("file", ["labels.json", "export/result.json"])
def test_one_json_file_is_found_with_the_folder_that_has_its_images(place: str, file: str, tmp_path: Path) -> None:
    exports.images("train", tmp_path / place)
    exports.coco("train", tmp_path / file)
    exports.write(tmp_path / "notes.json", '{"a": 1}')
    exports.write(tmp_path / "found.json", '[{"image_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5, "category_id": 1}]')
    source = find_source(tmp_path, needs_images=True)
    assert boxes_of(source.load()) == truth("train") and source.image_dir == tmp_path / place


def test_file_names_decide_between_image_folders(tmp_path: Path) -> None:
    exports.coco("train", tmp_path / "labels.json", prefix="photos/")
    exports.images("train", tmp_path / "photos")
    exports.images("val", tmp_path / "images")
    assert find_source(tmp_path).image_dir == tmp_path


def test_an_annotation_file_that_is_named_alone_finds_its_images_only_when_they_are_needed(tmp_path: Path) -> None:
    exports.coco2017(tmp_path)
    path = tmp_path / "annotations" / "instances_val2017.json"
    assert find_source(path).image_dir is None
    assert find_source(path, needs_images=True).image_dir == tmp_path / "val2017"
    shutil.rmtree(tmp_path / "val2017")
    with pytest.raises(ValueError, match="name their folder with --images DIR"):
        find_source(path, needs_images=True)


def test_annotations_and_images_can_be_named_apart(tmp_path: Path) -> None:
    exports.images("train", tmp_path / "photos")
    exports.yolo("train", tmp_path / "labels")
    exports.write(tmp_path / "labels" / "classes.txt", "boat\nperson\n")
    exports.voc("train", tmp_path / "xml")
    for folder in ("labels", "xml"):
        source = find_source(tmp_path / folder, images=tmp_path / "photos")
        assert boxes_of(source.load()) == truth("train")


def test_one_folder_around_a_dataset_does_not_matter(tmp_path: Path) -> None:
    exports.roboflow_coco(tmp_path / "export" / "my-project.v1")
    assert find_source(tmp_path / "export", split="train").load().images


def refusals(root: Path) -> Iterator[tuple[Path, str]]:
    exports.images("train", root / "mot" / "train" / "MOT17-02" / "img1")
    exports.write(root / "mot" / "train" / "MOT17-02" / "gt" / "gt.txt", "1,1,4,6,8,10,1,1,1\n")
    yield root / "mot", r"annotations of videos \(MOT, gt/gt.txt\) are not read"

    exports.images("train", root / "vid" / "sequences" / "uav1")
    exports.write(root / "vid" / "annotations" / "uav1.txt", "1,0,4,6,8,10,1,4,0,0\n")
    yield root / "vid", r"annotations of videos \(VisDrone-VID, sequences\) are not read"

    exports.images("train", root / "map" / "train_images")
    exports.write(root / "map" / "xView_train.geojson", '{"type": "FeatureCollection"}')
    yield root / "map", r"annotations as a map \(xView_train.geojson\) are not read"
    yield root / "map" / "xView_train.geojson", "annotations as a map are not read"

    exports.write(root / "datumaro" / "annotations" / "default.json", '{"items": [{"annotations": [{"label_id": 0}]}]}')
    yield root / "datumaro", "an export in the format Datumaro"

    exports.images("train", root / "two" / "images")
    for name in ("a.json", "b.json"):
        exports.coco("train", root / "two" / name)
    yield root / "two", r"several annotation files that may be meant: a.json, b.json; name one"

    exports.roboflow_coco(root / "mixed")
    exports.ultralytics(root / "mixed")
    yield root / "mixed", r"several layouts: Roboflow COCO export \(.*\), Ultralytics YOLO dataset \(.*data.yaml\)"

    for folder in ("one", "other"):
        exports.images("train", root / "twice" / folder)
    exports.coco("train", root / "twice" / "labels.json")
    cv2.imwrite(str(root / "twice" / "one" / "seq1_0001.png"), np.ones((48, 64, 3), np.uint8) * 9)
    yield root / "twice", r"several folders have its images: .*one, .*other; name one with --images"

    exports.images("train", root / "csv" / "train")
    exports.write(root / "csv" / "train" / "_classes.csv", "filename, boat\n")
    yield root / "csv", r"a table \(_classes.csv\) are not read; export it as COCO or YOLO"

    exports.images("train", root / "studio" / "images")
    tasks = [{"id": 1, "annotations": [{"result": []}], "data": {"image": "a.png"}}]
    exports.write(root / "studio" / "project.json", json.dumps(tasks))
    yield root / "studio", "Label Studio in its own JSON; export it as COCO or YOLO"

    exports.write(root / "via" / "via.json", '{"_via_settings": {}, "_via_img_metadata": {}}')
    yield root / "via", "VGG Image Annotator"

    exports.yolo("train", root / "labels")
    yield root / "labels", "YOLO annotations without their images; name the folder of the images with --images"

    exports.images("train", root / "plain")
    yield root / "plain", "images without annotations; expected COCO"

    exports.write(root / "export.zip", "PK")
    yield root / "export.zip", "unpack it"

    exports.ultralytics(root / "wrong", "train: photos\n")
    yield root / "wrong", "data.yaml: train is photos, which does not exist"

    exports.cvat_yolo(root / "cvat")
    (root / "cvat" / "train.txt").write_text("data/obj_train_data/gone.png\n")
    yield root / "cvat", "train.txt line 1: no image data/obj_train_data/gone.png"


def test_what_is_ambiguous_or_unknown_is_refused_in_one_line_with_the_way_out(tmp_path: Path) -> None:
    for path, message in refusals(tmp_path):
        with pytest.raises(ValueError, match=message) as caught:
            find_source(path, prefer=("train",), needs_images=True).load()
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_labels_without_an_image_are_left_out_with_a_note(tmp_path: Path) -> None:
    exports.ultralytics(tmp_path)
    exports.write(tmp_path / "labels" / "train" / "gone.txt", "0 0.5 0.5 0.1 0.1\n")
    dataset = find_source(tmp_path, split="train").load()
    assert boxes_of(dataset) == truth("train")
    assert any("without an image" in note and "gone.txt" in note for note in dataset.notes)


def test_classes_without_names_are_numbered_as_ultralytics_does(tmp_path: Path) -> None:
    exports.ultralytics(tmp_path)
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnc: 2\n")
    assert find_source(tmp_path, split="val").load().classes == ("class_0", "class_1")


def test_a_description_outside_its_dataset_finds_the_folder_that_path_names(tmp_path: Path) -> None:
    for place, base in (("x", "/home/other/datasets/x"), ("y", "y"), ("datasets/z", "z"), ("v", "C:\\\\data\\\\v")):
        exports.ultralytics(tmp_path / place)
        (tmp_path / place / "data.yaml").unlink()
        description = tmp_path / f"{Path(place).name}.yaml"
        names = "names:\n  0: boat\n  1: person\n"
        exports.write(description, f"path: {base}  # root\ntrain: images/train\nval: images/val\n{names}")
        assert boxes_of(find_source(description, split="val").load()) == truth("val")
    (tmp_path / "datasets" / "z").rename(tmp_path / "gone")
    with pytest.raises(ValueError, match="train is images/train and path z, which is not here"):
        find_source(tmp_path / "z.yaml", split="train")


def test_a_description_is_found_whatever_its_keys_look_like_and_whatever_lies_beside_it(tmp_path: Path) -> None:
    exports.ultralytics(tmp_path, "\"train\" : images/train\n'val': images/val\n")
    (tmp_path / "notes.yaml").write_bytes("gr\xfcn: 1\n".encode("latin-1"))
    source = find_source(tmp_path, split="val")
    assert source.layout.name == "Ultralytics YOLO dataset" and boxes_of(source.load()) == truth("val")


def test_archives_in_folders_of_their_own_name_and_beside_other_files_are_found(tmp_path: Path) -> None:
    exports.visdrone(tmp_path / "unpacked")
    for split in ("train", "val"):
        name = f"VisDrone2019-DET-{split}"
        (tmp_path / "visdrone" / name).mkdir(parents=True)
        (tmp_path / "unpacked" / name).rename(tmp_path / "visdrone" / name / name)
    for path in (tmp_path / "visdrone", tmp_path / "visdrone" / "VisDrone2019-DET-train"):
        val = validation_of(find_source(path, prefer=("train",)))
        assert val is not None and len(val.load().images) == 2
    exports.ultralytics(tmp_path / "export" / "data" / "boats")
    exports.write(tmp_path / "export" / "README.md", "boats")
    assert boxes_of(find_source(tmp_path / "export", split="train").load()) == truth("train")
    exports.ultralytics(tmp_path / "export" / "more")
    with pytest.raises(ValueError, match=r"several datasets: .*data \(Ultra.*, .*more \(Ultra.*; name one of them"):
        find_source(tmp_path / "export", split="train")


def tinyperson(root: Path) -> None:
    """Write the files of TinyPerson under their published names; the first object is uncertain."""
    for split, name in (("train", "train"), ("val", "test")):
        exports.images(split, root / name / "labeled_images")
        files = [f"tiny_set_{name}", f"tiny_set_{name}_with_dense", f"task/tiny_set_{name}_all"]
        for file in (*files, f"corner/task/tiny_set_{name}_sw640_sh512_all"):
            path = root / "annotations" / f"{file}.json"
            exports.coco(split, path, prefix="labeled_images/")
            document = json.loads(path.read_text())
            for n, entry in enumerate(document["annotations"]):
                entry |= {"ignore": False, "uncertain": n == 0, "logo": False, "in_dense_image": False}
            path.write_text(json.dumps(document))
    erased = root / "erase_with_uncertain_dataset"
    exports.images("train", erased / "train" / "labeled_images")
    exports.coco("train", erased / "annotations" / "tiny_set_train.json", prefix="labeled_images/")


def test_the_published_folder_of_tinyperson_has_the_files_of_whole_images_without_dense_ones(tmp_path: Path) -> None:
    tinyperson(tmp_path)
    train, test = (find_source(tmp_path, split=split) for split in ("train", "test"))
    assert train.annotations == tmp_path / "annotations" / "tiny_set_train.json"
    assert test.annotations.name == "tiny_set_test.json" and test.image_dir == tmp_path / "test"
    assert [int(each["ignore"]) for each in train.load().document()["annotations"]] == [1, 0, 0]
    erased = find_source(tmp_path / "erase_with_uncertain_dataset", prefer=("train",))
    assert erased.image_dir == tmp_path / "erase_with_uncertain_dataset" / "train" and len(erased.load().images) == 3
    alone = find_source(train.annotations, needs_images=True)
    assert alone.image_dir == tmp_path / "train"
    shutil.rmtree(tmp_path / "test")
    with pytest.raises(ValueError, match="tiny_set_test.json: its images are not in .*test"):
        find_source(tmp_path, split="train")


def test_the_union_of_train_and_val_is_neither_and_trainval_alone_is_train(tmp_path: Path) -> None:
    for split in ("train", "val"):
        exports.images(split, tmp_path / "coco" / "images")
        exports.coco(split, tmp_path / "coco" / "annotations" / f"{split}.json")
    exports.coco("train", tmp_path / "coco" / "annotations" / "trainval.json")
    assert [split.name for split in find_source(tmp_path / "coco", split="val").layout.splits] == ["train", "val"]
    exports.vocdevkit(tmp_path / "voc")
    lists = tmp_path / "voc" / "VOCdevkit" / "VOC2012" / "ImageSets" / "Main"
    (lists / "train.txt").rename(lists / "trainval.txt")
    (lists / "val.txt").rename(lists / "test.txt")
    source = find_source(tmp_path / "voc", prefer=("train",))
    assert boxes_of(source.load()) == truth("train") and validation_of(source) is None


def test_folders_are_searched_to_a_depth_also_through_links_that_form_a_cycle(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "a").symlink_to(tmp_path / "a")
    with pytest.raises(ValueError, match="a/a: no dataset that is known"):
        find_source(tmp_path)
