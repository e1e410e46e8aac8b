from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from tinydet.runtime import Detection, Model, Prediction, ScanOptions, detect, load, open_scene
from tinydet.runtime.scan import detect_scene


def image(*corners: tuple[int, int]) -> np.ndarray:
    pixels = np.zeros((100, 150, 3), np.uint8)
    for x, y in corners:
        pixels[y : y + 10, x : x + 10] = 255
    return pixels


@pytest.fixture
def model(white_squares: Callable) -> Model:
    return Model(white_squares(), overlap=16)


def test_a_path_an_array_and_an_open_scene_give_the_same_result(model: Model, tmp_path: Path) -> None:
    pixels = image((20, 30), (120, 80))
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), pixels)
    with open_scene(path) as scene:
        found = [model.detect(source) for source in (path, str(path), pixels, scene)]
        expected = detect_scene(model.backend, scene, ScanOptions(overlap=16, score=0.3)).detections
    for one in found:
        assert one.boxes.tolist() == expected.boxes.tolist() == [[20, 30, 30, 40], [120, 80, 130, 90]]
        assert (one.width, one.height, one.class_names.tolist()) == (150, 100, ["square", "square"])
    assert [one.scene for one in found] == [str(path), str(path), "array", "a.png"]


def encoded(pixels: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, pixels)[1].tobytes()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".tif", ".jp2"])
def test_bytes_and_binary_files_give_what_the_file_gives(model: Model, suffix: str, tmp_path: Path) -> None:
    if suffix in (".tif", ".jp2"):
        pytest.importorskip("rasterio")
    data = encoded(image((20, 30), (120, 80)), suffix)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    expected = model.detect(path)
    assert len(expected) == 2
    with path.open("rb") as file:
        sources = [data, bytearray(data), memoryview(data), io.BytesIO(data), file]
        found = [model.detect(source) for source in sources]
    for one in found:
        assert one.boxes.tolist() == expected.boxes.tolist()
        assert np.array_equal(one.plot(), expected.plot())
    assert [one.scene for one in found] == ["bytes"] * 3 + ["file", str(path)]


def test_a_list_gives_a_list_with_ids_that_count_up(model: Model, tmp_path: Path) -> None:
    pixels = image((20, 30))
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    mixed = [pixels, tmp_path / "a.png", Image.fromarray(pixels), encoded(pixels)]
    for several in (mixed, tuple(mixed)):
        found = model.detect(several, image_id=5)
        assert [one.image_id for one in found] == [5, 6, 7, 8]
        assert [one.boxes.tolist() for one in found] == [[[20, 30, 30, 40]]] * 4
    assert model.detect([]) == []


def test_the_images_of_a_list_share_batches(white_squares: Callable) -> None:
    backend = white_squares(tile=160)
    images = [image((10 * n, 30)) for n in range(8)]
    with open_scene(images[7]) as scene:
        found = Model(backend, overlap=16, batch=4).detect([*images[:7], scene])
    assert backend.batches == [4, 4]
    assert [one.boxes[0, 0] for one in found] == [10 * n for n in range(8)]
    assert found[7].plot().shape == (100, 150, 3)


def test_a_list_with_a_wrong_entry_is_refused_before_the_model_runs(white_squares: Callable) -> None:
    backend = white_squares()
    with pytest.raises(TypeError, match=r"scene\[1\]: expected a path"):
        Model(backend, overlap=16).detect([image(), 3])
    assert not backend.batches


@pytest.mark.parametrize(
    "wrong",
    [None, 3, 3.5, {"a": 1}, object(), [[1, 2], [3, 4]], [None], {1, 2}, io.StringIO("text"), (n for n in "ab")],
)
def test_another_type_is_one_clear_error(model: Model, wrong: object) -> None:
    with pytest.raises(TypeError, match=r"scene\S*: expected a path, the bytes|a text file; open it") as caught:
        model.detect(wrong)  # type: ignore[call-overload]
    assert "\n" not in str(caught.value)


