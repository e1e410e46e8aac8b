"""Augmentation: boxes stay on their pixels, and everything follows from the generator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from tinydet.data.samples import Sample
from tinydet.train.config import AUGMENTATIONS, BUNDLES
from tinydet.train.transforms import (
    BRIGHTNESS,
    CONTRAST,
    GAMMA,
    HUE,
    PHOTOMETRIC,
    SATURATION,
    Augment,
    _brighten,
    _saturate,
    _shift_hue,
    _stretch,
    add_noise,
    bend,
    chain,
    change_colors,
    crop,
    distort,
    invert,
    refocus,
    resize,
    turn,
)


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


GEOMETRIC = ("scale", "vflip", "rotate")


@pytest.mark.parametrize("kinds", [*((kind,) for kind in GEOMETRIC), GEOMETRIC])
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


@pytest.mark.parametrize(
    ("change", "reference", "strengths"),
    [
        (_brighten, F.adjust_brightness, BRIGHTNESS),
        (_stretch, F.adjust_contrast, CONTRAST),
        (_saturate, F.adjust_saturation, SATURATION),
        (_shift_hue, F.adjust_hue, HUE),
    ],
)
def test_photometric_changes_equal_those_of_torchvision_up_to_rounding(
    change: Callable, reference: Callable, strengths: tuple[float, float]
) -> None:
    colors = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for pixels in (colors, colors[:, ::-1], colors[..., :1]):
        for strength in (*strengths, float(np.mean(strengths))):
            image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
            expected = reference(image, strength).permute(1, 2, 0).numpy().astype(int)
            assert np.abs(change(pixels, strength) - expected).max() <= 1


def test_augmentation_runs_no_operator_of_torch() -> None:
    # In the reading thread, they would start a second team of OpenMP threads, which costs ten times the CPU time.
    augment = Augment(AUGMENTATIONS, 96)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for draw in range(8):
            augment(sample(), np.random.default_rng(draw))
    assert not [event.name for event in profile.events() if event.name.startswith("aten::")]


def test_photometric_distortion_changes_values_and_not_their_places() -> None:
    changed = [distort(sample().pixels, np.random.default_rng(draw)) for draw in range(16)]
    assert len({pixels.tobytes() for pixels in changed}) > 8
    assert all(pixels.shape == (96, 160, 3) and pixels.dtype == np.uint8 for pixels in changed)
    assert all(pixels[22:34, 12:24].mean() > pixels[:18].mean() + 50 for pixels in changed)


@pytest.mark.parametrize("change", PHOTOMETRIC.values())
def test_a_photometric_change_moves_no_box_and_keeps_a_gray_image_gray(change: Callable) -> None:
    augment = Augment(tuple(kind for kind, each in PHOTOMETRIC.items() if each is change), 160)
    gray = replace(sample(), pixels=np.repeat(sample().pixels[..., :1], 3, axis=2))
    seen = set()
    for draw in range(16):
        for before in (gray, sample()):
            after = augment(before, np.random.default_rng(draw))
            assert after.pixels.shape == before.pixels.shape and after.pixels.dtype == np.uint8
            for name in ("boxes", "labels", "regions"):
                assert np.array_equal(getattr(after, name), getattr(before, name))
        changed = augment(gray, np.random.default_rng(draw)).pixels
        assert (changed == changed[..., :1]).all()
        seen.add(changed.tobytes())
    assert len(seen) > 1


def test_gamma_keeps_black_white_and_the_order_of_values() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 256, 1)
    middles = []
    for draw in range(50):
        bent = bend(ramp, np.random.default_rng(draw))[0, :, 0].astype(int)
        assert bent[0] == 0 and bent[255] == 255 and (np.diff(bent) >= 0).all()
        middles.append(np.log(bent[128] / 255) / np.log(128 / 255))  # the exponent
    assert GAMMA[0] - 0.02 < min(middles) < 0.7 and 1.5 < max(middles) < GAMMA[1] + 0.02


def test_polarity_is_swapped_in_about_half_of_the_samples_and_twice_is_the_original() -> None:
    pixels = sample().pixels
    swapped = [invert(pixels, np.random.default_rng(draw)) for draw in range(40)]
    others = [each for each in swapped if not np.array_equal(each, pixels)]
    assert 10 <= len(others) <= 30 and all(np.array_equal(255 - each, pixels) for each in others)


def test_sharpness_widens_and_narrows_an_edge_and_keeps_flat_ground() -> None:
    edge = np.full((32, 64, 1), 80, np.uint8)
    edge[:, 32:] = 160
    steps = []
    for draw in range(60):
        changed = refocus(edge, np.random.default_rng(draw)).astype(int)
        assert (changed[:, :20] == 80).all() and (changed[:, -20:] == 160).all()
        steps.append(changed[16, 32, 0] - changed[16, 31, 0])
    assert min(steps) < 50 and max(steps) > 110 and 20 <= steps.count(80) <= 40


def test_noise_has_no_mean_and_at_most_its_strength() -> None:
    flat = np.full((64, 64, 3), 128, np.uint8)
    noises = [add_noise(flat, np.random.default_rng(draw)).astype(int) - 128 for draw in range(40)]
    noisy = [noise for noise in noises if noise.any()]
    assert 10 <= len(noisy) <= 30
    assert max(abs(noise.mean()) for noise in noisy) < 1 and 7 < max(noise.std() for noise in noisy) < 11


def test_no_change_of_colors_is_the_identity_for_gray_and_color() -> None:
    gray = sample().pixels[..., :1].repeat(3, axis=2)
    for pixels in (gray, sample().pixels):
        assert np.array_equal(change_colors(pixels, [], np.random.default_rng(0)), pixels)


@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_is_the_augmentations_that_it_names(name: str) -> None:
    bundle, kinds = Augment((name,), 96), Augment(BUNDLES[name], 96)
    assert bundle.kinds == BUNDLES[name]
    one, other = (augment(sample(), np.random.default_rng(5)) for augment in (bundle, kinds))
    assert np.array_equal(one.pixels, other.pixels)


def test_transforms_are_chained_in_order() -> None:
    assert chain([]) is None
    twice = chain([lambda s, rng: turn(s, 1), lambda s, rng: turn(s, 3)])
    assert twice is not None
    assert np.array_equal(twice(sample(), np.random.default_rng(0)).pixels, sample().pixels)


def test_an_unknown_augmentation_is_named() -> None:
    with pytest.raises(ValueError, match="unknown augmentation 'mosaic'; choose from scale, vflip.*thermal"):
        Augment(("mosaic",), 64)
