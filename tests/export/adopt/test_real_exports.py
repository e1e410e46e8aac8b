"""Exports of the real packages, each from a virtual environment of its own that sees the packages of this one."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import numpy as np
import pytest

from tinydet.export.adopt.adopting import Options, make_plan, open_adopted, write_adopted
from tinydet.export.adopt.original import open_original
from tinydet.export.adopt.reference import ClippedBackend, ReferenceBackend
from tinydet.export.parity import TOLERANCES, compare
from tinydet.export.verify import middle_tile

pytestmark = pytest.mark.slow

EXPORTS = {
    "ultralytics": (
        ("ultralytics", "ultralytics-thop", "py-cpuinfo", "polars", "polars-runtime-32", "psutil"),
        """
        import os, shutil
        from ultralytics import YOLO
        exports = [("yolov5nu", "v5u", {}), ("yolov8n", "v8", {}), ("yolo11n", "11", {"dynamic": True}),
                   ("yolo12n", "12", {}), ("yolo26n", "26", {}), ("yolo26n", "26end", {"nms": False}),
                   ("yolov8n", "v8nms", {"nms": True, "conf": 0.01}), ("yolov8n-seg", "seg", {}),
                   ("yolov8n-obb", "obb", {})]
        for yaml, name, options in exports:
            torch.manual_seed(0)
            model = YOLO(f"{yaml}.yaml")
            head = model.model.model[-1]
            for branches in (head.cv3, getattr(head, "one2one_cv3", None) or ()):
                for branch in branches:
                    torch.nn.init.normal_(branch[-1].weight, 0, 0.3)
                    torch.nn.init.constant_(branch[-1].bias, -2.5)
            shutil.move(model.export(format="onnx", imgsz=128, simplify=False, device="cpu", **options), f"{name}.onnx")
        """,
    ),
    "yolox": (
        ("pixeltable-yolox", "loguru", "tabulate", "psutil", "onnxsim"),
        """
        from yolox.models import YoloPafpn, YoloxHead, YoloxModule
        channels = [256, 512, 1024]
        for decoded in (False, True):
            torch.manual_seed(0)
            fpn = YoloPafpn(0.33, 0.25, in_channels=channels, depthwise=True)
            model = YoloxModule(fpn, YoloxHead(7, 0.25, in_channels=channels, depthwise=True)).eval()
            for layer in (*model.head.cls_preds, *model.head.obj_preds):
                torch.nn.init.normal_(layer.weight, 0, 0.6)
                torch.nn.init.constant_(layer.bias, -1.0)
            model.head.decode_in_inference = decoded
            torch.onnx.export(model, torch.rand(1, 3, 128, 128), f"yolox{decoded}.onnx", opset_version=11, dynamo=False)
        """,
    ),
    "transformers": (
        ("transformers", "tokenizers", "regex"),
        """
        from transformers import (DFineConfig, DFineForObjectDetection, RTDetrConfig, RTDetrForObjectDetection,
                                  RTDetrResNetConfig, YolosConfig, YolosForObjectDetection)
        backbone = RTDetrResNetConfig(embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1],
                                      layer_type="basic", out_features=["stage2", "stage3", "stage4"])
        sizes = dict(d_model=64, encoder_hidden_dim=64, encoder_in_channels=[32, 48, 64], encoder_ffn_dim=64,
                     decoder_in_channels=[64, 64, 64], decoder_ffn_dim=64, decoder_layers=2, num_queries=40,
                     decoder_attention_heads=4, encoder_attention_heads=4, num_denoising=0, num_labels=5)
        class Outputs(torch.nn.Module):
            def __init__(self, model):
                super().__init__()
                self.model = model
            def forward(self, pixel_values):
                found = self.model(pixel_values=pixel_values)
                return found.logits, found.pred_boxes
        yolos = YolosConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                            image_size=[128, 128], num_detection_tokens=40, num_labels=5)
        for name, model in (("yolos", YolosForObjectDetection(yolos)),
                            ("rtdetr", RTDetrForObjectDetection(RTDetrConfig(backbone_config=backbone, **sizes))),
                            ("dfine", DFineForObjectDetection(DFineConfig(backbone_config=backbone, **sizes)))):
            names = ["logits", "pred_boxes"]
            axes = {each: {0: "batch"} for each in ("pixel_values", *names)}
            torch.onnx.export(Outputs(model.eval()), (torch.rand(2, 3, 128, 128),), f"{name}.onnx", opset_version=17,
                              dynamo=False, input_names=["pixel_values"], output_names=names, dynamic_axes=axes)
        """,
    ),
    "torchvision": (
        (),
        """
        from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn as build
        model = build(weights=None, weights_backbone=None, num_classes=6, box_score_thresh=0.01).eval()
        torch.onnx.export(model, ([torch.rand(3, 128, 128)],), "faster.onnx", opset_version=17, dynamo=False,
                          input_names=["images"], output_names=["boxes", "labels", "scores"])
        """,
    ),
    "ddddocr": (
        ("ddddocr",),
        """
        import pathlib, shutil, importlib.util
        folder = pathlib.Path(importlib.util.find_spec("ddddocr").origin).parent
        shutil.copy(folder / "common_det.onnx", "captcha.onnx")  # a YOLOX that its authors trained (MIT license)
        """,
    ),
}


@pytest.mark.parametrize("package", EXPORTS)
def test_real_exports_are_adopted_and_find_what_the_original_finds(package: str, shared: Path, tmp_path: Path) -> None:
    requirements, script = EXPORTS[package]
    python = environment(tmp_path / "venv", requirements)
    source = "import torch; torch.manual_seed(0); torch.set_num_threads(1)\n" + textwrap.dedent(script)
    done = subprocess.run([python, "-c", source], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    photos = sorted((shared / "data/rgb-coco-by/images").glob("*.jpg"))[:3]
    models = sorted(tmp_path.glob("*.onnx"))
    assert models
    for path in models:
        original = open_original(path)
        if path.stem in ("seg", "obb"):
            with pytest.raises(ValueError, match="adopt takes detectors of upright boxes"):
                make_plan(original, Options())
            continue
        classes = tuple("abcde") if package in ("torchvision", "transformers") else None
        plan, _ = make_plan(original, Options(classes=classes, score_floor=0.02, batch=2))
        assert (plan.format.name == "detr") == (path.stem == "yolos")
        write_adopted(original, plan, target := path.with_suffix(".tinydet.onnx"))
        tiles = np.stack([middle_tile(photo, plan.spec) for photo in photos])[: plan.spec.max_batch]
        expected = ReferenceBackend(original, plan).run(tiles)
        result = compare(expected, ClippedBackend(open_adopted(target)).run(tiles), 0.02, TOLERANCES["fp32"])
        assert result.detections > 0, path.name
        assert result.unmatched == 0, path.name


def environment(folder: Path, requirements: tuple[str, ...]) -> Path:
    """Make a virtual environment with these packages alone, that also sees the packages of this one."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    found = subprocess.run(ask, capture_output=True, text=True, check=True)
    Path(found.stdout.strip(), "outer.pth").write_text(sysconfig.get_path("purelib"))
    if requirements:
        install = [python, "-m", "pip", "install", "-q", "--no-deps", *requirements]
        done = subprocess.run(install, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"pip cannot install {requirements[0]}: {done.stderr.strip().splitlines()[-1]}")
    return python
