"""`--plugin FILE`: import a user's Python file, which registers a detector or a backbone, before a command starts.

Only this option imports a file. Nothing inside a checkpoint, an image or an annotation file can.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tinydet._internal.errors import line_in, reason
from tinydet._internal.input_files import check_file

FLAG = "--plugin"
_MODULE = "tinydet_plugin_"  # followed by the name of the file
_NAMED: dict[str, Path] = {}  # files of the running command: resolved path -> as it was named


def add_plugin_option(parser: argparse._ActionsContainer) -> None:
    """Add `--plugin` to the parser of a command that is decorated with `@command(..., plugins=True)`."""
    parser.add_argument(
        FLAG,
        action="append",
        type=_imported,
        default=argparse.SUPPRESS,
        metavar="FILE.py",
        help="import this Python file first, which registers a detector or a backbone; can be repeated (default: none)",
    )


def _imported(text: str) -> Path:
    """Import a file that `import_plugins` has not seen, because the option was abbreviated."""
    try:
        import_file(Path(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(text)


def plugin_options(*words: str | Path) -> list[str | Path]:
    """Return the `--plugin` options that a suggested command needs.

    They are those of this command, if the suggested one trains, names a detector or opens a checkpoint.
    """
    needed = words[:1] == ("train",) or any(word == "--detector" or str(word).endswith(".pth") for word in words)
    if words[:1] == ("infer",) or not needed:
        return []
    return [part for path in _NAMED.values() for part in (FLAG, path)]


@contextlib.contextmanager
def plugins_of_this_command() -> Iterator[None]:
    """Forget at the end which files were named, so that the next command of this process does not suggest them."""
    before = dict(_NAMED)
    try:
        yield
    finally:
        _NAMED.clear()
        _NAMED.update(before)


def import_plugins(argv: Sequence[str]) -> None:
    """Import the files that `--plugin` names, in their order, before the parser of the command exists.

    Raises:
        ValueError: a file is missing, does not end in `.py`, or raised an exception. Names the file and the line.
    """
    words = list(argv[: argv.index("--")] if "--" in argv else argv)
    for word, following in itertools.pairwise([*words, ""]):
        if word == FLAG and following:
            import_file(Path(following))
        elif word.startswith(f"{FLAG}="):
            import_file(Path(word.partition("=")[2]))


def import_file(path: Path) -> None:
    """Import a Python file once. Modules in its folder can be imported by it.

    Raises:
        ValueError: as `import_plugins`.
    """
    try:
        check_file(path)
    except OSError as error:
        raise ValueError(f"{FLAG} {error}") from error
    if path.suffix != ".py":
        raise ValueError(f"{FLAG} {path}: expected a Python file, NAME.py")
    name, place = f"{_MODULE}{path.stem}", str(path.resolve())
    _NAMED[place] = path
    if getattr(sys.modules.get(name), "__file__", None) == place:
        return
    spec = importlib.util.spec_from_file_location(name, place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)
    sys.modules[name] = module  # dataclasses look their module up here
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        message = plugin_fault(error) or f"{FLAG} {path}: {type(error).__name__}: {reason(error)}"
        del sys.modules[name], _NAMED[place]
        raise ValueError(message) from error


def check_same_file(what: str, before: object, now: object) -> None:
    """Check that a name is registered again by the same file, such as one that was both imported and named.

    Raises:
        ValueError: another file registered it. Names `what` and both files.
    """
    files = [str(getattr(each, "__module__", "")).removeprefix(_MODULE) for each in (before, now)]
    if files[0] != files[1]:
        raise ValueError(f"{what} is registered by both {files[0]}.py and {files[1]}.py; rename one, or name one file")


def plugin_fault(error: BaseException) -> str | None:
    """Return an exception that passed through an imported file as one line with its place; None: it did not."""
    place = line_in(error, _NAMED.keys())
    if place is None:
        return None
    return (
        f"{FLAG} {_NAMED[place[0]]}, line {place[1]}: {type(error).__name__}: {reason(error)}; "
        "TINYDET_TRACEBACK=1 shows the traceback"
    )
