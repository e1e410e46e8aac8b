"""Commands to show to the user: spelled as they can be typed here, and quoted for pasting into a shell.

Every text that names a command of tinydet takes the name from `tinydet_command`. Where the package is installed it is
`tinydet infer`. In a clone that is used through its scripts it is `python deploy/infer.py`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from tinydet._internal.plugins import plugin_options

PACKAGE = Path(__file__).resolve().parents[1]
SCRIPTS = {"infer": "deploy/infer.py", "export onnx": "export/to_onnx.py", "export engine": "export/to_trt.py"}


def command_line(*words: str | Path) -> str:
    """Join words into a command line, with shell quoting.

    A path that starts with a dash gets the prefix `./`, so that it is not taken for an option.

    >>> command_line("cp", Path("my models/m 1.pth"), "--force")
    "cp 'my models/m 1.pth' --force"
    >>> command_line("rm", Path("-r"))
    'rm ./-r'
    """
    dashed = [isinstance(word, Path) and str(word).startswith("-") for word in words]
    return shlex.join(f"./{word}" if dash else str(word) for word, dash in zip(words, dashed, strict=True))


def tinydet_command(*words: str | Path) -> str:
    """Return a command of tinydet with its arguments as it can be typed here.

    A clone that is used through its scripts or with `python -m tinydet.train`, from its own folder, has `python
    deploy/infer.py` and `python -m tinydet.train`; after `python -m tinydet` it has `python -m tinydet infer`.
    Everything else has `tinydet infer` and `tinydet train`, or `python -m tinydet train` if there is no program
    `tinydet` on the path.

    Args:
        words: the command, such as "infer" or "export", "engine"; then its arguments. The `--plugin` of the running
            command is added where this one needs it.

    >>> tinydet_command("export", "onnx", Path("my models/m 1.pth"), "--tile", "640")
    "tinydet export onnx 'my models/m 1.pth' --tile 640"
    """
    names = [str(word) for word in words[:2]]
    words = (*words, *plugin_options(*words))
    script, clone = _clone()
    if clone is not None and _started_module() == "tinydet":
        return command_line(_python(), "-m", "tinydet", *words)
    if clone is None:
        as_module = _started_module() is not None and shutil.which("tinydet") is None
        return command_line(*((_python(), "-m", "tinydet") if as_module else ("tinydet",)), *words)
    for count in (2, 1):
        if path := SCRIPTS.get(" ".join(names[:count])):
            return command_line(_python(), f"{script}{path}", *words[count:])
    return command_line(_python(), "-m", *_module(*names[:1]), *words[1:])


def program(*names: str) -> str:
    """Return how this process was started if it runs this command, for `usage:`; else as `tinydet_command`."""
    words = " ".join(names).split()
    script, clone = _clone()
    path = SCRIPTS.get(" ".join(words))
    if clone is not None and path is not None and Path(os.path.realpath(sys.argv[0])) == PACKAGE.parent / path:
        return command_line(_python(), f"{script}{path}")
    module = _started_module()
    if module == "tinydet":
        return command_line(_python(), "-m", "tinydet", *words)
    if module is not None and words and module == f"tinydet.{words[0]}":
        return command_line(_python(), "-m", module, *words[1:])
    return command_line("tinydet", *words) if module is None and clone is None else tinydet_command(*words)


def _clone() -> tuple[str, Path | None]:
    """Return what precedes the path of a script here, and the clone that this process uses; None if it uses none."""
    root, started = PACKAGE.parent, sys.argv[0] if sys.argv else ""
    for script in SCRIPTS.values():
        if os.path.realpath(started) == str(root / script):
            typed = started.replace(os.sep, "/")
            return (typed.removesuffix(script) if typed.endswith(script) else f"{root}/"), root
    if _started_module() is not None and all(os.path.realpath(path) == str(root / path) for path in SCRIPTS.values()):
        return "", root if all(map(os.path.exists, SCRIPTS.values())) else None
    return "", None


def _started_module() -> str | None:
    """Return the module of this package that Python was started with (`python -m tinydet.train`); None if another."""
    path = Path(os.path.realpath(sys.argv[0] if sys.argv else ""))
    if not path.is_relative_to(PACKAGE):
        return None
    names = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__main__" else names)


def _module(*names: str) -> tuple[str, ...]:
    """Return what follows `python -m` for a command: `tinydet.train`, or `tinydet` and the name of the command."""
    if names and (PACKAGE / names[0] / "__main__.py").is_file():
        return (f"tinydet.{names[0]}",)
    return ("tinydet", *names)


def _python() -> str:
    """Return the name of this Python, such as python or python3."""
    return Path(sys.executable or "python").name.removesuffix(".exe")
