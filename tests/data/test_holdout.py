"""A part of the images is held out by groups, reproducibly, and found again from the record in a checkpoint."""

from __future__ import annotations

import json
import random
from pathlib import Path

import cv2
import exports
import numpy as np
import pytest

from tinydet.data.holdout import divide, group_images, group_of, groups_by, hold_out
from tinydet.data.source import DataSource, describe_hold_out, find_source


@pytest.mark.parametrize(
    ("names", "group"),
    [
        (("DJI_0001_0005.jpg", "DJI_0001_0006.JPG"), "DJI_0001"),
        (("seq3_000123.png", "seq3_4.png"), "seq3"),
        (("clip_frame_12.jpg", "clip_frame12.jpg", "clip-13.jpg"), "clip"),
        (("a/0001.jpg", "a/frame0002.jpg"), None),
        (("0000001_02999_d_0000005.jpg", "0000001_03499_d_0000006.jpg"), "0000001"),
        (("bb_V0025_I0005720.jpg", "bb_V0025_I0005880.jpg"), "bb_V0025"),
        (("DJI_20230512101112_0001_V.JPG", "DJI_20230512101914_0002_V.JPG"), "DJI_20230512"),
        (("f_1_jpg.rf.0123abcd.jpg", "f_1_jpg.rf.4567abcd.jpg", "f_2_jpg.rf.89abcdef.jpg"), "f"),
    ],
)
def test_frames_of_one_recording_are_one_group(names: tuple[str, ...], group: str | None) -> None:
    found = {group_of(name) for name in names}
    assert found == {group} if group is not None else all(each.startswith("a") for each in found)


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (("a1b2c3d4-v1_1.jpg", "9f8e7d6c-v1_2.jpg", "00112233-v2_1.jpg"), "v1 v1 v2"),  # uploads to Label Studio
        (("P1__1.0__0___0.png", "P1__1.0__824___0.png", "P2__1.0__0___0.png"), "P1 P1 P2"),  # tiles of DOTA
        (("a_0_0_512_512.png", "a_410_0_922_512.png", "b_0_0_512_512.png"), "a a b"),  # of SAHI
        (("a_0_0.png", "a_0_512.png", "a_512_512.png", "b_0_0.png"), "a a a b"),  # of data cut
        (("v_1_0_0.png", "v_1_0_512.png", "v_2_0_0.png", "w_1_0_0.png", "w_2_0_0.png"), "v v v w w"),
        (("f1 (1).jpg", "f1 (2).jpg", "f2 (1).jpg"), "f1 f1 f2"),
        (("v_00-01-05.jpg", "v_00-01-06.jpg", "w_00-00-01.jpg"), "v v w"),
        (
            ("2023-05-01T12-00-00.jpg", "2023-05-01T12-09-05.jpg", "2023-05-02T12-00-00.jpg"),
            "2023-05-01 2023-05-01 2023-05-02",
        ),
        (("v_t12.5s.jpg", "v_t13.0s.jpg", "w_t1.0s.jpg"), "v v w"),
        (("x/DJI_0001.JPG", "x/DJI_0002.JPG", "y/DJI_0001.JPG", "y/7.JPG"), "x x y y"),
    ],
)
def test_names_show_groups(names: tuple[str, ...], groups: str) -> None:
    assert group_images(names)[0] == groups.split()


@pytest.mark.parametrize(
    "names",
    [
        [f"{n:06}.jpg" for n in range(9)],
        ["DJI_0001.JPG", "DJI_0002.JPG", "IMG_0001.JPG", "IMG_0002.JPG", "7.png", "8.png"],  # counters of cameras
        ["3f2a9c12.jpg", "3f2a9c13.jpg", "bc991e7a.jpg"],
        [f"0b1c2d3e-1111-4222-8333-12345678901{n}.jpg" for n in range(3)]
        + ["1b1c2d3e-1111-4222-8333-123456789012.jpg"],
    ],
)
def test_numbers_counters_of_cameras_and_hashes_are_no_groups(names: list[str]) -> None:
    groups, shown = group_images(names)
    assert not shown and len(set(groups)) == len(names)


