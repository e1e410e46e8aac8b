"""The kinds of input: which files are damaged, and which commands read them."""

from __future__ import annotations

import functools
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import mutations
from tests.fuzz.arguments import arguments
from tests.fuzz.corpus import DOTA, INFER, TRAIN, VISDRONE, VOC, YAML, YOLO, Corpus, Parts
from tests.fuzz.runner import Case

SOURCE = "in/annotations.json"
IMAGES = "--images in/images"
DATA_SET = f"{SOURCE} {IMAGES}"
GT = f"evaluate --gt {SOURCE} --detections in/results.json"


def damaged_json(random: Random, original: Any) -> bytes:
    return mutations.encoded(random, mutations.to_json(mutations.document(random, original)))


def maybe(random: Random, *options: str) -> str:
    """One of the options, or none."""
    return random.choice(["", *options])


def annotations(random: Random, corpus: Corpus) -> Parts:
    """A COCO file, or a corner file, for every command that reads one."""
    data = damaged_json(random, corpus.corners if random.random() < 0.15 else corpus.coco)
    images, output = random.choice([
        ("", "--output out/new.json"), ("", "--output out/new.json.gz"), (IMAGES, "--output out/set"),
    ])  # fmt: skip
    argv = random.choice([
        f"data check {SOURCE} {images}",
        f"data check {SOURCE} {images} --fix out/fixed.json --json out/found.json",
        f"data stats {SOURCE} {maybe(random, '--json out/stats.json', '--categories person')}",
        f"data cut {SOURCE} {images} {output} --tile 64 --overlap 16 {maybe(random, '--grid tinydet')}",
        f"data erase {SOURCE} {images} {output}",
        f"data rescale {SOURCE} {images} {output} --factor 0.5",
        f"data scale-match {SOURCE} {images} {output} --target {SOURCE} {maybe(random, '--monotone')}",
        f"data convert {SOURCE} --from tinyperson --output out/converted.json",
        f"salpha {SOURCE} {maybe(random, '--tile 64 --overlap 16', '--count anchor')}",
        f"{GT} {protocol(random)} --json out/scores.json",
        f"{GT} --corner-gt {SOURCE}",
        f"infer --annotations {DATA_SET} {INFER} --output out/found.json",
        f"infer --annotations {DATA_SET} {INFER} --output out/found/",
        f"infer --annotations {DATA_SET} {INFER} --calibrate-skip",
        f"{TRAIN} --annotations {DATA_SET}",
        f"evaluate --model in/model.onnx --annotations {DATA_SET} --overlap 8",
    ])  # fmt: skip
    return argv.split(), corpus.select("images results.json model.onnx") | {"annotations.json": data}, {}


def protocol(random: Random) -> str:
    names = ["coco", "tinyperson", "tinyperson-fixed", "tinyperson-mmdet", "tinyperson-huicv", "citypersons"]
    return f"--protocol {random.choice(names)}" if random.random() < 0.6 else ""


def results(random: Random, corpus: Corpus) -> Parts:
    """Detections of any program, for `evaluate`."""
    inputs = corpus.select("annotations.json corners.json")
    if random.random() < 0.25:  # made on the tiles of a corner file
        original = [{**row, "image_id": n % 2} for n, row in enumerate(corpus.results)]
        inputs["results.json"] = damaged_json(random, original)
        return f"{GT} --corner-gt in/corners.json".split(), inputs, {}
    inputs["results.json"] = damaged_json(random, corpus.results)
    outputs = maybe(random, "--precision out/precision.json", "--json out/scores.json")
    return f"{GT} {protocol(random)} {outputs}".split(), inputs, {}


HOSTILE_YAML = (
    *(
        "names: [off, on]",
        "names: {1: a, person: b}",
        "names: 3",
        "names: null",
        "names:\n  -1: a\n  1e3: b",
        "nc: 1e9",
    ),
    *("kpt_shape: [17, 3]", "kpt_shape: x", "? [a, b]\n: c", "&a [*a, *a]", "<<: *x", "---\n---", "2020-01-01: x"),
    *("names: !!python/object/apply:os.mkdir ['escaped']", "names: !!binary aGk=", "names: ../other.yaml"),
    *("a: &a [x,x]\nb: &b [*a,*a]\nnames: [*b,*b]", "path: /etc\nnames: [a]", f"names: {'[' * 3000}"),
)
HOSTILE_XML = (
    *(
        "<!DOCTYPE a [<!ENTITY b 'c'>]>",
        "<!DOCTYPE a SYSTEM 'http://127.0.0.1:1/a.dtd'>",
        "&b;",
        "<![CDATA[x]]>",
        "<?x ?>",
    ),
    *("<object/>", "<object><name>a</name></object>", "<a>" * 4000, '<?xml version="1.0" encoding="EBCDIC-US"?>'),
    *("<size><width>0</width></size>", "<width>1e400</width>", "<bndbox><xmin>nan</xmin></bndbox>"),
    *("<filename>../../x.png</filename>", "<path>/etc/passwd</path>"),
)
OTHER_YOLO = ("0 0.2 0.3 0.1 0.1 0.9\n", "0 .2 .3 .1 .1 .2 .3 2\n")  # results with scores, and key points


