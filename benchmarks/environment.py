"""The part that all result files share: date, commit, machine and package versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

PACKAGES = ("tinydet", "numpy", "torch", "torchvision", "onnx", "onnxruntime-gpu", "onnxruntime", "openvino",
            "opencv-python", "pycocotools", "faster-coco-eval", "tensorrt-rtx-cu13", "tensorrt", "rasterio",
            "sahi", "supervision", "trackers", "trackeval", "av")  # fmt: skip
ROOT = Path(__file__).resolve().parent.parent


def environment() -> dict[str, Any]:
    """Return date, commit, processor, cores, load and package versions as JSON values."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain", "-uno") else ""),
        "machine": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "load_at_start": [round(x, 2) for x in os.getloadavg()],
            "system": platform.system(),
        },
        "python": platform.python_version(),
        "versions": versions,
    }


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
