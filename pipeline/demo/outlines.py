"""Outlines of things: polygons in the unit circle, y downward."""

from __future__ import annotations

import math

__all__ = ["MANY", "Point", "circle", "heart", "regular", "star"]

Point = tuple[float, float]


def star(points: int = 5, inner: float = 0.45) -> list[Point]:
    """A star, with one point upward."""
    turns = [math.pi * i / points for i in range(2 * points)]
    radii = [1.0 if i % 2 == 0 else inner for i in range(2 * points)]
    return [(r * math.sin(t), -r * math.cos(t)) for r, t in zip(radii, turns, strict=True)]


def heart() -> list[Point]:
    """A heart, the curve with 16 sin^3."""
    turns = [math.tau * i / 40 for i in range(40)]
    return [
        (
            0.95 * math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 17,
        )
        for t in turns
    ]


def circle(x: float = 0.0, y: float = 0.0, a: float = 1.0, b: float = 1.0) -> list[Point]:
    """An ellipse with half axes a and b around (x, y)."""
    turns = [math.tau * i / 40 for i in range(40)]
    return [(x + a * math.cos(t), y + b * math.sin(t)) for t in turns]


def regular(corners: int, radius: float = 1.0, turn: float = 0.0) -> list[Point]:
    """A regular polygon, with a corner upward at turn 0."""
    turns = [turn + math.tau * i / corners for i in range(corners)]
    return [(radius * math.sin(t), -radius * math.cos(t)) for t in turns]