def test_a_stream_of_another_type_is_one_clear_error(model: Model) -> None:
    with pytest.raises(TypeError, match="scenes: expected a path"):
        next(model.stream(3))  # type: ignore[arg-type]
    assert [len(found) for found in model.stream(encoded(image((20, 30))))] == [1]
    assert [len(found) for found in model.stream([io.BytesIO(encoded(image((20, 30)))), Image.new("L", (9, 9))])] == [
        1,
        0,
    ]


def test_what_holds_several_images_is_for_stream(model: Model, tmp_path: Path) -> None:
    (tmp_path / "flight").mkdir()
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(64))
    words = [tmp_path / "flight", str(tmp_path / "*.png"), "https://host/a.mp4", "rtsp://bob:pw@host/a", "7"]
    for word in [*words, tmp_path / "clip.mp4"]:
        with pytest.raises(ValueError, match=r"detect takes one image; use: for found in model\.stream\(") as caught:
            model.detect(word)
        assert "pw" not in str(caught.value)


def test_a_tensor_is_refused_with_the_conversion(model: Model) -> None:
    class Tensor:
        shape = (3, 64, 96)

        def __array__(self) -> np.ndarray:
            return np.zeros(self.shape)

    for wrong in (Tensor(), [Tensor()]):
        with pytest.raises(
            TypeError, match=r"got a \w+\.Tensor of shape \(3, 64, 96\); .*permute\(1, 2, 0\)\.numpy\(\)"
        ):
            model.detect(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"permute\(1, 2, 0\)"):
        next(model.stream(Tensor()))  # type: ignore[arg-type]


