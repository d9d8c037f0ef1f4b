"""Pictures in each of the ways that terminals show them."""

import base64
import io
import re

import fakes
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from pipeline.picture import blocks, draw, escape, protocol_of


def console(**options):
    settings = {"color_system": "truecolor", "force_terminal": True, "width": 80, **options}
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    return Console(file=file, _environ={}, **settings)


@pytest.mark.parametrize(
    ("environ", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"LC_TERMINAL": "iTerm2"}, "iterm2"),
        ({"TERM": "xterm-256color"}, "blocks"),
        ({"TERM": "screen-256color", "KITTY_WINDOW_ID": "1"}, "blocks"),
        ({"TERM": "tmux-256color", "TMUX": "/tmp/x", "TERM_PROGRAM": "iTerm.app"}, "blocks"),
    ],
)
def test_the_protocol_is_told_by_the_environment(environ, protocol):
    assert protocol_of(console(), environ) == protocol


@pytest.mark.parametrize(
    "options",
    [{"force_terminal": False}, {"no_color": True}, {"color_system": "standard"}],
)
def test_nothing_is_drawn_where_it_would_be_noise(options):
    where = console(**options)
    draw(where, fakes.jpeg(1), {"TERM": "xterm"})
    assert where.file.buffer.getvalue() == b""


def test_a_broken_image_draws_nothing():
    where = console()
    draw(where, b"no image", {"TERM": "xterm-kitty"})
    assert where.file.buffer.getvalue() == b""


@pytest.mark.parametrize("size", [(300, 200), (40, 4000), (4000, 40), (1, 1)])
def test_a_drawing_keeps_its_ratio_and_its_bounds(size):
    buffer = io.BytesIO()
    Image.new("RGB", size, (10, 200, 30)).save(buffer, "PNG")
    where = console()
    draw(where, buffer.getvalue(), {"TERM": "xterm"})
    lines = where.file.buffer.getvalue().decode().splitlines()
    wide = [line.count("\N{UPPER HALF BLOCK}") for line in lines]
    wide = [n for n in wide if n]
    assert 1 <= len(wide) <= 18 and set(wide) == {wide[0]} and wide[0] <= 48
    if size == (300, 200):
        assert abs(wide[0] / len(wide) - 3) < 0.3


def test_half_blocks_hold_two_pixels_a_character():
    pixels = np.zeros((4, 3, 3), np.uint8)
    pixels[0], pixels[1], pixels[2:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    text = blocks(Image.fromarray(pixels), 3, 2)
    first, *_, last = text.spans
    assert first.style.color.triplet == (255, 0, 0) and first.style.bgcolor.triplet == (0, 255, 0)
    assert last.style.color.triplet == last.style.bgcolor.triplet == (0, 0, 255)
    assert [len(line) for line in text.plain.splitlines()] == [3, 3]


def picture():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))


def test_kitty_gets_a_png_in_chunks():
    sequence = escape("kitty", picture(), 30, 15)
    chunks = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", sequence)
    assert "".join(f"\x1b_G{keys};{part}\x1b\\" for keys, part in chunks) == sequence
    assert len(chunks) > 1 and all(len(part) <= 4096 for _, part in chunks)
    assert [keys[-3:] for keys, _ in chunks] == ["m=1"] * (len(chunks) - 1) + ["m=0"]
    assert "a=T,f=100" in chunks[0][0] and "c=30,r=15" in chunks[0][0]
    content = base64.b64decode("".join(part for _, part in chunks))
    assert Image.open(io.BytesIO(content)).size == (300, 300)


def test_iterm2_gets_a_png():
    sequence = escape("iterm2", picture(), 4, 2)
    found = re.fullmatch(r"\x1b]1337;File=inline=1;width=4;height=2;size=(\d+):(.*)\a", sequence)
    content = base64.b64decode(found[2])
    assert len(content) == int(found[1])
    assert Image.open(io.BytesIO(content)).size == (40, 40)


def test_sixels_decode_to_the_picture():
    image = Image.new("RGB", (4, 1), (0, 0, 255))
    image.putpixel((0, 0), (255, 0, 0))
    large = image.resize((40, 20), Image.Resampling.NEAREST)
    shown = decoded(escape("sixel", large, 4, 1))
    assert np.array_equal(shown, np.asarray(large))
    noise = picture().resize((20, 20), Image.Resampling.BOX)
    shown = decoded(escape("sixel", noise, 2, 1))
    assert np.abs(shown.astype(int) - np.asarray(noise)).mean() < 8


def decoded(sequence):
    """The pixels of a sixel sequence, read as DEC's manual says."""
    head, width, height, body = re.fullmatch(
        r'\x1bPq"(1;1);(\d+);(\d+)(.*)\x1b\\', sequence, re.S
    ).groups()
    assert head
    pixels = np.zeros((int(height), int(width), 3), np.uint8)
    palette, colour, x, top = {}, 0, 0, 0
    for part in re.findall(r"#\d+(?:;2;\d+;\d+;\d+)?|!\d+.|[?-~]|[$-]", body):
        if part[0] == "#":
            colour, *rest = map(int, part[1:].split(";"))
            if rest:
                palette[colour] = [round(value * 2.55) for value in rest[1:]]
        elif part == "$":
            x = 0
        elif part == "-":
            x, top = 0, top + 6
        else:
            count = int(part[1:-1]) if part[0] == "!" else 1
            for bit in range(6):
                if (ord(part[-1]) - 63) >> bit & 1:
                    pixels[top + bit, x : x + count] = palette[colour]
            x += count
    return pixels
