"""The fuzzer is a package of its own, `tests.fuzz`, because its worker is a program."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
