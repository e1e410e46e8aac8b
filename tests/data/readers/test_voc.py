"""Pascal VOC files as other programs write them: sizes, names and encodings that do not fit, and hostile XML."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from tinydet.data.readers import voc

OBJECT = (
    "<object><name>person</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>40</ymax></bndbox></object>"
)


def annotation(size: str = "", filename: str = "a.png", objects: str = OBJECT) -> str:
    return f"<annotation><filename>{filename}</filename>{size}{objects}</annotation>"


def size(width: object, height: object) -> str:
    return f"<size>\n<width>{width}</width><height>{height}</height><depth>3</depth></size>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset with images a.png (320x256) and deep/b.png, and an empty folder of annotations."""
    for name in ("images/deep", "xml"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("a.png", "deep/b.png"):
        assert cv2.imwrite(str(tmp_path / "images" / name), np.zeros((256, 320, 3), np.uint8))
    return tmp_path


def read(folder: Path, text: str | bytes, name: str = "a.xml"):  # type: ignore[no-untyped-def]
    (folder / "xml" / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return voc.read(folder / "xml", folder / "images")


def test_a_size_other_than_that_of_the_image_is_an_error_that_names_both(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"a.xml line 1: <size> is 640x512, but .*a.png is 320x256 pixels: the boxes"):
        read(folder, annotation(size(640, 512)))
    (folder / "xml" / "b.xml").write_text(annotation(size(640, 512), "b.png"))
    with pytest.raises(ValueError, match=r"and 1 more like it"):
        read(folder, annotation(size(640, 512)))
    (folder / "xml" / "b.xml").unlink()
    with pytest.raises(ValueError, match=r"is 256x320 \(it looks rotated: check its EXIF orientation\)"):
        read(folder, annotation(size(256, 320)))


@pytest.mark.parametrize("stated", ["", "<size/>", "<size><width/><height/></size>", size(0, 0), size("320.0", 256)])
def test_a_missing_size_is_that_of_the_image(folder: Path, stated: str) -> None:
    coco = read(folder, annotation(stated))
    assert [(image["width"], image["height"]) for image in coco.images] == [(320, 256)]
    if "320" not in stated:
        with pytest.raises(
            ValueError, match="a.xml line 1: no image size; name the folder of the images with --images"
        ):
            voc.read(folder / "xml")


@pytest.mark.parametrize(
    ("filename", "xml", "image"),
    [
        ("a.png", "a.xml", "a.png"),
        ("C:\\Users\\me\\a.png", "a.xml", "a.png"),
        ("/data/VOC/a.jpg", "a.XML", "a.png"),
        ("A.PNG", "x.xml", "a.png"),
        ("../../a", "x.xml", "a.png"),
        ("gone.png", "a.xml", "a.png"),
        ("", "A.xml", "a.png"),
        ("b.png", "x.xml", "deep/b.png"),
        ("other/b.tif", "x.xml", "deep/b.png"),
    ],
)
def test_the_image_is_found_however_its_name_is_written(folder: Path, filename: str, xml: str, image: str) -> None:
    (folder / "xml" / "._a.xml").write_bytes(b"\0")
    assert [entry["file_name"] for entry in read(folder, annotation("", filename), xml).images] == [image]


def test_images_of_one_name_with_two_suffixes_are_an_error(folder: Path) -> None:
    assert cv2.imwrite(str(folder / "images" / "a.jpg"), np.zeros((256, 320, 3), np.uint8))
    assert [entry["file_name"] for entry in read(folder, annotation("", "a.jpg")).images] == ["a.jpg"]
    with pytest.raises(ValueError, match="images a.jpg and a.png have the name 'a'"):
        read(folder, annotation("", ""))


def test_a_file_that_names_the_image_of_another_file_is_reported(folder: Path) -> None:
    coco = read(folder, annotation("", "b.png"))
    assert [entry["file_name"] for entry in coco.images] == ["deep/b.png"]
    assert any(
        "<filename> differs from their own name" in note and "a.xml to deep/b.png" in note for note in coco.notes
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252", "gbk", "shift_jis"])
def test_the_encoding_is_the_one_that_the_file_declares(folder: Path, encoding: str) -> None:
    name = {"gbk": "汽车", "shift_jis": "車"}.get(encoding, "café")
    declared = encoding.removesuffix("-sig")
    text = f'<?xml version="1.0" encoding="{declared}"?>\n' + annotation("", objects=OBJECT.replace("person", name))
    coco = read(folder, text.encode(encoding))
    assert [category["name"] for category in coco.categories] == [name]


def test_flags_may_be_words(folder: Path) -> None:
    coco = read(folder, annotation("", objects=OBJECT.replace("</name>", "</name><difficult>True</difficult>")))
    assert coco.annotations[0]["ignore"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>', "a document type"),
        ('<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>', "a document type"),
        ("<annotation>&x;</annotation>", "a.xml line 1: not XML"),
        ("<a>" * 100, "nested more than 50 deep"),
        ("", "not XML"),
        ("\0\1\2", "not XML"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "the encoding 'nonsense' is unknown"),
        ('<?xml version="1.0" encoding="rot13"?><annotation/>', "the encoding 'rot13' is unknown"),
        (b'<?xml version="1.0" encoding="utf-8"?><annotation>\xe9</annotation>', "a.xml: not utf-8 text"),
        (b"<annotation>\n\xe9</annotation>", "a.xml line 2: not UTF-8 text"),
        (annotation(objects=OBJECT.replace("<xmin>1<", "<xmin>50<")), "xmin and ymin must be at most"),
        (annotation(objects=OBJECT.replace("<xmin>1<", "<xmin>1e400<")), "<xmin> is '1e400'; expected a number"),
        (annotation(objects="<object><name>a</name><polygon/></object>"), "LabelMe XML, not Pascal VOC"),
        (annotation(size("x", 1)), "<width> is 'x'; expected a number"),
    ],
)  # fmt: skip
def test_hostile_and_damaged_files_are_one_error(folder: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(folder, text)


def test_class_names_are_those_of_the_objects_whatever_comes_before_them(tmp_path: Path) -> None:
    for n, before in enumerate(("", "<pose>Left</pose>", "<truncated>0</truncated><difficult></difficult>")):
        part = "<part><name>head</name></part>"
        text = (
            f"<annotation><folder>x</folder><object>{before}<name>cat &amp; dog {n}</name>{part}</object></annotation>"
        )
        (tmp_path / f"{n}.xml").write_text(text)
    assert voc.class_names(tmp_path) == {f"cat & dog {n}" for n in range(3)}
    assert voc.class_names(tmp_path, {"1"}) == {"cat & dog 1"}
