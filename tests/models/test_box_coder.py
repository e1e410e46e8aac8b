"""Box offsets: in and out, and as torchvision codes them."""

from __future__ import annotations

import torch
from torchvision.models.detection._utils import BoxCoder

from tinydet.models.box_coder import CODER_WEIGHTS, decode, encode


def some(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 600
    return torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=generator) * 40], dim=1)


def test_decoding_undoes_encoding() -> None:
    boxes, anchors = some(500, 1), some(500, 2)
    torch.testing.assert_close(decode(encode(boxes, anchors), anchors), boxes, rtol=1e-5, atol=1e-3)


def test_offsets_are_those_of_torchvision() -> None:
    boxes, anchors = some(500, 3), some(500, 4)
    coder = BoxCoder(CODER_WEIGHTS)
    torch.testing.assert_close(encode(boxes, anchors), coder.encode_single(boxes, anchors))
    deltas = torch.randn(500, 4, generator=torch.Generator().manual_seed(5)) * 4
    deltas[0, 2:] = 1e6  # capped, not infinite
    torch.testing.assert_close(decode(deltas, anchors), coder.decode_single(deltas, anchors), rtol=1e-5, atol=1e-3)


def test_a_box_six_pixels_wide_keeps_its_place_far_from_the_origin() -> None:
    anchor = torch.tensor([[620.0, 630.0, 628.0, 638.0]])
    box = torch.tensor([[621.3, 631.2, 627.1, 637.9]])
    assert (decode(encode(box, anchor), anchor) - box).abs().max() < 1e-3
