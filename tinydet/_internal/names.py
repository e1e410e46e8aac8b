"""Make file names and stream addresses safe to show, log and write to files.

On Linux a file name is a sequence of bytes: it need not be UTF-8 and may contain line breaks. The address of a stream
may contain a password. All conversions to text are in this module.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from urllib.parse import unquote

MASK = "***"
LONG_VALUE = 24  # characters; longer values in an address are probably keys
_ADDRESS = re.compile(r"\b([a-z][a-z0-9+.-]+:/+)(\S+)", re.IGNORECASE)
_PARAMETER = re.compile(r"(?<=[?&#;])([^=&#;\s]*=)?([^&#;\s]*)")
_SECRET = re.compile(
    r"pass|pwd|psw|^pw$|^p$|auth|token|secret|sig|key|cred|user|usr|^u$|login|account|session|^sid$|jwt|hmac|hash|policy"
    r"|access|^code$|^pin$|hdn|streamid",
    re.IGNORECASE,
)
_UNSAFE = frozenset({"Cc", "Cs", "Zl", "Zp"})  # control characters, surrogates, separators of lines and paragraphs
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # make a terminal show another name


def printable(text: str | Path) -> str:
    r"""Escape control characters and bytes that are not UTF-8.

    >>> printable("flug-\udce9\n.png")
    'flug-\\xe9\\n.png'
    """
    text = str(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_escape, text))


def mask_secrets(text: str) -> str:
    """Replace user names, passwords, tokens and signatures in all addresses of a text by `***`.

    This masks everything before the `@` of a host, and parameter values that are longer than 24 characters or whose
    name suggests a secret. A secret inside a path cannot be recognized.

    >>> mask_secrets("rtsp://admin:p@ss@10.0.0.1/pier: timeout"), mask_secrets("http://cam/a.ts?channel=1&token=x7")
    ('rtsp://***@10.0.0.1/pier: timeout', 'http://cam/a.ts?channel=1&token=***')
    """
    return _ADDRESS.sub(lambda found: found[1] + _mask(found[2], found[1].lower().startswith("http")), text)


def public_location(location: str | Path) -> str:
    """Return a path or an address as printable text without secrets."""
    text = str(location)
    if found := re.match(r"([a-z][a-z0-9+.-]+:/+)(.+)", text, re.IGNORECASE | re.DOTALL):
        return printable(found[1] + _mask(found[2], found[1].lower().startswith("http")))  # all of it, also spaces
    return printable(text)


def _mask(address: str, web: bool) -> str:
    """Mask an address without its scheme.

    Args:
        web: whether it is an HTTP address, in which a path may contain an `@`.
    """
    host = re.split(r"[/?#]", address, maxsplit=1)[0]
    if "@" in host:
        address = f"{MASK}{address[host.rindex('@') :]}"
    elif "@" in address and ":" in host and not (web and re.fullmatch(r".*:\d{1,5}", host)):
        address = f"{MASK}{address[address.rindex('@') :]}"  # a password that contains / ? or #
    return _PARAMETER.sub(_mask_parameter, address)


def _mask_parameter(found: re.Match[str]) -> str:
    name, value = found[1] or "", found[2].rstrip(":,.'\")]")  # punctuation of the sentence around the address
    secret = value and (_SECRET.search(unquote(name.rstrip("="))) or len(value) > LONG_VALUE)
    return f"{name}{MASK if secret else value}{found[2][len(value) :]}"


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a file name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    if unicodedata.category(character) in _UNSAFE or character in _REORDERING:
        return character.encode("unicode_escape").decode("ascii")
    return character
