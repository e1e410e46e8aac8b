"""What users of other tools type: names that are accepted for options of tinydet, and answers for options it lacks.

A name that a command has itself always comes first, so a new option needs no change here.
"""

from __future__ import annotations

from collections.abc import Collection

# Name typed -> options of tinydet that it stands for; a command uses the first one that it has. An option may also be
# the name of a positional argument.
ALIASES: dict[str, tuple[str, ...]] = {
    # images and data
    "--source": ("--image", "--data", "--source"),
    "--input": ("--image", "--data", "--source", "--model"),
    "--scale": ("--factor",),
    "--img": ("--image", "--images"),
    "--scene": ("--image",),
    "--scenes": ("--image",),
    "--video": ("--image",),
    "--img-dir": ("--images",),
    "--image-dir": ("--images",),
    "--images-dir": ("--images",),
    "--dataset": ("--data", "--source"),
    "--data-dir": ("--data", "--source"),
    "--data-path": ("--data", "--source"),
    "--train-data": ("--data",),
    "--val-data": ("--val",),
    "--annotations": ("--source", "--data"),
    "--ann": ("--annotations", "--source", "--data"),
    "--ann-file": ("--annotations", "--source", "--data"),
    "--dataset-json-path": ("--annotations",),
    "--ground-truth": ("--gt",),
    "--results": ("--detections",),
    "--predictions": ("--detections",),
    "--classes": ("--categories",),
    "--class": ("--category",),
    "--vid-stride": ("--every",),
    "--frame-skip-interval": ("--every",),
    # model
    "--weights": ("--init", "--model"),
    "--checkpoint": ("--init", "--model"),
    "--ckpt": ("--init", "--model"),
    "--model": ("--init",),
    "--model-path": ("--model", "--init"),
    "--pretrained": ("--init",),
    "--load-from": ("--init",),
    # tiles and detections
    "--imgsz": ("--tile",),
    "--img-size": ("--tile",),
    "--image-size": ("--tile",),
    "--input-size": ("--tile",),
    "--slice-size": ("--tile",),
    "--slice-width": ("--tile",),
    "--slice-height": ("--tile",),
    "--tile-size": ("--tile",),
    "--crop-size": ("--tile",),
    "--conf": ("--score",),
    "--conf-thres": ("--score",),
    "--conf-threshold": ("--score",),
    "--confidence": ("--score",),
    "--confidence-threshold": ("--score",),
    "--model-confidence-threshold": ("--score",),
    "--score-thr": ("--score",),
    "--score-threshold": ("--score",),
    "--threshold": ("--score",),
    "--thresh": ("--score",),
    "--agnostic-nms": ("--agnostic",),
    "--postprocess-class-agnostic": ("--agnostic",),
    "--max-det": ("--max-detections",),
    # training
    "--batch-size": ("--batch",),
    "--bs": ("--batch",),
    "--lr0": ("--lr",),
    "--learning-rate": ("--lr",),
    "--epoch": ("--epochs",),
    "--num-epochs": ("--epochs",),
    "--max-epochs": ("--epochs",),
    "--backbone-weights": ("--weights-backbone",),
    "--log-dir": ("--logdir",),
    # output
    "--out": ("--output", "--json"),
    "-o": ("--output", "--json"),
    "--output-dir": ("--output", "--plots"),
    "--out-dir": ("--output", "--plots"),
    "--outdir": ("--output", "--plots"),
    "--save-dir": ("--output", "--plots"),
    "--save-path": ("--output",),
    "--output-format": ("--format",),
    "--dest": ("--output",),
    "--save-json": ("--json",),
    "--plot": ("--plots",),
}

