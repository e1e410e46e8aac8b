"""Fixtures for tests of training: a backbone that costs a tenth of MobileNetV2."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import toy_detector


@pytest.fixture(scope="module", autouse=True)
def tiny_backbone() -> Iterator[None]:
    with toy_detector.tiny_backbone():
        yield
