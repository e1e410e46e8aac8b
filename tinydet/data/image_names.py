"""Match file names in annotations with image files.

A name in an annotation file may be spelled differently from the file: with backslashes, `%20` for a space, another
Unicode form of an accent, blanks around it, other letter case, or folders or an address in front of it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

Parts = tuple[str, ...]

_ADDRESS = re.compile("[A-Za-z][A-Za-z0-9+.-]+:/")  # not a drive, which has one letter


class ImageNames:
    """An index of the files of an image folder by name.

    Args:
        files: relative to the image folder.
        suffixes: False if the names to find have no suffix, such as those of label files.
    """

    def __init__(self, files: Iterable[Path], *, suffixes: bool = True) -> None:
        self._exact: dict[Parts, list[Path]] = {}
        self._spelled: dict[Parts, list[Path]] = {}
        self._folded: dict[Parts, list[Path]] = {}
        self._by_name: dict[str, list[tuple[Parts, Path]]] = {}  # by the folded name without folders
        for file in files:
            name = file if suffixes else file.with_suffix("")
            spelled, folded = _spelled(name.as_posix()), _folded(name.as_posix())
            for table, parts in (self._exact, name.parts), (self._spelled, spelled), (self._folded, folded):
                table.setdefault(parts, []).append(file)
            self._by_name.setdefault(folded[-1], []).append((folded, file))

    def find(self, name: str) -> list[Path]:
        """Return the files with this name: several if it is ambiguous, none if there is no such file.

        The closest spelling counts: the name as written; then without regard to separators, URL encoding and Unicode
        form; then without regard to letter case; then with folders in front of the name or of the file that the other
        does not have. `..` and a drive count as such folders, so the result is always a file of the folder.

        >>> ImageNames([Path("a b.png"), Path("deep/C.png")]).find("data\\\\images\\\\a%20b.PNG")
        [PosixPath('a b.png')]
        """
        rules: tuple[tuple[dict[Parts, list[Path]], Callable[[str], Parts]], ...] = (
            (self._exact, lambda text: PurePosixPath(text).parts),
            (self._spelled, _spelled),
            (self._folded, _folded),
        )
        for table, spell in rules:
            if found := table.get(spell(name)):
                return found
        folded = _folded(name)
        if not folded:
            return []
        return [file for parts, file in self._by_name.get(folded[-1], ()) if _ends_alike(parts, folded)]


def base_name(name: str) -> str:
    """Return a name without folders and address, in the spelling that `ImageNames` compares; may be empty."""
    return (_spelled(name) or ("",))[-1]


def _spelled(name: str) -> Parts:
    """Split a name into folders and file name, in one spelling of separators, URL encoding, blanks and Unicode."""
    if _ADDRESS.match(name):
        name = re.split("[?#]", name)[0]
    path = PurePosixPath(unicodedata.normalize("NFC", unquote(name).replace("\\", "/")))
    return tuple(part.strip() or part for part in path.parts)


def _folded(name: str) -> Parts:
    return tuple(unicodedata.normalize("NFC", part.casefold()) for part in _spelled(name))


def _ends_alike(one: Parts, other: Parts) -> bool:
    """Return whether the shorter name is the end of the longer one."""
    shared = min(len(one), len(other))
    return one[-shared:] == other[-shared:]
