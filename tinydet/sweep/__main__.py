"""Entry point of `python -m tinydet.sweep`, the same as `tinydet sweep`."""

import sys

from tinydet.study.sweep import main

if __name__ == "__main__":
    sys.exit(main())
