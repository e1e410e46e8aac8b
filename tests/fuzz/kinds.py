"""The kinds of input: which files are damaged, and which commands read them."""

from __future__ import annotations

import argparse
import functools
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import mutations
from tests.fuzz.corpus import DOTA, MODEL, VISDRONE, VOC, YAML, YOLO, Corpus
from tests.fuzz.runner import Case
from tinydet.__main__ import COMMANDS, Entry

Kind = Callable[[Random, Corpus], tuple[list[str], dict[str, bytes], dict[str, bytes]]]
TRAIN = ["train", "--preset", "small", "--epochs", "1", "--device", "cpu", "--weights-backbone", "none", "--channels", "8",
         "--tile", "64", "--overlap", "16", "--dry-run"]  # fmt: skip


def files(corpus: Corpus, *names: str) -> dict[str, bytes]:
    """Return the files of the corpus with these names, or below these folders."""
    return {key: data for key, data in corpus.files.items() if any(key == n or key.startswith(f"{n}/") for n in names)}


def annotations(random: Random, corpus: Corpus) -> tuple[list[str], dict[str, bytes], dict[str, bytes]]:
    """A COCO file, or a corner file, for every command that reads one."""
    corner = random.random() < 0.15
    original = corpus.corners if corner else corpus.coco
    data = mutations.encoded(random, mutations.to_json(mutations.document(random, original)))
    source = "in/annotations.json"
    inputs = files(corpus, "images", "results.json", "model.onnx") | {"annotations.json": data}
    images = random.choice([[], ["--images", "in/images"]])
    argv = random.choice([
        ["data", "check", source, *images],
        ["data", "check", source, *images, "--fix", "out/fixed.json", "--json", "out/found.json"],
        ["data", "stats", source, *random.choice([[], ["--json", "out/stats.json"], ["--categories", "person"]])],
        ["data", "cut", source, *images, "--tile", "64", "--overlap", "16", "--output", output(random, images),
         *random.choice([[], ["--grid", "tinydet"]])],
        ["data", "erase", source, *images, "--output", output(random, images)],
        ["data", "rescale", source, *images, "--factor", "0.5", "--output", output(random, images)],
        ["data", "scale-match", source, *images, "--target", source, "--output", output(random, images),
         *random.choice([[], ["--monotone"]])],
        ["data", "convert", source, "--from", "tinyperson", "--output", "out/converted.json"],
        ["salpha", source, *random.choice([[], ["--tile", "64", "--overlap", "16"], ["--count", "anchor"]])],
        ["evaluate", "--gt", source, "--detections", "in/results.json", *protocol(random), "--json", "out/scores.json"],
        ["evaluate", "--gt", source, "--detections", "in/results.json", "--corner-gt", source],
        ["infer", "--annotations", source, "--images", "in/images", *MODEL, "--output", "out/found.json"],
        ["infer", "--annotations", source, "--images", "in/images", *MODEL, "--output", "out/found/"],
        ["infer", "--annotations", source, "--images", "in/images", *MODEL, "--calibrate-skip"],
        [*TRAIN, "--annotations", source, "--images", "in/images", "--output", "out/m.pth"],
        ["evaluate", "--model", "in/model.onnx", "--annotations", source, "--images", "in/images", "--overlap", "8"],
    ])  # fmt: skip
    return argv, inputs, {}


def output(random: Random, images: list[str]) -> str:
    return "out/set" if images else random.choice(["out/new.json", "out/new.json.gz"])


def protocol(random: Random) -> list[str]:
    names = ["coco", "tinyperson", "tinyperson-fixed", "tinyperson-mmdet", "tinyperson-huicv", "citypersons"]
    return ["--protocol", random.choice(names)] if random.random() < 0.6 else []


def results(random: Random, corpus: Corpus) -> tuple[list[str], dict[str, bytes], dict[str, bytes]]:
    """Detections of any program, for `evaluate`."""
    data = mutations.encoded(random, mutations.to_json(mutations.document(random, corpus.results)))
    inputs = files(corpus, "annotations.json", "corners.json") | {"results.json": data}
    argv = ["evaluate", "--gt", "in/annotations.json", "--detections", "in/results.json", *protocol(random)]
    argv += random.choice([[], [], ["--corner-gt", "in/corners.json"], ["--precision", "out/precision.json"],
                           ["--json", "out/scores.json"]])  # fmt: skip
    return argv, inputs, {}


