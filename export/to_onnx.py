"""Export a trained checkpoint to an ONNX file that runs without torch; the same as `tinydet export onnx`.

    python export/to_onnx.py model.pth                     write model.onnx, and model.json next to it
    python export/to_onnx.py model.pth --tile 640          for tiles of 640 pixels (default: as trained)
    python export/to_onnx.py --help                        list all options

The fusion factors are folded into the convolutions and the boxes are decoded in the graph. The file gets its name only
after its outputs have been compared with those of torch.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # import tinydet from this checkout
    from tinydet.__main__ import main

    sys.exit(main(["export", "onnx", *sys.argv[1:]]))
