"""Find out by running it what a foreign detector takes and returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet.export.adopt.formats.format import Layout, Signature
from tinydet.export.adopt.original import Arrays, Original, Port

# Inputs besides the image, and what they are fed: the input's width and height, its height and width, or ones.
EXTRA_INPUTS = {"orig_target_sizes": "size", "im_shape": "shape", "scale_factor": "ones", "pixel_mask": "mask"}
TILE = 640  # side of an input that is not fixed, if nothing says otherwise
STRIDE = 32  # its sides are multiples of this, likewise
CHANNELS = 3
BOX_RANK = 3  # of boxes with a batch axis
FLOATS = (np.float32, np.float16, np.float64)


def probe(
    original: Original,
    *,
    tile: int | None = None,
    stride: int | None = None,
    layout: Layout | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Signature:
    """Run the model on noise and return its signature.

    Args:
        tile: side of the input if the file leaves it open.
        stride: sides are multiples of it if the file leaves them open.
        layout: of the image input; None to find it.

    Raises:
        ValueError: an input is unknown, or the model fails to run.
    """
    image, extras = _inputs(original)
    batched = len(image.shape) == 4
    sizes = image.shape[1:] if batched else image.shape
    layout = layout or _layout(image, sizes)
    channels, declared = (sizes[0], sizes[1:]) if layout == "nchw" else (sizes[2], sizes[:2])
    if channels not in (None, CHANNELS):
        raise ValueError(f"its input {image} has {channels} channels; adopt takes detectors of color images")
    free = declared == (None, None)
    height, width = (size or tile or TILE for size in declared)
    batch = (image.shape[0] if batched else 1) or None

    def run(count: int, height: int, width: int) -> Arrays:
        shape = (count, CHANNELS, height, width) if layout == "nchw" else (count, height, width, CHANNELS)
        noise: NDArray[Any] = np.random.default_rng(0).random(shape, dtype=np.float32)
        pixels = (noise * 255).astype(np.uint8) if image.dtype == np.uint8 else noise.astype(image.dtype)
        feeds = {image.name: pixels if batched else pixels[0]}
        feeds |= {port.name: extra_value(port, extras[port.name], count, height, width) for port in original.inputs
                  if port.name in extras}  # fmt: skip
        return original.run(feeds)

    values = run(batch or 1, height, width)
    if batch is None and not _works(lambda: _leading(run(2, height, width)) == {2}):
        batch = 1
    multiple = stride or STRIDE
    if not free or not _works(lambda: bool(run(1 if batch is None else batch, height + multiple, width + multiple))):
        multiple = 0
    bare = max((array.ndim for array in values.values()), default=0) < BOX_RANK
    if bare:
        batch = 1
    values = {name: array[None] if bare else array[:1] for name, array in values.items()}
    return Signature(
        image=image,
        layout=layout,
        batched=batched,
        batch=batch,
        height=height,
        width=width,
        multiple=multiple,
        extras=extras,
        inputs=original.inputs,
        bare=bare,
        ports={port.name: port for port in original.outputs},
        values=values,
        metadata=original.metadata if metadata is None else metadata,
    )


def extra_value(port: Port, meaning: str, count: int, height: int, width: int) -> NDArray[Any]:
    """Return what an input besides the image is fed for `count` images."""
    if meaning == "mask":
        return np.ones((count, height, width), port.dtype)
    row = {"size": (width, height), "shape": (height, width), "ones": (1, 1)}[meaning]
    return np.tile(np.array([row], port.dtype), (count, 1))


def _inputs(original: Original) -> tuple[Port, dict[str, str]]:
    """Return the image input, and the others with what they are fed."""
    images = [port for port in original.inputs if len(port.shape) in (3, 4) and port.name not in EXTRA_INPUTS]
    others = {port.name: EXTRA_INPUTS.get(port.name, "") for port in original.inputs if port not in images}
    listed = "; ".join(map(str, original.inputs))
    if len(images) != 1:
        raise ValueError(f"expected one image input, found {len(images)}; its inputs are: {listed}")
    if unknown := [name for name, meaning in others.items() if not meaning]:
        raise ValueError(
            f"the meaning of its input {unknown[0]} is unknown; export it without; its inputs are: {listed}"
        )
    (image,) = images
    if image.dtype not in (*FLOATS, np.uint8):
        raise ValueError(f"its image input {image} is neither float nor uint8")
    return image, others


def _layout(image: Port, sizes: tuple[int | None, ...]) -> Layout:
    first, last = sizes[0] in (CHANNELS, None), sizes[2] == CHANNELS
    if sizes[0] == CHANNELS or (first and not last):
        return "nchw"
    if last:
        return "nhwc"
    raise ValueError(f"its input {image} has no axis of {CHANNELS} channels; adopt takes detectors of color images")


def _works(attempt: Any) -> bool:
    try:
        return bool(attempt())
    except ValueError:
        return False


def _leading(values: Arrays) -> set[int]:
    """Return the sizes of the first axes."""
    return {array.shape[0] if array.ndim else 0 for array in values.values()}
