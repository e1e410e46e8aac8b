"""Draw the figures of docs/concepts/ as SVG: `python docs/figures/draw.py`

Each function below draws one file. What can be computed is computed: the merged boxes by tinydet's own stitching, the
factors, overlaps and miss rates by their formulas. A figure brings its background along and follows the light or dark
scheme of the reader. It is 480 units wide, so its text stays legible on a phone. A test compares the committed files
with what this script draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from tinydet.geometry.boxes import area, intersection, iou_of_pairs
from tinydet.geometry.tiles import TileGrid
from tinydet.runtime.detections import Detections
from tinydet.runtime.stitch import Merge, Stitcher

FOLDER = Path(__file__).parent
WIDTH = 480

STYLE = """
  :root { --paper: #ffffff; --ink: #1f2430; --soft: #6b7280; --line: #c9ced6;
          --blue: #1d63d8; --orange: #c2570c; --green: #15803d; --red: #c81e1e; }
  @media (prefers-color-scheme: dark) {
    :root { --paper: #14161d; --ink: #e6e8ee; --soft: #a3aab8; --line: #454b59;
            --blue: #7aa9ff; --orange: #f5a65b; --green: #5fcf8b; --red: #ff8585; } }
  text { font: 14px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: var(--ink); }
  .small { font-size: 13px; } .bold { font-weight: 600; } .soft { fill: var(--soft); }
  .paper { fill: var(--paper); } .axis { stroke: var(--line); fill: none; }
  .ink-line { stroke: var(--ink); fill: none; stroke-width: 1.3; }
  .blue { fill: var(--blue); } .orange { fill: var(--orange); }
  .green { fill: var(--green); } .red { fill: var(--red); }
  .blue-line { stroke: var(--blue); } .orange-line { stroke: var(--orange); } .green-line { stroke: var(--green); }
  .red-line { stroke: var(--red); } .soft-line { stroke: var(--soft); }
  .blue-line, .orange-line, .green-line, .red-line, .soft-line { fill: none; stroke-width: 1.8; }
  .wash { fill-opacity: 0.16; stroke: none; } .dashed { stroke-dasharray: 5 4; }
"""


class Figure:
    """An SVG image that is written top to bottom. Coordinates are in its units, y down."""

    def __init__(self, height: float, title: str) -> None:
        self._parts: list[str] = []
        self._height, self._title = height, title

    def __str__(self) -> str:
        size = f'width="{WIDTH}" height="{_number(self._height)}" viewBox="0 0 {WIDTH} {_number(self._height)}"'
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
                f"<title>{escape(self._title)}</title>",
                f"<style>{STYLE}</style>",
                f'<rect class="paper" width="{WIDTH}" height="{_number(self._height)}" rx="8"/>',
                *self._parts,
                "</svg>\n",
            ]
        )

    def text(self, x: float, y: float, words: str, look: str = "", anchor: str = "start") -> None:
        where = f'x="{_number(x)}" y="{_number(y)}" text-anchor="{anchor}"'
        self._parts.append(f'<text {where} class="{look}">{escape(words)}</text>')

    def box(self, box: Sequence[float], look: str, radius: float = 0) -> None:
        """Draw a rectangle, xyxy."""
        x1, y1, x2, y2 = box
        where = f'x="{_number(x1)}" y="{_number(y1)}" width="{_number(x2 - x1)}" height="{_number(y2 - y1)}"'
        self._parts.append(f'<rect {where} rx="{_number(radius)}" class="{look}"/>')

    def line(self, points: Iterable[Sequence[float]], look: str, arrow: bool = False) -> None:
        """Draw a line through points, with an arrow head at the last one."""
        along = [(float(x), float(y)) for x, y in points]
        self._parts.append(f'<polyline points="{_points(along)}" class="{look}"/>')
        if arrow:
            (x0, y0), (x, y) = along[-2:]
            length = math.hypot(x - x0, y - y0)
            u, v = (x - x0) / length, (y - y0) / length
            head = [(x - 7 * u - 3.5 * v, y - 7 * v + 3.5 * u), (x, y), (x - 7 * u + 3.5 * v, y - 7 * v - 3.5 * u)]
            self._parts.append(f'<polyline points="{_points(head)}" class="{look.replace("dashed", "")}"/>')

    def dot(self, x: float, y: float, radius: float, look: str) -> None:
        self._parts.append(f'<circle cx="{_number(x)}" cy="{_number(y)}" r="{_number(radius)}" class="{look}"/>')

    def labeled_box(self, box: Sequence[float], words: str, look: str = "ink-line") -> None:
        self.box(box, look, radius=4)
        self.text((box[0] + box[2]) / 2, (box[1] + box[3]) / 2 + 4.5, words, anchor="middle")


class Chart:
    """Axes inside a figure, with tick labels below and on the left."""

    def __init__(
        self,
        figure: Figure,
        area: Sequence[float],
        x: tuple[float, float],
        y: tuple[float, float],
        log: str = "",
    ) -> None:
        """
        Args:
            area: xyxy of the axes in the figure.
            x, y: values at the ends of the axes.
            log: the names of the logarithmic axes, such as "xy".
        """
        self._figure, self._area, self._log = figure, area, log
        self._x, self._y = x, y

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return where a point of the data stands in the figure."""
        x1, y1, x2, y2 = self._area
        return x1 + (x2 - x1) * self._share("x", x, self._x), y2 - (y2 - y1) * self._share("y", y, self._y)

    def _share(self, axis: str, value: float, ends: tuple[float, float]) -> float:
        low, high, value = (math.log(v) for v in (*ends, value)) if axis in self._log else (*ends, value)
        return (value - low) / (high - low)

    def axes(self, x_ticks: Sequence[float], y_ticks: Sequence[float], x_title: str, y_title: str) -> None:
        x1, y1, x2, y2 = self._area
        for value in y_ticks:
            y = self.place(self._x[0], value)[1]
            self._figure.line([(x1, y), (x2, y)], "axis")
            self._figure.text(x1 - 7, y + 4.5, f"{value:g}", "small soft", "end")
        for value in x_ticks:
            x = self.place(value, self._y[0])[0]
            self._figure.line([(x, y2), (x, y2 + 4)], "axis")
            self._figure.text(x, y2 + 18, f"{value:g}", "small soft", "middle")
        self._figure.text((x1 + x2) / 2, y2 + 37, x_title, "small", "middle")
        self._figure.text(x1 - 30, y1 - 12, y_title, "small")

    def curve(self, points: Iterable[tuple[float, float]], look: str) -> None:
        self._figure.line([self.place(*point) for point in points], look)


def folding() -> Figure:
    """The pyramid as trained, and as exported."""
    figure = Figure(372, "An FPN with fusion factors, and the conventional FPN that it is exported as")
    levels = ("C5", "C4", "C3", "C2")
    for left, title in ((12, "As trained"), (252, "As exported")):
        trained = left == 12
        figure.text(left, 26, title, "bold")
        for row, name in enumerate(levels):
            n, y = name[1], 66 + 72 * row
            figure.text(left, y + 4.5, name)
            inner, layer, s = f"W{_sub(n)}", f"V{_sub(n)}", f"s{_sub(n)}"
            changed = "ink-line"
            if not trained:
                inner, layer, changed = s + inner, f"{layer}/{s}", "green-line"
            figure.line([(left + 20, y), (left + 34, y)], "ink-line", arrow=True)
            figure.labeled_box((left + 34, y - 15, left + 80, y + 15), inner, changed)
            figure.line([(left + 80, y), (left + 98, y)], "ink-line", arrow=row > 0)
            if row == 0:
                figure.line([(left + 98, y), (left + 138, y)], "ink-line", arrow=True)
            else:
                figure.dot(left + 107, y, 9, "ink-line")
                figure.text(left + 107, y + 4.5, "+", anchor="middle")
                figure.line([(left + 116, y), (left + 138, y)], "ink-line", arrow=True)
                figure.line([(left + 107, y - (72 if row == 1 else 63)), (left + 107, y - 9)], "ink-line", arrow=True)
                figure.text(left + 113, y - 42, "2×", "small soft")
                if trained:
                    figure.text(left + 113, y - 26, f"· α{_sub(n)}", "orange bold")
            figure.labeled_box((left + 138, y - 15, left + 186, y + 15), layer, changed)
            figure.line([(left + 186, y), (left + 200, y)], "ink-line", arrow=True)
            figure.text(left + 204, y + 4.5, f"P{n}")
    figure.line([(240, 40), (240, 306)], "axis")
    for x, words in ((12, "s₂ = g"), (78, "s₃ = g·α₂"), (172, "s₄ = g·α₂·α₃"), (288, "s₅ = g·α₂·α₃·α₄")):
        figure.text(x, 334, words, "green")
    figure.text(12, 356, "W: 1×1 convolutions (inner), V: 3×3 (layer), 2×: upsampling", "small soft")
    return figure


def preconditioner() -> Figure:
    """The learning rates of the conventional FPN that trains like one with the authors' α."""
    alpha = (0.368, 0.387, 0.367)  # S-α of the authors' RetinaNet on TinyPerson
    scales = np.cumprod([1.0, *alpha])
    figure = Figure(306, "Learning rates that a fusion factor amounts to, by level")
    figure.text(12, 26, "Training with α is training without it, at these", "bold")
    figure.text(12, 43, "multiples of the learning rate", "bold")
    chart = Chart(figure, (72, 60, 428, 236), (1e-3, 1e3), (0, 4), log="x")
    for power in range(-3, 4):
        (x, bottom), (_, top) = chart.place(10.0**power, 0), chart.place(10.0**power, 4)
        figure.line([(x, top), (x, bottom)], "ink-line" if power == 0 else "axis")
        figure.text(x, bottom + 18, f"{10.0**power:g}", "small soft", "middle")
    middle = chart.place(1, 0)[0]
    for row, scale in enumerate(scales):
        y = chart.place(1, 4 - row)[1]
        figure.text(12, y + 27, f"P{row + 2}")
        for offset, value, look in ((7, scale**2, "blue"), (24, scale**-2, "orange")):
            end = chart.place(value, 0)[0]
            if row:
                figure.box((min(middle, end), y + offset, max(middle, end), y + offset + 13), look)
            side = "start" if value >= 1 else "end"
            label = f"{value:.3g}" if value >= 0.01 else f"{value:.4f}"
            figure.text(end + (6 if value >= 1 else -6), y + offset + 11, label, f"small {look}", side)
    figure.text(44, 282, "■ inner (1×1): s²", "small blue")
    figure.text(200, 282, "■ layer (3×3): 1/s²", "small orange")
    return figure


def seams() -> Figure:
    """What happens to an object where two tiles meet, by its position and size."""
    figure = Figure(452, "Objects where two tiles overlap: seen whole in one tile, or in parts")
    cases = (
        ("Whole in both tiles", "two views of one object: the better one stays", (220, 16, 254, 52)),
        ("Cut by the edge of tile A", "B has room for it: the part seen by A is dropped", (258, 22, 296, 60)),
        ("Larger than the overlap", "both see a part, and the parts agree: they are joined", (140, 18, 340, 64)),
    )
    for row, (title, words, (x1, y1, x2, y2)) in enumerate(cases):
        top = 12 + 146 * row
        figure.text(12, top + 16, title, "bold")
        figure.text(12, top + 34, words, "small soft")
        top += 42
        a, b = (12, top, 280, top + 84), (200, top, 468, top + 84)
        figure.box((200, top, 280, top + 84), "wash blue")
        figure.box(a, "blue-line")
        figure.box(b, "orange-line")
        figure.text(20, top + 18, "tile A", "small blue")
        figure.text(460, top + 18, "tile B", "small orange", "end")
        if row == 0:
            figure.text(240, top + 78, "overlap", "small soft", "middle")
        whole = (x1, top + y1, x2, top + y2)
        figure.box(whole, "wash green")
        figure.box(whole, "green-line")
        for (left, _, right, _), look, gap in ((a, "blue-line dashed", 4), (b, "orange-line dashed", 8)):
            seen = (max(x1, left) - gap, top + y1 - gap, min(x2, right) + gap, top + y2 + gap)
            seen = (max(seen[0], left), seen[1], min(seen[2], right), seen[3])
            if min(x2, right) - max(x1, left) > 8:
                figure.box(seen, look)
    return figure


# People in a crowd, xyxy in pixels of a scene of 96 x 44: pairs share more than half of a person, at an IoU below 0.5.
CROWD = np.array(
    [
        (26, 6, 33, 22), (29, 7, 36, 24), (41, 5, 48, 21), (44, 7, 51, 24), (47, 6, 54, 22), (60, 6, 67, 23),
        (63, 7, 70, 23), (27, 26, 34, 42), (38, 26, 45, 42), (41, 24, 48, 41), (53, 25, 60, 41), (56, 26, 63, 42),
    ],
    np.float64,
)  # fmt: skip


def crowd_on_tiles(grid: TileGrid) -> Detections:
    """Return what a perfect detector finds on each tile: every object of which more than 30 % is visible."""
    boxes, scores, tiles = [], [], []
    for tile in grid.tiles:
        bounds = np.array([tile.x, tile.y, tile.x + tile.width, tile.y + tile.height], np.float64)
        visible = intersection(CROWD, bounds)
        share = area(visible) / area(CROWD)
        for i in np.flatnonzero(share > 0.3):
            jitter = 0.4 * np.sin(np.arange(4) + 4 * i + 100 * tile.index)  # pixels
            boxes.append(np.clip(visible[i] + jitter, bounds[[0, 1, 0, 1]], bounds[[2, 3, 2, 3]]))
            scores.append(share[i] * (0.8 + 0.15 * np.sin(3.0 * i + tile.index)))
            tiles.append(tile.index)
    labels = np.zeros(len(tiles), np.int32)
    return Detections(np.array(boxes), np.array(scores, np.float32), labels, {"tile": np.array(tiles)})


def merged(grid: TileGrid, found: Detections, merge: Merge) -> Detections:
    stitcher = Stitcher(grid, nms_iou=None, merge=merge)
    return stitcher.add(range(len(grid)), found).by_score()


def matches(boxes: np.ndarray) -> np.ndarray:
    """Return which boxes find an object that no better box has found, at IoU 0.5."""
    free, hits = np.ones(len(CROWD), bool), np.zeros(len(boxes), bool)
    for i, box in enumerate(boxes):
        overlap = np.where(free, iou_of_pairs(box, CROWD), 0)
        if overlap.max() >= 0.5:
            hits[i], free[overlap.argmax()] = True, False
    return hits


def merges() -> Figure:
    """One crowd on two tiles: the objects, what the tiles report, greedy NMM, and tinydet's stitching."""
    grid = TileGrid(96, 56, 56, 16)  # tiles from 0 to 56 and from 40 to 96
    found = crowd_on_tiles(grid)
    figure = Figure(476, "A crowd on two tiles, merged by greedy NMM and by tinydet")
    zoom, shown = 4.4, (22.0, 3.0, 74.0, 44.0)  # pixels

    def panel(left: float, top: float, title: str, words: str) -> Callable[[np.ndarray, str], None]:
        figure.text(left, top, title, "bold")
        figure.text(left, top + 17, words, "small soft")
        frame = (left, top + 25, left + zoom * (shown[2] - shown[0]), top + 25 + zoom * (shown[3] - shown[1]))
        figure.box(frame, "axis")
        low, high = (left + zoom * (grid.xs[1] - shown[0])), (left + zoom * (grid.xs[0] + grid.tile - shown[0]))
        figure.box((low, frame[1], high, frame[3]), "wash blue")

        def draw(box: np.ndarray, look: str) -> None:
            x1, y1, x2, y2 = (zoom * (box - np.array(shown[:2] * 2))).tolist()
            figure.box((left + x1, top + 25 + y1, left + x2, top + 25 + y2), look)

        return draw

    draw = panel(12, 24, f"{len(CROWD)} people", "shaded: where two tiles overlap")
    for box in CROWD:
        draw(box, "wash green")
        draw(box, "green-line")
    draw = panel(244, 24, f"{len(found)} boxes of two tiles", "blue: left tile, orange: right tile")
    for box, tile in zip(found.boxes, found.tiles, strict=True):
        draw(box, "orange-line dashed" if tile else "blue-line")
    for left, merge, title in ((12, "nmm", "Greedy NMM"), (244, "seam", "tinydet")):
        result = merged(grid, found, merge)  # type: ignore[arg-type]
        hits = matches(result.boxes.astype(np.float64))
        words = f"{hits.sum()} of {len(CROWD)} found, {(~hits).sum()} wrong"
        draw = panel(left, 256, title, words)
        for box, hit in zip(result.boxes.astype(np.float64), hits, strict=True):
            draw(box, "green-line" if hit else "red-line dashed")
    return figure


def verification() -> Figure:
    """What is compared with what at export."""
    figure = Figure(430, "The steps of an export, and what each result is compared with")
    rows = (
        ("model.pth", "PyTorch", "α is folded"),
        ("model.onnx", "FP32", "precision is changed"),
        ("model.int8.onnx", "FP16 or INT8", "an engine is built"),
        ("model.engine", "TensorRT", ""),
    )
    checks = (
        ("operators counted:", "those of a conventional FPN", "detections of two tile sizes"),
        ("detections of real, empty and", "crowded tiles, in batches", "AP by object size"),
        ("the same, on a machine", "that can run the engine", ""),
    )
    for row, (name, runtime, step) in enumerate(rows):
        y = 14 + 106 * row
        figure.box((12, y, 204, y + 46), "ink-line", radius=6)
        figure.text(108, y + 19, name, "bold", "middle")
        figure.text(108, y + 37, runtime, "small soft", "middle")
        if step:
            figure.line([(60, y + 46), (60, y + 106)], "ink-line", arrow=True)
            figure.text(70, y + 80, step, "small soft")
            figure.line([(204, y + 23), (232, y + 23), (232, y + 129), (204, y + 129)], "green-line")
            figure.text(241, y + 60, "=", "bold green")
            for i, words in enumerate(checks[row]):
                figure.text(257, y + 60 + 17 * i, words, "small")
    figure.text(12, 412, "A file gets its name only after it has passed.", "small green")
    return figure


def overlap_by_size() -> Figure:
    """IoU of a square and the same square shifted sideways."""
    figure = Figure(300, "IoU of a box that is shifted by 1, 2 or 4 pixels, by its size")
    chart = Chart(figure, (52, 42, 464, 242), (2, 64), (0, 1), log="x")
    for threshold in (0.25, 0.5, 0.75):
        chart.curve([(2, threshold), (64, threshold)], "soft-line dashed")
    chart.axes(
        (2, 4, 8, 12, 20, 32, 64), (0, 0.25, 0.5, 0.75, 1), "side of the object in pixels", "IoU with the object"
    )
    for shift, look in ((1, "blue"), (2, "green"), (4, "orange")):
        sides = np.geomspace(max(2, shift), 64, 60)
        chart.curve([(s, (s - shift) / (s + shift)) for s in sides], f"{look}-line")
        figure.text(280 + 48 * ("blue", "green", "orange").index(look) + 50, 30, f"{shift} px", f"small {look}")
    figure.text(322, 30, "shifted sideways by", "small soft", "end")
    return figure


def ignore_regions() -> Figure:
    """A detection inside a region where objects are not annotated one by one."""
    figure = Figure(222, "A detection in an ignore region: low IoU, IoD 1")
    region, inside, outside = (24, 44, 330, 200), (72, 96, 102, 138), (390, 96, 420, 138)
    figure.box(region, "wash orange")
    figure.box(region, "orange-line dashed")
    figure.text(24, 30, "ignore region: a crowd, not annotated one by one", "small orange")
    iou = area(np.array([inside], np.float64))[0] / area(np.array([region], np.float64))[0]
    figure.box(inside, "blue-line")
    figure.text(114, 106, f"IoU = {iou:.2f}", "small")
    figure.text(114, 123, "IoD = 1", "small")
    figure.text(114, 140, "ignored: neither hit nor error", "small soft")
    figure.box(outside, "red-line")
    figure.text(405, 158, "IoD = 0", "small", "middle")
    figure.text(405, 175, "a false positive", "small soft", "middle")
    return figure


def size_ranges() -> Figure:
    """The size ranges of TinyPerson, with squares at their limits."""
    figure = Figure(236, "Size ranges of TinyPerson by the square root of the area")
    left, unit = 12.0, 11.2
    for side in (2, 8, 12, 20, 32):
        x = left + unit * side
        figure.line([(x, 74), (x, 196)], "axis")
        figure.text(x, 214, f"{side}", "small soft", "middle")
        figure.box((x - side / 2, 58 - side, x + side / 2, 58), "wash blue")
        figure.box((x - side / 2, 58 - side, x + side / 2, 58), "blue-line")
    figure.text(left + unit * 33.5, 214, "px", "small soft")
    ranges = (
        ("tiny1", 2, 8, 94, "blue"), ("tiny2", 8, 12, 94, "green"), ("tiny3", 12, 20, 94, "orange"),
        ("small", 20, 32, 94, "blue"), ("tiny", 2, 20, 136, "green"), ("reasonable →", 32, 40.6, 178, "orange"),
    )  # fmt: skip
    for name, low, high, y, look in ranges:
        figure.box((left + unit * low + 1, y - 12, left + unit * high - 1, y + 12), f"wash {look}", radius=3)
        words = (left + unit * (low + high) / 2, y + 4.5)
        figure.text(*words, name, f"small {look}", "middle")
    return figure


def miss_rate() -> Figure:
    """How the log-average miss rate is read off a curve."""
    figure = Figure(310, "A miss-rate curve and the nine points whose geometric mean is MR")
    chart = Chart(figure, (52, 42, 464, 252), (0.005, 2), (0, 1), log="x")
    chart.axes((0.01, 0.1, 1), (0, 0.25, 0.5, 0.75, 1), "false positives per image", "objects missed")
    points = np.geomspace(0.01, 1, 9)

    def missed(false_positives: float) -> float:  # an example
        return 0.9 / (1 + (false_positives / 0.08) ** 0.6)

    rates = [missed(x) for x in points]
    mean = math.exp(sum(map(math.log, rates)) / len(rates))
    chart.curve([(x, missed(x)) for x in np.geomspace(0.005, 2, 80)], "blue-line")
    chart.curve([(0.01, mean), (1, mean)], "orange-line dashed")
    for x, rate in zip(points, rates, strict=True):
        figure.dot(*chart.place(x, rate), 4, "blue")
    x, y = chart.place(0.0115, mean)
    figure.text(x, y + 18, f"MR = {100 * mean:.1f} %", "small orange")
    figure.text(464, 30, "an example curve", "small soft", "end")
    return figure


FIGURES: tuple[Callable[[], Figure], ...] = (
    folding,
    preconditioner,
    seams,
    merges,
    verification,
    overlap_by_size,
    ignore_regions,
    size_ranges,
    miss_rate,
)


def file_name(draw: Callable[[], Figure]) -> str:
    """Return the name of the file that a function draws."""
    return f"{draw.__name__.replace('_', '-')}.svg"


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _points(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{_number(x)},{_number(y)}" for x, y in points)


def _sub(digit: str) -> str:
    return chr(ord("₀") + int(digit))


def main() -> None:
    for draw in FIGURES:
        (FOLDER / file_name(draw)).write_text(str(draw()), encoding="utf-8")


if __name__ == "__main__":
    main()
