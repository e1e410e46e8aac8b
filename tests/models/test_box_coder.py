"""Box offsets: decoding inverts encoding, and both agree with torchvision."""

from __future__ import annotations

import torch
from torchvision.models.detection._utils import BoxCoder

from tinydet.models.box_coder import CODER_WEIGHTS, decode, encode


def random_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 600
    return torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=generator) * 40], dim=1)


def test_decoding_inverts_encoding() -> None:
    boxes, anchors = random_boxes(500, 1), random_boxes(500, 2)
    torch.testing.assert_close(decode(encode(boxes, anchors), anchors), boxes, rtol=1e-5, atol=1e-3)


def test_encoding_and_decoding_agree_with_torchvision() -> None:
    boxes, anchors = random_boxes(500, 3), random_boxes(500, 4)
    coder = BoxCoder(CODER_WEIGHTS)
    torch.testing.assert_close(encode(boxes, anchors), coder.encode_single(boxes, anchors))
    deltas = torch.randn(500, 4, generator=torch.Generator().manual_seed(5)) * 4
    deltas[0, 2:] = 1e6  # capped, not infinite
    torch.testing.assert_close(decode(deltas, anchors), coder.decode_single(deltas, anchors), rtol=1e-5, atol=1e-3)


def test_a_tiny_box_far_from_the_origin_keeps_its_position() -> None:
    anchor = torch.tensor([[620.0, 630.0, 628.0, 638.0]])
    box = torch.tensor([[621.3, 631.2, 627.1, 637.9]])
    assert (decode(encode(box, anchor), anchor) - box).abs().max() < 1e-3
