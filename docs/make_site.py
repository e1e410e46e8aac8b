"""Build the documentation site from docs/: `make docs`, or

    python docs/make_site.py            # → build/site/index.html, which a browser opens from the disk
    python docs/make_site.py --serve    # also serve it at http://127.0.0.1:8000

The pages of docs/ are written for a forge, where they may link to any file of the repository. This script copies them
to build/docs and, with them, the files that they link to. A link to a module, such as ../tinydet/runtime/__init__.py,
becomes a link to the page of its documentation, which is made from its docstrings. Then zensical builds the site
(zensical.toml). Broken links, unknown anchors and pages that are missing in the navigation are errors.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import os
import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS, PAGES, SITE = ROOT / "docs", ROOT / "build" / "docs", ROOT / "build" / "site"

CODE = re.compile(r"^(?P<fence>```+).*?^(?P=fence)$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?P<target>[^)\s#]*)(?P<anchor>#[^)\s]*)?(?=\))")
LIST_AFTER_TEXT = re.compile(r"^(?![-*#|>\s]|\d+\. )(.+)\n(?=- )", re.MULTILINE)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--serve", action="store_true", help="serve the site at http://127.0.0.1:8000 until Ctrl-C")
    args = parser.parse_args(argv)
    try:
        copy_pages()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    shutil.rmtree(SITE, ignore_errors=True)
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)  # colors, also where the output is a file
    print(said.partition("Traceback")[0] if "--strict flag is set" in said else said, end="")
    if done.returncode:
        return done.returncode
    print(f"wrote {SITE.relative_to(ROOT)}/index.html")
    if args.serve:
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=SITE)
        http.server.ThreadingHTTPServer(("127.0.0.1", 8000), handler).serve_forever()
    return 0


def copy_pages(folder: Path = PAGES) -> None:
    """Copy docs/ to a folder, and every file of the repository that its pages link to.

    Raises:
        ValueError: a page links to a file that does not exist, or is not in the navigation.
    """
    shutil.rmtree(folder, ignore_errors=True)
    pending = sorted(file for file in DOCS.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc"))
    check_navigation(pending)
    seen = set(pending)
    while pending:
        source = pending.pop()
        place = folder / site_path(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".md":
            text = source.read_text(encoding="utf-8")
            linked = {target for _, target, _ in links(source, text)}
            place.write_text(converted(source, text), encoding="utf-8")
        elif is_module(source):
            place.write_text(module_page(source), encoding="utf-8")
            continue
        else:
            shutil.copyfile(source, place)
            continue
        pending += sorted(linked - seen)
        seen |= linked


def check_navigation(files: list[Path]) -> None:
    """Check that every page of docs/ is in zensical.toml.

    Raises:
        ValueError: one is not.
    """
    named = set(re.findall(r'"([^"]+\.md)"', (ROOT / "zensical.toml").read_text(encoding="utf-8")))
    pages = {file.relative_to(DOCS).as_posix() for file in files if file.suffix == ".md"}
    if missing := sorted(pages - named):
        raise ValueError(f"docs/{missing[0]} is not in the navigation; add it to `nav` in zensical.toml")


def site_path(source: Path) -> str:
    """Return where a file of the repository stands in the site, relative to its root.

    >>> site_path(ROOT / "docs/runtime.md"), site_path(ROOT / "CHANGELOG.md")
    ('runtime.md', 'repository/CHANGELOG.md')
    >>> site_path(ROOT / "tinydet/runtime/__init__.py"), site_path(ROOT / "tinydet/spec.py")
    ('reference/tinydet.runtime.md', 'reference/tinydet.spec.md')
    """
    if source.is_relative_to(DOCS):
        return source.relative_to(DOCS).as_posix()
    if is_module(source):
        return f"reference/{module_name(source)}.md"
    return f"repository/{source.relative_to(ROOT).as_posix()}"


def is_module(source: Path) -> bool:
    return source.suffix == ".py" and source.is_relative_to(ROOT / "tinydet")


def module_name(source: Path) -> str:
    parts = source.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module_page(source: Path) -> str:
    """Return the Markdown of a module's page; mkdocstrings fills it from the docstrings."""
    return f"# {module_name(source)}\n\n::: {module_name(source)}\n"


def links(page: Path, text: str) -> Iterator[tuple[re.Match[str], Path, str]]:
    """Yield the links of a page to files: the match, the file, and the anchor or "".

    Raises:
        ValueError: the file does not exist.
    """
    code = [match.span() for match in CODE.finditer(text)]
    for match in LINK.finditer(text):
        if any(start <= match.start() < stop for start, stop in code) or not match["target"]:
            continue
        if re.match(r"[a-z]+:", match["target"]):
            continue
        target = Path(os.path.normpath(page.parent / match["target"]))
        if not target.is_file() or not target.is_relative_to(ROOT):
            line = text.count("\n", 0, match.start()) + 1
            raise ValueError(f"{page.relative_to(ROOT)}:{line}: no file {match['target']}")
        yield match, target, match["anchor"] or ""


def converted(page: Path, text: str) -> str:
    """Return a page for the site: its links point to where files stand there."""
    here = posixpath.dirname(site_path(page))
    parts, end = [], 0
    for match, target, anchor in links(page, text):
        parts += [text[end : match.start()], posixpath.relpath(site_path(target), here or "."), anchor]
        end = match.end()
    text = "".join([*parts, text[end:]])
    return LIST_AFTER_TEXT.sub(r"\1\n\n", text)  # a list needs an empty line before it there, and none on a forge


if __name__ == "__main__":
    sys.exit(main())
