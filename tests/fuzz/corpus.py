"""Small valid files of every kind that the commands read; the fuzzer damages copies of them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "support"))

SIDE = 96  # pixels of an image
BOXES = ((16, 24, 8, 8), (72, 8, 8, 8), (40, 64, 16, 8))  # xywh

VOC = """\
<annotation>
<folder>images</folder><filename>a.png</filename>
<size><width>96</width><height>96</height><depth>3</depth></size>
<object><name>person</name><difficult>0</difficult><truncated>0</truncated>
<bndbox><xmin>17</xmin><ymin>25</ymin><xmax>24</xmax><ymax>32</ymax></bndbox></object>
<object><name>car</name><difficult>1</difficult>
<bndbox><xmin>73</xmin><ymin>9</ymin><xmax>80</xmax><ymax>16</ymax></bndbox></object>
</annotation>
"""
YOLO = "0 0.2 0.3 0.08 0.08\n1 0.8 0.125 0.08 0.08\n0 0.4 0.6 0.5 0.6 0.5 0.7 0.4 0.7\n"
YAML = "path: .\ntrain: images\nnames:\n  0: person\n  1: car\n"
VISDRONE = "16,24,8,8,1,1,0,0\n72,8,8,8,1,4,0,1\n40,64,16,8,0,0,0,0\n"
DOTA = "imagesource:GoogleEarth\ngsd:0.15\n16 24 24 24 24 32 16 32 small-vehicle 0\n72 8 80 8 80 16 72 16 plane 1\n"


VRT = """\
<VRTDataset rasterXSize="96" rasterYSize="96">
<VRTRasterBand dataType="Byte" band="1">
<SimpleSource><SourceFilename relativeToVRT="1">geo.tif</SourceFilename><SourceBand>1</SourceBand></SimpleSource>
</VRTRasterBand>
</VRTDataset>
"""

INFER = "--model in/model.onnx --backend onnx-cpu --overlap 8 --threads 1"  # options of `tinydet infer`
TRAIN = ("train --preset small --epochs 1 --device cpu --weights-backbone none --channels 8 --tile 64 --overlap 16 "
         "--dry-run --output out/m.pth")  # fmt: skip
TIME = 1_700_000_000  # when all files were changed; a journal knows when its scene was


def write(path: Path, data: bytes) -> None:
    """Write a file with the time `TIME`, in a folder that is made if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (TIME, TIME))


Files = dict[str, bytes]  # content by name
Parts = tuple[list[str], Files, Files]  # of a case: arguments of `tinydet`, files in `in`, files in `out`


