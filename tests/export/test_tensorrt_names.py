"""Every name of TensorRT's Python API in the source exists in each supported version, and none escapes this check.

`tensorrt_names.json` records the names that the source uses; update it when `test_the_record_...` fails. The bindings
of other versions are not installed, but lists of their names may be available (fixture `shared`).
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BACKENDS = ROOT / "tinydet/runtime/backends"
SOURCES = [ROOT / "tinydet/export/engine.py", BACKENDS / "tensorrt.py", BACKENDS / "engine_runner.py"]
RECORD = json.loads((Path(__file__).parent / "tensorrt_names.json").read_text(encoding="utf-8"))

# In the source, a variable or attribute with one of these names, apart from leading underscores, is of this class.
OBJECTS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "parser_error": "ParserError",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "tensor": "ITensor",
    "runtime": "Runtime",
    "runtime_config": "IRuntimeConfig",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
}
MAKERS = {
    "create_network": "INetworkDefinition",
    "create_builder_config": "IBuilderConfig",
    "create_optimization_profile": "IOptimizationProfile",
    "create_timing_cache": "ITimingCache",
    "get_timing_cache": "ITimingCache",
    "get_input": "ITensor",
    "get_output": "ITensor",
    "deserialize_cuda_engine": "ICudaEngine",
    "create_execution_context": "IExecutionContext",
    "create_runtime_config": "IRuntimeConfig",
}


class Names(ast.NodeVisitor):
    """Collects `Class.member` and `Class`. Names that only TensorRT-RTX has are used in functions named `..._rtx`."""

    def __init__(self) -> None:
        self.used: set[str] = set()
        self.rtx_only: set[str] = set()
        self.misnamed: list[str] = []
        self.found = self.used

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer, self.found = self.found, self.rtx_only if node.name.endswith("_rtx") else self.found
        self.generic_visit(node)
        self.found = outer

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for base in node.bases:
            if isinstance(base, ast.Attribute) and owner(base.value) == "trt":
                methods = [n.name for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("__")]
                self.found.update(f"{base.attr}.{method}" for method in methods)
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if owner(node.value) == "trt" and not node.attr.startswith("__"):
            self.found.add(node.attr)
        elif isinstance(node.value, ast.Attribute) and owner(node.value.value) == "trt":
            if not node.attr.startswith("__"):
                self.found.add(f"{node.value.attr}.{node.attr}")
        elif (name := OBJECTS.get(owner(node.value))) is not None:
            self.found.add(f"{name}.{node.attr}")
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        call = node.value
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            made = MAKERS.get(call.func.attr) or (call.func.attr if owner(call.func.value) == "trt" else None)
            target = owner(node.targets[0])
            if made in OBJECTS.values() and OBJECTS.get(target) != made:
                self.misnamed.append(f"line {node.lineno}: a {made} is named {target}")
        self.generic_visit(node)


def owner(node: ast.expr) -> str:
    """Return "config" for `config` and for `self._config`."""
    if isinstance(node, ast.Name):
        return node.id.lstrip("_")
    if isinstance(node, ast.Attribute) and ast.unparse(node) != "spec.engine":  # a dict, not an ICudaEngine
        return node.attr.lstrip("_")
    return ""


def collected() -> Names:
    names = Names()
    for source in SOURCES:
        names.visit(ast.parse(source.read_text(encoding="utf-8")))
    return names


def recorded_api(shared: Path) -> dict[str, set[str]]:
    """Return the names `Class.member` and `Class` of each recorded version."""
    api = {}
    for path in sorted((shared / "cases/tensorrt-api").glob("*.json")):
        classes = json.loads(path.read_text(encoding="utf-8"))
        version = classes.pop("version")
        api[version] = {f"{name}.{member}" for name, members in classes.items() for member in members} | set(classes)
    return api


def test_tensorrt_objects_are_named_after_their_class_wherever_they_are_created() -> None:
    assert not collected().misnamed


def test_the_record_has_the_names_that_the_source_uses() -> None:
    used = collected().used
    assert len(used) > 40
    assert sorted(used) == RECORD["names"], "update tensorrt_names.json if all versions have the new names"


def test_every_version_has_the_recorded_names(shared: Path) -> None:
    api = recorded_api(shared)
    assert sorted(api) == sorted(RECORD["versions"])
    missing = {version: sorted(set(RECORD["names"]) - names) for version, names in api.items()}
    assert missing == {version: [] for version in api}


def test_no_member_of_tensorrt_is_used_on_an_object_that_this_check_misses(shared: Path) -> None:
    """Members with an underscore in their name are used only on the objects above."""
    members = set.intersection(*({n.partition(".")[2] for n in names} for names in recorded_api(shared).values()))
    members = {member for member in members if "_" in member}
    missed = [
        f"{source.name} line {node.lineno}: {ast.unparse(node)}"
        for source in SOURCES
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in members
        and owner(node.value) not in {*OBJECTS, "trt"}
        and not (isinstance(node.value, ast.Attribute) and owner(node.value.value) == "trt")
    ]
    assert not missed


def test_tensorrt_rtx_has_all_names() -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    names = collected()
    assert names.rtx_only
    for name in names.used | names.rtx_only:
        found: object = rtx
        for part in name.split("."):
            assert hasattr(found, part), f"tensorrt_rtx {rtx.__version__} has no {name}"
            found = getattr(found, part)


def test_cuda_python_has_the_names_that_are_used() -> None:
    cudart = pytest.importorskip("cuda.bindings.runtime")
    nodes = [n for source in SOURCES[1:] for n in ast.walk(ast.parse(source.read_text(encoding="utf-8")))]
    chains = [n for n in nodes if isinstance(n, ast.Attribute) and owner(n.value) in ("cudart", "attribute")]
    assert len({node.attr for node in chains}) > 25
    for node in chains:
        assert hasattr(cudart if owner(node.value) == "cudart" else cudart.cudaDeviceAttr, node.attr), node.attr
    for enum in ("cudaMemcpyKind", "cudaStreamCaptureMode"):
        members = {n.attr for n in nodes if isinstance(n, ast.Attribute) and owner(n.value) == enum}
        assert members and all(hasattr(getattr(cudart, enum), member) for member in members)