def test_other_images_than_in_the_record_are_noticed(videos: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = find_source(videos)
    sources = [whole, *whole.hold_out(0.3)]
    again = [
        DataSource.from_json(json.loads(json.dumps(each.to_json(videos, each.load()))), videos) for each in sources
    ]
    for source in again:
        source.load()
    assert not caplog.records
    (videos / "images" / "video0_0000.png").rename(videos / "images" / "other.png")
    whole, *parts = [DataSource.from_json(source.to_json(videos), videos) for source in again]
    whole.load()
    assert "40 images with other names" in caplog.messages[0]
    with pytest.raises(ValueError, match="which of them were held out"):
        [part.load() for part in parts]  # the choice may leave one of the two as it was


def test_without_groups_in_the_names_copies_of_one_image_still_stay_together() -> None:
    names = [f"{n:03}_jpg.rf.{copy}{n:07}.jpg" for n in range(20) for copy in range(3)]
    groups, shown = group_images(names)
    assert not shown and len(set(groups)) == 20


def test_the_choice_depends_on_seed_and_names_alone_and_is_near_the_fraction() -> None:
    groups = [f"video{n}" for n in range(50) for _ in range(n % 7 + 1)]
    shuffled = random.Random(0).sample(groups, len(groups))
    first = hold_out(groups, 0.2, 0)
    assert first == hold_out(shuffled, 0.2, 0) != hold_out(groups, 0.2, 1)
    for fraction in (0.01, 0.1, 0.2, 0.5, 0.9):
        for seed in range(5):
            held = sum(group in hold_out(groups, fraction, seed) for group in groups)
            assert 0 < held < len(groups) and abs(held - fraction * len(groups)) <= 7
    with pytest.raises(ValueError, match="cannot be divided"):
        hold_out(["one"] * 5, 0.2, 0)


@pytest.mark.parametrize(
    ("sizes", "fraction", "expected"),
    [((29, 32, 39), 0.2, 29), ((5, 95), 0.2, 5), ((80, 15, 5), 0.2, 20), ((50, 50), 0.01, 50)],
)
def test_a_few_large_groups_are_held_out_no_more_than_needed(
    sizes: tuple[int, ...], fraction: float, expected: int
) -> None:
    groups = [f"flight{n}" for n, size in enumerate(sizes) for _ in range(size)]
    for seed in range(6):
        held = sum(group in hold_out(groups, fraction, seed) for group in groups)
        assert held == expected


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Ten videos of four frames, as a YOLO dataset without a split of its own."""
    for folder in ("images", "labels"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for n in range(40):
        name = f"video{n // 4}_{n % 4:04}"
        cv2.imwrite(str(tmp_path / "data" / "images" / f"{name}.png"), np.zeros((32, 32, 3), np.uint8))
        exports.write(tmp_path / "data" / "labels" / f"{name}.txt", f"{n % 2} 0.5 0.5 0.25 0.25\n")
    exports.write(tmp_path / "data" / "classes.txt", "boat\nperson\n")
    return tmp_path / "data"


def test_both_parts_are_disjoint_complete_and_found_again_from_their_records(videos: Path) -> None:
    train, val = find_source(videos).hold_out(0.3)
    names = [{image.file_name for image in source.load().images} for source in (train, val)]
    assert len(names[0]) == 28 and len(names[1]) == 12 and not names[0] & names[1]
    assert not {name.split("_")[0] for name in names[0]} & {name.split("_")[0] for name in names[1]}
    assert train.load().classes == val.load().classes == ("boat", "person")
    assert {entry["file_name"] for entry in val.load().document()["images"]} == names[1]
    assert describe_hold_out(val, train.load(), val.load()).startswith("12 of 40 images held out: 3 of 10 groups")
    for source, expected in zip((train, val), names, strict=True):
        record = json.loads(json.dumps(source.to_json(videos.parent)))
        moved = videos.parent.rename(videos.parent.with_name(f"moved-{source.part.role}"))  # type: ignore[union-attr]
        again = DataSource.from_json(record, moved)
        assert {image.file_name for image in again.load().images} == expected
        moved.rename(videos.parent)


def test_folds_have_every_group_once_and_differ_by_less_than_the_largest_group() -> None:
    groups = [f"flight{n}" for n in range(23) for _ in range(n % 5 + 1)]
    shuffled = random.Random(1).sample(groups, len(groups))
    for folds in (2, 3, 7, 23):
        for seed in (0, 1):
            divided = divide(groups, folds, seed)
            assert divided == divide(shuffled, folds, seed) and len(divided) == folds
            assert sorted(name for fold in divided for name in fold) == sorted({*groups})
            sizes = [sum(group in fold for group in groups) for fold in divided]
            assert min(sizes) > 0 and max(sizes) - min(sizes) <= 5
    assert divide(groups, 3, 0) != divide(groups, 3, 1)
    with pytest.raises(ValueError, match="23 groups of images cannot be divided into 24 folds"):
        divide(groups, 24, 0)


def test_a_field_of_the_images_comes_before_a_regular_expression() -> None:
    images = [{"file_name": f"{site}/{day}_{n}.jpg", "day": day} for site in "ab" for day in (7, 8) for n in range(2)]
    assert groups_by(images, "day") == ["7", "7", "8", "8"] * 2
    assert groups_by(images, r"^\w") == ["a"] * 4 + ["b"] * 4
    assert groups_by(images, r"^(\w)/(\d)") == ["a_7", "a_7", "a_8", "a_8", "b_7", "b_7", "b_8", "b_8"]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("day", "2 images without this field, such as a.jpg"),
        ("date", "no field of the images, which are file_name.*not match the file name a.jpg"),
        ("(", "no regular expression"),
    ],
)
def test_an_image_without_a_group_is_named(key: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        groups_by([{"file_name": "a.jpg"}, {"file_name": "b.jpg", "day": None}, {"file_name": "c.jpg", "day": 1}], key)


def test_the_folds_of_a_dataset_hold_out_each_image_once_and_are_found_again(videos: Path) -> None:
    whole = find_source(videos)
    seen: list[str] = []
    for k in (1, 2, 3):
        train, val = whole.hold_out(fold=(k, 3), group_by=r"^video(\d)")
        again = DataSource.from_json(json.loads(json.dumps(val.to_json(videos, val.load()))), videos).load()
        names = [image.file_name for image in again.images]
        assert {name[:6] for name in names}.isdisjoint(image.file_name[:6] for image in train.load().images)
        assert f"fold {k} of 3: {len({*(n[:6] for n in names)})} of 10 groups by" in describe_hold_out(
            val, train.load(), val.load()
        )
        seen += names
    assert sorted(seen) == sorted(image.file_name for image in whole.load().images)