HOSTILE_YAML = ("names: [off, on]", "names: {1: a, person: b}", "names: 3", "nc: 1e9", "kpt_shape: [17, 3]", "kpt_shape: x",
                "? [a, b]\n: c", "&a [*a, *a]", "names: !!python/object/apply:os.system ['touch escaped']", "2020-01-01: x",
                "names: !!binary aGk=", "a: &a [x,x]\nb: &b [*a,*a]\nnames: [*b,*b]", "names:\n  -1: a\n  1e3: b", "names: null",
                "names: ../other.yaml", "---\n---", "path: /etc\nnames: [a]", "<<: *x", "names: " + "[" * 3000)  # fmt: skip
HOSTILE_XML = ("<!DOCTYPE a [<!ENTITY b 'c'>]>", "&b;", "<object/>", "<object><name>a</name></object>", "<a>" * 4000,
               "<![CDATA[x]]>", "<?php ?>", "<size><width>0</width></size>", '<?xml version="1.0" encoding="EBCDIC-US"?>',
               "<width>1e400</width>", "<bndbox><xmin>nan</xmin></bndbox>", "<filename>../../x.png</filename>",
               "<!DOCTYPE a SYSTEM 'http://example.com/a.dtd'>", "<path>/etc/passwd</path>")  # fmt: skip


def texts(random: Random, corpus: Corpus) -> tuple[list[str], dict[str, bytes], dict[str, bytes]]:
    """A published format for `data convert`: labels, class names, XML, MATLAB."""
    inputs = files(corpus, "images")
    options: list[str] = []
    form = random.choice(["yolo", "yolo", "voc", "voc", "visdrone", "dota", "citypersons", "tinyperson"])
    if form == "yolo":
        names = mutations.text(random, YAML, HOSTILE_YAML) if random.random() < 0.5 else YAML.encode()
        inputs["data.yaml"] = names
        labels = mutations.text(random, random.choice([YOLO, "0 0.2 0.3 0.1 0.1 0.9\n", "0 .2 .3 .1 .1 .2 .3 2\n"]))
        inputs |= {"source/a.txt": labels if names == YAML.encode() else YOLO.encode(), "source/b.txt": b""}
        options = random.choice([[], ["--classes", "in/data.yaml"]])
    elif form == "voc":
        inputs |= {"source/a.xml": mutations.text(random, VOC, HOSTILE_XML)}
        if random.random() < 0.3:
            inputs["classes.txt"] = mutations.text(random, "person\ncar\n")
            options = ["--classes", "in/classes.txt"]
    elif form in ("visdrone", "dota"):
        original = VISDRONE if form == "visdrone" else DOTA
        inputs |= {"source/a.txt": mutations.text(random, original, ("1e400 " * 8, "gsd:null", "imagesource:"))}
    elif form == "tinyperson":
        document = mutations.document(random, corpus.corners if random.random() < 0.5 else corpus.coco)
        inputs["source"] = mutations.encoded(random, mutations.to_json(document))
        options = random.choice([[], ["--task", "all"], ["--keep-uncertain"]])
    else:
        inputs["source"] = matlab(random, corpus)
        options = random.choice([[], ["--pedestrians-only"]])
    if form in ("yolo", "visdrone", "dota") or random.random() < 0.3:
        options += ["--images", "in/images"]
    return ["data", "convert", "in/source", "--from", form, *options, "--output", "out/converted.json"], inputs, {}


def matlab(random: Random, corpus: Corpus) -> bytes:
    if random.random() < 0.5 or not corpus.files["citypersons.mat"]:
        return mutations.damaged(random, corpus.files["citypersons.mat"])
    import numpy as np
    import scipy.io

    parts = [np.zeros((2, 10)), np.zeros((0, 0)), np.full((1, 10), np.nan), np.full((1, 10), 1e308), "a", "", "../../x.png", 7,
             {"a": 1}, np.array([1, "a"], object), np.array([[True]]), np.zeros((1, 10), complex), "\u8239"]  # fmt: skip
    cell = {"cityname": "ulm", "im_name": "ulm_0.png", "bbs": np.ones((1, 10))}
    for _ in range(random.randint(1, 2)):
        cell[random.choice(["cityname", "im_name", "bbs", "other"])] = random.choice(parts)
    cells = np.empty((1, 1), object)
    cells[0, 0] = random.choice([cell, cell, cell, random.choice(parts)])
    file = io.BytesIO()
    scipy.io.savemat(
        file, {random.choice(["anno_train_aligned", "anno_x", "x"]): random.choice([cells, cells, parts[0]])}
    )
    return file.getvalue()


