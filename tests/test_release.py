"""The release: one version everywhere, and in the slow tests what is built, what resolves, and the lower bounds.

The slow tests need a network. They take about an hour: those of PyTorch download several gigabytes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import tinydet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
UNBOUNDED = {"dev", "fiftyone", "heif"}  # name packages without a lower bound, whose oldest releases do not build


# ------------------------------------------------------------------------------------------------------------ texts


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_every_file_that_names_the_version_names_this_one() -> None:
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", read("CHANGELOG.md"), re.M)
    assert released[0][0] == tinydet.__version__
    citation = dict(re.findall(r"^(version|date-released): (\S+)$", read("CITATION.cff"), re.M))
    assert (citation["version"], citation["date-released"]) == released[0]
    wheels = re.findall(r"tinydet-(\d+\.\d+\.\d+)-py3-none-any\.whl", read("docs/install.md"))
    assert set(wheels) == {tinydet.__version__}


def test_forms_and_hooks_are_well_formed() -> None:
    yaml = pytest.importorskip("yaml")
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[0-9]*.yml"))
    assert forms
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert form["name"] and form["description"], path
        fields = [field for field in form["body"] if field["type"] != "markdown"]
        ids = [field["id"] for field in fields]
        assert len(set(ids)) == len(ids) and all(field["attributes"]["label"] for field in fields), path
    (hooks,) = (repo["hooks"] for repo in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"])
    entries = {re.sub(r" --force-exclude", "", hook["entry"]).removeprefix(".venv/bin/python") for hook in hooks}
    checks = re.findall(r"^\t\$\(PY\) -m (ruff.*|mypy.*)$", read("Makefile"), re.M)
    assert entries == {f" -m {check.replace(' --check', '')}" for check in checks}


# ------------------------------------------------------------------------------------------------- slow: a network


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of this tree and the wheel built from it."""
    folder = tmp_path_factory.mktemp("dist")
    copy = folder / "tree"
    made = shutil.ignore_patterns(
        ".git", ".venv", ".*_cache", "__pycache__", "*.egg-info", "build", "dist", "demo", "runs"
    )
    shutil.copytree(ROOT, copy, ignore=made)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(copy))
    return folder


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command and return what it printed to stdout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def uv(*arguments: str | Path) -> str:
    return run(sys.executable, "-m", "uv", *arguments)


def interpreter(version: str) -> str:
    """Return the path of an installed interpreter; skip the test if there is none."""
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return sys.executable
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    found = shutil.which(f"python{version}") if not pyenv else str(pyenv[-1])
    if found is None:
        pytest.skip(f"Python {version} is not installed")
    return found


def environment(folder: Path, version: str, *packages: str | Path) -> Path:
    """Make a virtual environment with packages; return its interpreter."""
    uv("venv", "--quiet", "--python", interpreter(version), folder)
    python = folder / "bin" / "python"
    uv("pip", "install", "--quiet", "--python", python, *packages)
    return python


@pytest.mark.slow
def test_twine_accepts_the_distributions_and_the_sdist_has_the_tests(dist: Path) -> None:
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "Makefile", "CHANGELOG.md", "CITATION.cff", "tests/test_release.py", "docs/install.md"} <= names


@pytest.mark.slow
@pytest.mark.parametrize("version", PYTHONS)
def test_the_wheel_runs_without_torch_in_a_fresh_environment(dist: Path, tmp_path: Path, version: str) -> None:
    (wheel,) = dist.glob("*.whl")
    python = environment(tmp_path / "venv", version, f"tinydet[openvino] @ {wheel.as_uri()}")
    script = """if True:
        import sys, tinydet
        from tinydet.runtime import load
        import numpy as np
        found = load("thermal").detect(np.full((600, 800, 3), 90, np.uint8))
        print(tinydet.__version__, "torch" in sys.modules, len(found))
    """
    assert run(python, "-c", script, cwd=tmp_path).split() == [tinydet.__version__, "False", "0"]
    assert (
        run(tmp_path / "venv" / "bin" / "tinydet", "--version", cwd=tmp_path).strip()
        == f"tinydet {tinydet.__version__}"
    )
    uv("pip", "check", "--python", python)


@pytest.mark.slow
@pytest.mark.parametrize("resolution", ["highest", "lowest-direct"])
@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_every_extra_resolves(extra: str, resolution: str) -> None:
    if resolution == "lowest-direct" and extra in UNBOUNDED:
        pytest.skip("without lower bounds")
    for version in PYTHONS:
        options = ["--extra", extra] if extra else []
        uv("pip", "compile", "--quiet", "--resolution", resolution, "--python-version", version, *options,
           ROOT / "pyproject.toml")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extras", "tests"),
    [
        (
            ("openvino", "export", "geo", "video", "tables", "formats", "serve", "plots", "supervision"),
            ("tests/_internal", "tests/runtime", "tests/data/readers", "tests/data/layouts", "tests/serve"),
        ),
        (("train", "export", "openvino"), ("tests/geometry", "tests/models", "tests/salpha")),
    ],
    ids=["runtime", "training"],
)  # fmt: skip
def test_the_core_tests_pass_with_the_oldest_packages(
    dist: Path, tmp_path: Path, extras: tuple[str, ...], tests: tuple[str, ...]
) -> None:
    """With Python 3.10, which the oldest packages have wheels for."""
    named = [word for extra in extras for word in ("--extra", extra)]
    uv("pip", "compile", "--quiet", "--resolution", "lowest-direct", "--python", interpreter("3.10"), *named,
       ROOT / "pyproject.toml", "--output-file", tmp_path / "oldest.txt")  # fmt: skip
    # httpx and httpx2: the test client of old and of new releases of starlette.
    tools = ("pytest", "hypothesis", "httpx", "httpx2", "tomli", "packaging")
    python = environment(tmp_path / "venv", "3.10", "-r", tmp_path / "oldest.txt", *tools)
    uv("pip", "install", "--quiet", "--no-deps", "--python", python, *dist.glob("*.whl"))
    run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, cwd=ROOT)
