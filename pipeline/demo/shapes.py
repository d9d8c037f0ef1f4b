"""Draws coloured shapes on a textured ground, with the imperfections of a photograph."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from pipeline.demo.outlines import MANY, Point, circle, heart, star

__all__ = ["COLORS", "GROUNDS", "OUTLINES", "SHAPES", "Shape", "paint"]

CANVAS = 256
Color = tuple[int, int, int]

COLORS: dict[str, Color] = {
    "red": (215, 35, 35),
    "orange": (250, 140, 20),
    "yellow": (250, 225, 40),
    "green": (30, 140, 50),
    "blue": (35, 80, 225),
    "purple": (150, 45, 190),
    "white": (250, 250, 250),
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One object in an image.

    Attributes:
        kind: A key of `OUTLINES`.
        color: A key of `COLORS`.
        x: Centre from the left, as a share of the image's width.
        y: Centre from the top, as a share of the image's height.
        radius: Radius of the enclosing circle, as a share of the image's width.
        angle: Clockwise rotation in radians.
        is_mirrored: Whether left and right are exchanged.
    """

    kind: str
    color: str
    x: float
    y: float
    radius: float
    angle: float = 0.0
    is_mirrored: bool = False


FISH_TAIL: list[Point] = [(0.35, 0.0), (1.0, -0.6), (0.85, 0.0), (1.0, 0.6)]
SHAPES: dict[str, list[list[Point]]] = {
    "ball": [circle(a=0.92, b=0.92)],
    "star": [star()],
    "heart": [heart()],
    "house": [[(-0.75, 0.85), (-0.75, -0.05), (0.0, -0.95), (0.75, -0.05), (0.75, 0.85)]],
    "fish": [FISH_TAIL, circle(x=-0.22, a=0.78, b=0.55)],
    "kite": [[(0.0, -1.0), (0.68, -0.15), (0.0, 1.0), (-0.68, -0.15)]],
}
"""The filled outlines of each kind of the small world in the unit circle, drawn in order."""

OUTLINES = {**SHAPES, **MANY}
"""Those of every kind."""

DETAILS: dict[str, list[list[Point]]] = {
    "house": [[(-0.2, 0.85), (-0.2, 0.25), (0.2, 0.25), (0.2, 0.85)]],
    "fish": [circle(x=-0.6, y=-0.12, a=0.13, b=0.13)],
    "kite": [[(-0.04, -1.0), (0.04, -1.0), (0.04, 1.0), (-0.04, 1.0)]],
}
"""Details drawn over a kind in the colour of its outline: a door, an eye, a spar."""


def shade(color: Color, factor: float) -> Color:
    """Make a colour darker (factor below 1) or lighter."""
    red, green, blue = (min(255, max(0, round(c * factor))) for c in color)
    return red, green, blue


def paint_meadow(pen: ImageDraw.ImageDraw, rng: random.Random) -> None:
    """Paint pale green with blades of grass."""
    pen.rectangle((0, 0, CANVAS, CANVAS), (158, 200, 118))
    for _ in range(110):
        x, y = rng.uniform(0, CANVAS), rng.uniform(0, CANVAS)
        tip = (x + rng.uniform(-6, 6), y - rng.uniform(12, 26))
        pen.line([(x, y), tip], shade((138, 184, 96), rng.uniform(0.85, 1.15)), 3)


def paint_beach(pen: ImageDraw.ImageDraw, rng: random.Random) -> None:
    """Paint sand with pebbles."""
    pen.rectangle((0, 0, CANVAS, CANVAS), (232, 210, 166))
    for _ in range(90):
        x, y, r = rng.uniform(0, CANVAS), rng.uniform(0, CANVAS), rng.uniform(1.5, 4)
        pen.ellipse((x - r, y - r, x + r, y + r), shade((205, 178, 130), rng.uniform(0.85, 1.15)))


def paint_sea(pen: ImageDraw.ImageDraw, rng: random.Random) -> None:
    """Paint light blue with rows of waves."""
    pen.rectangle((0, 0, CANVAS, CANVAS), (132, 198, 226))
    length, phase = rng.uniform(40, 70), rng.uniform(0, math.tau)
    for row in range(9):
        y = row * 30 + rng.uniform(-6, 6)
        wave = [
            (x, y + 6 * math.sin(math.tau * x / length + phase + row * 1.7))
            for x in range(0, CANVAS + 9, 8)
        ]
        pen.line(wave, (168, 220, 240), 5)


