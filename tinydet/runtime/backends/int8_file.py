"""Find the verified INT8 file next to an ONNX file, if this processor runs it faster."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from tinydet._internal.input_files import read_file
from tinydet._internal.json_files import read_json
from tinydet._internal.shell import tinydet_command

INSTRUCTIONS = {"amx_int8": "AMX", "avx512_vnni": "VNNI", "avx_vnni": "VNNI"}  # by the names of Linux; best first
CPU_INFO = Path("/proc/cpuinfo")


def int8_file(path: Path) -> tuple[Path | None, str]:
    """Return `model.int8.onnx` for `model.onnx` if it can run instead, and a sentence for the user.

    It can if `tinydet export` verified exactly this file against exactly `path`, and the processor has instructions for
    products of 8-bit integers. Without them, INT8 is hardly faster.

    Returns:
        None and the reason if it cannot; None and an empty text if there is no such file.
    """
    candidate = path.with_suffix(".int8.onnx")
    if path.suffix != ".onnx" or not candidate.is_file():
        return None, ""
    if not int8_instructions():
        return None, f"{candidate} is not used: this processor has neither VNNI nor AMX, so INT8 is hardly faster"
    problem = _problem(path, candidate)
    if problem:
        again = tinydet_command("export", "onnx", path, "--precision", "int8")
        return None, f"{candidate} is not used: {problem}; convert it again: {again}"
    return candidate, (
        f"{candidate} runs instead of {path}: INT8, verified against it, and faster on this processor, which has "
        f"{int8_instructions()}; --backend openvino runs {path}"
    )


@functools.cache
def int8_instructions() -> str:
    """Return the name of this processor's instructions for products of 8-bit integers; empty if it has none.

    Known on Linux only; elsewhere the worst is assumed.
    """
    lines = CPU_INFO.read_text(errors="replace").splitlines() if CPU_INFO.is_file() else []
    flags = set(next((line for line in lines if line.startswith("flags")), "").split())
    return next((text for name, text in INSTRUCTIONS.items() if name in flags), "")


def _problem(path: Path, candidate: Path) -> str:
    """Return why a conversion does not count as verified; empty if it does."""
    report = candidate.with_suffix(".verify.json")
    if not report.is_file():
        return f"there is no {report.name}"
    try:
        values = read_json(report)
    except ValueError:
        return f"{report.name} is damaged"
    if not isinstance(values, dict) or values.get("passed") is not True:
        return f"{report.name} does not say that it passed"
    if values.get("reference_sha256") != _sha256(path):
        return f"it was not verified against this {path.name}"
    if values.get("sha256") != _sha256(candidate):
        return "it is not the file that was verified"
    return ""


def _sha256(path: Path) -> str:
    return hashlib.sha256(read_file(path)).hexdigest()
