"""Packages for a machine on which nothing can be installed: wheels that lie beside the kit, and stand-ins.

Wheels are unpacked into a folder, which goes on the path. A large wheel can come in pieces of any size, in the order of
their names, as `split -b 50M NAME.whl NAME.whl.` writes them. A small package that tinydet needs and the machine lacks
is replaced by one of the modules in stand_ins/. Needs only the standard library.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

STAND_INS = Path(__file__).resolve().parent / "stand_ins"
# A name of each package that tinydet needs and a stand-in has.
NEEDED = {"pydantic": "create_model", "tqdm": "tqdm", "filelock": "lock_descriptor"}
PIECE = re.compile(r"(?P<name>[^/]+\.whl)(\.[A-Za-z0-9]+)?")


def prepare(folder: Path, places: Sequence[Path]) -> dict[str, str]:
    """Fill a new `folder` with the wheels in `places` and the stand-ins that are still needed.

    Returns:
        What became of each wheel and of each package that is missing, for the record.
    """
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run
    folder.mkdir(parents=True)
    about = {}
    for name, pieces in wheels(places).items():
        reason = why_not(name)
        try:
            if not reason:
                unpack(pieces, folder)
        except (zipfile.BadZipFile, OSError) as error:
            reason = f"not usable ({error}); is a piece missing?"
        about[name] = reason or f"unpacked from {len(pieces)} file{'s' * (len(pieces) > 1)}"
    for package in missing(folder):
        shutil.copyfile(STAND_INS / f"{package}.py", folder / f"{package}.py")
        about[package] = "missing or too old here; a stand-in is used"
    return about


def wheels(places: Sequence[Path]) -> dict[str, list[Path]]:
    """Return the wheels in some folders by name: one file each, or the pieces of one in order."""
    found: dict[str, list[Path]] = {}
    for place in dict.fromkeys(path.resolve() for path in places):
        here: dict[str, list[Path]] = {}
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            if (match := PIECE.fullmatch(path.name)) and path.is_file():
                here.setdefault(match["name"], []).append(path)
        for name, paths in here.items():
            whole = [path for path in paths if path.name == name]
            found.setdefault(name, whole or paths)
    return found


def why_not(name: str, version: tuple[int, int] = sys.version_info[:2]) -> str:
    """Return why the wheel of this name does not fit this Python; empty if it does.

    >>> why_not("a-1-cp311-cp311-linux_x86_64.whl", (3, 12)), why_not("a-1-cp38-abi3-linux_x86_64.whl", (3, 12))
    ('for another Python (cp311)', '')
    """
    python, abi = name.removesuffix(".whl").split("-")[-3:-1]
    ours = f"cp{version[0]}{version[1]}"
    fits = ours in python.split(".") or "py3" in python.split(".") or "abi3" in abi.split(".")
    return "" if fits else f"for another Python ({python})"


def unpack(pieces: Sequence[Path], folder: Path) -> None:
    """Unpack a wheel, whole or in pieces, as pip would lay out its modules.

    Raises:
        BadZipFile: the pieces are not a whole wheel.
    """
    with zipfile.ZipFile(io.BytesIO(b"".join(piece.read_bytes() for piece in pieces))) as wheel:
        for entry in wheel.infolist():
            place = re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", entry.filename)
            target = (folder / place).resolve()
            if not target.is_relative_to(folder.resolve()):
                raise zipfile.BadZipFile(f"{entry.filename} lies outside of the wheel")
            if not entry.is_dir():
                target.parent.mkdir(parents=True, exist_ok=True)
                with wheel.open(entry) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)


def missing(folder: Path) -> list[str]:
    """Return the packages that a new Python with `folder` on its path lacks, or has without the name that is needed."""
    code = f"""
import importlib, importlib.util, sys
sys.path.insert(0, {str(folder)!r})
for package, name in {NEEDED!r}.items():
    try:
        getattr(importlib.import_module(package), name)
    except Exception:  # of a library that cannot be loaded
        print(package)
if importlib.util.find_spec("tensorrt_rtx_bindings") and not importlib.util.find_spec("tensorrt_rtx"):
    print("tensorrt_rtx")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()
