"""Names of other tools: aliases lead to options that some command has, and explanations name real options."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from tests.fuzz.arguments import caught_parser, commands
from tinydet.__main__ import COMMANDS, Group, main
from tinydet._internal import habits
from tinydet._internal.habits import ALIASES, EXPLANATIONS, SAME, alias_table, explanation, explanation_table, meant

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "commands.md"


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """The options and positional arguments of every command."""
    found = {}
    for name in commands():
        with caught_parser() as caught:
            main([*name.split(), "--help"])
        actions: list[argparse.Action] = caught[-1]._actions
        found[name] = {flag for action in actions for flag in action.option_strings or [f"--{action.dest}"]}
    return found


def test_an_alias_leads_to_options_that_exist(options: dict[str, set[str]]) -> None:
    everywhere = set().union(*options.values())
    assert {flag for flags in ALIASES.values() for flag in flags} <= everywhere


def test_an_alias_is_needed_somewhere(options: dict[str, set[str]]) -> None:
    for alias, flags in ALIASES.items():
        assert any(alias not in known and known & set(flags) for known in options.values()), alias


def test_an_explanation_names_options_that_exist(options: dict[str, set[str]]) -> None:
    everywhere = set().union(*options.values())
    for name, text in EXPLANATIONS.items():
        assert set(re.findall(r"(?<![\w-])--[a-z-]+", text)) <= everywhere, name


def test_an_explanation_is_needed_somewhere(options: dict[str, set[str]]) -> None:
    for name in (*EXPLANATIONS, *SAME):
        assert any(meant(name, known) is None for known in options.values()), name
        assert explanation(name)
    assert not set(SAME) & set(EXPLANATIONS)


def test_a_known_option_comes_before_every_alias() -> None:
    assert meant("--source", {"--source", "--image"}) == "--source"
    assert meant("--source", {"--image"}) == "--image"
    assert meant("--SOURCE", {"--image"}) == "--image"
    assert meant("--conf_thres", {"--score"}) == "--score"
    assert meant("--model", {"MODEL"}) == "MODEL"
    assert meant("--source", {"--score"}) is None


def test_commands_of_other_tools_lead_to_commands_that_exist() -> None:
    for word, (name, *inner) in habits.COMMANDS.items():
        entry = COMMANDS[name]
        assert word not in COMMANDS
        assert not inner or inner[0].startswith("--") or (isinstance(entry, Group) and inner[0] in entry.commands)


def test_the_page_lists_all_of_them() -> None:
    page = DOCUMENT.read_text(encoding="utf-8")
    assert alias_table() in page
    assert explanation_table() in page


if __name__ == "__main__":  # writes the tables of the page
    page = DOCUMENT.read_text(encoding="utf-8")
    for table in (alias_table(), explanation_table()):
        head = table.splitlines()[0]
        page = re.sub(rf"(?m)^{re.escape(head)}\n(\|.*\n)*", lambda _, table=table: table, page)
    DOCUMENT.write_text(page, encoding="utf-8")
