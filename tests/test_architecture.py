"""Rules that hold across files: who imports whom, what each installation can run, what every command promises."""

from __future__ import annotations

import ast
import functools
import graphlib
import importlib
import importlib.machinery
import itertools
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "tinydet").rglob("*.py"))
}
SCRIPTS = [path for folder in ("deploy", "export") for path in sorted((ROOT / folder).glob("*.py"))]

# One row per package, bottom up: a package imports packages of the rows above it in this list and no others.
# torch "never": every module imports and works without torch installed. "lazily": every module imports without torch;
# single functions need it. "freely": anything goes.
LAYERS = (
    ("_internal", "never"),
    ("spec", "never"),
    ("geometry", "never"),
    ("runtime", "never"),
    ("data", "never"),
    ("models", "freely"),
    ("salpha", "never"),
    ("evaluate", "lazily"),
    ("infer", "never"),
    ("cluster", "never"),
    ("serve", "never"),
    ("zoo", "lazily"),
    ("train", "freely"),
    ("export", "freely"),
    ("study", "freely"),
    ("sweep", "freely"),
    ("gradients", "freely"),
    ("__main__", "never"),
)
PACKAGES = [name for name, _ in LAYERS]
USES_TORCH = dict(LAYERS)

CORE = {"PIL", "cv2", "filelock", "numpy", "pydantic", "tqdm"}
TORCH = {"torch", "torchvision"}
# What to install for an import whose name says otherwise.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "cuda": "cuda-bindings",
    "onnxruntime_ep_nv_tensorrt_rtx": "onnxruntime-ep-nv-tensorrt-rtx-cu13",
    "tensorrt_rtx": "tensorrt-rtx-cu13",
    "torch.utils.tensorboard": "tensorboard",
    "prometheus_client": "prometheus-client",
    "prometheus_client.core": "prometheus-client",
    "yaml": "pyyaml",
}

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


class Import(NamedTuple):
    module: str  # that imports
    target: str  # what is imported: a module of ours, else the dotted name as written
    line: int
    lazy: bool  # inside a function
    extras: tuple[str, ...] | None  # of the `with needs_extra(...)` around it; None where there is none, () if computed
    for_types: bool  # under `if TYPE_CHECKING`

    def __str__(self) -> str:
        return f"{self.module} line {self.line} imports {self.target}"


def package(module: str) -> str:
    """The first part of a module's name below `tinydet`; empty for `tinydet` itself."""
    return module.partition(".")[2].partition(".")[0]


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@functools.cache
def imports(module: str) -> tuple[Import, ...]:
    return tuple(dict.fromkeys(_walk(module, tree(module), lazy=False, extras=None, for_types=False)))


def all_imports() -> list[Import]:
    return [edge for module in MODULES for edge in imports(module)]


def is_optional(edge: Import) -> bool:
    """Whether an installation for the ring of the importing module may lack what it imports."""
    top = edge.target.partition(".")[0]
    if edge.for_types or top in {"tinydet", *CORE, *sys.stdlib_module_names}:
        return False
    return not (top in TORCH and edge.target not in DISTRIBUTIONS and USES_TORCH.get(package(edge.module)) == "freely")


