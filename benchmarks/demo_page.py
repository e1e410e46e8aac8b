"""The last page of `make demo`: the scene, the numbers, and the commands to try next.

The page shows the folder that `tinydet view --export` wrote. A page that is opened as a local file may not load data,
so it then shows the drawn detections, zoomable too.
"""

from __future__ import annotations

import html
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).with_suffix(".html")
SIZES = ("tiny1", "tiny2", "tiny3", "tiny", "small", "all")
PORT = 8471
NEXT = (
    ("tinydet view demo/scene.jpg demo/scene.detections.json", "filter, review and mark these detections"),
    ("tinydet infer photo.jpg", "a photo of yours, with the bundled thermal model"),
    ("tinydet data stats my-data", "your annotations: sizes, advice, the command to train"),
    ("tinydet train my-data --val 0.2", "→ model.pth; then evaluate, export, infer as above"),
    ("tinydet serve --model demo/people.onnx", "the same over HTTP, with this viewer"),
    ("tinydet sweep --output demo/sweep", "how AP depends on α; takes an hour"),
)


def demo_page(report: Mapping[str, Any]) -> str:
    """Return the page as HTML.

    Args:
        report: what demo/report.json holds.
    """
    ap, seconds = report["AP"], report["seconds"]
    thresholds = list(ap["all"])
    machine, versions = report["machine"], report["versions"]
    values = {
        "training": duration(seconds["Train"]),
        "scene_size": " × ".join(str(side) for side in report["scene"]),
        "found": f"There are {report['objects']} people on it, and {report['detections']} detections",
        "cards": "\n".join(f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>"
                           for name, value, note in cards(report)),
        "sizes": table(
            ["objects", *(f"AP{100 * float(threshold):.0f}" for threshold in thresholds)],
            [[size, *(percent(ap[size][threshold]) for threshold in thresholds)] for size in SIZES if size in ap],
        ),
        "steps": table(["step", "time"], [[name, duration(value)] for name, value in seconds.items()]
                       + [["total", duration(sum(seconds.values()))]]),
        "commands": "\n".join(f"{html.escape(line)}   <i># {html.escape(why)}</i>" for line, why in aligned(NEXT)),
        "serve": f"python3 -m http.server --bind 127.0.0.1 --directory demo {PORT}",
        "address": f"http://127.0.0.1:{PORT}/",
        "environment": html.escape(
            f"{report['date'][:10]}, tinydet {versions['tinydet']}, commit {report['commit']}, Python "
            f"{report['python']}, {machine['cores']} cores of {machine['processor']}"
        ),
    }  # fmt: skip
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(values)


def cards(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return name, value and explanation of the main numbers, as HTML."""
    verified = report["verification"]
    alpha = ", ".join(f"{value:g}" for value in report["alpha"])
    return [
        ("AP50", f"{percent(report['AP']['all']['0.50'])} %", "validation scenes"),
        ("AP50, large scene", f"{percent(report['scene_AP']['all']['0.50'])} %",
         f"scores of {report['threshold']:.2f} or more, the best F1"),
        ("Speed", f"{report['tiles_per_second']:g} tiles/s", f"of 640 × 640; {html.escape(report['backend'])}"),
        ("α", alpha, f"S-α, finest edge first; adds {report['operators_added_by_alpha']} operators to the export"),
        ("Export", "verified" if verified["passed"] else "failed",
         f"scores differ from PyTorch by {verified['score_difference']:.0e} at most, boxes by "
         f"{verified['box_difference']:.0e} px"),
    ]  # fmt: skip


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the rows of an HTML table."""
    lines = ["<tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in head) + "</tr>"]
    return "\n".join(
        lines + ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    )


def aligned(commands: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the commands with explanations in one column."""
    width = max(len(line) for line, _ in commands)
    return [(line.ljust(width), why) for line, why in commands]


def percent(fraction: float) -> str:
    """Return a score in percent; a dash where there are no objects."""
    return f"{100 * fraction:.1f}" if fraction >= 0 else "–"


def duration(seconds: float) -> str:
    """Return a time in words.

    >>> duration(8.2), duration(246)
    ('8 s', '4 min 6 s')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
