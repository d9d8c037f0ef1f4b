"""Drawn pictures of one design each, all different, and what the web makes of pictures."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator

from PIL import Image, ImageDraw, ImageFont

TEXT = (
    "anchor apple autumn beach bicycle bird bridge candle castle chess circle cloud coffee compass "
    "copper crown dance desert dream eagle engine feather fire flower forest galaxy garden glass "
    "guitar harbour honey island jazz jungle kettle lemon lighthouse lion love magic maple market "
    "melody meteor moon mountain music night ocean orange orbit paper pepper piano pirate planet "
    "poet queen rain river robot rocket rose sailor shadow silver snow spring star stone storm "
    "summer sunset tiger train travel tulip valley violin water whale wild wind winter wolf yoga"
)
WORDS = TEXT.split()


def font(size: int) -> ImageFont.FreeTypeFont:
    found = ImageFont.load_default(size=size)
    assert isinstance(found, ImageFont.FreeTypeFont)
    return found


def shirt(rng: random.Random) -> Image.Image:
    """A black T-shirt with two words in white."""
    image = Image.new("RGB", (500, 500), (250, 250, 250))
    pen = ImageDraw.Draw(image)
    left, right = [(205, 70), (120, 105), (60, 215), (130, 250)], [(370, 250), (440, 215)]
    body = [(155, 205), (155, 455), (345, 455), (345, 205)]
    pen.polygon([*left, *body, *right, (380, 105), (295, 70)], fill=(25, 25, 25))
    for row, word in enumerate(rng.sample(WORDS, 2)):
        pen.text((250, 190 + 50 * row), word.upper(), font=font(36), fill="white", anchor="mm")
    return image


def quote(rng: random.Random) -> Image.Image:
    """Four lines in white on black."""
    image = Image.new("RGB", (500, 500), "black")
    pen = ImageDraw.Draw(image)
    for row in range(4):
        text = " ".join(rng.sample(WORDS, 3))
        pen.text((45, 115 + 62 * row), text, font=font(32), fill="white")
    return image


def chart(rng: random.Random) -> Image.Image:
    """A line over a grid, and a title."""
    image = Image.new("RGB", (640, 480), "white")
    pen = ImageDraw.Draw(image)
    for row in range(6):
        pen.line((60, 430 - 70 * row, 620, 430 - 70 * row), fill="#dddddd")
    pen.line((60, 20, 60, 430, 620, 430), fill="black", width=2)
    height, points = rng.uniform(150, 350), []
    for x in range(60, 620, 10):
        height = min(420, max(30, height + rng.gauss(0, 20)))
        points.append((x, height))
    pen.line(points, fill="#1f77b4", width=2)
    pen.text((250, 5), " ".join(rng.sample(WORDS, 2)), font=font(18), fill="black")
    return image


def slide(rng: random.Random) -> Image.Image:
    """A title and five items."""
    image = Image.new("RGB", (800, 450), "white")
    pen = ImageDraw.Draw(image)
    pen.text((60, 30), " ".join(rng.sample(WORDS, 3)).title(), font=font(44), fill="black")
    for row in range(5):
        text = "- " + " ".join(rng.sample(WORDS, rng.randint(3, 7)))
        pen.text((80, 120 + 60 * row), text, font=font(26), fill="black")
    return image


def page(rng: random.Random) -> Image.Image:
    """Thirty-eight lines of small print."""
    image = Image.new("RGB", (600, 800), "white")
    pen = ImageDraw.Draw(image)
    for row in range(38):
        text = " ".join(rng.choices(WORDS, k=9))
        pen.text((50, 30 + 20 * row), text, font=font(14), fill="black")
    return image


def mug(rng: random.Random) -> Image.Image:
    """A white mug with one word."""
    image = Image.new("RGB", (480, 480), (206, 178, 150))
    pen = ImageDraw.Draw(image)
    pen.ellipse((300, 160, 440, 340), outline="white", width=24)
    pen.rounded_rectangle((110, 110, 360, 390), 24, fill="white")
    word = f"{rng.choice(WORDS)}\n{rng.choice(WORDS)}"
    pen.text((235, 245), word, font=font(40), fill="#303030", anchor="mm", align="center")
    return image


FAMILIES: dict[str, Callable[[random.Random], Image.Image]] = {
    "shirts": shirt,
    "quotes": quote,
    "charts": chart,
    "slides": slide,
    "pages": page,
    "mugs": mug,
}


def drawn(family: str, number: int, seed: int = 0) -> Iterator[Image.Image]:
    """Different pictures of a family."""
    rng, seen = random.Random(seed), set[bytes]()
    while len(seen) < number:
        image = FAMILIES[family](rng)
        content = image.tobytes()
        if content not in seen:
            seen.add(content)
            yield image


def encoded(image: Image.Image, quality: int = 90) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def resized(image: Image.Image, scale: float) -> Image.Image:
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC)


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Without a share of each side."""
    x, y = round(image.width * share), round(image.height * share)
    return image.crop((x, y, image.width - x, image.height - y))


def marked(
    image: Image.Image, where: str, alpha: float, scale: float, colour: str = "white"
) -> Image.Image:
    """With a watermark in a corner, in the centre, or all over."""
    mark = Image.new("L", image.size)
    pen = ImageDraw.Draw(mark)
    width, height = image.size
    letters, opacity = font(max(10, int(width * scale))), round(255 * alpha)
    if where == "tiled":
        for y in range(0, height, max(1, height // 5)):
            for x in range(0, width, max(1, width // 3)):
                pen.text((x, y), "stock photo", font=letters, fill=opacity)
    elif where == "corner":
        at = width - 8, height - 8
        pen.text(at, "\u00a9 example.com", font=letters, fill=opacity, anchor="rb")
    else:
        at = width // 2, height // 2
        pen.text(at, "\u00a9 example.com", font=letters, fill=opacity, anchor="mm")
    return Image.composite(Image.new("RGB", image.size, colour), image, mark)


COPIES: dict[str, Callable[[Image.Image], bytes]] = {
    "quality 75": lambda image: encoded(image, 75),
    "quality 50": lambda image: encoded(image, 50),
    "quality 30": lambda image: encoded(image, 30),
    "half size": lambda image: encoded(resized(image, 0.5)),
    "third, quality 75": lambda image: encoded(resized(image, 1 / 3), 75),
    "quarter size": lambda image: encoded(resized(image, 0.25)),
    "double size": lambda image: encoded(resized(image, 2)),
    "crop 1% a side": lambda image: encoded(cropped(image, 0.01)),
    "crop 2% a side": lambda image: encoded(cropped(image, 0.02)),
    "crop 3% a side": lambda image: encoded(cropped(image, 0.03)),
    "mark in a corner": lambda image: encoded(marked(image, "corner", 0.6, 0.04)),
    "dark mark in a corner": lambda image: encoded(marked(image, "corner", 0.6, 0.04, "black")),
    "mark in the centre": lambda image: encoded(marked(image, "centre", 0.4, 0.08)),
    "mark all over": lambda image: encoded(marked(image, "tiled", 0.3, 0.04)),
    "half size, mark": lambda image: encoded(marked(resized(image, 0.5), "centre", 0.4, 0.08), 75),
}
"""By what is done to it, a copy of a picture."""
