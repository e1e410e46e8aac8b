"""An image that is opened while the model loads is the one that the run would open, or none."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from tinydet.infer.opened_ahead import OpenedAhead
from tinydet.runtime.scenes import Scene
from tinydet.runtime.scenes.sources import Source
from tinydet.spec import STRETCH


@pytest.fixture
def source(tmp_path: Path) -> Source:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((4, 6, 3), 7, np.uint8))
    return Source(str(tmp_path / "a.png"), 1)


def test_the_image_is_taken_once_and_only_as_it_was_opened(source: Source) -> None:
    with OpenedAhead(source, None) as ahead:
        assert ahead.take(Source(source.location, 2), STRETCH) is None  # another place in the list of scenes
        assert ahead.take(source, (2.0, 98.0)) is None
        scene = ahead.take(source, STRETCH)
        assert scene is not None and (scene.read(0, 0, 6, 4) == 7).all()
        assert ahead.take(source, STRETCH) is None


def test_an_image_that_is_not_taken_is_closed(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    monkeypatch.setattr(Scene, "close", lambda scene: closed.append(scene.name))
    with OpenedAhead(source, None):
        pass
    assert closed in ([], ["a.png"])  # none if it had not begun
    with OpenedAhead(source, None) as ahead:
        assert ahead._opening is not None
        ahead._opening.result()
    assert closed[-1] == "a.png"


def test_the_reason_why_it_cannot_be_opened_is_raised_when_it_is_taken(source: Source) -> None:
    Path(source.location).write_bytes(b"")
    with OpenedAhead(source, None) as ahead, pytest.raises(ValueError, match="is empty"):
        ahead.take(source, STRETCH)
    with OpenedAhead(None, None) as nothing:
        assert nothing.take(source, STRETCH) is None
