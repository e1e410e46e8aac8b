"""The benchmark of tracking: its flights have identities, and its scores are 1 for perfect tracks only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("trackers")
pytest.importorskip("trackeval")

from tinydet.runtime.detections import Detections


def test_perfect_tracks_score_one_and_exchanged_numbers_less() -> None:
    import tracking

    flight = tracking.fly(tracking.FLIGHTS["shaking"], seed=0, frames=4, size=(160, 120), persons=300, cars=100)
    truths = [truth for _, truth in flight]
    assert len(truths[0].ids) > 1
    perfect = [
        Detections(truth.boxes.astype(np.float32), np.ones(len(truth.ids), np.float32), truth.labels,
            {"track": truth.ids + 1}) for truth in truths
    ]  # fmt: skip
    scores = tracking.scores(list(zip(truths, perfect, strict=True)))
    assert (scores["MOTA"], scores["IDF1"], scores["id_switches"]) == (1, 1, 0)
    assert scores["HOTA"] == pytest.approx(1, abs=1e-3)
    swapped = replace(perfect[2], data={"track": perfect[2].data["track"][::-1]})
    worse = tracking.scores(list(zip(truths, [*perfect[:2], swapped, perfect[3]], strict=True)))
    assert worse["IDF1"] < 1
    assert worse["id_switches"] > 0
