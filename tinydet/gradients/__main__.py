"""Entry point of `python -m tinydet.gradients`, the same as `tinydet gradients`."""

import sys

from tinydet.study.gradients import main

if __name__ == "__main__":
    sys.exit(main())
