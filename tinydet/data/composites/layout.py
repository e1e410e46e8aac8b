"""What stands where: traffic, parked vehicles, riders, people alone, in groups and in crowds, and street furniture."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from tinydet.data.composites import furniture
from tinydet.data.composites.background import (
    BLOCKED,
    CROSSING,
    EARTH,
    GRASS,
    LOT,
    PAVED,
    PAVEMENT,
    ROAD,
    Background,
    Place,
)
from tinydet.data.composites.body import Body
from tinydet.data.composites.mesh import Mesh
from tinydet.data.composites.people import person, towel
from tinydet.data.composites.vehicles import SHARES, vehicle

LEAST_SCALE = 4.5  # pixels per meter; nothing is placed where the scale is smaller
_PEOPLE = {ROAD: 0.04, PAVEMENT: 1.0, LOT: 0.45, GRASS: 0.4, EARTH: 0.6, CROSSING: 1.2}  # per square pixel
_VEHICLES = {ROAD: 1.0, PAVEMENT: 0.04, LOT: 1.0, GRASS: 0.15, EARTH: 0.35, CROSSING: 0.2}


class Item(NamedTuple):
    """An object in the world."""

    category: str  # "person" or "vehicle"; empty: neither
    kind: str
    mesh: Mesh
    shadow: Mesh | None  # casts the shadow; None: casts none
    x: float
    y: float
    static: bool = False  # its shadow dims others
    flat: bool = False  # lies on the ground, under all others


def plan(rng: np.random.Generator, background: Background, body: Body) -> list[Item]:
    """Draw the objects of a scene."""
    ground = _Ground(background)
    if not ground.usable:
        return []
    items = _furniture(rng, ground)
    people, vehicles = ("person" in background.pasted, "vehicle" in background.pasted)
    if vehicles:
        items += _vehicles(rng, ground)
    if people and vehicles:
        items += _riders(rng, ground, body)
    if people:
        items += _people(rng, ground, body)
    return items


class _Ground:
    """The free ground of a background, and what is taken."""

    def __init__(self, background: Background) -> None:
        self.background = background
        self.width, self.height = background.size
        self.surface = background.surface
        self.taken = np.zeros_like(self.surface)
        for real in background.real:
            x1, y1, x2, y2 = (round(value) for value in real.box)
            cv2.rectangle(self.taken, (x1 - 2, y1 - 2), (x2 + 2, y2 + 2), (1,), -1)
        self.usable = bool(background.pasted) and bool((self.surface != BLOCKED).mean() > 0.01)
        middle = np.flatnonzero(self.surface.ravel() != BLOCKED)
        self.area = 1.0  # square meters in view
        if self.usable:
            rows, columns = np.divmod(middle[:: max(1, len(middle) // 200)], self.width)
            points = background.camera.ground(np.column_stack([columns, rows]).astype(float))
            self.scales = np.array([background.camera.scale(x, y) for x, y in points.tolist()])
            self.area = len(middle) / float(np.median(self.scales)) ** 2
            self.scale = float(np.median(self.scales))

    def draw(self, rng: np.random.Generator, weights: dict[int, float]) -> tuple[float, float] | None:
        """Draw a free ground point, by surface; None if there is none."""
        table = np.zeros(CROSSING + 1)
        for surface, weight in weights.items():
            table[surface] = weight
        for _ in range(30):
            x, y = rng.uniform(0, (self.width, self.height))
            weight = table[self.surface[int(y), int(x)]]
            if weight > 0 and rng.random() < weight / table.max() and not self.taken[int(y), int(x)]:
                point = self.background.camera.ground(np.array([(x, y)]))[0]
                return float(point[0]), float(point[1])
        return None

    def at(self, x: float, y: float) -> int:
        """Return the surface at a ground point; outside the image that of the nearest pixel."""
        column, row = self.background.camera.project(np.array([(x, y, 0.0)]))[0][0]
        if not (-80 < column < self.width + 80 and -80 < row < self.height + 80):
            return BLOCKED
        i, j = min(max(int(row), 0), self.height - 1), min(max(int(column), 0), self.width - 1)
        return BLOCKED if self.taken[i, j] else int(self.surface[i, j])

    def claim(self, x: float, y: float, heading: float, length: float, width: float, allowed: tuple[int, ...],
              *, share: float = 0.9) -> bool:  # fmt: skip
        """Take a rectangle of the ground, if enough of it is of the allowed surfaces and all of it is free."""
        along = np.array((np.cos(heading), np.sin(heading))) * length / 2
        side = np.array((-np.sin(heading), np.cos(heading))) * width / 2
        corners = np.array((x, y)) + np.array((along + side, along - side, -along - side, -along + side))
        pixels, depth = self.background.camera.project(np.column_stack([corners, np.zeros(4)]))
        if depth.min() < 1:
            return False
        low = np.floor(pixels.min(axis=0)).astype(int).clip(0, (self.width, self.height)).tolist()
        high = (np.ceil(pixels.max(axis=0)).astype(int) + 1).clip(0, (self.width, self.height)).tolist()
        if low[0] >= high[0] or low[1] >= high[1]:
            return False
        mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        cv2.fillConvexPoly(mask, np.rint(pixels - low).astype(np.int32), (1,))
        window = (slice(low[1], high[1]), slice(low[0], high[0]))
        inside = mask > 0
        if not inside.any() or (self.taken[window][inside] > 0).mean() > 0.02:
            return False
        if np.isin(self.surface[window][inside], allowed).mean() < share:
            return False
        self.taken[window][inside] = 1
        return True


def _furniture(rng: np.random.Generator, ground: _Ground) -> list[Item]:
    """Place furniture and plants, on drawn ground more of them."""
    drawn = ground.background.drawn
    density = float(np.exp(rng.uniform(np.log(0.0015), np.log(0.02)))) * (1.0 if drawn else 0.35)
    count = int(rng.poisson(min(density * ground.area, 45)))
    items: list[Item] = []
    for _ in range(count):
        spot = ground.draw(rng, {PAVEMENT: 1.0, LOT: 0.3, GRASS: 0.7, EARTH: 0.5, ROAD: 0.03})
        if spot is None:
            break
        x, y = spot
        paved = ground.at(x, y) in PAVED
        choices = furniture.PAVED if paved else furniture.UNPAVED
        shares = np.array(list(choices.values()))
        draw = list(choices)[int(rng.choice(len(choices), p=shares / shares.sum()))]
        if draw is furniture.tree and not drawn and rng.random() < 0.8:
            continue  # the photo has its own trees
        row = int(rng.integers(2, 6)) if rng.random() < 0.25 else 1
        step, turn = rng.uniform(1.5, 5), rng.uniform(0, 2 * np.pi) if not drawn else rng.integers(4) * np.pi / 2
        for n in range(row):
            px, py = x + n * step * np.cos(turn), y + n * step * np.sin(turn)
            if not ground.claim(px, py, turn, 0.5, 0.5, (PAVEMENT, LOT, GRASS, EARTH, ROAD)):
                continue
            mesh = draw(rng).turned(turn + rng.normal(0, 0.1)).moved(px, py)
            flat = draw is furniture.manhole
            big = draw in (furniture.tree, furniture.shelter, furniture.parasol)
            items.append(Item("", draw.__name__, mesh, None if flat else mesh, px, py, static=big, flat=flat))
    return items


def _vehicles(rng: np.random.Generator, ground: _Ground) -> list[Item]:
    kinds, shares = list(SHARES), np.array(list(SHARES.values()))
    items: list[Item] = []

    def add(place: Place, kind: str, allowed: tuple[int, ...], share: float) -> bool:
        built = vehicle(rng, kind)
        if not ground.claim(
            place.x, place.y, place.heading, built.length + 0.3, built.width + 0.35, allowed, share=share
        ):
            return False
        mesh = built.mesh.turned(place.heading).moved(place.x, place.y)
        items.append(Item("vehicle", kind, mesh, mesh, place.x, place.y))
        return True

    def draw_kind() -> str:
        return str(rng.choice(kinds, p=shares / shares.sum()))

    if ground.background.places:
        keep = rng.choice((0.3, 0.7, 1.0))
        for place in ground.background.places:
            if rng.random() > keep:
                continue
            kind = draw_kind()
            if place.parked and kind in ("truck", "semitrailer", "bus", "long bus"):
                kind = "hatchback"
            add(place, kind, (ROAD, LOT, CROSSING), 0.75)
        return items
    if ground.background.drawn or rng.random() < 0.3:
        return items
    allowed = (ROAD, LOT, CROSSING, GRASS, EARTH)
    for _ in range(int(rng.integers(1, 5))):  # rows of parked vehicles, queues, and vehicles alone
        spot = ground.draw(rng, _VEHICLES)
        if spot is None:
            break
        heading, roll = rng.uniform(0, 2 * np.pi), rng.random()
        count = 1 if roll < 0.45 else int(rng.integers(2, 9))
        side = roll > 0.72  # side by side, or one behind another
        for n in range(count):
            step = n * (rng.uniform(2.6, 3.0) if side else rng.uniform(6.5, 9))
            angle = heading + (np.pi / 2 if side else 0)
            place = Place(spot[0] + step * np.cos(angle), spot[1] + step * np.sin(angle),
                          heading + rng.normal(0, 0.04) + np.pi * int(rng.integers(2)) * side, True)  # fmt: skip
            add(place, draw_kind() if not side else str(rng.choice(kinds[:7])), allowed, 0.85)
    return items


def _riders(rng: np.random.Generator, ground: _Ground, body: Body) -> list[Item]:
    """Place motorbikes and bicycles, ridden or parked."""
    items: list[Item] = []
    if rng.random() < 0.35:
        return items
    for _ in range(int(rng.geometric(0.4))):
        kind = str(rng.choice(("motorbike", "scooter", "bicycle"), p=(0.3, 0.2, 0.5)))
        weights = {ROAD: 1.0, LOT: 0.5, PAVEMENT: 0.35, EARTH: 0.4, GRASS: 0.15, CROSSING: 0.3}
        spot = ground.draw(rng, weights)
        if spot is None:
            break
        ridden = rng.random() < 0.72
        heading = rng.uniform(0, 2 * np.pi) if not ground.background.drawn else rng.integers(4) * np.pi / 2
        for n in range(1 if ridden else int(rng.integers(1, 6))):
            x, y = spot[0] - n * 0.75 * np.sin(heading), spot[1] + n * 0.75 * np.cos(heading)
            turn = float(heading + rng.normal(0, 0.1))
            built = vehicle(rng, kind)
            if not ground.claim(x, y, turn, built.length, 0.55, (ROAD, LOT, PAVEMENT, EARTH, GRASS, CROSSING)):
                continue
            mesh = built.mesh.turned(turn).moved(x, y)
            items.append(Item("vehicle", kind, mesh, mesh, x, y))
            if ridden:
                items.append(_figure(rng, ground, body, "ride", turn, x, y))
                if kind != "bicycle" and rng.random() < 0.15:
                    back = x - 0.42 * np.cos(turn), y - 0.42 * np.sin(turn)
                    items.append(_figure(rng, ground, body, "ride", turn, *back))
    return items


def _people(rng: np.random.Generator, ground: _Ground, body: Body) -> list[Item]:
    items: list[Item] = []
    if rng.random() < 0.1:
        return items
    rain = rng.random() < 0.05

    def add(x: float, y: float, pose: str, heading: float, surfaces: tuple[int, ...]) -> bool:
        reach = {"lie": (1.7, 0.6), "ground": (0.9, 0.6)}.get(pose, (0.42, 0.42))
        if not ground.claim(x, y, heading, *reach, surfaces, share=0.75):
            return False
        if pose == "lie" and rng.random() < 0.6:
            items.append(Item("", "towel", towel(rng, heading).moved(x, y), None, x, y, flat=True))
        umbrella = rng.random() < (0.7 if rain else 0.012) and pose in ("stand", "walk")
        items.append(_figure(rng, ground, body, pose, heading, x, y, umbrella=umbrella))
        return True

    anywhere = (ROAD, PAVEMENT, LOT, GRASS, EARTH, CROSSING)
    limit = min(110, int(ground.area / 3))
    wanted = int(rng.geometric(1 / 14)) if rng.random() < 0.7 else int(rng.integers(15, 60))
    wanted = min(wanted, limit)
    crowded = rng.random() < 0.2
    while len(items) < wanted:
        spot = ground.draw(rng, _PEOPLE)
        if spot is None:
            break
        x, y = spot
        roll, heading = rng.random(), float(rng.uniform(0, 2 * np.pi))
        before = len(items)
        if roll < 0.5:
            add(x, y, _pose(rng, ground.at(x, y)), heading, anywhere)
        elif roll < 0.72:  # walking side by side
            for n in range(int(rng.integers(2, 5))):
                offset = n * rng.uniform(0.5, 0.8)
                add(x - offset * np.sin(heading), y + offset * np.cos(heading), "walk",
                    heading + rng.normal(0, 0.15), anywhere)  # fmt: skip
        elif roll < 0.9:  # a group that talks, or sits together
            count, radius = int(rng.integers(2, 8)), rng.uniform(0.45, 1.1)
            pose = "ground" if ground.at(x, y) == GRASS and rng.random() < 0.4 else "stand"
            for angle in (np.arange(count) * 2 * np.pi / count + rng.normal(0, 0.3, count)).tolist():
                r = radius * rng.uniform(0.8, 1.3) * max(1, count / 4)
                add(x + r * np.cos(angle), y + r * np.sin(angle), pose, angle + np.pi + rng.normal(0, 0.4), anywhere)
        elif roll < 0.94:  # a queue
            for n in range(int(rng.integers(3, 12))):
                offset = n * rng.uniform(0.6, 1.1)
                add(x + offset * np.cos(heading), y + offset * np.sin(heading), "stand", heading + np.pi, anywhere)
        if len(items) == before and rng.random() < 0.1:
            break
    if crowded and (spot := ground.draw(rng, _PEOPLE)) is not None:
        count = min(int(rng.integers(25, 110)), limit)
        spacing, heading = rng.uniform(0.55, 1.8), float(rng.uniform(0, 2 * np.pi))
        spread = spacing * np.sqrt(count) * rng.uniform(0.35, 0.6, 2)
        pose = str(rng.choice(("stand", "stand", "walk", "seat", "ground")))
        turn = np.array(((np.cos(heading), -np.sin(heading)), (np.sin(heading), np.cos(heading))))
        for dx, dy in ((rng.normal(0, 1, (count, 2)) * spread) @ turn.T).tolist():
            kind = pose if rng.random() < 0.8 else _pose(rng, LOT)
            add(spot[0] + dx, spot[1] + dy, kind, heading + rng.normal(0, 0.5), anywhere)
    return items


def _pose(rng: np.random.Generator, surface: int) -> str:
    """Draw the pose of a single person."""
    if surface in (GRASS, EARTH):
        return str(rng.choice(("stand", "walk", "run", "ground", "lie", "bend", "squat"),
                              p=(0.27, 0.33, 0.07, 0.11, 0.13, 0.05, 0.04)))  # fmt: skip
    return str(rng.choice(("stand", "walk", "run", "bend", "squat", "ground", "lie"),
                          p=(0.3, 0.54, 0.05, 0.04, 0.03, 0.025, 0.015)))  # fmt: skip


def _figure(rng: np.random.Generator, ground: _Ground, body: Body, pose: str, heading: float, x: float, y: float, *,
            umbrella: bool = False) -> Item:  # fmt: skip
    """Return a person with as much detail as the scale shows."""
    scale = ground.background.camera.scale(x, y)
    mesh = person(rng, body, 0 if scale > 26 else 1 if scale > 11 else 2, pose, heading, umbrella=umbrella)
    mesh = mesh.moved(x, y)
    return Item("person", pose, mesh, mesh, x, y)