class Corpus:
    """The files by name, made in memory or in a temporary folder.

    Attributes:
        files: relative name -> bytes.
        images: names of `files` below `formats/`, one image in each format.
        coco, results: the values of `annotations.json` and `results.json`.
    """

    def __init__(self, folder: Path, *, torch: bool) -> None:
        """
        Args:
            torch: also make a checkpoint and the state of an unfinished training.
        """
        self.folder = folder
        pixels = np.full((SIDE, SIDE, 3), 20, np.uint8)
        pixels += np.random.default_rng(0).integers(0, 20, pixels.shape, dtype=np.uint8)
        for x, y, width, height in BOXES:
            pixels[y : y + height, x : x + width] = 255
        self.pixels = pixels
        self.files: dict[str, bytes] = {}
        self._formats()
        for name in ("a", "b"):
            self.files[f"images/{name}.png"] = self.files["formats/a.png"]
        self.files["scene.png"] = self.files["formats/a.png"]
        self.coco = self._coco()
        self.results = [
            {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9 - 0.1 * n}
            for n, a in enumerate(self.coco["annotations"])
        ]
        self.corners = self._corners()
        for name, value in (("annotations", self.coco), ("results", self.results), ("corners", self.corners)):
            self.files[f"{name}.json"] = json.dumps(value).encode()
        self.files["citypersons.mat"] = self._citypersons()
        self._model()
        self._journals()
        if torch:
            self._checkpoint()
        self.images = sorted(name for name in self.files if name.startswith("formats/"))

    def select(self, names: str) -> Files:
        """Return the files with these names, or below these folders."""
        chosen = names.split()
        return {name: data for name, data in self.files.items() if name in chosen or name.partition("/")[0] in chosen}

    def _coco(self) -> dict[str, Any]:
        images = [
            {"id": n, "file_name": f"{name}.png", "width": SIDE, "height": SIDE} for n, name in ((1, "a"), (2, "b"))
        ]
        annotations: list[dict[str, Any]] = [
            {"id": 10 * image["id"] + n, "image_id": image["id"], "category_id": 1 + n % 2, "bbox": list(box),
             "area": box[2] * box[3], "iscrowd": int(n == 2), "ignore": 0}
            for image in images for n, box in enumerate(BOXES)
        ]  # fmt: skip
        x, y, width, height = BOXES[0]
        corners = [x, y, x + width, y, x + width, y + height, x, y + height]
        annotations[0]["segmentation"] = [corners]
        annotations[1] |= {"uncertain": False, "logo": False, "in_dense_image": False}
        annotations[2]["segmentation"] = {"counts": [0, SIDE * SIDE], "size": [SIDE, SIDE]}
        categories = [{"id": 1, "name": "person", "supercategory": "none"}, {"id": 2, "name": "car"}]
        return {"info": {"version": "1"}, "licenses": [], "images": images, "annotations": annotations,
                "categories": categories}  # fmt: skip

    def _corners(self) -> dict[str, Any]:
        """A corner file of TinyPerson: two tiles of the first image."""
        tiles = [{"id": n, "file_name": "a.png", "width": 64, "height": SIDE, "corner": [x, 0, x + 64, SIDE]}
                 for n, x in ((0, 0), (1, 32))]  # fmt: skip
        boxes = [{**self.coco["annotations"][0], "image_id": n, "uncertain": False, "logo": False} for n in (0, 1)]
        return {**self.coco, "images": tiles, "old_images": self.coco["images"][:1], "annotations": boxes}

    def _formats(self) -> None:
        bgr = cv2.cvtColor(self.pixels, cv2.COLOR_RGB2BGR)
        for suffix in (".png", ".jpg", ".bmp", ".webp", ".jp2", ".tif", ".ppm", ".pgm"):
            image = cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY) if suffix == ".pgm" else bgr
            self.files[f"formats/a{suffix}"] = cv2.imencode(suffix, image)[1].tobytes()
        self.files["formats/deep.png"] = cv2.imencode(".png", bgr.astype(np.uint16) * 257)[1].tobytes()
        from PIL import Image

        picture = Image.fromarray(self.pixels)
        others = [picture.rotate(90 * n) for n in (1, 2)]
        for name, options in {
            "a.gif": {"save_all": True, "append_images": others},
            "frames.webp": {"save_all": True, "append_images": others},
            "pages.tif": {"save_all": True, "append_images": others, "compression": "tiff_deflate"},
            "exif.jpg": {"exif": self._rotated()},
            "palette.png": {},
            "a.mpo": {"save_all": True, "append_images": others},
            "a.avif": {},
            "cmyk.jpg": {},
            "a.tga": {},
        }.items():
            file = io.BytesIO()
            made = (
                picture.quantize(16)
                if name == "palette.png"
                else picture.convert("CMYK")
                if name[0] == "c"
                else picture
            )
            with contextlib.suppress(KeyError, OSError, ValueError):  # a build of Pillow without this format
                made.save(file, format=Image.registered_extensions()[Path(name).suffix], **options)
                self.files[f"formats/{name}"] = file.getvalue()
        self._rasters()
        self._videos()

    @staticmethod
    def _rotated() -> Any:
        from PIL import Image

        exif = Image.Exif()
        exif[0x0112] = 6
        return exif

    def _rasters(self) -> None:
        try:
            import rasterio
        except ImportError:
            return
        from rasterio.io import MemoryFile

        place = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.1, 0, 5e5, 0, -0.1, 5e6)}
        bands = self.pixels.transpose(2, 0, 1)
        for name, driver, dtype, options in (
            ("geo.tif", "GTiff", "uint8", {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"}),
            ("deep.tif", "GTiff", "uint16", {"compress": "lzw", "predictor": 2}),
            ("float.tif", "GTiff", "float32", {"nodata": -1}),
            ("a.img", "HFA", "uint8", {}),
        ):
            with MemoryFile() as memory:
                with memory.open(
                    driver=driver, width=SIDE, height=SIDE, count=3, dtype=dtype, **place, **options
                ) as out:
                    out.write(bands.astype(dtype))
                self.files[f"formats/{name}"] = memory.read()
        self.files["formats/a.vrt"] = VRT.encode()

    def _videos(self) -> None:
        try:
            import av
        except ImportError:
            return
        for name, codec in (("a.mp4", "mpeg4"), ("a.ts", "mpeg2video"), ("a.avi", "mjpeg"), ("a.mkv", "mpeg4")):
            path = self.folder / name
            with av.open(str(path), "w") as container:
                stream = container.add_stream(codec, rate=25)
                stream.width = stream.height = SIDE
                stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
                for _ in range(10 if name == "a.ts" else 3):  # FFmpeg recognizes no shorter one
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(self.pixels, format="rgb24")))
                container.mux(stream.encode())
            self.files[f"formats/{name}"] = path.read_bytes()

    def _citypersons(self) -> bytes:
        try:
            import scipy.io
        except ImportError:
            return b""
        rows = np.array([[1, x, y, w, h, n, x, y, w, h] for n, (x, y, w, h) in enumerate(BOXES)])
        cells = np.empty((1, 2), object)
        for n, city in enumerate(("aachen", "ulm")):
            cells[0, n] = {"cityname": city, "im_name": f"{city}_0.png", "bbs": rows}
        file = io.BytesIO()
        scipy.io.savemat(file, {"anno_train_aligned": cells})
        return file.getvalue()

    def _model(self) -> None:
        """A model of white cells, its filter of empty tiles, and something like an engine with its description."""
        from runtime_fixtures import write_onnx

        path = write_onnx(self.folder / "model.onnx")
        self.files["model.onnx"] = path.read_bytes()
        import onnx

        self.spec = json.loads(next(p.value for p in onnx.load(path).metadata_props if p.key == "tinydet"))
        self.files["model.json"] = json.dumps(self.spec).encode()
        self.files["model.engine"] = b"ftrt" + bytes(400)

    def _run(self, *argv: str) -> None:
        """Run a command in the folder, in this process: starting an interpreter takes longer than the command."""
        from tinydet.__main__ import main

        before, cache = Path.cwd(), os.environ.get("XDG_CACHE_HOME")
        os.chdir(self.folder)
        os.environ["XDG_CACHE_HOME"] = str(self.folder)
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                code = main(list(argv))
        finally:
            os.chdir(before)
            if cache is None:
                del os.environ["XDG_CACHE_HOME"]
            else:
                os.environ["XDG_CACHE_HOME"] = cache
        if code:
            raise RuntimeError(f"{argv}: {output.getvalue()}")

    def _journals(self) -> None:
        """The outputs and journals of finished runs, in a folder as the cases have it; a filter of empty tiles."""
        scenes = {"all": "scene.png", "both": "images"}
        if "formats/a.mp4" in self.files:
            self.files["clip.mp4"] = self.files["formats/a.mp4"]
            scenes["clip"] = "clip.mp4"
        for name in ("scene.png", "annotations.json", "images/a.png", "images/b.png", "model.onnx", "clip.mp4"):
            if name in self.files:
                write(self.folder / "in" / name, self.files[name])
        (self.folder / "out").mkdir()
        self._run("infer", *INFER.split(), "--calibrate-skip", "--annotations", "in/annotations.json")
        self.files["model.skip.json"] = (self.folder / "in" / "model.skip.json").read_bytes()
        self.resumed: dict[str, tuple[list[str], dict[str, bytes]]] = {}
        for name, scene in scenes.items():
            argv = ["infer", "--image", f"in/{scene}", *INFER.split(), "--output", f"out/{name}.json", "--resume"]
            self._run(*argv)
            written = [path for path in (self.folder / "out").rglob(f"{name}*") if path.is_file()]
            written += (self.folder / "out").glob(f"{name}.journals/*")
            files = {str(path.relative_to(self.folder / "out")): path.read_bytes() for path in written}
            self.resumed[name] = argv, files

    def _checkpoint(self) -> None:
        """The smallest possible detector, with random weights."""
        import torch

        from tinydet.models.build import DetectorConfig, build_detector
        from tinydet.models.checkpoint import Checkpoint, save_checkpoint

        config = DetectorConfig(backbone="mobilenet_v2", channels=8, classes=2)
        torch.manual_seed(0)
        weights = build_detector(config, [1.0, 1.0, 1.0]).state_dict()
        path = self.folder / "model.pth"
        save_checkpoint(
            Checkpoint(config, weights, ("person", "car"), (1, 2), 64, object_sizes=(8, 8, 12), config={"seed": 0}),
            path,
        )
        self.files["model.pth"] = path.read_bytes()
