"""Augmentation: boxes stay on their pixels, and everything follows from the generator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from tinydet.data.samples import Sample
from tinydet.train.transforms import AUGMENTATIONS, Augment, chain, crop, distort, resize, turn


def sample() -> Sample:
    """Three bright squares on a dark ground, one of them an ignore region."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 50, (96, 160, 3), dtype=np.uint8)
    boxes = np.array([[10, 20, 26, 36], [100, 50, 120, 70], [140, 80, 152, 92]], np.float32)
    for x0, y0, x1, y1 in boxes.astype(int):
        pixels[y0:y1, x0:x1] = 230
    return Sample(pixels, boxes[:2], np.array([4, 7], np.int64), boxes[2:])


def bright(sample: Sample, box: np.ndarray) -> bool:
    x0, y0, x1, y1 = box + np.array([1, 1, -1, -1])  # resampling blurs the rim
    x0, y0 = np.ceil([x0, y0]).astype(int)
    x1, y1 = np.floor([x1, y1]).astype(int)
    return bool((sample.pixels[y0:y1, x0:x1] > 150).all())


@pytest.mark.parametrize("kinds", [(kind,) for kind in AUGMENTATIONS if kind != "photometric"] + [AUGMENTATIONS[:3]])
def test_boxes_and_regions_lie_on_their_pixels(kinds: tuple[str, ...]) -> None:
    augment, seen = Augment(kinds, 128), 0
    for draw in range(30):
        changed = augment(sample(), np.random.default_rng(draw))
        for box in (*changed.boxes, *changed.regions):
            assert bright(changed, box)
            seen += 1
        assert len(changed.labels) == len(changed.boxes) <= 2
        assert max(changed.pixels.shape[:2]) <= (128 if "scale" in kinds else 160)
    assert seen > 45


def test_the_same_generator_gives_the_same_sample_and_another_another() -> None:
    augment = Augment(AUGMENTATIONS, 96)
    torch.manual_seed(1)
    one = augment(sample(), np.random.default_rng(3))
    torch.manual_seed(2)
    same, other = augment(sample(), np.random.default_rng(3)), augment(sample(), np.random.default_rng(4))
    assert np.array_equal(one.pixels, same.pixels) and np.array_equal(one.boxes, same.boxes)
    assert one.pixels.shape != other.pixels.shape or not np.array_equal(one.pixels, other.pixels)


@pytest.mark.parametrize("quarters", range(5))
def test_rotation_equals_that_of_torchvision(quarters: int) -> None:
    turned = turn(sample(), quarters)
    image = torch.from_numpy(sample().pixels).permute(2, 0, 1)
    boxes = tv_tensors.BoundingBoxes(torch.from_numpy(sample().boxes), format="XYXY", canvas_size=(96, 160))
    for _ in range(quarters):
        image, boxes = F.rotate(image, 90, expand=True), F.rotate(boxes, 90, expand=True)
    assert np.array_equal(turned.pixels, image.permute(1, 2, 0).numpy())
    np.testing.assert_allclose(turned.boxes, boxes.numpy(), atol=1e-3)


def test_what_becomes_smaller_than_two_pixels_is_ignored() -> None:
    small = resize(sample(), 0.11)
    assert small.pixels.shape == (11, 18, 3)
    assert small.labels.tolist() == [7] and len(small.regions) == 2  # 16 px are 1.8 now


def test_a_crop_keeps_what_fits_and_ignores_slivers() -> None:
    whole = crop(sample(), 160, np.random.default_rng(0))
    assert np.array_equal(whole.pixels, sample().pixels) and np.array_equal(whole.boxes, sample().boxes)
    for draw in range(50):
        part = crop(sample(), 64, np.random.default_rng(draw))
        assert part.pixels.shape == (64, 64, 3)
        area = sum(np.prod(box[2:] - box[:2]) for box in (*part.boxes, *part.regions))
        assert area == (part.pixels > 150).all(axis=2).sum()  # every bright pixel is accounted for


def test_photometric_distortion_changes_values_and_not_their_places() -> None:
    changed = [distort(sample().pixels, np.random.default_rng(draw)) for draw in range(16)]
    assert len({pixels.tobytes() for pixels in changed}) > 8
    assert all(pixels.shape == (96, 160, 3) and pixels.dtype == np.uint8 for pixels in changed)
    assert all(pixels[22:34, 12:24].mean() > pixels[:18].mean() + 50 for pixels in changed)


def test_transforms_are_chained_in_order() -> None:
    assert chain([]) is None
    twice = chain([lambda s, rng: turn(s, 1), lambda s, rng: turn(s, 3)])
    assert twice is not None
    assert np.array_equal(twice(sample(), np.random.default_rng(0)).pixels, sample().pixels)


def test_an_unknown_augmentation_is_named() -> None:
    with pytest.raises(ValueError, match="unknown augmentation 'mosaic'; choose from scale, vflip"):
        Augment(("mosaic",), 64)