def texts(random: Random, corpus: Corpus) -> Parts:
    """A published format for `data convert`: labels, class names, XML, MATLAB."""
    form = random.choice(["yolo", "yolo", "voc", "voc", "visdrone", "dota", "citypersons", "tinyperson"])
    inputs, options = corpus.select("images"), ""
    if form == "yolo":
        inputs |= {"data.yaml": YAML.encode(), "source/a.txt": YOLO.encode(), "source/b.txt": b""}
        if random.random() < 0.5:
            inputs["data.yaml"] = mutations.text(random, YAML, HOSTILE_YAML)
        else:
            inputs["source/a.txt"] = mutations.text(random, random.choice([YOLO, *OTHER_YOLO]))
        options = maybe(random, "--classes in/data.yaml")
    elif form == "voc":
        inputs["source/a.xml"] = mutations.text(random, VOC, HOSTILE_XML)
        if random.random() < 0.3:
            inputs["classes.txt"] = mutations.text(random, "person\ncar\n")
            options = "--classes in/classes.txt"
    elif form in ("visdrone", "dota"):
        original = VISDRONE if form == "visdrone" else DOTA
        inputs["source/a.txt"] = mutations.text(random, original, ("1e400 " * 8, "gsd:null", "imagesource:"))
    elif form == "tinyperson":
        inputs["source"] = damaged_json(random, random.choice([corpus.corners, corpus.coco]))
        options = maybe(random, "--task all", "--keep-uncertain")
    else:
        inputs["source"] = matlab(random, corpus.files["citypersons.mat"])
        options = maybe(random, "--pedestrians-only")
    if form in ("yolo", "visdrone", "dota") or random.random() < 0.3:
        options += f" {IMAGES}"
    return f"data convert in/source --from {form} {options} --output out/converted.json".split(), inputs, {}


def matlab(random: Random, data: bytes) -> bytes:
    """A file of CityPersons with damaged bytes, or with values of other types."""
    if random.random() < 0.5 or not data:
        return mutations.damaged(random, data)
    import numpy as np
    import scipy.io

    rows = [
        np.zeros((2, 10)),
        np.zeros((0, 0)),
        np.full((1, 10), np.nan),
        np.full((1, 10), 1e308),
        np.ones((1, 10), complex),
    ]
    parts = [*rows, "a", "", "../../x.png", "\u8239", 7, {"a": 1}, np.array([1, "a"], object), np.array([[True]])]
    cell = {"cityname": "ulm", "im_name": "ulm_0.png", "bbs": np.ones((1, 10))}
    for _ in range(random.randint(1, 2)):
        cell[random.choice(["cityname", "im_name", "bbs", "other"])] = random.choice(parts)
    cells = np.empty((1, 1), object)
    cells[0, 0] = random.choice([cell, cell, cell, random.choice(parts)])
    content = random.choice([cells, cells, parts[0]])
    file = io.BytesIO()
    scipy.io.savemat(file, {random.choice(["anno_train_aligned", "anno_x", "x"]): content})
    return file.getvalue()


MOVING = (".mp4", ".ts", ".avi", ".mkv")


