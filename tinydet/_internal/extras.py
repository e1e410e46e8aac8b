"""Optional dependencies: a failed import says which extra to install."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager

OPENCV = "OpenCV cannot be loaded"
HEADLESS = (
    "pip uninstall -y opencv-python opencv-contrib-python opencv-python-headless; "
    "pip install 'opencv-python-headless<5'"  # as in pyproject.toml
)


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Import optional packages inside this block, so that the error for a missing one names the extra to install.

    An empty `extra` stands for the core dependencies.

    Raises:
        ModuleNotFoundError: a package is missing; says which command installs it.
        ImportError: a package is installed but cannot be loaded, for example without a shared library; says why.
    """
    wanted = f"'tinydet[{extra}]'" if extra else "tinydet"
    try:
        yield
    except ImportError as error:
        missing = (error.name or str(error)).partition(".")[0]
        if missing == "cv2" and not isinstance(error, ModuleNotFoundError):
            if str(error).startswith(OPENCV):  # from a block inside
                raise
            raise ImportError(
                f"{OPENCV} ({error}). A machine without a display takes its headless build: "
                f"{HEADLESS}. Or install the system libraries: apt-get install libgl1 libglib2.0-0",
                name="cv2",
                path=error.path,
            ) from error
        if missing == "tinydet":  # a bug in tinydet, which no extra can fix
            raise
        if isinstance(error, ModuleNotFoundError):
            raise ModuleNotFoundError(
                f"{missing!r} is not installed. Run: pip install {wanted}", name=error.name
            ) from error
        raise ImportError(
            f"a package of {wanted} is installed but cannot be loaded: {error}. "
            "Install the system library that it names, or reinstall the package",
            name=error.name,
            path=error.path,
        ) from error


def check_opencv() -> None:
    """Check that the installation of OpenCV is complete, without importing it.

    The packages opencv-python, opencv-python-headless and those with contrib share one folder. If two are installed,
    removing one breaks the other: `import cv2` then succeeds but gives an empty module.

    Raises:
        ImportError: OpenCV is incomplete; says how to repair it.
    """
    if "cv2" in sys.modules:
        return
    found = importlib.util.find_spec("cv2")
    if found is not None and found.origin is None:  # a folder without `__init__.py`
        raise ImportError(
            f"OpenCV is incomplete, because two of its packages were installed and one was removed. Run: {HEADLESS}"
        )
