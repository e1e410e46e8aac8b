from __future__ import annotations

import numpy as np
import pytest

from tinydet.data.scenery.compositing import Person, visible_people
from tinydet.data.scenery.sprites import Sprite
from tinydet.data.scenery.view import View, choose_view


def square(left: float, top: float, side: int, *, person: bool) -> Sprite:
    cover = np.ones((side, side), np.float32)
    outline = (left, top, left + side, top + side)
    colour = cover[..., None] * np.float32((200, 100, 50))
    return Sprite(int(left), int(top), cover, colour, (left, top + side), outline, False, person)


@pytest.fixture(scope="module")
def view() -> View:
    return choose_view(np.random.default_rng(0), 100, 80)


def test_a_person_in_the_open_keeps_its_outline(view: View) -> None:
    assert visible_people([square(10, 20, 8, person=True)], view) == [Person(10, 20, 8, 8, False)]


def test_what_stands_in_front_cuts_the_box_to_the_part_that_is_seen(view: View) -> None:
    behind, front = square(10, 20, 10, person=True), square(10, 25, 10, person=False)
    assert visible_people([behind, front], view) == [Person(10, 20, 10, 5, False)]


def test_what_stands_behind_hides_nothing(view: View) -> None:
    assert visible_people([square(10, 15, 10, person=False), square(10, 20, 10, person=True)], view) == [
        Person(10, 20, 10, 10, False)
    ]


def test_a_person_mostly_hidden_is_an_ignore_region_and_one_fully_hidden_is_nothing(view: View) -> None:
    person = square(10, 20, 10, person=True)
    assert visible_people([person, square(10, 23, 10, person=False)], view) == [Person(10, 20, 10, 3, True)]
    assert visible_people([person, square(10, 20, 10, person=False)], view) == []


def test_the_border_of_the_picture_hides_like_a_thing(view: View) -> None:
    assert visible_people([square(-5, 20, 10, person=True)], view) == [Person(0, 20, 5, 10, False)]
    assert visible_people([square(97, 20, 10, person=True)], view) == [Person(97, 20, 3, 10, True)]
    assert visible_people([square(200, 20, 10, person=True)], view) == []
