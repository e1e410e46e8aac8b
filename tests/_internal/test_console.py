"""Which messages of the library a command shows, and where."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator

import pytest

from tinydet._internal.console import LOGGER, information_to_stderr, show_messages


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("tinydet.runtime")
    yield logger
    logger.setLevel(logging.NOTSET)


def test_information_goes_to_stdout_and_warnings_with_the_command_to_stderr(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    with show_messages("tinydet infer"):
        logger.info("%d tiles", 12)
        logger.warning("a.png was skipped")
        logger.debug("not shown")
    assert capsys.readouterr() == ("12 tiles\n", "tinydet infer: a.png was skipped\n")


def test_information_goes_to_stderr_where_results_take_stdout(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    with show_messages("tinydet infer"):
        information_to_stderr()
        logger.info("12 tiles")
    assert capsys.readouterr() == ("", "12 tiles\n")


def test_debug_messages_of_a_logger_that_wants_them_go_to_stderr(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    logger.setLevel(logging.DEBUG)
    with show_messages("tinydet export"):
        logger.debug("VERBOSE: layer 1")
    assert capsys.readouterr() == ("", "VERBOSE: layer 1\n")


def test_a_command_inside_a_command_shows_each_message_once(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    with show_messages("tinydet"):
        with show_messages("tinydet infer"):
            logger.warning("inner")
        logger.warning("outer")
    assert capsys.readouterr().err == "tinydet infer: inner\ntinydet: outer\n"


def test_nothing_is_shown_outside_a_command(logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    with show_messages("tinydet infer"):
        pass
    logger.info("12 tiles")
    assert capsys.readouterr() == ("", "") and not LOGGER.handlers


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "iso-8859-1"])
def test_a_message_with_any_file_name_is_one_line_that_every_console_shows(
    logger: logging.Logger, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(logging.getLogger("tinydet"), "propagate", False)  # pytest-xdist cannot send surrogates
    with show_messages("tinydet infer"):
        logger.info("\udce9\n\x1b[31m日ö.png: rtsp://bob:s3cret@host/pier")
    written = output.buffer.getvalue().decode(encoding)
    wide = {"utf-8": "日ö", "ascii": r"\u65e5\xf6", "iso-8859-1": r"\u65e5ö"}[encoding]
    assert written == rf"\xe9\n\x1b[31m{wide}.png: rtsp://***@host/pier" + "\n"