def box(left: float, top: float, right: float, bottom: float) -> list[Point]:
    """A rectangle."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def around(number: int, distance: float, radius: float) -> list[list[Point]]:
    """Circles around the middle."""
    return [
        circle(
            distance * math.sin(math.tau * i / number),
            -distance * math.cos(math.tau * i / number),
            radius,
            radius,
        )
        for i in range(number)
    ]


def sector(start: float, end: float, radius: float = 0.95) -> list[Point]:
    """A part of a disc from one angle to another, clockwise from the top, in turns."""
    turns = [math.tau * (start + (end - start) * i / 24) for i in range(25)]
    return [(0.0, 0.0), *((radius * math.sin(t), -radius * math.cos(t)) for t in turns)]


def moon() -> list[Point]:
    """A crescent, open to the right."""
    outer = [math.pi * (0.15 + 1.7 * i / 24) for i in range(25)]
    inner = [math.pi * (1.72 - 1.44 * i / 24) for i in range(25)]
    return [
        *((0.95 * math.cos(t), 0.95 * math.sin(t)) for t in outer),
        *((0.4 + 0.68 * math.cos(t), 0.68 * math.sin(t)) for t in inner),
    ]


def wave(top: float, bottom: float) -> list[Point]:
    """A band with wavy edges."""
    xs = [-0.95 + 1.9 * i / 24 for i in range(25)]
    upper = [(x, top + 0.18 * math.sin(7 * x)) for x in xs]
    lower = [(x, bottom + 0.18 * math.sin(7 * x)) for x in reversed(xs)]
    return [*upper, *lower]


TRIANGLE: list[Point] = [(0.0, -0.95), (0.9, 0.75), (-0.9, 0.75)]

MANY: dict[str, list[list[Point]]] = {
    "tree": [box(-0.15, 0.3, 0.15, 0.95), circle(0, -0.25, 0.65, 0.65)],
    "car": [
        [(-0.5, -0.05), (-0.3, -0.5), (0.35, -0.5), (0.55, -0.05)],
        box(-0.95, -0.1, 0.95, 0.35),
        circle(-0.5, 0.4, 0.25, 0.25),
        circle(0.5, 0.4, 0.25, 0.25),
    ],
    "boat": [
        [(-0.9, 0.3), (0.9, 0.3), (0.55, 0.8), (-0.55, 0.8)],
        [(0.0, -0.9), (0.7, 0.2), (0.0, 0.2)],
    ],
    "flower": [*around(6, 0.6, 0.33), circle(0, 0, 0.35, 0.35)],
    "cup": [circle(0.6, 0.0, 0.35, 0.35), [(-0.7, -0.6), (0.6, -0.6), (0.45, 0.8), (-0.55, 0.8)]],
    "moon": [moon()],
    "cross": [box(-0.3, -0.9, 0.3, 0.9), box(-0.9, -0.3, 0.9, 0.3)],
    "ring": [circle(0, 0, 0.92, 0.92), circle(0, 0, 0.45, 0.45)],
    "arrow": [
        [(-0.9, -0.22), (0.1, -0.22), (0.1, -0.65), (0.95, 0.0), (0.1, 0.65), (0.1, 0.22)],
        [(-0.9, -0.22), (0.1, -0.22), (0.1, 0.22), (-0.9, 0.22)],
    ],
    "box": [box(-0.7, -0.7, 0.7, 0.7)],
    "cone": [TRIANGLE],
    "egg": [circle(0, 0, 0.62, 0.92)],
    "mushroom": [box(-0.22, 0.0, 0.22, 0.9), [*sector(-0.25, 0.25), (0.0, 0.0)]],
    "cloud": [
        circle(-0.45, 0.2, 0.45, 0.4),
        circle(0.45, 0.2, 0.45, 0.4),
        circle(0, -0.15, 0.5, 0.5),
    ],
    "leaf": [[(0.0, -0.95), (0.5, -0.3), (0.45, 0.35), (0.0, 0.95), (-0.45, 0.35), (-0.5, -0.3)]],
    "key": [circle(-0.55, 0, 0.38, 0.38), box(-0.2, -0.12, 0.95, 0.12), box(0.6, 0.1, 0.8, 0.5)],
    "hat": [box(-0.5, -0.7, 0.5, 0.3), box(-0.95, 0.3, 0.95, 0.6)],
    "flag": [box(-0.8, -0.95, -0.6, 0.95), box(-0.6, -0.95, 0.85, 0.05)],
    "lamp": [[(-0.35, -0.9), (0.35, -0.9), (0.75, 0.05), (-0.75, 0.05)], box(-0.1, 0.05, 0.1, 0.9)],
    "bell": [[(-0.3, -0.8), (0.3, -0.8), (0.5, 0.3), (0.85, 0.6), (-0.85, 0.6), (-0.5, 0.3)]],
    "bottle": [box(-0.18, -0.95, 0.18, -0.3), box(-0.42, -0.3, 0.42, 0.95)],
    "gear": [star(10, 0.72), circle(0, 0, 0.3, 0.3)],
    "diamond": [regular(4)],
    "snowman": [circle(0, 0.42, 0.52, 0.52), circle(0, -0.45, 0.38, 0.38)],
    "ladder": [
        box(-0.5, -0.95, -0.3, 0.95),
        box(0.3, -0.95, 0.5, 0.95),
        *(box(-0.3, y, 0.3, y + 0.14) for y in (-0.6, -0.1, 0.4)),
    ],
    "hammer": [box(-0.12, -0.4, 0.12, 0.95), box(-0.7, -0.85, 0.7, -0.35)],
    "spoon": [circle(0, -0.55, 0.35, 0.4), box(-0.1, -0.2, 0.1, 0.95)],
    "table": [box(-0.95, -0.4, 0.95, -0.1), box(-0.8, -0.1, -0.6, 0.8), box(0.6, -0.1, 0.8, 0.8)],
    "chair": [box(-0.6, -0.95, -0.4, 0.9), box(-0.6, 0.0, 0.6, 0.25), box(0.4, 0.25, 0.6, 0.9)],
    "fence": [
        *(box(x, -0.7, x + 0.22, 0.8) for x in (-0.9, -0.35, 0.15, 0.68)),
        box(-0.95, -0.3, 0.95, -0.1),
        box(-0.95, 0.3, 0.95, 0.5),
    ],
    "tower": [box(-0.4, -0.6, 0.4, 0.95), box(-0.6, -0.95, 0.6, -0.55)],
    "tent": [[(0.0, -0.8), (0.95, 0.8), (0.25, 0.8), (0.0, 0.1), (-0.25, 0.8), (-0.95, 0.8)]],
    "windmill": [
        *(
            [(0.0, 0.0), (x, y), (x * 0.4 - y * 0.5, y * 0.4 + x * 0.5)]
            for x, y in ((0.0, -1.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0))
        )
    ],
    "anchor": [
        box(-0.1, -0.9, 0.1, 0.8),
        box(-0.5, -0.5, 0.5, -0.3),
        [(-0.85, 0.2), (-0.6, 0.2), (0.0, 0.65), (0.6, 0.2), (0.85, 0.2), (0.0, 0.95)],
    ],
    "crown": [
        [(-0.9, 0.7), (-0.9, -0.6), (-0.4, 0.0), (0.0, -0.8), (0.4, 0.0), (0.9, -0.6), (0.9, 0.7)]
    ],
    "apple": [
        circle(-0.3, 0.15, 0.55, 0.7),
        circle(0.3, 0.15, 0.55, 0.7),
        box(-0.08, -0.95, 0.08, -0.4),
    ],
    "pear": [circle(0, 0.4, 0.6, 0.52), circle(0, -0.35, 0.32, 0.5)],
    "carrot": [
        [(-0.4, -0.4), (0.4, -0.4), (0.0, 0.95)],
        [(0.0, -0.4), (-0.35, -0.95), (0.35, -0.95)],
    ],
    "candle": [box(-0.25, -0.2, 0.25, 0.95), circle(0, -0.55, 0.2, 0.35)],
    "umbrella": [sector(-0.25, 0.25), box(-0.08, 0.0, 0.08, 0.9)],
    "rocket": [
        [(0.0, -0.95), (0.35, -0.3), (0.35, 0.5), (-0.35, 0.5), (-0.35, -0.3)],
        [(-0.35, 0.2), (-0.75, 0.85), (-0.2, 0.5)],
        [(0.35, 0.2), (0.75, 0.85), (0.2, 0.5)],
    ],
    "butterfly": [
        circle(-0.5, -0.35, 0.42, 0.42),
        circle(0.5, -0.35, 0.42, 0.42),
        circle(-0.4, 0.4, 0.32, 0.35),
        circle(0.4, 0.4, 0.32, 0.35),
        circle(0, 0, 0.12, 0.7),
    ],
    "snail": [
        box(-0.9, 0.45, 0.85, 0.75),
        circle(0.1, -0.05, 0.6, 0.6),
        circle(-0.75, 0.2, 0.2, 0.3),
    ],
    "turtle": [
        sector(-0.25, 0.25),
        circle(0.8, 0.0, 0.2, 0.2),
        box(-0.6, 0.0, -0.3, 0.4),
        box(0.3, 0.0, 0.6, 0.4),
    ],
    "bird": [
        circle(0, 0.1, 0.6, 0.4),
        circle(0.55, -0.3, 0.28, 0.28),
        [(-0.5, 0.0), (-1.0, -0.4), (-0.9, 0.3)],
    ],
    "spider": [
        *(box(x, -0.8, x + 0.1, 0.8) for x in (-0.7, -0.35, 0.25, 0.6)),
        circle(0, 0, 0.5, 0.42),
    ],
    "cactus": [
        box(-0.2, -0.95, 0.2, 0.95),
        box(-0.75, -0.3, -0.5, 0.3),
        box(-0.6, 0.1, -0.1, 0.3),
        box(0.5, -0.6, 0.75, 0.1),
        box(0.1, -0.1, 0.6, 0.1),
    ],
    "bone": [
        box(-0.6, -0.16, 0.6, 0.16),
        *(circle(x, y, 0.27, 0.27) for x in (-0.65, 0.65) for y in (-0.22, 0.22)),
    ],
    "sword": [
        [(0.0, -1.0), (0.16, -0.7), (0.16, 0.4), (-0.16, 0.4), (-0.16, -0.7)],
        box(-0.5, 0.4, 0.5, 0.55),
        box(-0.1, 0.55, 0.1, 0.95),
    ],
    "drum": [box(-0.75, -0.35, 0.75, 0.6), circle(0, -0.35, 0.75, 0.3)],
    "guitar": [circle(0, 0.5, 0.48, 0.42), circle(0, 0.0, 0.34, 0.32), box(-0.1, -0.95, 0.1, 0.0)],
    "clock": [regular(8), circle(0, 0, 0.6, 0.6)],
    "button": [
        circle(0, 0, 0.9, 0.9),
        *(circle(x, y, 0.15, 0.15) for x in (-0.25, 0.25) for y in (-0.25, 0.25)),
    ],
    "ribbon": [wave(-0.3, 0.3)],
}
"""The filled outlines of the things of the long tail, drawn in order, the most common first."""
