"""Search for the layers that must keep high precision: as few as possible, and none that could be converted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tinydet._internal.console import plural
from tinydet.export.steps import step


@dataclass(frozen=True)
class LayerSearch:
    """Result of a search.

    Attributes:
        kept: layers to keep in high precision, by the names of their weights.
        sensitivity: damage to the detections by each block or layer when it alone is converted, for those measured.
    """

    kept: tuple[str, ...]
    sensitivity: dict[str, float]


def search_layers(
    layers: Sequence[str],
    sensitivity: Callable[[Collection[str]], float],
    passes: Callable[[Collection[str]], bool],
) -> LayerSearch | None:
    """Find the layers to keep in high precision: first whole blocks, then the layers of these blocks that need it.

    Args:
        layers: names of weights, with dots.
        sensitivity: damage when only the given layers are converted.
        passes: whether the model is good enough when the given layers are kept.

    Returns:
        None if the model is not good enough even when all layers are kept.
    """
    blocks: dict[str, list[str]] = {}
    for name in layers:
        blocks.setdefault(block_of(name), []).append(name)
    measured: dict[str, float] = {}
    for i, (block, members) in enumerate(blocks.items(), 1):
        step("sensitivity of %s (%d of %d blocks)", block, i, len(blocks))
        measured[block] = sensitivity(members)
    ranking = sorted(blocks, key=lambda block: -measured[block])
    count = _smallest_sufficient(
        len(ranking), lambda n: passes(_members(blocks, ranking[:n])), lambda n: step("keeping %s", plural(n, "block"))
    )
    if count is None:
        return None
    # One block fewer was not enough, but any layer of these blocks may turn out to be convertible.
    candidates = _members(blocks, ranking[:count])
    for i, name in enumerate(candidates, 1):
        step("sensitivity of %s (%d of %d layers)", name, i, len(candidates))
        measured[name] = sensitivity([name])
    ranking = sorted(candidates, key=lambda name: -measured[name])
    count = _smallest_sufficient(
        len(candidates) - 1, lambda n: passes(ranking[:n]), lambda n: step("keeping %s", plural(n, "layer"))
    ) or len(candidates)
    return LayerSearch(tuple(name for name in layers if name in ranking[:count]), measured)


def block_of(layer: str) -> str:
    """Return the block that a layer belongs to, from the name of its weights.

    >>> block_of("detector.backbone.body.3.conv.1.weight"), block_of("detector.head.regression_head.conv.0.0.weight")
    ('backbone.body.3', 'head.regression_head')
    """
    parts = layer.removeprefix("detector.").split(".")
    return ".".join(parts[: 3 if parts[0] == "backbone" else 2])


def _smallest_sufficient(limit: int, enough: Callable[[int], bool], step: Callable[[int], None]) -> int | None:
    """Return the smallest number from 1 to `limit` that is enough, given that more is never worse; None if none is.

    Each trial takes minutes and the result is usually small: try 1, 2, 4, … until one is enough, then bisect.
    """

    def sufficient(number: int) -> bool:
        step(number)
        return enough(number)

    low, high = 0, min(1, limit)
    while high > low and not sufficient(high):
        low, high = high, min(2 * high, limit)
    if high == low:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if sufficient(middle) else (middle, high)
    return high


def _members(blocks: Mapping[str, Sequence[str]], chosen: Iterable[str]) -> list[str]:
    return [name for block in chosen for name in blocks[block]]
