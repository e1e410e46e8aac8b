"""Rules for the arguments of all commands."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

import pytest

from tinydet.__main__ import COMMANDS, Group, main

NAMES = [[name, sub] for name, entry in COMMANDS.items() if isinstance(entry, Group) for sub in entry.commands]
NAMES += [[name] for name, entry in COMMANDS.items() if not isinstance(entry, Group)]
HOSTILE = ["", " ", "-1", "nan", "inf", "-inf", "1e400", "1e-320", "9" * 5000, str(10**12), "10000000000x10000000000",
           "0x10", "1_0", "\ud800", "²", "1,2,", "1:2:1e-300", "1/0", "auto1", "None"]  # fmt: skip


def parser_of(words: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """The parser of a command, caught when it begins to parse."""

    class Caught(BaseException):
        pass

    found: list[argparse.ArgumentParser] = []
    original = argparse.ArgumentParser.parse_known_args

    def catch(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        if self.prog in ("tinydet", "tinydet data", "tinydet export"):
            return original(self, *args, **kwargs)
        found.append(self)
        raise Caught

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", catch)
        with pytest.raises(Caught):
            main([*words, "x"])
    return found[0]


@pytest.mark.parametrize("words", NAMES, ids=" ".join)
def test_every_number_has_a_rule_and_every_text_is_parsed_or_refused(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for action in parser_of(words, monkeypatch)._actions:
        assert action.type not in (int, float, complex), f"{action.option_strings} accepts any number"
        if action.type in (None, str, Path):
            continue
        parse: Any = action.type
        for text in HOSTILE:
            with contextlib.suppress(argparse.ArgumentTypeError):
                parse(text)


@pytest.mark.parametrize("words", NAMES, ids=" ".join)
def test_an_unknown_option_is_reported_by_its_own_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*words, "x", "--nope"])
    name = f"tinydet {' '.join(words)}"
    assert capsys.readouterr().err == (f"{name}: error: unknown option --nope; `{name} --help` lists all options\n")
