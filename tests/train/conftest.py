"""Fixtures for tests of training: a backbone that costs a tenth of MobileNetV2."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from toy_detector import TINY

from tinydet.models.backbone_registry import BACKBONES


@pytest.fixture(scope="module", autouse=True)
def tiny_backbone() -> Iterator[None]:
    """`tiny`, the backbone of docs/extending.md, for tests of what surrounds the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", TINY)
        yield
