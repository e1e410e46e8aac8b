"""Export a trained checkpoint or an ONNX file to a TensorRT or TensorRT-RTX engine.

    python export/to_trt.py model.pth                      write model.onnx, model.fp16.onnx and model.engine
    python export/to_trt.py model.onnx                     needs no torch, for the machine that will run the engine
    python export/to_trt.py model.onnx --target rtx        TensorRT-RTX, which builds without a GPU
    python export/to_trt.py --help                         list all options

The same as `tinydet export engine`.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # import tinydet from this checkout
    from tinydet.__main__ import main

    sys.exit(main(["export", "engine", *sys.argv[1:]]))
