"""Free memory of machines and containers, and tiles that do not fit into it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from runtime_fixtures import SPEC

from tinydet.runtime import memory
from tinydet.runtime.backends import open_model

MEBIBYTE = 1 << 20
V1 = "sys/fs/cgroup/memory/memory"


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 4096),
        ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 8388608 kB\n"}, 8192),
        (
            {"sys/fs/cgroup/memory.max": "max", "sys/fs/cgroup/memory.current": "1"},
            4096,
        ),
        (
            {
                "sys/fs/cgroup/memory.max": f"{1000 * MEBIBYTE}\n",
                "sys/fs/cgroup/memory.current": f"{400 * MEBIBYTE}\n",
                "sys/fs/cgroup/memory.stat": f"anon 5\ninactive_file {100 * MEBIBYTE}\n",
            },
            700,
        ),
        (
            {
                f"{V1}.limit_in_bytes": f"{500 * MEBIBYTE}",
                f"{V1}.usage_in_bytes": f"{600 * MEBIBYTE}",
                f"{V1}.stat": "total_inactive_file 0",
            },
            0,
        ),
        ({f"{V1}.limit_in_bytes": str(2**63 - 4096), f"{V1}.usage_in_bytes": "5", f"{V1}.stat": "x 1"}, 4096),
    ],
)
def test_free_memory_is_that_of_the_machine_or_the_container(tmp_path: Path, files: dict[str, str], free: int) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory.free_memory(tmp_path) == free * MEBIBYTE


@pytest.mark.parametrize("backend", ["onnx-cpu", "openvino"])
def test_a_tile_that_exceeds_the_free_memory_is_refused_before_the_model_runs(
    backend: str, make_onnx: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_onnx(tmp_path / "model.onnx", spec=dataclasses.replace(SPEC, tile_multiple=32))
    monkeypatch.setattr(memory, "free_memory", lambda: 64 * MEBIBYTE)
    assert open_model(path, backend, tile=256, threads=1).spec.tile == 256
    assert not caplog.messages
    assert open_model(path, backend, tile=512, threads=1).spec.tile == 512
    assert "a tile of 512 pixels may need 0.1 GiB of memory or more" in caplog.text
    with pytest.raises(ValueError, match=r"model.onnx needs at least .* a tile of 8192 pixels, and 0.1 GiB are free"):
        open_model(path, backend, tile=8192, threads=1)
