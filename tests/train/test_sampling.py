"""Which images are trained on, and in which batches."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tinydet.data.coco import find_dataset, load_dataset
from tinydet.train.sampling import grouped_batches, with_images, without_dense


@pytest.mark.parametrize("wide", [[True, False] * 7, [True] * 3 + [False] * 8, [False] * 5])
def test_no_batch_mixes_shapes_and_an_epoch_holds_every_tile_once(wide: list[bool]) -> None:
    for epoch in range(3):
        batches = grouped_batches(wide, 4, seed=1, epoch=epoch)
        assert all(len({wide[i] for i in batch}) == 1 and len(batch) <= 4 for batch in batches)
        assert sorted(i for batch in batches for i in batch) == list(range(len(wide)))
        assert len(batches) == -(-sum(wide) // 4) + -(-(len(wide) - sum(wide)) // 4)
    if len(wide) > 10:
        assert grouped_batches(wide, 4, seed=1, epoch=0) != grouped_batches(wide, 4, seed=1, epoch=1)


def test_dense_images_go_with_their_boxes_and_the_others_keep_theirs(squares: Path) -> None:
    whole = load_dataset(*find_dataset(squares))  # four annotations in each image but the sixth, which has none
    assert without_dense(whole, 4).images == whole.images
    left = without_dense(whole, 3)
    assert [image.file_name for image in left.images] == ["5.png"] and len(left.boxes) == 0
    first = without_dense(whole, 4)
    for i in range(len(whole.images)):
        assert np.array_equal(first.of_image(i).boxes, whole.of_image(i).boxes)


def test_a_selection_of_images_keeps_every_field_of_their_boxes(squares: Path) -> None:
    """The areas too, with which sub-images of the benchmark are cut."""
    whole = load_dataset(*find_dataset(squares))
    whole = dataclasses.replace(whole, areas=np.arange(len(whole.boxes), dtype=np.float64))
    kept = np.arange(len(whole.images)) % 2 == 1
    left = with_images(whole, kept)
    for n, i in enumerate(np.flatnonzero(kept).tolist()):
        for part, expected in zip(left.of_image(n), whole.of_image(i), strict=True):
            assert np.array_equal(part, expected)


def test_a_limit_that_leaves_nothing_is_refused(squares: Path, tmp_path: Path) -> None:
    whole = load_dataset(*find_dataset(squares))
    full = type(whole)(**{**vars(whole), "images": whole.images[:5], "boxes": whole.boxes[:20],
                          "labels": whole.labels[:20], "image_index": whole.image_index[:20],
                          "ignore": whole.ignore[:20]})  # fmt: skip
    with pytest.raises(ValueError, match="more than 3 annotations"):
        without_dense(full, 3)
