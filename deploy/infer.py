"""Detect objects in scenes of any size with an exported model. Needs no torch; the same as `tinydet infer`.

    python deploy/infer.py --image scene.jpg --tile 640    write scene.detections.json and .jpg next to the scene
    python deploy/infer.py --image scene.tif --scale 0.5 --output dets.json --draw out.jpg
    python deploy/infer.py --help                          list all options

Uses model.engine or model.onnx from the current folder, the first that runs on this machine. If neither exists, it uses
the bundled model for thermal drone images.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # import tinydet from this checkout
    from tinydet.__main__ import main

    sys.exit(main(["infer", *sys.argv[1:]]))