def images(random: Random, corpus: Corpus) -> tuple[list[str], dict[str, bytes], dict[str, bytes]]:
    """An image, a raster or a video in any format, alone, in a folder or in a data set."""
    source = random.choice(corpus.images)
    suffix = Path(source).suffix
    data = damaged_image(random, suffix, corpus.files[source])
    if random.random() < 0.15:
        suffix = random.choice([".png", ".jpg", ".tif", ".vrt", ".mp4", ".img", ".dat", "", ".PNG", ".svg", ".pdf"])
    inputs = files(corpus, "model.onnx", "annotations.json", "images")
    inputs["geo.tif"] = corpus.files.get("formats/geo.tif", b"")  # what the VRT names
    choice = random.random()
    if choice < 0.6:
        inputs[f"x{suffix}"] = data
        argv = ["infer", "--image", f"in/x{suffix}", *MODEL, *random.choice([[], [], *SCAN_OPTIONS])]
        placed = any(word in source for word in ("geo", "deep", "float", "img", "vrt"))
        ends = ["json", "csv", "parquet", *(["geojson", "gpkg"] if placed else ["txt"])]
        argv += ["--output", f"out/found.{random.choice(ends)}"]
        if suffix not in (".mp4", ".ts", ".avi", ".mkv"):
            argv += random.choice([[], ["--draw", "out/found.png"], ["--crops", "out/crops.jpg"]])
    elif choice < 0.7:
        inputs |= {f"folder/x{suffix}": data, "folder/good.png": corpus.files["scene.png"]}
        argv = ["infer", "--image", "in/folder", *MODEL, *random.choice([[], ["--skip-unreadable"]])]
        argv += ["--output", random.choice(["out/found/", "out/all.csv"])]
    else:
        inputs |= {"images/a.png": data, "labels/a.txt": YOLO.encode(), "labels/b.txt": b"", "data.yaml": YAML.encode()}
        data_set = ["in/annotations.json", "--images", "in/images"]
        yolo = ["in/labels", "--from", "yolo", "--images", "in/images"]
        argv = random.choice([
            ["data", "check", *data_set, "--fix", "out/fixed.json"],
            ["data", "rescale", *data_set, "--factor", "0.5", "--output", "out/set"],
            ["data", "cut", *data_set, "--tile", "64", "--overlap", "16", "--output", "out/set"],
            ["data", "erase", *data_set, "--output", "out/set"],
            ["data", "convert", *yolo, "--output", "out/converted.json"],
            ["infer", "--annotations", *data_set, *MODEL, "--output", "out/found.json"],
            [*TRAIN, "--annotations", *data_set, "--output", "out/m.pth"],
        ])  # fmt: skip
    return argv, inputs, {}


SCAN_OPTIONS = (["--skip-unreadable"], ["--bands", "1"], ["--bands", "3,2,1"], ["--scale", "2"], ["--scale", "0.3"])


def damaged_image(random: Random, suffix: str, data: bytes) -> bytes:
    """Damage the header of a format where it is known, or else any bytes."""
    action = random.random()
    if suffix == ".vrt":
        return mutations.text(random, data.decode(), HOSTILE_VRT)
    if suffix == ".png" and action < 0.5:
        return mutations.png_header(random, data)
    if suffix == ".tif" and action < 0.6:
        return mutations.tiff_tag(random, data)
    if suffix in (".ppm", ".pgm") and action < 0.5:
        size = random.choice([b"96 96", b"0 0", b"-1 5", b"99999999 99999999", b"1 999999999", b"#\n96 96"])
        most = random.choice([b"255", b"65535", b"0", b"1"])
        mark = random.choice([b"P6", b"P5", b"P3", b"P7", data[:2]])
        return b"%s %s\n%s\n" % (mark, size, most) + data.partition(b"\n255\n")[2]
    return mutations.damaged(random, data)