# Options that tinydet does not have: what it does in their place. One sentence without a final period each.
EXPLANATIONS: dict[str, str] = {
    "--iou": "boxes of one class that overlap are merged with the IoU that the model was exported with; --merge "
    "chooses how tiles are joined, and --agnostic merges different classes too",
    "--device": "the model runs where its backend can, on a GPU if the backend has one; choose it with --backend, and "
    "the GPU with the variable CUDA_VISIBLE_DEVICES",
    "--workers": "images are read ahead in threads of the same process; --threads sets the CPU threads",
    "--classes": "all classes of the model are found; select those you need in the results",
    "--max-det": "the largest number of boxes per tile is fixed when the model is exported (--max-detections)",
    "--imgsz": "images are used in their own size; --scale or --factor resizes them where a command has it",
    "--name": "there are no run folders; name what to write with --output",
    "--exist-ok": "older results are overwritten, but never a folder with other files; leave it out",
    "--yes": "tinydet never asks a question; leave it out",
    "--save": "results are written without it; choose where with --output, and pictures with --draw",
    "--save-txt": "YOLO text files are one of the formats: --format yolo",
    "--save-json": "COCO is the default format; name the file with --output",
    "--save-crop": "a contact sheet of enlarged detections is written with --crops FILE",
    "--show": "no window is opened; write the pictures with --draw FILE, or a folder that ends in /",
    "--half": "the precision is chosen at export: --precision fp16 or --precision int8",
    "--overlap-ratio": "the overlap of tiles is in pixels: --overlap 128, or --overlap auto",
    "--augment": "predictions use no test-time augmentation; training has --augment",
    "--mosaic": "augmentations are chosen by name: --augment strong, or some of scale,vflip,rotate,photometric and "
    "others; --no-flip turns off the horizontal flip",
    "--lr-scheduler": "the learning rate rises at the start, and then falls as --decay says: steps or cosine",
    "--save-period": "the best weights and the state for --resume are always kept; --validate-every sets how often",
    "--deterministic": "a run is reproducible with the same --seed, on the same machine; leave it out",
    "--resume-from": "--resume takes no file: it continues the run that writes --output",
    "--test-only": "scores of a trained model are computed by a command of their own, evaluate",
    "--launcher": "training on several GPUs is started with torchrun",
    "--nc": "classes are those of the annotations; choose among them with --categories",
    "--model-type": "only models that were trained and exported here run, so they need no type; leave it out",
    "--export-crop": "a contact sheet of enlarged detections is written with --crops FILE",
    "--export-pickle": "results are written in the formats of --format",
    "--novisual": "drawings are written only with --draw if --output names the results",
    "--postprocess-type": "the method that joins tiles is --merge; its default loses and doubles no object",
    "--optimizer": "training uses SGD with momentum, as in the paper; set its rate with --lr",
    "--cfg": "there are no configuration files of models; choose one with --detector and --backbone",
    "--single-cls": "choose the classes to train on with --categories",
    "--cache": "images are read when they are needed, one batch ahead, so there is no cache to set",
    "--dynamic": "the batch and the tile size of an exported ONNX file are always dynamic",
    "--simplify": "an exported graph needs no simplification, and its opset is fixed",
    "--include": "each format has a command of its own; list them with --help of the export commands",
    "--no-sliced-prediction": "every scene is cut into tiles; one that is no larger than a tile is one tile",
}

# Other names of the options above.
SAME: dict[str, str] = {
    "--iou-thres": "--iou",
    "--iou-threshold": "--iou",
    "--nms": "--iou",
    "--nms-threshold": "--iou",
    "--postprocess-match-threshold": "--iou",
    "--gpu": "--device",
    "--gpus": "--device",
    "--num-workers": "--workers",
    "--categories": "--classes",
    "--category": "--classes",
    "--class": "--classes",
    "--max-detections": "--max-det",
    "--img-size": "--imgsz",
    "--image-size": "--imgsz",
    "--tile": "--imgsz",
    "--project": "--name",
    "--run-name": "--name",
    "--work-dir": "--name",
    "--overwrite": "--exist-ok",
    "--force": "--exist-ok",
    "-y": "--yes",
    "--nosave": "--save",
    "--save-crops": "--save-crop",
    "--view-img": "--show",
    "--display": "--show",
    "--fp16": "--half",
    "--int8": "--half",
    "--amp": "--half",
    "--overlap-height-ratio": "--overlap-ratio",
    "--overlap-width-ratio": "--overlap-ratio",
    "--tta": "--augment",
    "--momentum": "--optimizer",
    "--weight-decay": "--optimizer",
    "--config": "--cfg",
    "--hyp": "--cfg",
    "--opset": "--simplify",
    "--no-standard-prediction": "--no-sliced-prediction",
    "--close-mosaic": "--mosaic",
    "--mixup": "--mosaic",
    "--copy-paste": "--mosaic",
    "--hsv-h": "--mosaic",
    "--hsv-s": "--mosaic",
    "--hsv-v": "--mosaic",
    "--degrees": "--mosaic",
    "--translate": "--mosaic",
    "--shear": "--mosaic",
    "--perspective": "--mosaic",
    "--fliplr": "--mosaic",
    "--flipud": "--mosaic",
    "--erasing": "--mosaic",
    "--auto-augment": "--mosaic",
    "--multi-scale": "--mosaic",
    "--lrf": "--lr-scheduler",
    "--cos-lr": "--lr-scheduler",
    "--warmup-epochs": "--lr-scheduler",
    "--lr-steps": "--lr-scheduler",
    "--lr-step-size": "--lr-scheduler",
    "--lr-gamma": "--lr-scheduler",
    "--auto-scale-lr": "--lr-scheduler",
    "--names": "--nc",
    "--num-classes": "--nc",
    "--model-config-path": "--model-type",
    "--model-device": "--device",
    "--postprocess-match-metric": "--postprocess-type",
    "--cfg-options": "--cfg",
}