def test_a_path_of_any_kind_is_a_path(model: Model, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a b.png"), image((20, 30)))
    with os.scandir(tmp_path) as entries:
        paths = [*entries, (tmp_path / "a b.png").as_uri()]
    assert len(paths) == 2
    for path in paths:
        found = model.detect(path)
        assert (len(found), found.scene) == (1, str(tmp_path / "a b.png"))
        assert found.plot().shape == (100, 150, 3)
    assert [len(found) for found in model.stream(paths)] == [1, 1]
    with pytest.raises(ValueError, match="the path is empty"):
        model.detect("")


def test_images_in_memory_of_a_list_are_told_apart(model: Model, tmp_path: Path) -> None:
    several = model.detect([encoded(image((20, 30))), image(), io.BytesIO(encoded(image()))])
    assert [found.scene for found in several] == ["bytes[0]", "array[1]", "file[2]"]
    with pytest.raises(ValueError, match=r"scene\[1\]: bytes: damaged"):
        model.detect([image(), b"no image at all"])
    file = io.BytesIO(encoded(image()))
    file.close()
    with pytest.raises(ValueError, match="file: the file is closed"):
        model.detect(file)


def test_unknown_options_get_a_suggestion(white_squares: Callable) -> None:
    for given, meant in (("scroe", "score"), ("conf", "score"), ("batch_size", "batch")):
        with pytest.raises(TypeError, match=f"no option '{given}'; there are overlap, .*; did you mean {meant}"):
            Model(white_squares(), **{given: 1})
    assert repr(Model(white_squares())).startswith("Model(")


def test_an_option_of_the_scan_is_referred_to_load(model: Model) -> None:
    for method in (model.detect, model.stream):
        with pytest.raises(TypeError, match=rf"^{method.__name__} takes no score; .*: load\(…, score=0\.3\)$"):
            method(image(), score=0.3)
        with pytest.raises(TypeError, match="no option 'conf'; there are overlap, .*; did you mean score"):
            method(image(), conf=0.3)


def test_filter_and_crop_refuse_other_types(some: Prediction) -> None:
    for values in ({"score": "0.5"}, {"score": None}, {"score": float("nan")}, {"classes": 1.5}, {"classes": True}):
        with pytest.raises(ValueError, match="expected a number|the model has no class"):
            some.filter(**values)  # type: ignore[arg-type]
    for padding in ("4", (1, 2), np.zeros(2)):
        with pytest.raises(ValueError, match="padding must be a number"):
            some.crop(padding)  # type: ignore[arg-type]
    assert len(some.filter(classes=np.array([0, 1]))) == len(some)
    assert some == some and some != some[:]  # by identity; arrays have no single truth value


def test_channels_first_and_empty_bytes_are_refused(model: Model) -> None:
    with pytest.raises(ValueError, match=r"channels first; use image\.transpose\(1, 2, 0\)"):
        model.detect(image().transpose(2, 0, 1))
    with pytest.raises(ValueError, match="no bytes"):
        model.detect(b"")
    with pytest.raises(ValueError, match="bytes: truncated or damaged PNG"):
        model.detect(encoded(image())[:20] + bytes(100))


MODES = ["1", "L", "P", "LA", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "I;16", "I;16B", "I", "F"]


@pytest.mark.parametrize("mode", MODES)
def test_a_pillow_image_of_any_mode_is_read_as_pillow_converts_it(mode: str) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    if mode in ("I;16", "I;16B", "I", "F"):
        gray = np.random.default_rng(0).integers(0, 60_000, (20, 30)).astype(np.uint16)
        picture = Image.fromarray(gray).convert(mode) if mode == "I" else Image.fromarray(gray.astype(np.float32))
        if mode.startswith("I;16"):
            picture = Image.frombytes(mode, (30, 20), gray.astype(">u2" if mode.endswith("B") else "<u2").tobytes())
        with open_scene(gray) as scene:
            expected = scene.read(0, 0, 30, 20)
    else:
        picture = picture.convert("RGBA").convert(mode) if mode in ("RGBa", "PA", "LA") else picture.convert(mode)
        expected = np.asarray(picture.convert("RGBA").convert("RGB") if mode == "RGBa" else picture.convert("RGB"))
    with open_scene(picture) as scene:
        np.testing.assert_allclose(scene.read(0, 0, 30, 20).astype(int), expected, atol=1 if mode in "IF" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_pillow_image_is_applied_once(orientation: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path, exif=exif)
    with Image.open(path) as stored, open_scene(path) as expected:
        size = expected.width, expected.height
        for picture in (stored, ImageOps.exif_transpose(stored)):
            with open_scene(picture) as scene:
                assert np.array_equal(scene.read(0, 0, *size), expected.read(0, 0, *size))


def test_transparent_pixels_of_a_pillow_image_have_no_data() -> None:
    rgba = np.zeros((20, 30, 4), np.uint8)
    rgba[:, 15:, 3] = 255
    with open_scene(Image.fromarray(rgba)) as scene:
        assert [scene.is_empty(x, 0, 15, 20) for x in (0, 15)] == [True, False]


def test_an_image_that_pillow_cannot_finish_is_one_error(model: Model) -> None:
    data = encoded(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8), ".jpg")
    with pytest.raises(ValueError, match="image: cannot be read"):
        model.detect(Image.open(io.BytesIO(data[:2000])))


def test_options_reach_the_scan(white_squares: Callable) -> None:
    pixels = image((20, 30), (120, 80))
    assert len(Model(white_squares(), overlap=16, score=0.7).detect(pixels)) == 0
    backend = white_squares()
    Model(backend, overlap=16, batch=1).detect(pixels)
    assert set(backend.batches) == {1}
    with pytest.raises(ValueError, match="seam, nms"):
        Model(white_squares(), overlap=16, merge="best").detect(pixels)  # type: ignore[arg-type]


def test_a_stream_takes_scenes_and_folders_and_is_lazy(model: Model, tmp_path: Path) -> None:
    for name in ("b.png", "a.png"):
        cv2.imwrite(str(tmp_path / name), image((20, 30)))
    assert [found.scene for found in model.stream(tmp_path)] == [str(tmp_path / name) for name in ("a.png", "b.png")]
    assert len(list(model.stream(image((20, 30))))) == 1
    mixed = list(model.stream([image(), str(tmp_path), tmp_path / "b.png"]))
    assert [found.image_id for found in mixed] == [1, 2, 3, 4]
    assert [len(found) for found in mixed] == [0, 1, 1, 1]
    lazy = model.stream([tmp_path / "a.png", tmp_path / "missing.png"])
    assert len(next(lazy)) == 1
    with pytest.raises(FileNotFoundError, match="missing"):
        next(lazy)


def test_each_frame_of_a_video_is_a_scene_with_its_time(model: Model, tmp_path: Path) -> None:
    pytest.importorskip("av")
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (150, 100))
    for i in range(3):
        writer.write(image((20 + 30 * i, 30)))
    writer.release()
    found = list(model.stream(tmp_path / "a.avi"))
    assert [one.seconds for one in found] == pytest.approx([0, 0.1, 0.2], abs=0.02)
    assert [(one.file_name, one.frame) for one in found] == [("a.avi#0", 0), ("a.avi#1", 1), ("a.avi#2", 2)]
    assert all(one.plot().shape == (100, 150, 3) for one in found)
    for i, one in enumerate(found):
        np.testing.assert_allclose(one.boxes, [[20 + 30 * i, 30, 30 + 30 * i, 40]], atol=1.5)