HOSTILE_VRT = (
    '<SourceFilename relativeToVRT="0">/etc/passwd</SourceFilename>', "<SourceFilename>http://127.0.0.1:1/a.tif</SourceFilename>",
    '<SourceFilename relativeToVRT="1">../../../etc/passwd</SourceFilename>', "<SourceFilename>/vsicurl/http://127.0.0.1:1/a</SourceFilename>",
    '<SourceFilename relativeToVRT="1">x.vrt</SourceFilename>', '<VRTRasterBand dataType="CFloat64" band="2"/>',
    '<VRTRasterBand dataType="Byte" band="1" subClass="VRTDerivedRasterBand"><PixelFunctionType>x</PixelFunctionType>'
    "<PixelFunctionLanguage>Python</PixelFunctionLanguage><PixelFunctionCode>import os; os.mkdir('escaped')</PixelFunctionCode></VRTRasterBand>",
    "<SRS>EPSG:4326</SRS>", "<SRS>nothing</SRS>", "<GeoTransform>nan,0,0,0,0,0</GeoTransform>", "<Metadata><MDI key='a'>b</MDI></Metadata>",
    '<VRTDataset rasterXSize="2000000000" rasterYSize="2000000000">', "<NoDataValue>nan</NoDataValue>", "<SrcRect xOff='-1' yOff='0' xSize='1e9' ySize='1'/>",
)  # fmt: skip


def models(random: Random, corpus: Corpus) -> tuple[list[str], dict[str, bytes], dict[str, bytes]]:
    """An ONNX file: bytes, its description, its graph."""
    inputs = files(corpus, "scene.png", "annotations.json", "images")
    inputs["model.onnx"] = (
        onnx_file(random, corpus) if random.random() < 0.75 else mutations.damaged(random, corpus.files["model.onnx"])
    )
    base = ["--model", "in/model.onnx", "--overlap", "8", "--threads", "1"]
    backend = random.choice(["onnx-cpu", "onnx-cpu", "onnx-cpu", "auto", "openvino"])
    argv = random.choice([
        ["infer", "--image", "in/scene.png", *base, "--backend", backend, "--output", "out/found.json"],
        ["infer", "--image", "in/scene.png", *base, "--backend", backend, "--output", "out/found.json", "--draw", "out/a.png"],
        ["infer", "--image", "in/images", *base, "--backend", backend, "--output", "out/found/", "--format", "csv,yolo,coco"],
        ["seamtest", "--image", "in/scene.png", *base, "--backend", backend],
        ["evaluate", "--model", "in/model.onnx", "--annotations", "in/annotations.json", "--images", "in/images", "--overlap", "8"],
        ["export", "onnx", "in/model.onnx", "--precision", "fp16", "--images", "in/scene.png", "--output", "out/half.onnx"],
        ["export", "verify", "in/model.onnx", "--images", "in/scene.png", "--reference", "in/model.onnx", "--backend", backend],
    ])  # fmt: skip
    return argv, inputs, {}


