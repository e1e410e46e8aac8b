"""Fixtures for every folder of tests."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

# Read by torch when it is imported: parallel workers must not compete for cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path.append(str(Path(__file__).parent / "support"))  # modules that several folders of tests share
pytest_plugins = ["runtime_fixtures", "browser_fixtures"]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell that started pytest in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of compiled models for each worker, since OpenVINO does not lock its files; datasets are shared."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYDET_CACHE", os.environ.get("TINYDET_CACHE") or str(usual / "tinydet"))
        patch.setenv("MPLCONFIGDIR", os.environ.get("MPLCONFIGDIR") or str(usual / "matplotlib"))  # its list of fonts
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
        yield


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this run share, for what is expensive to make. Lock what is written into it."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the repository: real images, annotation files and recorded outputs."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the real data of {folder}, which is not on this machine")
    return folder


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven small images of bright squares; one is wider than a tile, one has an ignore region, one is empty."""
    root = tmp_path_factory.mktemp("squares")
    (root / "images").mkdir()
    generator = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(7):
        width = 160 if i == 3 else 96
        pixels = generator.integers(0, 60, (96, width, 3), dtype=np.uint8)
        images.append({"id": i, "file_name": f"{i}.png", "width": width, "height": 96})
        for _ in range(0 if i == 5 else 4):
            x, y = (int(v) for v in generator.integers(0, [width - 12, 84]))
            pixels[y : y + 12, x : x + 12] = 230
            annotations.append({"id": len(annotations), "image_id": i, "category_id": 3, "bbox": [x, y, 12, 12],
                                "area": 144, "iscrowd": 0, "ignore": int(i == 6)})  # fmt: skip
        cv2.imwrite(str(root / "images" / f"{i}.png"), pixels)
    document = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "square"}]}
    (root / "annotations.json").write_text(json.dumps(document))
    return root
