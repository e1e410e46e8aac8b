"""Choose between the bundled models by the color of the scenes."""

from __future__ import annotations

from collections.abc import Sequence

from tinydet.runtime.bundled import BUNDLED, DEFAULT, model_path
from tinydet.runtime.domain import look_at, suits
from tinydet.runtime.model_files import read_spec
from tinydet.runtime.scenes import open_scene
from tinydet.runtime.scenes.sources import Source, spread
from tinydet.runtime.scenes.video import Video


def choose_bundled(sources: Sequence[Source], bands: Sequence[int] | None = None) -> tuple[str, str]:
    """Return the bundled model that suits most of the scenes, and why; the default if the color does not decide.

    Up to 8 scenes are looked at, evenly spread; of a video, its first frame. A scene that cannot be read is left out.

    Args:
        bands: as for `open_scene`.
    """
    if len(BUNDLED) == 1:
        return DEFAULT, ""
    domains = {name: read_spec(model_path(name)).domain for name in BUNDLED}
    votes = dict.fromkeys(BUNDLED, 0)
    colors = {True: 0, False: 0}
    for source in spread(sources):
        in_color = _is_in_color(source, bands)
        if in_color is None:
            continue
        colors[in_color] += 1
        for name, domain in domains.items():
            votes[name] += domain is not None and suits(domain, in_color=in_color)
    best = max(votes, key=lambda name: (votes[name], name == DEFAULT))
    if not votes[best]:
        return DEFAULT, "the scenes do not tell whether they are gray or in color"
    in_color = colors[True] > colors[False]
    seen = sum(colors.values())
    if seen == 1:
        return best, f"the scene is {'in color' if in_color else 'gray'}"
    return best, f"{colors[in_color]} of {seen} scenes that were looked at are {'in color' if in_color else 'gray'}"


def _is_in_color(source: Source, bands: Sequence[int] | None) -> bool | None:
    """Return whether a scene is in color; None if that is unclear, or it cannot be read, which the run reports."""
    try:
        if source.moving:
            with Video(source.location) as video:
                for frame in video:
                    look = look_at(frame.scene)
                    return None if look is None else look.in_color
            return None
        with open_scene(source.path, bands=bands) as scene:
            look = look_at(scene)
            return None if look is None else look.in_color
    except (ValueError, OSError, ImportError):
        return None