def onnx_file(random: Random, corpus: Corpus) -> bytes:
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load_model_from_string(corpus.files["model.onnx"])
    for _ in range(random.choice([1, 1, 2])):
        if not model.graph.output:  # removed by the damage before
            break
        action = random.random()
        if action < 0.5:
            text = mutations.to_json(mutations.document(random, corpus.spec)).decode(errors="replace")
            for entry in model.metadata_props:
                if entry.key == "tinydet":
                    entry.value = text
        elif action < 0.6:
            tensor = random.choice([*model.graph.output, *model.graph.input]).type.tensor_type
            if random.random() < 0.5:
                tensor.elem_type = random.choice([0, 1, 2, 6, 7, 8, 10, 11, 99])
            elif tensor.shape.dim:
                random.choice(tensor.shape.dim).dim_value = random.choice([0, 1, -1, 5, 2**40])
        elif action < 0.7:
            random.choice([*model.graph.output, *model.graph.input]).name = random.choice(
                ["", "x", "boxes", "labels", "é"]
            )
        elif action < 0.8:
            constant = random.choice(model.graph.initializer)
            constant.data_location = TensorProto.EXTERNAL
            constant.ClearField("raw_data")
            where = random.choice(
                ["../scene.png", "/etc/passwd", "scene.png", "missing.bin", "", "../../../etc/passwd"]
            )
            constant.external_data.add(key="location", value=where)
            if random.random() < 0.5:
                constant.external_data.add(
                    key=random.choice(["offset", "length"]), value=random.choice(["-1", "x", "9" * 30])
                )
        elif action < 0.87:
            node = random.choice(model.graph.node)
            random.choice([
                lambda: setattr(node, "op_type", random.choice(["Nothing", "", "Identity", "Loop", "TopK"])),
                lambda: setattr(node, "domain", "com.example"),
                lambda: node.input.append("nowhere"),
                lambda: node.attribute.append(helper.make_attribute("axis", 77)),
            ])()  # fmt: skip
        elif action < 0.94:
            constant = random.choice(model.graph.initializer)
            if random.random() < 0.5:
                constant.raw_data = mutations.damaged(random, constant.raw_data)
            elif constant.dims:
                constant.dims[0] = random.choice([0, 1, -1, 2**40])
        else:
            random.choice([
                lambda: setattr(model, "ir_version", random.choice([0, 3, 99])),
                lambda: setattr(model.opset_import[0], "version", random.choice([0, 1, 7, 99])),
                lambda: model.ClearField("graph"),
                lambda: model.graph.ClearField("output"),
                lambda: model.ClearField("metadata_props"),
                lambda: model.metadata_props.add(key="tinydet", value="{}"),
            ])()  # fmt: skip
    return bytes(model.SerializeToString())


def checkpoints(random: Random, corpus: Corpus) -> tuple[list[str], dict[str, bytes], dict[str, bytes]]:
    """A checkpoint: bytes, the types of its fields, its tensors."""
    inputs = files(corpus, "annotations.json", "images", "scene.png")
    if random.random() < 0.3:
        inputs["model.pth"] = mutations.damaged(random, corpus.files["model.pth"])
    else:
        inputs["model.pth"] = checkpoint(random, corpus)
    data_set = ["--annotations", "in/annotations.json", "--images", "in/images"]
    argv = random.choice([
        ["evaluate", "--model", "in/model.pth", *data_set, "--overlap", "8", "--limit", "1"],
        ["evaluate", "--model", "in/model.pth", *data_set, "--overlap", "8", "--limit", "1", "--json", "out/scores.json"],
        [*[word for word in TRAIN if word not in ("--weights-backbone", "none")], "--init", "in/model.pth", *data_set,
         "--output", "out/m.pth"],
        [*(word if word != "none" else "in/model.pth" for word in TRAIN), *data_set, "--output", "out/m.pth"],
        ["export", "freeze", "in/model.pth", "--data", "in", "--val", "in", "--output", "out/frozen.pth"],
        ["gradients", "in/model.pth", "--data", "in", "--tiles", "1", "--alpha", "0,1", "--overlap", "8",
         "--json", "out/g.json", "--plot", "out/g.png"],
    ])  # fmt: skip
    return argv, inputs, {}


def checkpoint(random: Random, corpus: Corpus) -> bytes:
    import torch

    values = dict(unpacked(corpus.files["model.pth"]))
    for _ in range(random.choice([1, 1, 2])):
        action = random.random()
        key = random.choice(list(values) or ["x"])
        if action < 0.4:
            values[key] = plain(mutations.value(random))
        elif action < 0.5:
            values.pop(key, None)
        elif action < 0.75:
            nested = random.choice(
                ["detector", "config", "progress", "versions", "object_sizes", "classes", "category_ids"]
            )
            if values.get(nested):
                changed = mutations.document(random, json.loads(json.dumps(values[nested])), most=2)
                values[nested] = plain(changed)
        elif isinstance(values.get("weights"), dict) and values["weights"]:
            weights = dict(values["weights"])
            name = random.choice([*weights, "fpn.alpha"])
            tensor = weights.get(name, torch.zeros(1))
            weights[name] = random.choice([
                torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor.float(),
                tensor.flatten()[:1], torch.zeros(0), torch.zeros(3, 3, 3, 3, 3), tensor.to(torch.complex64), torch.zeros(1).bool(),
                torch.zeros(()), tensor.to_sparse(), "text", None, 10**400, torch.zeros(1).expand(2**40), torch.zeros(1, device="meta"),
            ])  # fmt: skip
            if random.random() < 0.3:
                weights.pop(name, None)
            values["weights"] = weights
    file = io.BytesIO()
    try:
        torch.save(values, file)
    except (RecursionError, ValueError, RuntimeError, OverflowError, NotImplementedError):
        return mutations.damaged(random, corpus.files["model.pth"])
    return file.getvalue()