# Words in front of the command: programs, their groups of commands, and tasks.
OTHER_TOOLS = frozenset({"tinydet", "yolo", "sahi", "coco", "detect"})

# Commands of other tools.
COMMANDS: dict[str, tuple[str, ...]] = {
    "predict": ("infer",),
    "detect": ("infer",),
    "inference": ("infer",),
    "run": ("infer",),
    "val": ("evaluate",),
    "validate": ("evaluate",),
    "eval": ("evaluate",),
    "test": ("evaluate",),
    "score": ("evaluate",),
    "fit": ("train",),
    "finetune": ("train",),
    "convert": ("data", "convert"),
    "stats": ("data", "stats"),
    "check": ("data", "check"),
    "slice": ("data", "cut"),
    "engine": ("export", "engine"),
    "trt": ("export", "engine"),
    "tensorrt": ("export", "engine"),
    "onnx": ("export", "onnx"),
    "to_trt": ("export", "engine"),
    "to_onnx": ("export", "onnx"),
    "verify": ("export", "verify"),
    "track": ("infer",),
    "resume": ("train", "--resume"),
    "yolo": ("data", "convert"),
    "coco": ("data", "convert"),
}


def spelled(flag: str) -> str:
    """Return an option in the spelling of tinydet: lower case, with dashes.

    >>> spelled("--Conf_Thres")
    '--conf-thres'
    """
    return flag.lower().replace("_", "-") if len(flag) > 2 else flag


def meant(flag: str, known: Collection[str]) -> str | None:
    """Return the option of a command that a name of another tool stands for; None if the command has none.

    Args:
        known: options of the command, and its positional arguments in capital letters.
    """
    flag = spelled(flag)
    for name in (flag, *ALIASES.get(flag, ())):
        for each in (name, name.strip("-").upper()):
            if each in known:
                return each
    return None


def explanation(flag: str) -> str | None:
    """Return what tinydet does in place of an option of other tools."""
    flag = spelled(flag)
    return EXPLANATIONS.get(SAME.get(flag, flag))


def alias_table() -> str:
    """Return the aliases as a Markdown table, for docs/commands.md."""
    names: dict[str, list[str]] = {}
    for alias, flags in ALIASES.items():
        names.setdefault(" or ".join(f"`{flag}`" for flag in flags), []).append(f"`{alias}`")
    rows = (f"| {', '.join(aliases)} | {flags} |" for flags, aliases in names.items())
    return "\n".join(("| you type | tinydet uses |", "| --- | --- |", *rows)) + "\n"


def explanation_table() -> str:
    """Return the explanations as a Markdown table, for docs/commands.md."""
    rows = []
    for flag, text in EXPLANATIONS.items():
        names = [flag, *(other for other, same in SAME.items() if same == flag and other not in ALIASES)]
        rows.append(f"| {', '.join(f'`{name}`' for name in names)} | {text} |")
    return "\n".join(("| other tools | tinydet |", "| --- | --- |", *rows)) + "\n"
