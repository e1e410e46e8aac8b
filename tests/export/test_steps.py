"""The line that shows the step of an export."""

from __future__ import annotations

import io
import logging
import sys

import pytest
from tqdm import tqdm

from tinydet._internal.console import show_messages
from tinydet.export.steps import show_steps, step


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_steps_are_shown_on_a_terminal_under_the_title_of_the_innermost_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    step("shown nowhere, before the block")
    with tqdm(file=terminal), show_steps("building"):  # other bars do not push the line off the screen
        step("kernels")
        with show_steps("verifying"):
            step("comparing detections")
        step("writing")
    shown = terminal.getvalue()
    assert all(text in shown for text in ("building: kernels", "verifying: comparing detections", "building: writing"))
    assert "building: comparing" not in shown


def test_a_log_gets_a_line_for_each_kind_of_step_and_one_every_10_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    now = 0.0
    monkeypatch.setattr("tinydet.export.steps.time.monotonic", lambda: now)
    with show_messages("tinydet export"), show_steps("verifying"):
        step("comparing")
        for image in range(1, 26):  # one a second
            step("image %d of %d", image, 25)
            now += 1
        step("writing")
    with show_steps("verifying"):
        step("nothing is printed outside of a command")
    shown = ["comparing", "image 1 of 25", "image 11 of 25", "image 21 of 25", "writing"]
    assert log.getvalue().splitlines() == [f"  verifying: {text}" for text in shown]


def test_steps_are_debug_messages_elsewhere(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "tinydet.export.steps")
    step("kernels")
    assert caplog.record_tuples == [("tinydet.export.steps", logging.DEBUG, "kernels")]
    assert capsys.readouterr() == ("", "")