@functools.cache
def unpacked(data: bytes) -> dict[str, Any]:
    import torch

    values: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True)
    return values


def plain(value: Any) -> Any:
    """Raw JSON text means nothing in a checkpoint; nest lists instead."""
    if isinstance(value, mutations.Raw):
        nested: list[Any] = []
        for _ in range(50):
            nested = [nested]
        return {"NaN": float("nan"), "1e400": float("inf")}.get(value, nested)
    if isinstance(value, dict):
        return {key: plain(child) for key, child in value.items()}
    return [plain(child) for child in value] if isinstance(value, list) else value


def journals(random: Random, corpus: Corpus) -> tuple[list[str], dict[str, bytes], dict[str, bytes]]:
    """The journal of an interrupted run: bytes, records, its first line."""
    argv, outputs = corpus.resumed[random.choice(list(corpus.resumed))]
    inputs, outputs = files(corpus, "scene.png", "images", "clip.mp4", "model.onnx"), dict(outputs)
    name = random.choice([name for name in outputs if "journal" in name])
    data = outputs[name]
    action = random.random()
    head, newline, rest = data.partition(b"\n")
    if action < 0.35:
        data = mutations.damaged(random, data)
    elif name.endswith(".json"):  # what the shared files of a finished run contain
        data = mutations.to_json(mutations.document(random, json.loads(data)))
    elif action < 0.7:
        data = mutations.to_json(mutations.document(random, json.loads(head))) + newline + rest
    else:
        data = (
            head
            + newline
            + mutations.damaged(random, rest)
            + random.choice([b"", random.randbytes(20), record(random)])
        )
    outputs[name] = data
    if random.random() < 0.5:
        outputs = {name: content for name, content in outputs.items() if "journal" in name}
    return list(argv), inputs, outputs


def record(random: Random) -> bytes:
    """A record of a journal whose checksum is right and whose content is not."""
    import struct
    import zlib

    data = random.choice([
        b"", b"[]", b"{}", b'{"a": NaN}', b"null", b"[" * 100_000, random.randbytes(24), struct.pack("<6I", *[2**32 - 1] * 6),
        struct.pack("<6I", 0, 0, 0, 0, 0, 7), struct.pack("<6I", 1, 0, 0, 0, 0, 0) + b"\xff" * 8, struct.pack("<qdII", 1, 0.5, 2**31, 9),
        struct.pack("<qdII", -1, float("nan"), 2, 0) + b"\xff\xff",
        struct.pack("<6I", 1, 0, 0, 1, 0, 0) + struct.pack("<2q4dfi", 0, 0, *[float("nan")] * 4, 2.0, 99),
    ])  # fmt: skip
    return struct.pack("<4sII", random.choice([b"tile", b"fram", b"done"]), len(data), zlib.crc32(data)) + data


def sidecars(random: Random, corpus: Corpus) -> tuple[list[str], dict[str, bytes], dict[str, bytes]]:
    """What lies beside a model: its filter of empty tiles, and the description of an engine."""
    inputs = files(corpus, "scene.png", "model.onnx", "model.skip.json")
    scan = ["infer", "--image", "in/scene.png", "--overlap", "8", "--output", "out/found.json"]
    if random.random() < 0.6:
        document = mutations.document(random, json.loads(corpus.files["model.skip.json"]))
        inputs["model.skip.json"] = mutations.encoded(random, mutations.to_json(document))
        return [*scan, "--model", "in/model.onnx", "--backend", "onnx-cpu", "--skip-empty"], inputs, {}
    document = mutations.document(random, corpus.spec)
    inputs["model.json"] = mutations.encoded(random, mutations.to_json(document))
    inputs["model.engine"] = mutations.damaged(random, corpus.files["model.engine"])
    return random.choice([
        [*scan, "--model", "in/model.engine"],
        ["export", "verify", "in/model.engine", "--images", "in/scene.png"],
    ]), inputs, {}  # fmt: skip


