"""`python -m tinydet.gradients` runs `tinydet.study.gradients`."""

import sys

from tinydet.study.gradients import main

if __name__ == "__main__":
    sys.exit(main())