def images(random: Random, corpus: Corpus) -> Parts:
    """An image, a raster or a video in any format, alone, in a folder or in a dataset."""
    original = random.choice(corpus.images)
    suffix = Path(original).suffix
    data = damaged_image(random, suffix, corpus.files[original])
    if random.random() < 0.15:
        suffix = random.choice([".png", ".jpg", ".tif", ".vrt", ".mp4", ".img", ".dat", "", ".PNG", ".svg", ".pdf"])
    inputs = corpus.select("model.onnx annotations.json images")
    inputs["geo.tif"] = corpus.files.get("formats/geo.tif", b"")  # what the VRT names
    choice = random.random()
    if choice < 0.6:
        inputs[f"x{suffix}"] = data
        options = random.choice(["", "", "--skip-unreadable", "--bands 1", "--bands 3,2,1", "--scale 2", "--scale 0.3"])
        placed = any(word in original for word in ("geo", "deep", "float", "img", "vrt"))
        ends = ["json", "csv", "parquet", *(["geojson", "gpkg"] if placed else ["txt"])]
        more = "" if suffix in MOVING else maybe(random, "--draw out/found.png", "--crops out/crops.jpg")
        argv = f"infer --image in/x{suffix} {INFER} {options} --output out/found.{random.choice(ends)} {more}"
    elif choice < 0.7:
        inputs |= {f"folder/x{suffix}": data, "folder/good.png": corpus.files["scene.png"]}
        output = random.choice(["out/found/", "out/all.csv"])
        argv = f"infer --image in/folder {INFER} {maybe(random, '--skip-unreadable')} --output {output}"
    else:
        inputs |= {"images/a.png": data, "labels/a.txt": YOLO.encode(), "labels/b.txt": b"", "data.yaml": YAML.encode()}
        argv = random.choice([
            f"data check {DATA_SET} --fix out/fixed.json",
            f"data rescale {DATA_SET} --factor 0.5 --output out/set",
            f"data cut {DATA_SET} --tile 64 --overlap 16 --output out/set",
            f"data erase {DATA_SET} --output out/set",
            f"data convert in/labels --from yolo {IMAGES} --output out/converted.json",
            f"infer --annotations {DATA_SET} {INFER} --output out/found.json",
            f"{TRAIN} --annotations {DATA_SET}",
        ])  # fmt: skip
    return argv.split(), inputs, {}


HOSTILE_VRT = (
    '<SourceFilename relativeToVRT="0">/etc/passwd</SourceFilename>',
    '<SourceFilename relativeToVRT="1">../../../etc/passwd</SourceFilename>',
    '<SourceFilename relativeToVRT="1">x.vrt</SourceFilename>',
    "<SourceFilename>http://127.0.0.1:1/a.tif</SourceFilename>",
    "<SourceFilename>/vsicurl/http://127.0.0.1:1/a</SourceFilename>",
    '<VRTRasterBand dataType="CFloat64" band="2"/>',
    '<VRTRasterBand dataType="Byte" band="1" subClass="VRTDerivedRasterBand"><PixelFunctionType>x</PixelFunctionType>'
    "<PixelFunctionLanguage>Python</PixelFunctionLanguage><PixelFunctionCode>import os; os.mkdir('escaped')"
    "</PixelFunctionCode></VRTRasterBand>",
    *("<SRS>EPSG:4326</SRS>", "<SRS>nothing</SRS>", "<GeoTransform>nan,0,0,0,0,0</GeoTransform>"),
    *("<Metadata><MDI key='a'>b</MDI></Metadata>", "<NoDataValue>nan</NoDataValue>"),
    '<VRTDataset rasterXSize="2000000000" rasterYSize="2000000000">',
    "<SrcRect xOff='-1' yOff='0' xSize='1e9' ySize='1'/>",
)


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


def models(random: Random, corpus: Corpus) -> Parts:
    """An ONNX file: bytes, its description, its graph."""
    original = corpus.files["model.onnx"]
    data = onnx_file(random, corpus) if random.random() < 0.75 else mutations.damaged(random, original)
    backend = random.choice(["onnx-cpu", "onnx-cpu", "onnx-cpu", "auto", "openvino"])
    model = f"--model in/model.onnx --overlap 8 --threads 1 --backend {backend}"
    argv = random.choice([
        f"infer --image in/scene.png {model} --output out/found.json",
        f"infer --image in/scene.png {model} --output out/found.json --draw out/a.png",
        f"infer --image in/images {model} --output out/found/ --format csv,yolo,coco",
        f"seamtest --image in/scene.png {model}",
        f"evaluate --model in/model.onnx --annotations {DATA_SET} --overlap 8",
        "export onnx in/model.onnx --precision fp16 --images in/scene.png --output out/half.onnx",
        f"export verify in/model.onnx --images in/scene.png --reference in/model.onnx --backend {backend}",
    ])  # fmt: skip
    return argv.split(), corpus.select("scene.png annotations.json images") | {"model.onnx": data}, {}


ELSEWHERE = ("../scene.png", "/etc/passwd", "scene.png", "missing.bin", "", "../../../etc/passwd")


