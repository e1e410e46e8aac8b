"""`python -m tinydet.sweep` runs `tinydet.study.sweep`."""

import sys

from tinydet.study.sweep import main

if __name__ == "__main__":
    sys.exit(main())
