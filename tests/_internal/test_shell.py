"""Suggested commands survive a shell: pasted arguments reach the program unchanged."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tinydet._internal.shell import command_line

NAMES = ["m.pth", "my models/m 1.pth", "it's.pth", '"$HOME".pth', "-r", "a*b?.pth", "é;&|.pth", "~"]


@pytest.mark.parametrize("name", NAMES)
def test_a_pasted_command_receives_the_path(name: str) -> None:
    command = command_line("printf", "%s\\n", "--model", Path(name))
    received = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout.splitlines()
    assert received[0] == "--model"
    assert Path(received[1]) == Path(name)
    assert not received[1].startswith("-")