@pytest.fixture
def some(model: Model) -> Prediction:
    pixels = image((20, 30), (120, 80))
    pixels[60:90, 50:58] = 255  # a bar
    return model.detect(pixels, image_id=5)


def test_a_prediction_is_a_sequence_of_detections(some: Prediction) -> None:
    assert len(some) == len(list(some)) == 3
    for i, one in enumerate(some):
        assert isinstance(one, Detection)
        assert one.box.tolist() == some.boxes[i].tolist() == some[i].box.tolist()
        assert (one.score, one.label, one.class_name) == (some.scores[i], some.labels[i], some.class_names[i])
    assert some[-1].box.tolist() == some.boxes[-1].tolist()
    with pytest.raises(IndexError):
        some[3]
    assert repr(some) == "Prediction('array', 150x100, 3 detections: 2 square, 1 bar)"
    assert repr(some[:0]) == "Prediction('array', 150x100, 0 detections)"


def test_a_selection_is_a_prediction(some: Prediction) -> None:
    def boxes(found: Prediction) -> list[list[float]]:
        assert isinstance(found, Prediction)
        return found.boxes.tolist()

    bar, *squares = some.boxes.tolist()
    assert boxes(some[1:]) == boxes(some[some.class_names == "square"]) == boxes(some[[1, 2]]) == squares
    assert (
        boxes(some[[True, False, False]]) == boxes(some.filter(classes="bar")) == boxes(some.filter(classes=1)) == [bar]
    )
    assert boxes(some[[]]) == boxes(some.filter(score=0.99)) == boxes(some.filter(classes=[])) == []
    assert boxes(some.filter(score=float(some.scores[0]))) == [bar]
    assert boxes(some.filter(classes=["bar", "square"])) == [bar, *squares]
    for wrong in ("car", 2, -1):
        with pytest.raises(ValueError, match=rf"the model has no class {re.escape(repr(wrong))}; choose from square"):
            some.filter(classes=wrong)
    for wrong in (True, "bar", 1.5, np.eye(3)):
        with pytest.raises(TypeError, match="expected an integer, a slice, a boolean mask or indices"):
            some[wrong]  # type: ignore[call-overload]


def test_a_plot_has_the_size_of_the_scene_and_leaves_it_unchanged(some: Prediction, tmp_path: Path) -> None:
    assert isinstance(some.source, np.ndarray)
    before = some.source.copy()
    drawn = some.plot(tmp_path / "drawn.png")
    assert (drawn.shape, drawn.dtype) == ((100, 150, 3), np.uint8)
    assert np.array_equal(some.source, before)
    assert (drawn != before).any()
    assert np.array_equal(some[:0].plot(), before)
    assert np.array_equal(cv2.imread(str(tmp_path / "drawn.png"))[..., ::-1], drawn), "RGB"
    with_legend = some.plot(legend=True)
    assert with_legend.shape[0] > 100
    some.save(tmp_path / "saved.png")
    assert np.array_equal(cv2.imread(str(tmp_path / "saved.png"))[..., ::-1], with_legend)
    with pytest.raises(ValueError, match=r"'\.xml'; there are \.json .*\.png or \.webp for an image") as caught:
        some.save(tmp_path / "saved.xml")
    assert "--" not in str(caught.value), "options of the command"


def test_crops_are_the_pixels_of_the_boxes(some: Prediction) -> None:
    assert isinstance(some.source, np.ndarray)
    for padding in (0, 5, 40):
        for crop, (x1, y1, x2, y2) in zip(some.crop(padding), some.boxes.astype(int).tolist(), strict=True):
            x, y = max(x1 - padding, 0), max(y1 - padding, 0)
            assert np.array_equal(crop, some.source[y : y2 + padding, x : x2 + padding])
    assert some[:0].crop() == []
    with pytest.raises(ValueError, match="0 or more, got -1"):
        some.crop(-1)


