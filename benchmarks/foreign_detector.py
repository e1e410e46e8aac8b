"""Train a detector that is not tinydet's, for `versus.py --foreign`: torchvision's FCOS, in a few minutes on one core.

    python benchmarks/foreign_detector.py foreign.pth --backbone-weights mobilenet_v2-b0353104.pth

The network is torchvision's `FCOS` on torchvision's MobileNetV2 and FPN, at strides 4, 8 and 16, because the objects
have 5 to 40 pixels. It learns persons and cars on crops of the thermal frames in --data. The checkpoint has the
optimizer and the minutes used, and is written every minute; the same command resumes it. Labels are torchvision's: 0 is
the background.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from environment import ROOT
from torch import Tensor
from torchvision.models import mobilenet_v2
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d

from tinydet._internal.arguments import number
from tinydet._internal.command import command
from tinydet.runtime.scenes import read_image

CLASSES = ("background", "person", "car")
CROP, BATCH, RATE = 256, 4, 1e-3
WARMUP = 30  # steps

Sample = tuple[Tensor, dict[str, Tensor]]


def build(size: int | None = None) -> FCOS:
    """Build the network with random weights. Images keep their size unless it is given."""
    body = mobilenet_v2(weights=None, norm_layer=FrozenBatchNorm2d).features
    stages = {"3": "0", "6": "1", "13": "2"}  # strides 4, 8, 16
    backbone = BackboneWithFPN(body, stages, [24, 32, 96], 64)
    anchors = AnchorGenerator(((8,), (16,), (32,), (64,)), ((1.0,),) * 4)  # the extra level of the FPN has stride 32
    return FCOS(
        backbone,
        num_classes=len(CLASSES),
        anchor_generator=anchors,
        min_size=size or CROP,
        max_size=size or 8192,
        score_thresh=0.05,
        nms_thresh=0.5,
        detections_per_img=500,
        _skip_resize=size is None,
    )


def load_detector(path: Path) -> FCOS:
    """Read a trained network, ready to run.

    Raises:
        ValueError: the file has other tensors. OSError: it is missing.
    """
    network = build()
    network.load_state_dict(torch.load(path, weights_only=True)["network"])
    return network.eval().requires_grad_(False)


@command("benchmarks/foreign_detector.py")
def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = build()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.05)
    step, used = 0, 0.0
    if args.output.is_file():
        saved = torch.load(args.output, weights_only=True)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        step, used = saved["step"], saved["minutes"]
        print(f"resuming after {step} steps and {used:.1f} minutes of CPU time")
    elif args.backbone_weights is not None:
        tensors = torch.load(args.backbone_weights, weights_only=True)
        names = list(network.backbone.body.state_dict())
        network.backbone.body.load_state_dict({name: tensors[f"features.{name}"] for name in names})
    network.train()
    samples, losses, saved_at = crops(args.data, seed=step), [], used
    began = time.process_time() - used * 60
    while used < args.minutes:
        rate = RATE * min((step + 1) / WARMUP, 1) * (0.02 + 0.49 * (1 + math.cos(math.pi * used / args.minutes)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        images, targets = zip(*(next(samples) for _ in range(BATCH)), strict=True)
        loss = sum(network(list(images), list(targets)).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10)
        optimizer.step()
        step, used = step + 1, (time.process_time() - began) / 60
        losses.append(float(loss.detach()))
        if used - saved_at > 1 or used >= args.minutes:
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
            partial = args.output.with_suffix(".partial")
            torch.save({**state, "step": step, "minutes": used}, partial)
            os.replace(partial, args.output)
            print(f"{step} steps, {used:.1f} minutes of CPU time, loss {np.mean(losses):.3f}", flush=True)
            losses, saved_at = [], used
    return 0


def crops(data: Path, seed: int) -> Iterator[Sample]:
    """Yield random crops of a COCO folder, most around an object, flipped, with changed contrast.

    Images are (3, CROP, CROP) in 0..1, boxes xyxy in pixels of the crop.
    """
    document = json.loads((data / "annotations.json").read_text())
    label_of = {each["id"]: CLASSES.index(each["name"]) for each in document["categories"] if each["name"] in CLASSES}
    images = []
    for image in document["images"]:
        mine = [one for one in document["annotations"] if one["image_id"] == image["id"] and not one["iscrowd"]]
        mine = [one for one in mine if one["category_id"] in label_of]
        corners = np.array([one["bbox"] for one in mine], np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        pixels = read_image(data / "images" / image["file_name"])
        images.append((pixels, corners, np.array([label_of[one["category_id"]] for one in mine], np.int64)))
    rng = np.random.default_rng(seed)
    while True:
        pixels, boxes, labels = images[rng.integers(len(images))]
        height, width = pixels.shape[:2]
        if len(boxes) and rng.random() < 0.9:
            x, y = boxes[rng.integers(len(boxes)), :2] - rng.integers(CROP // 16, CROP - CROP // 8, 2)
        else:
            x, y = rng.integers(0, [width - CROP + 1, height - CROP + 1])
        x, y = int(np.clip(x, 0, width - CROP)), int(np.clip(y, 0, height - CROP))
        visible = np.clip(boxes - [x, y, x, y], 0, CROP)
        kept = (visible[:, 2:] - visible[:, :2] >= np.maximum(2, 0.4 * (boxes[:, 2:] - boxes[:, :2]))).all(axis=1)
        crop, inside = pixels[y : y + CROP, x : x + CROP], visible[kept]
        if rng.random() < 0.5:
            crop, inside = (
                crop[:, ::-1],
                np.stack([CROP - inside[:, 2], inside[:, 1], CROP - inside[:, 0], inside[:, 3]], 1),
            )
        image = torch.from_numpy(crop.copy()).permute(2, 0, 1).float().div(255)
        image = (image * rng.uniform(0.7, 1.3) + rng.uniform(-0.1, 0.1)).clamp(0, 1)
        yield image, {"boxes": torch.from_numpy(inside.astype(np.float32)), "labels": torch.from_numpy(labels[kept])}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="FILE", help="checkpoint to write, or to resume")
    parser.add_argument("--backbone-weights", type=Path, metavar="FILE",
                        help="torchvision's ImageNet weights of MobileNetV2 (default: random)")  # fmt: skip
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data/hituav-train",
                        help="COCO folder (default: ../shared/data/hituav-train)")  # fmt: skip
    parser.add_argument("--minutes", type=number(0.01, 1e4), default=6.0, help="minutes of CPU time (default: 6)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