def onnx_file(random: Random, corpus: Corpus) -> bytes:
    """The model with a few changes that a program or an attacker may make."""
    import onnx

    model = onnx.load_model_from_string(corpus.files["model.onnx"])
    for _ in range(random.choice([1, 1, 2])):
        if not model.graph.output:  # removed by the change before
            break
        action = random.random()
        if action < 0.5:
            description = mutations.to_json(mutations.document(random, corpus.spec)).decode(errors="replace")
            for entry in model.metadata_props:
                if entry.key == "tinydet":
                    entry.value = description
        elif action < 0.7:
            _change_outside(random, random.choice([*model.graph.output, *model.graph.input]))
        elif action < 0.9:
            _change_constant(random, random.choice(model.graph.initializer))
        elif action < 0.95:
            _change_node(random, random.choice(model.graph.node))
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


def _change_outside(random: Random, value: Any) -> None:
    """Change the name, type or shape of an input or output."""
    action, tensor = random.random(), value.type.tensor_type
    if action < 0.4:
        value.name = random.choice(["", "x", "boxes", "labels", "é"])
    elif action < 0.7 or not tensor.shape.dim:
        tensor.elem_type = random.choice([0, 1, 2, 6, 7, 8, 10, 11, 99])
    else:
        random.choice(tensor.shape.dim).dim_value = random.choice([0, 1, -1, 5, 2**40])


def _change_constant(random: Random, constant: Any) -> None:
    """Change the bytes or the shape of a constant, or say that it is in another file."""
    action = random.random()
    if action < 0.5:
        constant.data_location = 1  # EXTERNAL
        constant.ClearField("raw_data")
        constant.external_data.add(key="location", value=random.choice(ELSEWHERE))
        if random.random() < 0.5:
            value = random.choice(["-1", "x", "9" * 30])
            constant.external_data.add(key=random.choice(["offset", "length"]), value=value)
    elif action < 0.75 or not constant.dims:
        constant.raw_data = mutations.damaged(random, constant.raw_data)
    else:
        constant.dims[0] = random.choice([0, 1, -1, 2**40])


def _change_node(random: Random, node: Any) -> None:
    from onnx import helper

    action = random.randrange(4)
    if action == 0:
        node.op_type = random.choice(["Nothing", "", "Identity", "Loop", "TopK"])
    elif action == 1:
        node.domain = "com.example"
    elif action == 2:
        node.input.append("nowhere")
    else:
        node.attribute.append(helper.make_attribute("axis", 77))


def checkpoints(random: Random, corpus: Corpus) -> Parts:
    """A checkpoint: bytes, the types of its fields, its tensors."""
    original = corpus.files["model.pth"]
    data = mutations.damaged(random, original) if random.random() < 0.3 else checkpoint(random, original)
    scored = f"evaluate --model in/model.pth --annotations {DATA_SET} --overlap 8 --limit 1"
    whole = TRAIN.replace("--weights-backbone none", "")
    argv = random.choice([
        scored,
        f"{scored} --json out/scores.json",
        f"{whole} --init in/model.pth --annotations {DATA_SET}",
        f"{whole} --weights-backbone in/model.pth --annotations {DATA_SET}",
        "export freeze in/model.pth --data in --val in --output out/frozen.pth",
        "gradients in/model.pth --data in --tiles 1 --alpha 0,1 --overlap 8 --json out/g.json --plot out/g.png",
    ])  # fmt: skip
    return argv.split(), corpus.select("annotations.json images scene.png") | {"model.pth": data}, {}


def checkpoint(random: Random, original: bytes) -> bytes:
    """The checkpoint with a few values of other types, tensors of other shapes, or fields that are missing."""
    import torch

    values = dict(unpacked(original))
    for _ in range(random.choice([1, 1, 2])):
        action = random.random()
        key = random.choice(list(values) or ["x"])
        if action < 0.4:
            values[key] = plain(mutations.value(random))
        elif action < 0.5:
            values.pop(key, None)
        elif action < 0.75:
            nested = random.choice(("detector", "config", "progress", "versions", "object_sizes", "classes"))
            if values.get(nested):
                values[nested] = plain(mutations.document(random, json.loads(json.dumps(values[nested])), most=2))
        elif isinstance(values.get("weights"), dict) and values["weights"]:
            weights = dict(values["weights"])
            name = random.choice([*weights, "fpn.alpha"])
            before = weights.get(name)  # no tensor any more if the last step replaced it
            weights[name] = other_tensor(random, before if isinstance(before, torch.Tensor) else torch.zeros(1))
            if random.random() < 0.3:
                del weights[name]
            values["weights"] = weights
    file = io.BytesIO()
    try:
        torch.save(values, file)
    except (RecursionError, ValueError, RuntimeError, OverflowError, NotImplementedError):  # cannot be written
        return mutations.damaged(random, original)
    return file.getvalue()