@pytest.fixture
def sources(tmp_path: Path) -> Iterator[list[object]]:
    pixels = image((20, 30))
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    with open_scene(tmp_path / "a.png") as scene:
        yield [tmp_path / "a.png", pixels, encoded(pixels), io.BytesIO(encoded(pixels)), Image.fromarray(pixels), scene]


def test_every_kind_of_source_can_be_drawn(model: Model, sources: list[object]) -> None:
    drawn = [model.detect(source).plot() for source in sources]  # type: ignore[call-overload]
    assert all(np.array_equal(one, drawn[0]) for one in drawn)


def test_a_file_that_was_replaced_is_not_drawn_on(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), image((20, 30)))
    found = model.detect(path)
    cv2.imwrite(str(path), image((20, 30))[:50])
    with pytest.raises(ValueError, match="has 150x50 pixels, and had 150x100 when it was scanned"):
        found.plot()


def test_labels_are_saved_with_the_names_of_the_classes(some: Prediction, tmp_path: Path) -> None:
    some.save(tmp_path / "a.txt")
    assert (tmp_path / "classes.txt").read_text() == "square\nbar\n"
    assert np.loadtxt(tmp_path / "a.txt").shape == (3, 5)
    some.save(tmp_path / "b.txt", format="yolo-conf")
    assert np.loadtxt(tmp_path / "b.txt").shape == (3, 6)


def test_coco_results_have_the_ids_of_the_scene_and_of_the_dataset(some: Prediction, tmp_path: Path) -> None:
    assert [(row["image_id"], row["category_id"]) for row in some.to_coco()] == [(5, 0), (5, 7), (5, 7)]
    some.save(tmp_path / "found.json", "coco-results")
    assert json.loads((tmp_path / "found.json").read_text()) == some.to_coco()


def test_a_data_frame_has_one_row_per_box(some: Prediction) -> None:
    pytest.importorskip("pandas")
    frame = some.to_pandas()
    assert frame["class"].tolist() == ["bar", "square", "square"]
    assert frame[["x1", "y1", "x2", "y2"]].to_numpy().tolist() == some.boxes.tolist()


def test_a_prediction_converts_to_supervision(some: Prediction) -> None:
    supervision = pytest.importorskip("supervision")
    detections = some.to_supervision()
    assert isinstance(detections, supervision.Detections)
    assert detections.xyxy.tolist() == some.boxes.tolist()
    assert detections[detections.class_id == 1].data["class_name"].tolist() == ["bar"]
    blank = image()
    drawn = supervision.BoxAnnotator().annotate(blank.copy(), detections)
    assert (drawn != blank).any()


def test_a_prediction_converts_to_fiftyone(some: Prediction) -> None:
    fiftyone = pytest.importorskip("fiftyone", reason="fiftyone brings another OpenCV: a venv of its own")
    field = some.to_fiftyone()
    assert isinstance(field, fiftyone.Detections)
    assert [one.label for one in field.detections] == ["bar", "square", "square"]
    for one, (x1, y1, x2, y2) in zip(field.detections, some.boxes.tolist(), strict=True):
        assert one.bounding_box == pytest.approx([x1 / 150, y1 / 100, (x2 - x1) / 150, (y2 - y1) / 100])


def test_a_file_is_loaded_and_used_in_one_call(make_onnx: Callable[..., Path], tmp_path: Path) -> None:
    path = make_onnx(tmp_path / "model.onnx")
    pixels = np.zeros((64, 64), np.uint8)
    pixels[8:16, 16:24] = 255
    assert detect(path, pixels, overlap=16).boxes.tolist() == [[16, 8, 24, 16]]
    model = load(path, overlap=16)
    assert detect(model, pixels).boxes.tolist() == [[16, 8, 24, 16]]
    with pytest.raises(ValueError, match=r"load\(\.\.\., score=\.\.\.\)"):
        detect(model, pixels, score=0.5)
