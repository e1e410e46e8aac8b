"""The page in a real browser: headless Chromium of the system, through playwright."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinydet.data.coco import load_dataset
from tinydet.serve.view import export_view, open_view

pytestmark = pytest.mark.slow

SIDE, COUNT = 8192, 10_000
READY = "html[data-shown]"
# Adds the time that each frame takes to `frames`, and that of our own drawing to `drawing`.
MEASURE = """async () => {
  const { Pane } = await import(new URL("viewer/pane.js", document.baseURI)), draw = Pane.prototype.draw;
  window.frames = []; window.drawing = [];
  Pane.prototype.draw = function () {
    const start = performance.now();
    draw.call(this);
    window.drawing.push(performance.now() - start);
  };
  let last = performance.now();
  const frame = (t) => { window.frames.push(t - last); last = t; requestAnimationFrame(frame); };
  requestAnimationFrame(frame);
}"""


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene of 8192 x 8192 pixels without overviews, and results of two models on it, one with 100 000 boxes."""
    rasterio = pytest.importorskip("rasterio")
    folder = tmp_path_factory.mktemp("browser")
    rng = np.random.default_rng(5)
    x, y = np.meshgrid(np.arange(SIDE) // 8, np.arange(SIDE) // 8)
    pixels = (90 + 40 * np.sin(x / 30) * np.cos(y / 40)).astype(np.uint8)

    def results(count: int) -> list[dict[str, Any]]:
        low, sides = rng.uniform(0, SIDE - 40, (count, 2)), rng.uniform(6, 30, (count, 2))
        scores, categories = rng.uniform(0.05, 1, count), rng.integers(1, 4, count)
        rows = zip(low.tolist(), sides.tolist(), scores.tolist(), categories.tolist(), strict=True)
        return [{"image_id": 1, "category_id": c, "bbox": [*xy, *wh], "score": s} for xy, wh, s, c in rows]

    mine = results(COUNT)
    for each in mine:
        left, top, width, height = map(int, each["bbox"])
        pixels[top : top + height, left : left + width] = 250
    with rasterio.open(
        folder / "scene.tif", "w", driver="GTiff", width=SIDE, height=SIDE, count=1, dtype="uint8", tiled=True,
        blockxsize=512, blockysize=512, compress="deflate", zlevel=1,
    ) as file:  # fmt: skip
        file.write(pixels, 1)
    names = [{"id": n, "name": name} for n, name in enumerate(("person", "car", "boat"), 1)]
    document = {"images": [{"id": 1, "file_name": "scene.tif"}], "categories": names, "annotations": mine}
    (folder / "mine.json").write_text(json.dumps(document))
    (folder / "many.json").write_text(json.dumps(results(10 * COUNT)))
    return folder


@pytest.fixture(scope="session")
def address(files: Path) -> Iterator[str]:
    """The address of `tinydet view`."""
    pytest.importorskip("uvicorn", reason="needs the extra serve")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["tinydet.serve.view_command", "scene.tif", "mine.json", "many.json", "--annotations", "mine.json"]
    process = subprocess.Popen(
        [sys.executable, "-m", *command, "--tile", "640", "--no-browser", "--port", str(port)],
        cwd=files,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    for _ in range(600):
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert process.poll() is None
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}/"
    process.terminate()
    process.wait(20)


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """A function that opens a page; at the end, no page has said anything to the console or asked another host."""
    contexts, said, asked = [], [], []

    def open(url: str, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        page.wait_for_selector(READY, state="attached")
        return page

    yield open
    for context in contexts:
        context.close()
    assert [text for text in said if "503" not in text] == []  # tiles of an overview that is being read
    hosts = {url.split("/")[2] for url in asked if not url.startswith(("blob:", "data:"))}
    assert all(host.startswith("127.0.0.1:") for host in hosts)


def results_of(files: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((files / "mine.json").read_text())["annotations"]
    return sorted(rows, key=lambda row: -row["score"])


def review(page: Any, files: Path, folder: Path) -> None:
    """Filter, step, click, mark and export; compare what is shown with the file."""
    rows = results_of(files)
    assert page.text_content("#count") == "10,000 of 10,000"
    page.locator("#score").evaluate("(slider) => { slider.value = 90; slider.dispatchEvent(new Event('input')); }")
    page.get_by_label("car").uncheck()
    kept = [row for row in rows if row["score"] >= 0.9 and row["category_id"] != 2]
    assert page.text_content("#count") == f"{len(kept):,} of 10,000"
    page.keyboard.press("j")
    page.wait_for_selector("#crop[data-of]")
    page.wait_for_timeout(1500)  # until the view has come to rest
    assert page.text_content("#rank") == f"1 of {len(kept):,}"
    facts = page.text_content("#facts")
    assert f"{kept[0]['score']:.3f}" in facts
    assert f"{kept[0]['bbox'][2]:.1f} px" in facts
    # The crop shows the object as a bright square in its middle.
    middle = page.locator("#crop").evaluate(
        "(c) => [...c.getContext('2d').getImageData(c.width / 2, c.height / 2, 1, 1).data]"
    )
    assert min(middle[:3]) > 200
    page.keyboard.press("Escape")
    assert page.locator("#detail").is_hidden()
    box = page.locator(".pane .scene").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#detail:not([hidden])")
    assert page.text_content("#facts") == facts
    page.keyboard.press("t")
    page.wait_for_timeout(1200)
    page.click("#mark-false")
    page.wait_for_timeout(1200)
    assert page.text_content("#marked") == "1 true, 1 false"
    with page.expect_download() as download:
        page.click("#export")
    download.value.save_as(folder / "marks.json")
    marks = json.loads((folder / "marks.json").read_text())
    for section, row in (("annotations", kept[0]), ("rejected", kept[1])):
        (entry,) = marks[section]
        np.testing.assert_allclose(entry["bbox"], row["bbox"], atol=0.01)
        assert entry["category_id"] == row["category_id"]
    dataset = load_dataset(folder / "marks.json")
    assert (len(dataset.boxes), dataset.images[0].width) == (1, SIDE)


def test_review_from_the_overview_to_the_exported_marks(
    opened: Callable[..., Any], address: str, files: Path, tmp_path: Path
) -> None:
    page = opened(address)
    assert page.get_attribute("html", "data-shown") == "density"  # 10 000 boxes are too many to tell apart
    review(page, files, tmp_path)
    link = page.evaluate("() => new Promise((done) => setTimeout(() => done(location.href), 500))")
    again = opened(link)
    again.wait_for_selector("#detail:not([hidden])")
    again.wait_for_timeout(1500)
    assert again.text_content("#count") == page.text_content("#count")
    assert again.text_content("#scale") == page.text_content("#scale")
    assert again.text_content("#facts") == page.text_content("#facts")
    assert page.locator("#tiles").is_enabled()
    with page.expect_download() as download:
        page.click("#download")
        page.get_by_role("menuitem", name="CSV table").click()
    assert download.value.suggested_filename == "mine.csv"


def test_an_exported_folder_works_from_any_web_server(opened: Callable[..., Any], files: Path, tmp_path: Path) -> None:
    export_view(open_view(files / "scene.tif", [files / "mine.json"]), tmp_path / "page")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "page")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = opened(f"http://127.0.0.1:{server.server_address[1]}/")
    review(page, files, tmp_path)
    server.shutdown()


def test_two_results_side_by_side_move_together(opened: Callable[..., Any], address: str) -> None:
    page = opened(address)
    page.keyboard.press("c")
    page.wait_for_selector(".panes.two")
    page.keyboard.press("j")
    page.wait_for_timeout(2500)
    middles = page.evaluate(
        """() => [...document.querySelectorAll(".pane")].map((pane) => {
          const canvas = pane.querySelector(".openseadragon-canvas canvas:not(.overlay)");
          const { width, height } = canvas, context = canvas.getContext("2d");
          return [...context.getImageData(width / 2 - 40, height / 2 - 40, 80, 80).data];
        })"""
    )
    left, right = (np.array(each) for each in middles)
    assert left.max() > left.min()
    np.testing.assert_array_equal(left, right)
    address_now = page.evaluate("() => location.hash")
    assert "other=many" in address_now
    page.keyboard.press("c")
    assert len(page.locator(".pane").all()) == 1


def test_boxes_cost_no_frames(opened: Callable[..., Any], address: str) -> None:
    """With 100 000 boxes, our part of a frame is far below the 16.7 ms of 60 frames per second."""
    page = opened(f"{address}#scene=scene&job=many")
    page.evaluate(MEASURE)
    page.mouse.move(400, 400)
    for turn in (-1, 1):
        for _ in range(24):
            page.mouse.wheel(0, 120 * turn)
            page.wait_for_timeout(60)
        page.mouse.down()
        for step in range(30):
            page.mouse.move(400 + 6 * step, 400 + 3 * step)
        page.mouse.up()
        page.wait_for_timeout(800)
    drawing = sorted(page.evaluate("() => window.drawing"))
    frames = sorted(page.evaluate("() => window.frames"))
    print(
        f"{len(drawing)} frames: drawing {drawing[len(drawing) // 2]:.1f} ms, frame {frames[len(frames) // 2]:.1f} ms"
    )
    assert drawing[len(drawing) // 2] < 8


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_controls_have_names_and_fit_a_tablet(opened: Callable[..., Any], address: str, scheme: str) -> None:
    page = opened(address, viewport={"width": 820, "height": 1180}, has_touch=True, color_scheme=scheme)
    assert page.get_attribute("html", "data-theme") == scheme
    page.evaluate("() => { document.getElementById('job').hidden = false; }")  # as while a job runs
    for shown in ("#zoom-in", "#scale", "#job-cancel", ".caption select"):  # of two results
        assert page.is_visible(shown), shown
    for control in page.locator("button:visible, input:visible, select:visible").all():
        name = control.evaluate(
            "(e) => e.ariaLabel || e.labels?.[0]?.textContent || e.textContent || e.getAttribute('aria-labelledby')"
        )
        assert name
        assert name.strip()
        box = control.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 820
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 820