def _walk(module: str, node: ast.AST, lazy: bool, extras: tuple[str, ...] | None, for_types: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(module, alias.name, node.lineno, lazy, extras, for_types)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{module} line {node.lineno}: imports are absolute here"
        for alias in node.names:
            deeper = f"{node.module}.{alias.name}"
            target = deeper if deeper in MODULES else str(node.module)
            yield Import(module, target, node.lineno, lazy, extras, for_types)
    if isinstance(node, ast.With):
        for item in node.items:
            call = item.context_expr
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "needs_extra":
                extras = (str(call.args[0].value),) if isinstance(call.args[0], ast.Constant) else ()
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        for_types = True
    lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from _walk(module, child, lazy, extras, for_types)


@functools.cache
def commands() -> dict[str, str | None]:
    """Modules with a top-level `main`, and the name that `@command` gives it (None where it is not decorated)."""
    found: dict[str, str | None] = {}
    for module in MODULES:
        for node in tree(module).body:
            if isinstance(node, ast.FunctionDef) and node.name == "main":
                names = [
                    str(ast.literal_eval(decorator.args[0]))
                    for decorator in node.decorator_list
                    if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "command"
                ]
                found[module] = names[0] if names else None
    return found


def subcommands() -> set[str]:
    """Modules that offer `add_arguments` and `run`: they speak for the command that runs them."""
    return {
        module
        for module in MODULES
        if {"add_arguments", "run"} <= {node.name for node in tree(module).body if isinstance(node, ast.FunctionDef)}
    }


def extra_distributions(extra: str) -> set[str]:
    """The canonical names that `tinydet[extra]` installs beside the core, through extras that name other extras."""
    names: set[str] = set()
    for line in EXTRAS[extra]:
        requirement = Requirement(line)
        if requirement.name == "tinydet":
            names.update(*(extra_distributions(inner) for inner in requirement.extras))
        else:
            names.add(canonicalize_name(requirement.name))
    return names


def distribution(target: str) -> str:
    for name in (target, target.partition(".")[0]):
        if name in DISTRIBUTIONS:
            return DISTRIBUTIONS[name]
    return canonicalize_name(target.partition(".")[0])


# ---------------------------------------------------------------------------------------------------------- imports


def test_every_package_has_one_row() -> None:
    assert sorted({package(module) for module in MODULES} - {""}) == sorted(PACKAGES)


def test_the_only_flat_module_is_the_model_spec() -> None:
    flat = {path.stem for path in (ROOT / "tinydet").glob("*.py")}
    assert flat == {"__init__", "__main__", "spec"}


def test_imports_between_packages_point_down() -> None:
    upward = [
        str(edge)
        for edge in all_imports()
        if edge.target in MODULES and package(edge.module) and package(edge.target)
        if PACKAGES.index(package(edge.target)) > PACKAGES.index(package(edge.module))
    ]
    assert not upward


def test_no_modules_import_each_other() -> None:
    """Directly or through others, lazily or not. An `__init__` may import its own modules if they do not import it."""
    imported: dict[str, set[str]] = {module: set() for module in MODULES}
    for edge in all_imports():
        if edge.target in MODULES and not edge.for_types:
            imported[edge.module].add(edge.target)
    cycles = []
    while True:
        try:
            graphlib.TopologicalSorter(imported).prepare()
            break
        except graphlib.CycleError as error:
            cycle = list(reversed(error.args[1]))  # each imports the next; the last is the first again
            cycles.append(" -> ".join(cycle))
            imported[cycle[0]].remove(cycle[1])  # to find the others
    assert not cycles


def test_torch_is_named_only_where_it_may_be() -> None:
    named = [
        str(edge)
        for edge in all_imports()
        if edge.target.partition(".")[0] in TORCH and package(edge.module) and not edge.for_types
        if USES_TORCH[package(edge.module)] == "never"
        or (USES_TORCH[package(edge.module)] == "lazily" and not edge.lazy)
    ]
    assert not named


def test_the_package_itself_imports_nothing_but_how_threads_wait() -> None:
    assert {edge.target for edge in imports("tinydet")} <= {"__future__", "tinydet._internal.threads"}


def test_an_optional_package_is_imported_where_its_extra_is_named() -> None:
    optional = [edge for edge in all_imports() if is_optional(edge)]
    assert not [f"{edge} outside `with needs_extra(...)`" for edge in optional if edge.extras is None]
    assert not [f"{edge} when it is imported itself, not at the point of use" for edge in optional if not edge.lazy]
    for edge in optional:
        bringing = {extra for extra in EXTRAS if distribution(edge.target) in extra_distributions(extra)}
        assert bringing, f"{edge}, which no extra brings"
        assert set(edge.extras or ()) <= bringing, f"{edge}, which comes with {bringing}, not with {edge.extras}"


def test_imports_are_written_out() -> None:
    """A name in a string is seen by no reader and by none of these tests; the table of commands is the exception."""
    hidden = [
        f"{module} line {node.lineno}"
        for module in MODULES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__")
        and module != "tinydet.__main__"
    ]
    assert not hidden


BLOCKED = """
import importlib, sys
absent = set(sys.argv[1].split(","))
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


def run_without_extras(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `code` where only the core dependencies can be imported."""
    named = {edge.target.partition(".")[0] for edge in all_imports()}
    absent = sorted((named | TORCH) - CORE - {"tinydet"} - set(sys.stdlib_module_names))
    return subprocess.run(
        [sys.executable, "-c", BLOCKED + code, ",".join(absent), *arguments],
        cwd=ROOT / "tests",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_packages_without_torch_import_with_the_core_dependencies_alone() -> None:
    modules = [module for module in MODULES if USES_TORCH.get(package(module)) in ("never", "lazily")]
    done = run_without_extras("for name in sys.argv[2:]: importlib.import_module(name)", *modules)
    assert done.returncode == 0, done.stderr


def test_commands_that_need_no_torch_explain_themselves_without_it() -> None:
    from tinydet.__main__ import COMMANDS, Group

    names = [name for name, entry in COMMANDS.items() if isinstance(entry, Group) or not entry.extra]
    done = run_without_extras(
        "from tinydet.__main__ import main\n"
        "for name in sys.argv[2:]:\n"
        "    try: print('returned', main([name, '--help']))\n"
        "    except SystemExit as left: print('code', left.code)",
        *names,
    )
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^(?:returned|code) .*", done.stdout, re.M) == ["code 0"] * len(names), done.stderr


def test_a_command_whose_packages_are_absent_says_what_to_install() -> None:
    done = run_without_extras("from tinydet.__main__ import main\nsys.exit(main(['train', '--salpha']))")
    assert done.returncode == 2
    assert done.stderr == "tinydet train: error: 'torch' is not installed. Run: pip install 'tinydet[train]'\n"


def test_a_model_runs_where_the_modules_of_posix_are_absent(tmp_path: Path) -> None:
    """As on Windows, which has none of them."""
    pytest.importorskip("onnxruntime")
    Image.new("RGB", (160, 120), "gray").save(tmp_path / "a.png")
    code = BLOCKED + "from tinydet.__main__ import main\nsys.exit(main(sys.argv[2:]))"
    scene, table = str(tmp_path / "a.png"), str(tmp_path / "a.csv")
    command = ["infer", "--image", scene, "--output", table, "--format", "csv,coco", "--backend", "onnx", "--resume"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, "fcntl,resource,pwd,grp,termios,tty,pty,syslog", *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.journal", "a.json", "a.png"]


def test_only_guarded_code_names_what_windows_lacks() -> None:
    absent = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix"}
    assert not [str(edge) for edge in all_imports() if edge.target.partition(".")[0] in absent]


# --------------------------------------------------------------------------------------------------------- commands


def test_a_library_module_neither_prints_nor_exits() -> None:
    loud = [
        f"{module} line {node.lineno}: {ast.unparse(node)}"
        for module in MODULES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("print", "exit", "quit", "sys.exit", "os._exit", "SystemExit")
        and not module.endswith(".__main__")
        and module not in {"tinydet._internal.command", *commands(), *subcommands()}
    ]
    assert not loud


@pytest.mark.parametrize("module", commands())
def test_a_module_with_a_main_is_a_command(module: str) -> None:
    name = commands()[module]
    assert name is not None, f"{module}.main lacks @command"
    assert (name == "") == (module == "tinydet.__main__")
    last = tree(module).body[-1]
    assert ast.unparse(last) == "if __name__ == '__main__':\n    sys.exit(main())", f"{module} does not end by running"


@pytest.mark.parametrize("module", commands())
def test_a_command_explains_itself(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        importlib.import_module(module).main(["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("usage: ")
    assert shown.err == ""


def test_the_table_of_commands_names_them_as_they_name_themselves() -> None:
    from tinydet.__main__ import COMMANDS, Entry, Group

    single = {name: entry for name, entry in COMMANDS.items() if isinstance(entry, Entry)}
    grouped = [inner for entry in COMMANDS.values() if isinstance(entry, Group) for inner in entry.commands.values()]
    assert {name: commands().get(entry.module) for name, entry in single.items()} == {name: name for name in single}
    assert {entry.module for entry in grouped} <= subcommands()
    assert {entry.extra for entry in (*single.values(), *grouped)} <= {"", *EXTRAS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_script_says_how_to_use_it_and_defines_nothing(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ast.parse(script.read_text(encoding="utf-8"))
    assert f"{script.parent.name}/{script.name}" in (ast.get_docstring(source) or "")
    assert not [node for node in ast.walk(source) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.setattr(sys, "path", [str(script.parent), *sys.path])  # as Python sets it for a script
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(script), run_name="__main__")
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


SCRIPTS = [path for folder in ("benchmarks", "deploy", "export") for path in sorted((ROOT / folder).glob("*.py"))]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_script_is_not_named_after_a_module_that_someone_imports(script: Path) -> None:
    """Python puts a script's folder first on the path: export/onnx.py would be what `import onnx` finds."""
    ours = {ROOT, *(path.parent for path in SCRIPTS)}
    elsewhere = [entry for entry in sys.path if entry and Path(entry).resolve() not in ours]
    optional = {edge.target.partition(".")[0] for edge in all_imports()}
    assert script.stem not in sys.stdlib_module_names | optional
    assert importlib.machinery.PathFinder.find_spec(script.stem, elsewhere) is None


# -------------------------------------------------------------------------------------------------------- packaging


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this tree, built in a copy of it by the backend that is installed."""
    copy = tmp_path_factory.mktemp("wheel") / "tree"
    made = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "demo", "runs", "results")
    shutil.copytree(ROOT, copy, ignore=made)
    arguments = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(copy.parent)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *arguments, str(copy)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (path,) = copy.parent.glob("*.whl")
    return zipfile.ZipFile(path)


def test_a_wheel_installs_tinydet_and_nothing_beside_it(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"tinydet"}


def test_a_wheel_holds_every_module_and_the_mark_of_a_typed_package(wheel: zipfile.ZipFile) -> None:
    expected = {path.relative_to(ROOT).as_posix() for path in MODULES.values()} | {"tinydet/py.typed"}
    expected |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "tinydet" / "bundled").iterdir()}
    assert expected <= set(wheel.namelist())


def test_every_folder_with_modules_is_a_package() -> None:
    """setuptools leaves a folder without __init__.py out of the wheel."""
    bare = {path.parent for path in MODULES.values() if not (path.parent / "__init__.py").is_file()}
    assert not bare


def test_a_wheel_declares_its_licence_command_and_version(wheel: zipfile.ZipFile) -> None:
    import tinydet

    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    lines = wheel.read(metadata).decode().splitlines()
    assert f"Version: {tinydet.__version__}" in lines
    assert "License-Expression: Apache-2.0" in lines
    (entry_points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "tinydet = tinydet.__main__:main" in wheel.read(entry_points).decode()


def test_every_bound_of_a_dependency_has_its_reason_beside_it() -> None:
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    asked = [line for lines in (PROJECT["dependencies"], *EXTRAS.values()) for line in lines]
    bounded = [line for line in asked if Requirement(line).specifier]
    assert bounded
    for requirement in bounded:
        for above, line in itertools.pairwise(lines):
            if f'"{requirement}"' in line:
                assert "#" in line or above.strip().startswith("#"), f"{requirement}: no reason beside it"


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "arm64", "AMD64"])
def test_any_set_of_extras_has_one_build_of_onnx_runtime(platform: str, machine: str) -> None:
    """Two builds in one environment overwrite each other's files, and pip cannot be told."""
    for python in ("3.10", "3.13"):
        environment = {"sys_platform": platform, "platform_machine": machine, "python_version": python, "extra": ""}
        builds = {
            requirement.name
            for lines in (PROJECT["dependencies"], *EXTRAS.values())
            for requirement in map(Requirement, lines)
            if re.fullmatch("onnxruntime(-gpu)?", requirement.name)
            if requirement.marker is None or requirement.marker.evaluate(environment)
        }
        assert builds == {"onnxruntime-gpu" if (platform, machine) == ("linux", "x86_64") else "onnxruntime"}
    with_runtime = {extra for extra in EXTRAS if "onnxruntime" in extra_distributions(extra)}
    assert with_runtime == {"onnxruntime", "train", "export", "tensorrt", "rtx", "rtx-provider", "all"}


def test_all_is_every_extra_that_a_user_can_want_at_once() -> None:
    # fiftyone brings another build of OpenCV, heif the GPL, and triton an old protobuf; docs and dev are for us.
    apart = ("dev", "docs", "all", "fiftyone", "heif", "triton")
    everything = set().union(*(extra_distributions(extra) for extra in EXTRAS if extra not in apart))
    assert extra_distributions("all") == everything


def test_what_ci_runs_is_within_the_bounds() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    asked = [Requirement(line) for lines in (PROJECT["dependencies"], *EXTRAS.values()) for line in lines]
    for requirement in asked:
        if (pin := pins.get(canonicalize_name(requirement.name))) is not None:
            assert requirement.specifier.contains(pin), f"{requirement} against {pin} in constraints.txt"


def test_make_installs_extras_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (names,) = re.findall(r"^EXTRAS := (.*)$", makefile, re.M)
    assert set(names.split(",")) <= set(EXTRAS)
