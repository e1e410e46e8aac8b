"""Boxes on scenes of any size, with an exported model.

    python deploy/infer.py --image scene.jpg --tile 640    writes scene.detections.json and .jpg beside the scene
    python deploy/infer.py --image scene.tif --scale 0.5 --output dets.json --draw out.jpg
    python deploy/infer.py --help                          all flags

Takes the first of model.engine and model.onnx in the current folder that can run on this machine. No torch. The same
as `tinydet infer`.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, in place of this folder
    from tinydet.infer.__main__ import main

    sys.exit(main())