def other_tensor(random: Random, tensor: Any) -> Any:
    import torch

    zero = torch.zeros(1)
    return random.choice([
        torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor.float(),
        tensor.to(torch.complex64), tensor.to_sparse(), tensor.flatten()[:1], zero[:0], zero.bool(), torch.zeros(()),
        torch.zeros(3, 3, 3, 3, 3), zero.expand(2**40), torch.zeros(1, device="meta"), "text", None, 10**400,
    ])  # fmt: skip


@functools.cache
def unpacked(data: bytes) -> dict[str, Any]:
    import torch

    values: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True)
    return values


def plain(value: Any) -> Any:
    """Raw JSON text has no meaning in a checkpoint; nest lists instead."""
    if isinstance(value, mutations.Raw):
        nested: list[Any] = []
        for _ in range(50):
            nested = [nested]
        return {"NaN": float("nan"), "1e400": float("inf")}.get(value, nested)
    if isinstance(value, dict):
        return {key: plain(child) for key, child in value.items()}
    return [plain(child) for child in value] if isinstance(value, list) else value


def journals(random: Random, corpus: Corpus) -> Parts:
    """The journal of an interrupted run: bytes, records, its first line."""
    argv, before = corpus.resumed[random.choice(list(corpus.resumed))]
    outputs = dict(before)
    name = random.choice([name for name in outputs if "journal" in name])
    head, newline, rest = outputs[name].partition(b"\n")
    action = random.random()
    if action < 0.35:
        outputs[name] = mutations.damaged(random, outputs[name])
    elif name.endswith(".json"):  # what the shared files of a finished run contain
        outputs[name] = mutations.to_json(mutations.document(random, json.loads(outputs[name])))
    elif action < 0.7:
        outputs[name] = mutations.to_json(mutations.document(random, json.loads(head))) + newline + rest
    else:
        end = random.choice([b"", random.randbytes(20), record(random)])
        outputs[name] = head + newline + mutations.damaged(random, rest) + end
    if random.random() < 0.5:
        outputs = {name: content for name, content in outputs.items() if "journal" in name}
    return list(argv), corpus.select("scene.png images clip.mp4 model.onnx"), outputs


def record(random: Random) -> bytes:
    """A record of a journal whose checksum is right and whose content is not."""
    counts = struct.Struct("<6I")
    data = random.choice([
        b"", b"[]", b"{}", b'{"a": NaN}', b"null", b"[" * 100_000, random.randbytes(24),
        counts.pack(*[2**32 - 1] * 6), counts.pack(0, 0, 0, 0, 0, 7), counts.pack(1, 0, 0, 0, 0, 0) + b"\xff" * 8,
        counts.pack(1, 0, 0, 1, 0, 0) + struct.pack("<2q4dfi", 0, 0, *[float("nan")] * 4, 2.0, 99),
        struct.pack("<qdII", 1, 0.5, 2**31, 9), struct.pack("<qdII", -1, float("nan"), 2, 0) + b"\xff\xff",
    ])  # fmt: skip
    return struct.pack("<4sII", random.choice([b"tile", b"fram", b"done"]), len(data), zlib.crc32(data)) + data


def sidecars(random: Random, corpus: Corpus) -> Parts:
    """Companion files of a model: its filter of empty tiles, and the description of an engine."""
    inputs = corpus.select("scene.png model.onnx model.skip.json")
    scan = "infer --image in/scene.png --output out/found.json"
    if random.random() < 0.6:
        inputs["model.skip.json"] = damaged_json(random, json.loads(corpus.files["model.skip.json"]))
        return f"{scan} {INFER} --skip-empty".split(), inputs, {}
    inputs["model.json"] = damaged_json(random, corpus.spec)
    inputs["model.engine"] = mutations.damaged(random, corpus.files["model.engine"])
    verify = "export verify in/model.engine --images in/scene.png"
    return random.choice([f"{scan} --model in/model.engine", verify]).split(), inputs, {}


# Kinds with their share of the cases.
KINDS: dict[str, tuple[Callable[[Random, Corpus], Parts], int]] = {
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
    chosen = Random(seed).choices(kinds, [KINDS[kind][1] for kind in kinds], k=count)
    for number, kind in enumerate(chosen):
        yield f"{seed}-{kind}-{number}"