# Arguments: every option of every parser

VALUES = ("0", "-1", "1", "2", "3", "0.5", "1e-320", "1e308", "nan", "inf", "-inf", "9" * 30, str(2**63), str(2**31), "1e11", "", " ",
          "a", "1,2,3", "1,1,1", "0,0", ",", "1:2:0.1", "0:1:1e-9", "2:1:0.1", "auto", "0x10", "1_000", "١٢", "é", "\udcff", "a" * 300,
          "640x480", "99999999x99999999", "0x0", "1/3", "1/0", "24", "0.6m", "1e400m", "cuda", "cuda:99", "cpu", "%s", "{}", "-",
          "person", "person,car", "'car'", "coco,csv", "coco,coco", "none", "100%", "a\nb")  # fmt: skip
PATHS = ("in/annotations.json", "in/images", "in", "in/scene.png", "in/model.onnx", "in/results.json", "in/corners.json", "in/missing",
         "in/empty.json", "in/empty.png", "in/text.png", "in/source", "in/data.yaml", "out", "out/", "out/new.json", "out/new/", "out/new.csv",
         "out/new.gpkg", "out/new.png", "out/new.pth", "out/new", "out/a/b/c.json", "out/new.exr", "out/new.webp", "out/new.mp4",
         "out/\udce9.json", "out/é 船.json", "out/" + "a" * 300 + ".json", "/dev/null", "/dev/full", ".", "", "in/annotations.json/x",
         "thermal", "in/images/*.png", "in/**", "file:in/scene.png", "http://127.0.0.1:1/a.tif", "in/\x01.png", "~", "-")  # fmt: skip
BASES: dict[str, list[list[str]]] = {
    "data convert": [["in/source", "--from", "yolo", "--images", "in/images"]],
    "data stats": [["in/annotations.json"]],
    "data check": [["in/annotations.json"]],
    "data cut": [["in/annotations.json", "--images", "in/images", "--output", "out/set"]],
    "data erase": [["in/annotations.json", "--images", "in/images", "--output", "out/set"]],
    "data rescale": [["in/annotations.json", "--images", "in/images", "--output", "out/set", "--factor", "0.5"]],
    "data scale-match": [["in/annotations.json", "--images", "in/images", "--output", "out/set", "--target", "in/annotations.json"]],
    "salpha": [["in/annotations.json"]],
    "train": [[*TRAIN[1:], "--annotations", "in/annotations.json", "--images", "in/images", "--output", "out/m.pth"]],
    "sweep": [["--data", "in", "--val", "in", "--output", "out/sweep", "--dry-run"]],
    "evaluate": [["--gt", "in/annotations.json", "--detections", "in/results.json"],
                 ["--model", "in/model.onnx", "--annotations", "in/annotations.json", "--images", "in/images"]],
    "export onnx": [["in/model.onnx", "--precision", "fp16", "--images", "in/scene.png", "--output", "out/half.onnx"]],
    "export engine": [["in/model.onnx", "--dry-run", "--images", "in/scene.png", "--output", "out/m.engine"]],
    "export verify": [["in/model.onnx", "--images", "in/scene.png"]],
    "export freeze": [["in/missing.pth", "--data", "in", "--val", "in", "--output", "out/m.pth"]],
    "gradients": [["in/missing.pth", "--data", "in", "--json", "out/g.json", "--plot", "out/g.png"]],
    "infer": [["--image", "in/scene.png", *MODEL, "--output", "out/found.json"], ["--image", "in/images", *MODEL, "--output", "out/found/"],
              ["--annotations", "in/annotations.json", "--images", "in/images", *MODEL, "--output", "out/found.json"]],
    "seamtest": [["--image", "in/scene.png", *MODEL[:4], "--overlap", "8"]],
    "synthetic": [["out/set", "--images", "1", "--size", "64x64"]],
}  # fmt: skip
SLOW = ("export engine", "export freeze", "gradients", "sweep", "train", "export onnx", "export verify")


