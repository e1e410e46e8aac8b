from __future__ import annotations

import numpy as np
import pytest

from tinydet.data.scenery.compositing import Person, visible_people
from tinydet.data.scenery.sprites import Sprite
from tinydet.data.scenery.view import View, choose_view


def square(left: float, top: float, side: int, *, is_person: bool) -> Sprite:
    coverage = np.ones((side, side), np.float32)
    box = (left, top, left + side, top + side)
    color = coverage[..., None] * np.float32((200, 100, 50))
    return Sprite(int(left), int(top), coverage, color, (left, top + side), box, False, is_person)


@pytest.fixture(scope="module")
def view() -> View:
    return choose_view(np.random.default_rng(0), 100, 80)


def test_an_unoccluded_person_keeps_its_box(view: View) -> None:
    assert visible_people([square(10, 20, 8, is_person=True)], view) == [Person(10, 20, 8, 8, False)]


def test_an_object_in_front_reduces_the_box_to_the_visible_part(view: View) -> None:
    behind, front = square(10, 20, 10, is_person=True), square(10, 25, 10, is_person=False)
    assert visible_people([behind, front], view) == [Person(10, 20, 10, 5, False)]


def test_an_object_behind_occludes_nothing(view: View) -> None:
    assert visible_people([square(10, 15, 10, is_person=False), square(10, 20, 10, is_person=True)], view) == [
        Person(10, 20, 10, 10, False)
    ]


def test_a_mostly_occluded_person_is_an_ignore_region_and_a_fully_occluded_one_is_not_annotated(view: View) -> None:
    person = square(10, 20, 10, is_person=True)
    assert visible_people([person, square(10, 23, 10, is_person=False)], view) == [Person(10, 20, 10, 3, True)]
    assert visible_people([person, square(10, 20, 10, is_person=False)], view) == []


def test_the_image_border_occludes_like_an_object(view: View) -> None:
    assert visible_people([square(-5, 20, 10, is_person=True)], view) == [Person(0, 20, 5, 10, False)]
    assert visible_people([square(97, 20, 10, is_person=True)], view) == [Person(97, 20, 3, 10, True)]
    assert visible_people([square(200, 20, 10, is_person=True)], view) == []
