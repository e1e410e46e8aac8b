"""The argument parser of every command: one line for each mistake, names of other tools, a help for newcomers."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import textwrap
from argparse import Action, ArgumentError, ArgumentParser, Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tinydet._internal.arguments import quoted
from tinydet._internal.habits import explanation, meant, spelled
from tinydet._internal.names import mask_secrets, printable
from tinydet._internal.shell import command_line, program, tinydet_command
from tinydet._internal.suggestions import alternatives, did_you_mean

_FLAG = re.compile(r"--\w|-[A-Za-z]")
_PAIR = re.compile(r"([A-Za-z_][\w-]*)=(.+)", re.DOTALL)
_TYPOGRAPHIC = re.compile(r"[‐-―−]+-?[A-Za-z]")  # an em dash or the like, as in texts that are copied
_DASHES = "-‐‑‒–—―−"
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off", "0")
_ROW = re.compile(r" {2}\S+( \S+)* {2,}(?=\S)")  # of a table in an epilog
LONGEST_CHOICES = 28  # characters of {a,b} in place of a metavar


class Parser(ArgumentParser):
    """A parser for one command of tinydet.

    - A mistake is one line and exit code 2. An unknown option is answered with the one that was probably meant, a
      known option of another tool with what tinydet does in its place (see `habits`).
    - The words that are no values of options go to one option, the command's main input: `tinydet infer a.tif b.tif`.
    - Unprintable characters and passwords in addresses are masked in messages.

    Args:
        command: the words after `tinydet`; empty for `tinydet` itself.
        positional: the option that takes words without an option, such as "--image".
        examples: arguments of the command, shown at the top of the help.
        needs_arguments: answer a call without arguments with usage and examples.
    """

    def __init__(
        self,
        command: str,
        *,
        positional: str = "",
        examples: Iterable[str] = (),
        needs_arguments: bool = False,
        **options: Any,
    ) -> None:
        options.setdefault("formatter_class", HelpFormatter)
        super().__init__(prog=program(*command.split()), **options)
        self.command, self.label = command, f"tinydet {command}".strip()
        self.examples, self.needs_arguments = tuple(examples), needs_arguments
        self._positional = positional
        self._others: tuple[str, ...] = ()

    # --------------------------------------------------------------------------------------------------- parsing

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse all arguments; see ArgumentParser."""
        words = list(sys.argv[1:] if args is None else args)
        if self.needs_arguments and not words:
            self.exit(2, f"{self.format_usage()}\n{self._examples()}\n`{self.prog} --help` lists all options.\n")
        if words == ["help"] and not os.path.exists("help"):
            words = ["--help"]
        self._refuse_pairs(words)
        words, behind = self._spelled(words)
        self._check_flags(words)
        self._check_values(words)
        if behind and not self._positional:
            words += ["--", *behind]
            behind = []
        main = self._option_string_actions.get(self._positional)
        required = main is not None and main.required
        if main is not None:
            main.required = False  # its value may come without the option
        namespace, left = super().parse_known_args(words, namespace)
        self._take_positional(namespace, [*left, *behind])
        if main is not None and required:
            main.required = True
            if getattr(namespace, main.dest) is None:
                self.error(f"missing: {_capitals(main)}; `{self.prog} --help` explains the command")
        return namespace

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # type: ignore[override]
        """Parse the options of this parser and return the other words, which belong to another parser.

        Words in front of the first option are the positional ones.
        """
        words, behind = self._spelled(list(sys.argv[1:] if args is None else args))
        if self._positional and words and not words[0].startswith("-"):
            words.insert(0, self._positional)
        namespace, left = super().parse_known_args(words, namespace)
        return namespace, [*left, *(["--", *behind] if behind else [])]

    def from_values(self, values: Mapping[str, Any]) -> Namespace:
        """Return the namespace of options that are given as values, such as those of a JSON document.

        Args:
            values: by the name of the option, with `_` or `-`. A list stands for values joined by commas.

        Raises:
            ValueError: there is no such option, or it does not take this value. Names the option.
        """
        namespace = Namespace(**{each.dest: each.default for each in self._actions if each.dest != "help"})
        for name, value in values.items():
            action = self._option_string_actions.get(f"--{name.replace('_', '-')}")
            if action is None:
                raise ValueError(f"there is no option {quoted(name)}")
            if action.nargs == 0:
                if not isinstance(value, bool):
                    raise ValueError(f"{name}: expected true or false, got {quoted(value)}")
                setattr(namespace, action.dest, value)
                continue
            text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            try:
                converted = self._get_value(action, text)
                self._check_value(action, converted)
            except ArgumentError as error:
                raise ValueError(f"{name}: {error.message}") from error
            setattr(namespace, action.dest, converted)
        return namespace

    def _spelled(self, words: list[str]) -> tuple[list[str], list[str]]:
        """Replace the names of other tools by those of this command; also return the words after `--`."""
        end = words.index("--") if "--" in words else len(words)
        known, replaced = self._known(), []
        for word in words[:end]:
            flag, equals, value = word.partition("=")
            if not _is_flag(word) or flag in known or (found := meant(flag, known)) is None:
                replaced.append(word)
            elif found.startswith("-"):
                replaced.append(f"{found}{equals}{value}")
            elif equals:  # a positional argument, given as an option
                replaced.append(value)
        return replaced, words[end + 1 :]

    def _check_flags(self, words: list[str]) -> None:
        """End with one line for an option that the command does not have, or that is abbreviated too far."""
        for word in words:
            flag = word.partition("=")[0]
            if _TYPOGRAPHIC.match(word) and not os.path.exists(word):
                dash = f"--{flag.lstrip(_DASHES)}"
                meaning = did_you_mean(dash, self._option_string_actions) or "; options start with --"
                self.error(f"{quoted(flag)} starts with a typographic dash, as word processors write it{meaning}")
            if not _is_flag(word) or flag in self._option_string_actions:
                continue
            if not flag.startswith("--"):
                if flag[:2] not in self._option_string_actions:
                    self.error(self._unknown(flag))
                continue
            full = [option for option in self._option_string_actions if option.startswith(flag)] * self.allow_abbrev
            if len({id(self._option_string_actions[option]) for option in full}) > 1:
                self.error(f"{flag} is short for {alternatives(full)}; write out which one")
            if not full:
                self.error(self._unknown(flag))

    def _check_values(self, words: list[str]) -> None:
        """End with one line for a switch that is given a value, as in `--resume model.pth`, or `--agnostic True`."""
        for word, value in zip(words, [*words[1:], ""], strict=False):
            flag, equals, joined = word.partition("=")
            action = self._option_string_actions.get(flag)
            if action is None or action.nargs != 0:
                continue
            if flag == "--resume" and value.endswith((".pth", ".pt")):
                self.error(str(explanation("--resume-from")))
            if equals or (value.lower() in (*_TRUE, *_FALSE) and not os.path.exists(value)):
                written = joined if equals else value
                what = f"leave out {quoted(written)}" if written.lower() not in _FALSE else "leave it out"
                self.error(f"{flag} takes no value; {what}")

    def _match_argument(self, action: Action, arg_strings_pattern: str) -> int:
        """Name the value that is missing behind an option."""
        try:
            return super()._match_argument(action, arg_strings_pattern)
        except ArgumentError as error:
            if not action.option_strings:
                raise
            shown = f"{action.option_strings[-1]} {_capitals(action)}"
            raise ArgumentError(None, f"{action.option_strings[-1]} needs a value, as in {shown}") from error

    def _get_value(self, action: Action, arg_string: str) -> Any:
        """Expand ~ in paths, which shells leave alone behind `=` and in quotes."""
        is_path = action.type is Path or action.metavar in ("PATH", "SCENE")
        if is_path and arg_string.startswith("~/"):
            arg_string = os.path.expanduser(arg_string)
        if is_path and not arg_string and action.metavar != "SCENE":
            name = action.option_strings[-1] if action.option_strings else _capitals(action)
            raise ArgumentError(None, f"{name}: the value is empty; name a file or a folder")
        return super()._get_value(action, arg_string)

    def _unknown(self, flag: str) -> str:
        if (answer := explanation(flag)) is not None:
            return f"there is no option {flag}: {answer}"
        options = [option for option in (*self._option_string_actions, *self._others) if option.startswith("--")]
        return f"unknown option {flag}{did_you_mean(flag, options) or f'; `{self.prog} --help` lists all options'}"

    def _take_positional(self, namespace: Namespace, words: list[str]) -> None:
        """Store the words that are no values of options in the main option."""
        if not words:
            return
        action = self._option_string_actions.get(self._positional)
        if action is None:
            self.error(f"unexpected argument {quoted(words[0])}; {self._expected()}")
        given = getattr(namespace, action.dest, None)
        if given not in (None, action.default, argparse.SUPPRESS):
            self.error(f"{quoted(words[0])} and {self._positional} name the same input; give it once")
        for word in words:
            if f"--{word}" in self._option_string_actions and not os.path.exists(word):
                self.error(f"{quoted(word)} does not exist; did you mean --{word}?")
        values = [self._converted(action, word) for word in words]
        if action.nargs in ("+", "*"):
            setattr(namespace, action.dest, values)
        elif len(values) == 1:
            setattr(namespace, action.dest, values[0])
        else:
            self.error(f"unexpected argument {quoted(words[1])}; {self._expected()}")

    def _converted(self, action: Action, word: str) -> Any:
        try:
            return self._get_value(action, word)
        except ArgumentError as error:
            self.error(str(error))

    def _expected(self) -> str:
        names = [_capitals(action) for action in self._actions if not action.option_strings]
        if self._positional:
            names = [_capitals(self._option_string_actions[self._positional])]
        return f"the command takes one {' and one '.join(names)}" if names else "the command takes options only"

    def _refuse_pairs(self, words: list[str]) -> None:
        """End with the right command if options are written as in `source=a.jpg conf=0.3`."""
        known, found = self._known(), False
        translated: list[str] = []
        left_out: list[str] = []
        for before, word in zip(["", *words], words, strict=False):
            pair = _PAIR.fullmatch(word)
            flag = f"--{pair[1]}" if pair else ""
            target = meant(flag, known) if pair else None
            answer = explanation(flag) if pair and target is None else None
            action = self._option_string_actions.get(target or "")
            if pair is None or _is_flag(before) or os.path.exists(word):
                translated.append(word)
                continue
            if target is None and answer is None:
                translated += [spelled(flag), pair[2]]
                continue
            found = True
            if target is None:
                left_out.append(f"{pair[1]}: {answer}")
            elif action is None or target == self._positional:
                translated.append(pair[2])
            elif action.nargs == 0:
                translated += [target] * (pair[2].lower() not in _FALSE)
            elif pair[2] in ("True", "true"):  # a switch of another tool, which is the name of a file here
                translated += [target, "results.json" if _capitals(action) == "FILE" else target.strip("-")]
            elif pair[2] not in ("False", "false", "None"):
                translated += [target, pair[2]]
        if found:
            right = f"{tinydet_command(*self.command.split())} {command_line(*translated)}".rstrip()
            without = f" (without {'; '.join(left_out)})" if left_out else ""
            self.error(f"options are written --NAME VALUE, not NAME=VALUE; run: {right}{without}")

    def _known(self) -> set[str]:
        """Return the options, and the positional arguments in capital letters."""
        places = (action.dest.upper() for action in self._actions if not action.option_strings)
        return {*self._option_string_actions, *places}

    def speak_for(self, other: Parser) -> None:
        """Parse what `other` has left over, with messages in its name."""
        self.prog, self.label, self.command = other.prog, other.label, other.command
        self._others = tuple(other._option_string_actions)

    # --------------------------------------------------------------------------------------------------- messages

    def error(self, message: str) -> NoReturn:
        message = printable(mask_secrets(" ".join(message.split())))
        if message.startswith("the following arguments are required: "):
            names = message.partition(": ")[2]
            message = f"missing: {names}; `{self.prog} --help` explains the command"
        self.exit(2, f"{self.label}: error: {message}\n")

    def _check_value(self, action: Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = list(map(str, action.choices))
            raise ArgumentError(
                action, f"expected one of {', '.join(names)}; got {quoted(value)}{did_you_mean(str(value), names)}"
            )

    # ------------------------------------------------------------------------------------------------------- help

    def format_usage(self) -> str:
        if self.usage is not None:
            return super().format_usage()
        words = [self.prog, *(_placeholder(action) for action in self._actions if not action.option_strings)]
        if main := self._option_string_actions.get(self._positional):
            shown = f"{_capitals(main)} ..." if main.nargs == "+" else _capitals(main)
            words.append(f"[{shown}]")
        for action in self._actions:
            if action.required and action.option_strings and action.option_strings[0] != self._positional:
                words.append(f"{action.option_strings[0]} {_capitals(action)}")
        return f"usage: {' '.join(words)} [OPTIONS]\n"

    def format_help(self) -> str:
        formatter = self._get_formatter()
        parts = [self.format_usage()]
        if self.description:
            formatter.add_text(self.description)
        parts.append(formatter.format_help())
        if self.examples:
            parts.append(self._examples())
        formatter = self._get_formatter()
        # The options of the command first, -h last.
        for group in sorted(self._action_groups, key=lambda group: _is_common(group._group_actions)):
            formatter.start_section(group.title)
            formatter.add_text(group.description)
            formatter.add_arguments(sorted(group._group_actions, key=lambda action: _is_help([action])))
            formatter.end_section()
        formatter.add_text(self.epilog)
        parts.append(formatter.format_help())
        return "\n".join(part for part in parts if part.strip())

    def _examples(self) -> str:
        command = tinydet_command(*self.command.split())
        lines = (_broken(f"  {command} {example}".rstrip()) for example in self.examples)
        title = "examples:" if len(self.examples) > 1 else "example:"
        return "\n".join((title, *lines, "")) if self.examples else ""


class HelpFormatter(argparse.HelpFormatter):
    """Fill paragraphs; keep indented lines, such as commands; wrap the rows of tables under their last column."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        paragraph: list[str] = []
        for line in [*text.splitlines(), ""]:
            if line.strip() and not line.startswith(" "):
                paragraph.append(line)
                continue
            lines += textwrap.wrap(" ".join(paragraph), width, break_on_hyphens=False)
            paragraph = []
            row = _ROW.match(line)
            wrapped = textwrap.wrap(line, width, subsequent_indent=" " * row.end()) if row else [line]
            lines += wrapped
        return "\n".join(f"{indent}{line}" for line in lines[:-1])

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _get_default_metavar_for_positional(self, action: Action) -> str:
        return action.dest.upper()

    def _get_default_metavar_for_optional(self, action: Action) -> str:
        return action.dest.upper()

    def _metavar_formatter(self, action: Action, default_metavar: str) -> Any:
        """Name the value if its choices are too long; the help text has them."""
        format = super()._metavar_formatter(action, default_metavar)
        if action.metavar is None and action.choices is not None:
            shown = "{" + ",".join(map(str, action.choices)) + "}"
            if len(shown) > LONGEST_CHOICES:
                return lambda size: ("NAME",) * size
        return format

    def _expand_help(self, action: Action) -> str:
        text = super()._expand_help(action)
        if action.metavar is None and action.choices is not None:
            names = list(map(str, action.choices))
            if len(",".join(names)) + 2 > LONGEST_CHOICES and not all(name in text for name in names):
                text = f"{text}; one of {', '.join(names)}"
        return text


def _broken(line: str) -> str:
    """Continue a command on the next line, before an option, where it is wider than the terminal."""
    width = shutil.get_terminal_size().columns - 2
    *parts, last = re.split(r" (?=--)", line)
    lines = [""]
    for part, end in [*((part, " \\") for part in parts), (last, "")]:
        joined = f"{lines[-1]} {part}" if lines[-1] else part
        if len(joined + end) <= width or not lines[-1]:
            lines[-1] = joined
        else:
            lines[-1] += " \\"
            lines.append(f"      {part}")
    return "\n".join(lines)


def _is_help(actions: Sequence[Action]) -> bool:
    return [action.option_strings for action in actions] == [["-h", "--help"]]


def _is_common(actions: Sequence[Action]) -> bool:
    """Return whether a group of options has only those that all commands have."""
    return all(action.option_strings in (["-h", "--help"], ["--plugin"]) for action in actions)


def _is_flag(word: str) -> bool:
    return bool(_FLAG.match(word)) and " " not in word.partition("=")[0]


def _capitals(action: Action) -> str:
    """Return the name of a value for a usage or a message."""
    if isinstance(action.metavar, str):
        return action.metavar
    if action.choices is not None and action.option_strings:
        return "NAME"
    return action.dest.upper()


def _placeholder(action: Action) -> str:
    name = _capitals(action)
    return f"[{name}]" if action.nargs in ("?", "*") else name
