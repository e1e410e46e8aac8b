"""Suggested commands survive a shell, and are spelled as they can be typed where the process was started."""

from __future__ import annotations

import ast
import functools
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tinydet._internal import shell
from tinydet._internal.shell import command_line, program, tinydet_command

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["m.pth", "my models/m 1.pth", "it's.pth", '"$HOME".pth', "-r", "a*b?.pth", "é;&|.pth", "~"]


@pytest.mark.parametrize("name", NAMES)
def test_a_pasted_command_receives_the_path(name: str) -> None:
    command = command_line("printf", "%s\\n", "--model", Path(name))
    received = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout.splitlines()
    assert received[0] == "--model"
    assert Path(received[1]) == Path(name)
    assert not received[1].startswith("-")


def start(monkeypatch: pytest.MonkeyPatch, folder: Path, started: str | Path) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [str(started)])
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")


CASES = {  # commands as they are named by the installed program, in a clone, and outside of it
    ("infer", "a.jpg"): ("tinydet infer a.jpg", "python3 deploy/infer.py a.jpg", "python3 ../c/deploy/infer.py a.jpg"),
    ("export", "onnx"): ("tinydet export onnx", "python3 export/to_onnx.py", "python3 ../c/export/to_onnx.py"),
    ("export", "engine"): ("tinydet export engine", "python3 export/to_trt.py", "python3 ../c/export/to_trt.py"),
    ("export", "verify"): ("tinydet export verify", *["python3 -m tinydet export verify"] * 2),
    ("train", "--salpha"): ("tinydet train --salpha", *["python3 -m tinydet.train --salpha"] * 2),
    ("data", "check"): ("tinydet data check", *["python3 -m tinydet data check"] * 2),
}  # fmt: skip


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone without the code of the commands."""
    root = tmp_path / "c"
    for name in (*shell.SCRIPTS.values(), "tinydet/__main__.py", "tinydet/train/__main__.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    monkeypatch.setattr(shell, "PACKAGE", root / "tinydet")
    (tmp_path / "elsewhere").mkdir()
    return root


@pytest.mark.parametrize("words", CASES, ids=" ".join)
def test_a_command_is_named_as_it_can_be_typed(
    words: tuple[str, ...], clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed, inside, outside = CASES[words]
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    for program_file in ("/usr/bin/tinydet", r"tinydet.exe", "notebook.py", ""):
        start(monkeypatch, clone, program_file)
        assert tinydet_command(*words) == installed
    for script in (
        "deploy/infer.py",
        "export/to_trt.py",
        clone / "tinydet/train/__main__.py",
    ):
        start(monkeypatch, clone, script)
        assert tinydet_command(*words) == inside
    start(monkeypatch, clone, clone / "tinydet/__main__.py")  # python -m tinydet
    assert tinydet_command(*words) == f"python3 -m {installed}"
    start(monkeypatch, clone.parent / "elsewhere", "../c/deploy/infer.py")
    assert tinydet_command(*words) == outside
    start(monkeypatch, clone.parent / "elsewhere", clone / "tinydet/train/__main__.py")
    assert tinydet_command(*words) == installed
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert tinydet_command(*words) == f"python3 -m {installed}"


@pytest.mark.parametrize(
    ("started", "names", "typed"),
    [
        ("/usr/bin/tinydet", ("infer",), "tinydet infer"),
        ("/usr/bin/tinydet", (), "tinydet"),
        ("deploy/infer.py", ("infer",), "python3 deploy/infer.py"),
        ("../c/export/to_trt.py", ("export", "engine"), "python3 ../c/export/to_trt.py"),
        ("{clone}/tinydet/__main__.py", ("infer",), "python3 -m tinydet infer"),
        ("{clone}/tinydet/__main__.py", ("data", "check"), "python3 -m tinydet data check"),
        ("{clone}/tinydet/__main__.py", (), "python3 -m tinydet"),
        ("{clone}/tinydet/train/__main__.py", ("train",), "python3 -m tinydet.train"),
    ],
)
def test_the_usage_reads_as_typed(
    started: str, names: tuple[str, ...], typed: str, clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(monkeypatch, clone, started.replace("{clone}", str(clone)))
    assert program(*names) == typed


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # imported by other tests
@pytest.mark.parametrize(
    "words", ["-m tinydet.train", "-m tinydet", "-m tinydet.evaluate", "export/to_trt.py", "deploy/infer.py"]
)
def test_the_help_of_the_scripts_reads_as_typed(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    name = words.removeprefix("-m ")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    module = functools.partial(runpy.run_module, alter_sys=True)  # what `python` does, in this process
    with pytest.raises(SystemExit) as ended:
        (module if words.startswith("-m ") else runpy.run_path)(name, run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {Path(sys.executable).name} {words} ")


LITERAL = re.compile(
    r"python3? -m tinydet|deploy/infer|export/to_"
    r"|\btinydet (train|infer|export|evaluate|data|salpha|sweep|gradients|seamtest|synthetic)\b"
)


def test_no_text_names_a_command_without_the_function() -> None:
    """In docstrings and comments, which no user sees, commands have their usual names."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    named = []
    for path in sorted((ROOT / "tinydet").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if path == ROOT / "tinydet/_internal/shell.py" or not LITERAL.search(text):
            continue
        tree = ast.parse(text)
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
        }
        named += [
            f"{path.relative_to(ROOT)} line {node.lineno}: {found[0]}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
            if (found := LITERAL.search(node.value))
        ]
    assert not named, "use tinydet._internal.shell.tinydet_command"
