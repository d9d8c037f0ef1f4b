"""Pictures on the terminal: by a protocol for images where it has one, else by coloured blocks."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import select
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from models.images import ImageError, open_rgb

__all__ = ["Protocol", "blocks", "draw", "escape", "protocol_of"]

Protocol = Literal["kitty", "iterm2", "sixel", "blocks"]

COLUMNS, ROWS = 48, 18
"""The most characters that a picture covers."""

CELL = (10, 20)
"""Pixels of a character, about; only how sharp a picture is depends on it."""

COLOURS = 64
"""Of a sixel picture."""

ANSWER_SECONDS = 0.3
"""How long a terminal may take to say what it can."""


def draw(console: Console, image: bytes, environ: Mapping[str, str] = os.environ) -> None:
    """Draw an image of unknown origin; nothing where the console is no terminal or has no colours.

    An image that cannot be decoded draws nothing.
    """
    protocol = protocol_of(console, environ)
    if protocol is None:
        return
    try:
        picture = open_rgb(image, min_size=(COLUMNS * CELL[0], ROWS * CELL[1]))
    except ImageError:
        return
    columns, rows = _cells(picture, min(COLUMNS, console.width), ROWS)
    if protocol == "blocks":
        console.print(blocks(picture, columns, rows), end="")
        return
    console.file.write(escape(protocol, picture, columns, rows) + "\n")
    console.file.flush()


def protocol_of(console: Console, environ: Mapping[str, str] = os.environ) -> Protocol | None:
    """How a console can show an image: told by its environment, or asked of the terminal itself."""
    if not console.is_terminal or console.is_dumb_terminal or console.no_color:
        return None
    term, program = environ.get("TERM", ""), environ.get("TERM_PROGRAM", "")
    if "TMUX" not in environ and not term.startswith(("screen", "tmux")):
        if "KITTY_WINDOW_ID" in environ or "kitty" in term or "ghostty" in (term, program):
            return "kitty"
        if program in ("iTerm.app", "WezTerm") or environ.get("LC_TERMINAL") == "iTerm2":
            return "iterm2"
    if console.file is sys.stdout and _has_sixel():
        return "sixel"
    has_colours = console.color_system in ("truecolor", "256")
    return "blocks" if has_colours and "utf" in console.encoding.lower() else None


def blocks(picture: Image.Image, columns: int, rows: int) -> Text:
    """A picture as half blocks, two pixels a character."""
    pixels = np.asarray(picture.resize((columns, 2 * rows), Image.Resampling.BOX))
    text = Text(no_wrap=True, end="")
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        for above, below in zip(upper.tolist(), lower.tolist(), strict=True):
            style = Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below))
            text.append("\N{UPPER HALF BLOCK}", style)
        text.append("\n")
    return text


def escape(
    protocol: Literal["kitty", "iterm2", "sixel"], picture: Image.Image, columns: int, rows: int
) -> str:
    """The escape sequence that shows a picture on so many characters."""
    small = picture.resize((columns * CELL[0], rows * CELL[1]), Image.Resampling.LANCZOS)
    if protocol == "sixel":
        return _sixel(small)
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    content = base64.b64encode(buffer.getvalue()).decode()
    if protocol == "iterm2":
        size = f"width={columns};height={rows};size={buffer.tell()}"
        return f"\x1b]1337;File=inline=1;{size}:{content}\a"
    parts = [content[start : start + 4096] for start in range(0, len(content), 4096)]
    keys = [f"a=T,f=100,q=2,c={columns},r={rows},", *[""] * (len(parts) - 1)]
    return "".join(
        f"\x1b_G{key}m={int(number < len(parts))};{part}\x1b\\"
        for number, (key, part) in enumerate(zip(keys, parts, strict=True), 1)
    )


def _sixel(picture: Image.Image) -> str:
    """DEC's sixels: for each band of six lines and each colour in it, six bits a column."""
    reduced = picture.quantize(COLOURS)
    palette = (np.array(reduced.getpalette(), int)[: 3 * COLOURS].reshape(-1, 3) * 100 + 127) // 255
    pixels = np.asarray(reduced)
    height, width = pixels.shape
    bands = [f'\x1bPq"1;1;{width};{height}']
    bands += [f"#{number};2;{r};{g};{b}" for number, (r, g, b) in enumerate(palette.tolist())]
    for top in range(0, height, 6):
        band = pixels[top : top + 6]
        weights = (1 << np.arange(len(band)))[:, None]
        for colour in np.unique(band).tolist():
            bits = ((band == colour) * weights).sum(0)
            bands.append(f"#{colour}" + "".join(_runs(bits.tolist())) + "$")
        bands.append("-")
    return "".join(bands) + "\x1b\\"


def _runs(bits: list[int]) -> Iterator[str]:
    """Sixel characters, equal ones in a row as a count."""
    start = 0
    for end in range(1, len(bits) + 1):
        if end == len(bits) or bits[end] != bits[start]:
            character = chr(63 + bits[start])
            yield f"!{end - start}{character}" if end - start > 3 else character * (end - start)
            start = end


def _cells(picture: Image.Image, columns: int, rows: int) -> tuple[int, int]:
    """Columns and rows of characters, twice as high as wide, that keep the sides' ratio."""
    ratio = picture.width / picture.height * 2
    wide = min(columns, round(rows * ratio))
    return max(wide, 1), max(min(rows, round(wide / ratio)), 1)


def _has_sixel() -> bool:
    """Whether the terminal names 4, sixels, among its attributes (DA1)."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    try:
        import termios
        import tty
    except ImportError:
        return False
    handle = sys.stdin.fileno()
    try:
        if os.tcgetpgrp(handle) != os.getpgrp():  # in the background, asking would stop it
            return False
        before = termios.tcgetattr(handle)
    except (termios.error, OSError):
        return False
    answer = b""
    try:
        tty.setcbreak(handle)
        sys.stdout.write("\x1b[c")
        sys.stdout.flush()
        end = time.monotonic() + ANSWER_SECONDS
        while not answer.endswith(b"c") and (left := end - time.monotonic()) > 0:
            if select.select([handle], [], [], left)[0]:
                answer += os.read(handle, 64)
    finally:
        with contextlib.suppress(termios.error):
            termios.tcsetattr(handle, termios.TCSANOW, before)
    return b"4" in answer.removeprefix(b"\x1b[?").removesuffix(b"c").split(b";")[1:]