def arguments(random: Random, corpus: Corpus) -> tuple[list[str], dict[str, bytes], dict[str, bytes]]:
    """Any values for the options of any command."""
    names = list(commands())
    name = random.choice(names)
    if name in SLOW and random.random() < 0.6:
        name = random.choice(names)
    argv = list(random.choice(BASES.get(name, [[]])))
    options = parsers()[name]
    for _ in range(random.choice([1, 1, 2, 3])):
        action = random.choice(options)
        if action.option_strings:
            argv.append(random.choice(action.option_strings))
        count = {None: 1, "?": 1, "*": 2, "+": random.choice([1, 2])}.get(action.nargs, action.nargs)
        argv += [argument(random, action) for _ in range(count)]
        if random.random() < 0.05:
            argv.remove(random.choice(argv))
    inputs = files(corpus, "annotations.json", "results.json", "corners.json", "images", "scene.png", "model.onnx")
    inputs |= {
        "empty.json": b"",
        "empty.png": b"",
        "text.png": b"hello",
        "source/a.txt": YOLO.encode(),
        "data.yaml": YAML.encode(),
    }
    return [*name.split(), *argv], inputs, {}


def argument(random: Random, action: argparse.Action) -> str:
    """A value for an option, often one that it takes."""
    if action.choices is not None and random.random() < 0.7:
        return str(random.choice(list(action.choices)))
    names_a_file = (
        action.type is Path or (action.metavar or "") in ("PATH", "FILE", "DIR", "SCENE") or not action.option_strings
    )
    return random.choice(PATHS if names_a_file and random.random() < 0.8 else VALUES)


def commands() -> dict[str, Entry]:
    """Return every command and sub-command by its words."""
    found: dict[str, Entry] = {}
    for name, entry in COMMANDS.items():
        found |= (
            {name: entry} if isinstance(entry, Entry) else {f"{name} {key}": sub for key, sub in entry.commands.items()}
        )
    return found


@functools.cache
def parsers() -> dict[str, list[argparse.Action]]:
    """Return the options of every command, as its parser has them."""
    from tinydet.__main__ import main

    found = {}
    for name in commands():
        with caught_parser() as caught:
            main([*name.split(), "--fuzz"])
        found[name] = [action for action in caught[-1]._actions if not isinstance(action, argparse._HelpAction)]
        assert found[name], name
    return found


class Caught(BaseException):
    """Ends a command where it parses its arguments."""


@contextmanager
def caught_parser() -> Iterator[list[argparse.ArgumentParser]]:
    """Collect the parsers of the commands that the block runs; the last one ends it."""
    caught: list[argparse.ArgumentParser] = []
    original = argparse.ArgumentParser.parse_known_args

    def parse(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        if args and list(args)[-1:] == ["--fuzz"]:
            caught.append(self)
            raise Caught
        return original(self, args, namespace)

    argparse.ArgumentParser.parse_known_args = parse  # type: ignore[method-assign, assignment]
    try:
        yield caught
    except Caught:
        pass
    finally:
        argparse.ArgumentParser.parse_known_args = original  # type: ignore[method-assign]


# Kinds with their share of the cases. Those of torch are slow.
KINDS: dict[str, tuple[Kind, int]] = {
    "annotations": (annotations, 22),
    "results": (results, 10),
    "texts": (texts, 14),
    "images": (images, 20),
    "models": (models, 8),
    "checkpoints": (checkpoints, 4),
    "journals": (journals, 6),
    "sidecars": (sidecars, 4),
    "arguments": (arguments, 16),
}


def make(name: str, corpus: Corpus) -> Case:
    """Return the case `SEED-KIND-NUMBER`; the same name gives the same case."""
    kind = name.split("-")[1]
    argv, inputs, outputs = KINDS[kind][0](Random(name), corpus)
    return Case(kind, name, argv, inputs, outputs)


def names(seed: int, count: int, kinds: list[str]) -> Iterator[str]:
    """Yield the names of `count` cases of these kinds, by their shares."""
    random = Random(seed)
    chosen = random.choices(kinds, [KINDS[kind][1] for kind in kinds], k=count)
    for number, kind in enumerate(chosen):
        yield f"{seed}-{kind}-{number}"
