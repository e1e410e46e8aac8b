from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tinydet._internal.command import Main, command
from tinydet._internal.shell import tinydet_command


def failing(error: BaseException, name: str = "infer") -> Main:
    @command(name)
    def main(argv: Sequence[str] | None = None) -> int:
        raise error

    return main


@pytest.mark.parametrize("nested", [False, True])
def test_messages_of_the_library_are_shown_once(nested: bool, capsys: pytest.CaptureFixture[str]) -> None:
    @command("infer")
    def main(argv: Sequence[str] | None = None) -> int:
        logging.getLogger("tinydet.infer").info("100 % of the tiles")
        logging.getLogger("tinydet.data").warning("skipped: a.png")
        return 0

    @command("")
    def outer(argv: Sequence[str] | None = None) -> int:
        return main(argv)

    assert (outer if nested else main)([]) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("100 % of the tiles\n", "tinydet infer: skipped: a.png\n")
    logging.getLogger("tinydet.infer").info("outside of a command nobody shows it")
    assert capsys.readouterr() == ("", "")


def test_exit_code_and_arguments_pass_through() -> None:
    seen: list[Sequence[str] | None] = []

    @command("infer")
    def main(argv: Sequence[str] | None = None) -> int:
        seen.append(argv)
        return 3

    assert main(["--tile", "640"]) == 3
    assert main() == 3
    assert seen == [["--tile", "640"], None]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("tile must be positive, not -1"), "tile must be positive, not -1"),
        (ValueError("two\n  lines"), "two lines"),
        (FileNotFoundError(2, "No such file or directory", "a.jpg"), "a.jpg: No such file or directory"),
        (OSError(28, "model.pth was not written"), "model.pth was not written"),
        (OSError("no text beside the sentence"), "no text beside the sentence"),
        (ModuleNotFoundError("'onnx' is not installed. Run: x"), "'onnx' is not installed. Run: x"),
        (ImportError("libGL.so.1: cannot open"), "libGL.so.1: cannot open"),
    ],
)
def test_a_user_error_is_one_line(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TINYDET_TRACEBACK", raising=False)
    assert failing(error)([]) == 2
    shown = capsys.readouterr()
    assert shown.err == f"tinydet infer: error: {line}\n"
    assert shown.out == ""


def test_errors_of_the_top_level_command_start_with_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    failing(ValueError("no"), name="")([])
    assert capsys.readouterr().err == "tinydet: error: no\n"


def test_the_traceback_is_shown_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYDET_TRACEBACK", "1")
    with pytest.raises(ValueError, match="where"):
        failing(ValueError("where"))([])


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError(),
        KeyError("a"),
        AssertionError(),
        RuntimeError("cuda"),
        ImportError("cannot import name 'a' from 'tinydet.b'", name="tinydet.b"),
    ],
)
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        failing(error)([])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            "not enough memory",
        ),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (OverflowError("int too big to convert"), "int too big to convert"),
    ],
)
def test_a_limit_of_the_machine_is_one_line(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(error)([]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"tinydet infer: error: {line} (") and shown.count("\n") == 1


def test_an_error_of_a_sub_command_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    from tinydet.__main__ import main

    assert main(["data", "check", "nowhere.json"]) == 2
    assert capsys.readouterr().err.startswith("tinydet data check: error: nowhere.json")


def test_ctrl_c_ends_with_130_and_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(KeyboardInterrupt())([]) == 130
    assert capsys.readouterr().err == "tinydet infer: interrupted\n"


PRINTS = """
import sys
from tinydet._internal.command import command
@command("print")
def main(argv=None):
    sys.stdin.readline()
    BODY
    return 5
sys.exit(main())
"""


@pytest.mark.parametrize(
    "body",
    [
        "print('line\\n' * 100_000)",  # more than any buffer holds
        "print('line')",  # still in the buffer when main returns
        "print('line'); sys.exit(0)",  # as argparse leaves after --help
        "import argparse; argparse.ArgumentParser().parse_args(['--help'])",
    ],
)
def test_a_closed_standard_output_is_not_an_error(body: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PRINTS.replace("BODY", body)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.close()  # as `| head` does
    _, errors = process.communicate(b"go\n", timeout=60)
    assert (process.returncode, errors) == (0, b"")


def test_another_broken_pipe_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    @command("infer")
    def main(argv: Sequence[str] | None = None) -> int:
        reading, writing = os.pipe()
        os.close(reading)
        try:
            os.write(writing, b"to a decoder that died")
        finally:
            os.close(writing)
        return 0

    assert main([]) == 2
    assert capsys.readouterr().err == "tinydet infer: error: Broken pipe\n"


# ------------------------------------------------------------------------------------- the command `tinydet COMMAND`


@pytest.fixture
def tinydet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Sequence[str]], int]:
    """`tinydet` with the additional command `echo`, which prints its arguments and returns their number."""
    import tinydet.__main__ as entry

    (tmp_path / "echo_command.py").write_text("def main(argv=None):\n    print(*argv)\n    return len(argv)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(entry.COMMANDS, "echo", entry.Entry("echo_command", "", "print the arguments"))
    return entry.main


def test_a_command_gets_the_arguments_after_its_name(
    tinydet: Callable[[Sequence[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tinydet(["echo", "--help", "--version", "echo"]) == 3
    assert capsys.readouterr().out == "--help --version echo\n"


def test_help_lists_every_command_on_its_own_line(
    tinydet: Callable[[Sequence[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    from tinydet.__main__ import COMMANDS

    with pytest.raises(SystemExit) as left:
        tinydet(["--help"])
    assert left.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, entry in COMMANDS.items():
        assert f" {name} {entry.summary} " in text


def test_a_missing_command_shows_the_help_and_exits_with_2(
    tinydet: Callable[[Sequence[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tinydet([]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "print the arguments" in shown.err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["ecko"], "unknown command 'ecko'; did you mean `tinydet echo`?"),
        (["trian", "--help"], "unknown command 'trian'; did you mean `tinydet train --help`?"),
        (["TRAIN"], "unknown command 'TRAIN'; did you mean `tinydet train`?"),
        (["predict"], "unknown command 'predict'; did you mean `tinydet infer`?"),
        (["predict", "--source", "a b.jpg"], "unknown command 'predict'; did you mean `tinydet infer --source "
         "'a b.jpg'`?"),
        (["predict", *["a.jpg"] * 1000], "unknown command 'predict'; did you mean `tinydet infer`?"),
        (["coco", "slice", "a"], "unknown command 'slice'; did you mean `tinydet data cut a`?"),
        (["data-check", "a"], "unknown command 'data-check'; did you mean `tinydet data check a`?"),
        (["scene.jpg"], "name a command before 'scene.jpg'; did you mean `tinydet infer scene.jpg`?"),
        (["m.pth"], "name a command before 'm.pth'; did you mean `tinydet export onnx m.pth`?"),
        (["data.yaml"], "name a command before 'data.yaml'; did you mean `tinydet data stats data.yaml`?"),
        (["export", "model=m.pth", "format=engine", "half=True", "int8=False"],
         "the formats are commands of their own; run: tinydet export engine m.pth --precision fp16"),
        (["export", "--model", "m.pth"],
         "name a command of tinydet export before '--model'; did you mean `tinydet export onnx --model m.pth`?"),
        (["task=detect", "mode=predict"], "unknown command 'predict'; did you mean `tinydet infer`?"),
        (["convert"], "unknown command 'convert'; did you mean `tinydet data convert`?"),
        (["data", "stat"], "unknown command 'stat' of tinydet data; did you mean `tinydet data stats`?"),
        (["data", "train"], "unknown command 'train' of tinydet data; did you mean `tinydet train`?"),
        (["export", "m.pth"], "name a command of tinydet export before 'm.pth'; did you mean "
         "`tinydet export onnx m.pth`?"),
        (["export", "--tile", "64"], "unknown option --tile of tinydet export; name a command first, as in "
         "`tinydet export onnx`"),
    ],
)  # fmt: skip
def test_an_unknown_command_is_answered_with_the_one_that_was_meant(
    words: list[str], line: str, tinydet: Callable[[Sequence[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tinydet(words) == 2
    assert capsys.readouterr().err == f"tinydet: error: {line}\n"


@pytest.mark.parametrize(
    "words",
    ["detect val data=x model=m.pth", "yolo detect val model=m.pth data=x", "task=detect mode=val model=m.pth data=x"],
)
def test_a_command_of_ultralytics_is_answered_with_the_line_to_type(
    words: str, tinydet: Callable[[Sequence[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        tinydet(words.split())
    assert re.search(r"run: tinydet evaluate (--data x m\.pth|m\.pth --data x)\n$", capsys.readouterr().err)


@pytest.mark.parametrize("words", [["help"], ["help", "data"], ["help", "data", "check"], ["data", "help", "check"]])
def test_help_is_also_a_word(
    words: list[str], tinydet: Callable[[Sequence[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _shown(tinydet, words, capsys) == _shown(tinydet, [w for w in words if w != "help"] + ["-h"], capsys)


def _shown(
    tinydet: Callable[[Sequence[str]], int], words: list[str], capsys: pytest.CaptureFixture[str]
) -> tuple[str, str]:
    with pytest.raises(SystemExit, match="0"):
        tinydet(words)
    shown = capsys.readouterr()
    assert shown.out.startswith("usage: ")
    return shown


def test_the_installed_program_and_the_module_are_equal() -> None:
    import tinydet

    for program in ([sys.executable, "-m", "tinydet"], [str(Path(sys.executable).with_name("tinydet"))]):
        done = subprocess.run([*program, "--version"], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, f"tinydet {tinydet.__version__}\n")


def test_listing_the_commands_imports_none_of_them() -> None:
    code = "import sys, tinydet.__main__; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not {"numpy", "cv2", "torch", "onnxruntime"} & set(done.stdout.split())


def test_an_error_of_a_plugin_is_one_line_with_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text("def fail():\n    return [][1]\n")

    @command("train", plugins=True)
    def main(argv: Sequence[str] | None = None) -> int:
        sys.modules["tinydet_plugin_mine"].fail()
        return 0

    assert main(["--plugin", str(tmp_path / "mine.py")]) == 2
    line = f"tinydet train: error: --plugin {tmp_path / 'mine.py'}, line 2: IndexError: list index out of range; "
    assert capsys.readouterr().err == f"{line}TINYDET_TRACEBACK=1 shows the traceback\n"
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit('bye')\n")
    assert main(["--plugin", str(tmp_path / "leaves.py")]) == 2
    assert "leaves.py, line 2: SystemExit: bye" in capsys.readouterr().err


def test_a_command_suggests_the_plugins_that_it_names_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "named.py").write_text("")
    suggested = []

    @command("train", plugins=True)
    def main(argv: Sequence[str] | None = None) -> int:
        for words in (("evaluate", Path("model.pth")), ("train", "--data", "here"), ("salpha", "--detector", "mine")):
            suggested.append("--plugin" in tinydet_command(*words))
        return 0

    words = ["--plugin", str(tmp_path / "named.py")]
    for argv in (words, [], words):  # the third finds the file imported already
        assert main(argv) == 0
    assert suggested == [True] * 3 + [False] * 3 + [True] * 3