def paint_wall(pen: ImageDraw.ImageDraw, rng: random.Random) -> None:
    """Paint grey bricks."""
    pen.rectangle((0, 0, CANVAS, CANVAS), (196, 194, 190))
    height, width = rng.uniform(28, 36), rng.uniform(58, 76)
    top, row = -rng.uniform(0, height), 0
    while top < CANVAS:
        left = -rng.uniform(0, 12) - (width / 2 if row % 2 else 0)
        while left < CANVAS:
            brick = shade((150, 148, 146), rng.uniform(0.92, 1.08))
            pen.rectangle((left, top, left + width - 5, top + height - 5), brick)
            left += width
        top, row = top + height, row + 1


def paint_night(pen: ImageDraw.ImageDraw, rng: random.Random) -> None:
    """Paint a dark sky, paler towards the horizon, with faint lights."""
    for band in range(16):
        color = shade((22, 24, 46), 0.8 + band * 0.045)
        pen.rectangle((0, band * 16, CANVAS, band * 16 + 16), color)
    for _ in range(30):
        x, y, r = rng.uniform(0, CANVAS), rng.uniform(0, CANVAS), rng.uniform(0.8, 1.6)
        pen.ellipse((x - r, y - r, x + r, y + r), (150, 150, 170))


GROUNDS: dict[str, Callable[[ImageDraw.ImageDraw, random.Random], None]] = {
    "meadow": paint_meadow,
    "beach": paint_beach,
    "sea": paint_sea,
    "wall": paint_wall,
    "night": paint_night,
}


def place(shape: Shape, outline: list[Point]) -> list[Point]:
    """Transform the outline of a shape from the unit circle to canvas pixels."""
    cos, sin = math.cos(shape.angle), math.sin(shape.angle)
    flip = -1.0 if shape.is_mirrored else 1.0
    scale = shape.radius * CANVAS
    return [
        (
            shape.x * CANVAS + scale * (flip * x * cos - y * sin),
            shape.y * CANVAS + scale * (flip * x * sin + y * cos),
        )
        for x, y in outline
    ]


def paint(shapes: Sequence[Shape], ground: str, size: int, rng: random.Random) -> Image.Image:
    """Draw shapes on a ground, with the imperfections of a photograph.

    Lighting is uneven, exposure and white balance vary, and there are blur and sensor noise, all
    chosen by `rng`.

    Args:
        shapes: Shapes to draw in order, later ones in front.
        ground: A key of `GROUNDS`.
        size: Side of the square image, in pixels.
        rng: Source of all randomness.

    Returns:
        An RGB image of size x size.
    """
    canvas = Image.new("RGB", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(canvas)
    GROUNDS[ground](pen, rng)
    for shape in shapes:
        fill = shade(COLORS[shape.color], rng.uniform(0.92, 1.06))
        edge = shade(fill, 0.4)
        for outline in OUTLINES[shape.kind]:
            points = place(shape, outline)
            pen.polygon(points, fill)
            pen.line([*points, points[0], points[1]], edge, 6, joint="curve")
        for outline in DETAILS.get(shape.kind, []):
            pen.polygon(place(shape, outline), edge)
    picture = canvas.resize((size, size), Image.Resampling.BOX, reducing_gap=None)
    if rng.random() < 0.4:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.7) * size / 64))
    return expose(picture, rng)


def expose(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Add uneven light, a colour cast and sensor noise."""
    light = np.array([[rng.uniform(0.82, 1.14) for _ in range(4)] for _ in range(4)], np.float32)
    field = Image.fromarray(light).resize(picture.size, Image.Resampling.BICUBIC)
    cast = np.array([rng.uniform(0.95, 1.05) for _ in "rgb"], np.float32)
    pixels = np.asarray(picture, np.float32) * np.asarray(field)[..., None] * cast
    noise = np.random.default_rng(rng.getrandbits(64))
    grain = noise.standard_normal(pixels.shape[:2], np.float32) * rng.uniform(1.0, 5.0)
    return Image.fromarray(np.clip(pixels + grain[..., None], 0, 255).astype(np.uint8))
