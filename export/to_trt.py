"""Turn a trained checkpoint, or an ONNX file of it, into a TensorRT or TensorRT-RTX engine.

    python export/to_trt.py model.pth                      writes model.onnx, model.json and model.engine
    python export/to_trt.py model.onnx                     needs no torch: for the machine that will run it
    python export/to_trt.py model.onnx --target rtx        TensorRT-RTX, which builds without a GPU
    python export/to_trt.py --help                         all flags

The same as `tinydet export engine`.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, in place of this folder
    from tinydet.export.__main__ import main

    sys.exit(main(["engine", *sys.argv[1:]]))
