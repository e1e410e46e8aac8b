"""The documentation site: its navigation, links and figures, and in the slow test the pages in a browser."""

from __future__ import annotations

import ast
import functools
import http.server
import importlib.util
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_site = imported(DOCS / "make_site.py")


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages as they are given to zensical."""
    folder = tmp_path_factory.mktemp("pages")
    make_site.copy_pages(folder)
    return folder


def test_the_committed_figures_are_what_the_script_draws() -> None:
    draw = imported(DOCS / "figures" / "draw.py")
    drawn = {draw.file_name(figure): str(figure()) for figure in draw.FIGURES}
    committed = {path.name: path.read_text(encoding="utf-8") for path in (DOCS / "figures").glob("*.svg")}
    assert drawn == committed, "run: python docs/figures/draw.py"


def test_every_figure_is_shown_on_a_page() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (DOCS / "concepts").glob("*.md"))
    shown = {DOCS / "concepts" / target for target in re.findall(r"!\[[^]]+\]\(([^)]+\.svg)\)", text)}
    assert {path.resolve() for path in shown} == set((DOCS / "figures").glob("*.svg"))


def test_the_navigation_names_every_page_once(pages: Path) -> None:
    named = re.findall(r'"([^"]+\.md)"', (ROOT / "zensical.toml").read_text(encoding="utf-8"))
    copied = {path.relative_to(pages).as_posix() for path in pages.rglob("*.md")}
    assert len(named) == len(set(named))
    assert all(name.startswith("repository/") for name in copied - set(named))  # such as the README
    assert set(named) <= copied


def test_every_link_of_a_page_leads_to_a_file_of_the_site(pages: Path) -> None:
    count = 0
    for page in pages.rglob("*.md"):
        text = make_site.CODE.sub("", page.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)\s#]+)", text):
            if not re.match(r"[a-z]+:", target):
                count += 1
                assert (page.parent / target).resolve().is_file(), f"{page.relative_to(pages)}: {target}"
    assert count > 100


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.md", "[gone](gone.md)", r"docs/a\.md:1: no file gone\.md"),
        ("a.md", "one\n\n[out](../../x.md)", r"docs/a\.md:3: no file \.\./\.\./x\.md"),
        ("a.md", "[folder](concepts)", r"docs/a\.md:1: no file concepts"),
    ],
)
def test_a_link_without_a_file_is_an_error(name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(make_site.links(DOCS / name, text))
    assert not list(make_site.links(DOCS / name, f"`{text.splitlines()[-1]}` [b](https://x.org/y) [c](#d)"))


def test_links_are_rewritten_to_where_files_stand_in_the_site() -> None:
    text = "[a](../runtime.md#speed) [b](../../CHANGELOG.md) [c](../../tinydet/spec.py)"
    expected = "[a](../runtime.md#speed) [b](../repository/CHANGELOG.md) [c](../reference/tinydet.spec.md)"
    assert make_site.converted(DOCS / "concepts" / "x.md", text) == expected
    assert make_site.converted(ROOT / "README.md", "[a](docs/api.md) [b](LICENSE)") == "[a](../api.md) [b](LICENSE)"


def test_a_list_after_text_becomes_one_that_markdown_sees() -> None:
    page = DOCS / "x.md"
    assert make_site.converted(page, "Data\n- a\n- b\n\n- c\n  d\n- e\n") == "Data\n\n- a\n- b\n\n- c\n  d\n- e\n"


def test_the_reference_has_every_module_that_the_documents_import() -> None:
    listed = {
        make_site.module_name(target)
        for _, target, _ in make_site.links(
            DOCS / "reference" / "index.md", (DOCS / "reference" / "index.md").read_text(encoding="utf-8")
        )
        if make_site.is_module(target)
    }
    imports = set()
    for page in DOCS.rglob("*.md"):
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            nodes = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.ImportFrom)]
            imports |= {node.module for node in nodes if node.module and node.module.startswith("tinydet.")}
    assert imports and imports <= listed


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The address of the site, built for this test."""
    pytest.importorskip("zensical", reason="needs the extra docs")
    subprocess.run([sys.executable, DOCS / "make_site.py"], check=True)
    handler = functools.partial(Quiet, directory=make_site.SITE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.slow
def test_the_site_in_a_browser(browser: Any, site: str) -> None:
    """On a phone no page is wider than the screen; search, schemes and figures work; no other host is asked."""
    context = browser.new_context(viewport={"width": 390, "height": 800})
    page = context.new_page()
    page.set_default_timeout(60_000)
    asked: list[str] = []
    failed: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: failed.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: failed.append(str(error)))
    names = sorted(path.relative_to(make_site.SITE).as_posix() for path in make_site.SITE.rglob("*.html"))
    assert len(names) > 50
    for name in names:
        page.goto(site + name)
        if name != "404.html":
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
            assert page.locator("article h1").count() == 1, name
            assert page.evaluate("[...document.images].every(i => i.loading == 'lazy' || i.naturalWidth > 0)"), name
    page.set_viewport_size({"width": 1300, "height": 850})
    page.goto(site + "concepts/seams.html")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    for _ in range(3):  # the scheme of the system, light, dark
        page.locator("header label[for^=__palette]:visible").first.click()
        if page.evaluate("document.body.dataset.mdColorScheme") == "slate":
            break
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    page.keyboard.press("/")
    page.keyboard.type("duplicate")
    found = page.locator("a[href*='evaluation.html'], a[href*='seams.html']", has_text=re.compile("duplicate", re.I))
    found.first.wait_for()
    context.close()
    assert failed == []
    assert {url.split("/")[2] for url in asked if not url.startswith(("data:", "blob:"))} == {site.split("/")[2]}


@pytest.mark.slow
def test_no_page_of_the_site_loads_from_another_host(site: str) -> None:
    loads = re.compile(
        r"""<(?:script|img|iframe|source|object|embed|video)\b[^>]*\s(?:src|srcset|data)=["']?(?:https?:)?//"""
        r"""|<link\b(?=[^>]*\srel=["']?(?:stylesheet|icon|preload|prefetch|preconnect))[^>]*\shref=["']?(?:https?:)?//"""
        r"""|url\(\s*["']?(?:https?:)?//|@import\s+["'](?:https?:)?//"""
    )
    files = [path for path in make_site.SITE.rglob("*") if path.suffix in (".html", ".css", ".svg")]
    assert len(files) > 50
    for path in files:
        found = loads.search(path.read_text(encoding="utf-8"))
        assert not found, f"{path}: {found and found[0]}"
