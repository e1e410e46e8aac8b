"""Turn a trained checkpoint into one ONNX file that runs without torch.

    python export/to_onnx.py model.pth                     writes model.onnx and model.json beside it
    python export/to_onnx.py model.pth --tile 640          for tiles of 640 pixels (default: as trained)
    python export/to_onnx.py --help                        all flags

The fusion factors are dissolved into the convolutions, the boxes are decoded in the graph, and the file is run and
compared with torch before it gets its name. The same as `tinydet export onnx`.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, in place of this folder
    from tinydet.export.__main__ import main

    sys.exit(main(["onnx", *sys.argv[1:]]))
