"""Different pictures that may not be merged, and copies that must be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from helpers.graphics import COPIES, FAMILIES, drawn, encoded
from PIL import Image

from benchmarks.dedup.captions import DATA
from models.image.copies import are_copies
from models.image.hamming import Near, image_centres
from models.image.perceptual_hash import SIDE, colour_distance, hamming
from stages.dedup import DedupConfig
from stages.image_prints import ImagePrints

DRAWN_COPIES = 40
"""Pictures of each drawn family of which copies are made."""


def families(number: int) -> Iterator[tuple[str, list[Image.Image], int]]:
    """The name of each, different pictures of it, and how many of them are copied."""
    for name in FAMILIES:
        yield name, list(drawn(name, number)), DRAWN_COPIES
    photos = sorted((DATA / "flickr8k/images").glob("*"))[:number]
    if photos:
        yield "photographs", [Image.open(path).convert("RGB") for path in photos], number


def looks_alike(a: ImagePrints, b: ImagePrints, i: Any, j: Any) -> Any:
    """Whether hash and colours agree, as dedup's defaults have it."""
    near = hamming(a.phash[i], b.phash[j]) <= DedupConfig().max_hamming
    colours = colour_distance(a.colours[i], b.colours[j])
    return near & (colours <= DedupConfig().max_colour_distance)


def confirmed(a: ImagePrints, b: ImagePrints, i: Any, j: Any, tolerance: float) -> Any:
    found = np.zeros(len(i), bool)
    alike = np.flatnonzero(looks_alike(a, b, i, j))
    ours, theirs = (one.luma[at[alike]].reshape(-1, SIDE, SIDE) for one, at in ((a, i), (b, j)))
    found[alike] = are_copies(ours, theirs, tolerance)
    return found


def merged(prints: ImagePrints, near: Near) -> int:
    """How many pictures dedup would drop."""
    found = image_centres(
        prints.phash,
        near,
        max_hamming=DedupConfig().max_hamming,
        lightness=prints.luma.sum(axis=1, dtype=np.int64),
    )
    return int((found != np.arange(len(found))).sum())


def compare_pictures(number: int, plot: Path | None) -> None:
    tolerances = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0) if plot else (1.0,)
    lost: dict[str, list[float]] = {}
    kept: dict[str, list[float]] = {}
    print(f"\n{number} different pictures of each family: how many are merged; copies: recall")
    for name, images, copied in families(number):
        prints = ImagePrints.of(map(encoded, images))
        every = np.arange(copied)
        copies = {
            kind: ImagePrints.of(make(image) for image in images[:copied])
            for kind, make in COPIES.items()
        }

        def alike(i: Any, j: Any, of: ImagePrints = prints) -> Any:
            return looks_alike(of, of, i, j)

        def same(tolerance: float, of: ImagePrints = prints) -> Near:
            return lambda i, j: confirmed(of, of, i, j, tolerance)

        new = {tolerance: merged(prints, same(tolerance)) for tolerance in tolerances}
        print(f"{name:12} by hash and colours {merged(prints, alike):4}, confirmed {new[1.0]:4}")
        recalls: dict[str, list[float]] = {}
        for kind, found in copies.items():
            old = looks_alike(prints, found, every, every).mean()
            recalls[kind] = [
                float(confirmed(prints, found, every, every, one).mean()) for one in tolerances
            ]
            at = recalls[kind][tolerances.index(1.0)]
            if min(old, at) < 1:
                print(f"{'':12} {kind:24} by hash and colours {old:.3f}, confirmed {at:.3f}")
        lost[name] = [100 * new[one] / number for one in tolerances]
        plain = [
            found for kind, found in recalls.items() if " 2% " not in kind and "3%" not in kind
        ]
        kept[name] = [100 * float(np.mean(column)) for column in zip(*plain, strict=True)]
    if plot:
        plot.write_text(drawing(tolerances, lost, kept), encoding="utf-8")
        print(f"wrote {plot}")


COLOURS = ("#c2410c", "#d4a017", "#4d7c0f", "#0e7490", "#6d28d9", "#be185d", "#111827")


def drawing(
    tolerances: tuple[float, ...], lost: dict[str, list[float]], kept: dict[str, list[float]]
) -> str:
    """An SVG of what a tolerance merges wrongly, and what it finds of copies."""
    width, height, left, top, wide, high = 760, 330, 60, 40, 240, 230
    low, most = np.log10(tolerances[0]), np.log10(tolerances[-1])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#444">',
        "<title>What dedup merges wrongly and what it finds, over its tolerance</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    panels = (
        ("different pictures that are merged, %", lost, left),
        ("copies that are found, %", kept, left + wide + 60),
    )
    for title, lines, start in panels:
        parts.append(f'<text x="{start}" y="{top - 16}" font-weight="600">{title}</text>')
        for percent in range(0, 101, 25):
            y = top + high - high * percent / 100
            parts.append(f'<path d="M{start} {y}h{wide}" stroke="#e2e5e9"/>')
            parts.append(f'<text x="{start - 6}" y="{y + 4}" text-anchor="end">{percent}</text>')
        for one in tolerances:
            x = start + wide * (np.log10(one) - low) / (most - low)
            colour = "#9ca3af" if one == 1 else "#f1f3f5"
            parts.append(f'<path d="M{x:.1f} {top}v{high}" stroke="{colour}"/>')
            if one in (0.1, 0.25, 0.5, 1, 2, 5, 10):
                y = top + high + 18
                parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{one:g}</text>')
        parts.append(
            f'<text x="{start + wide / 2}" y="{top + high + 40}" text-anchor="middle">'
            "tolerance (1 is the default)</text>"
        )
        for (name, values), colour in zip(lines.items(), COLOURS, strict=False):
            points = " ".join(
                f"{start + wide * (np.log10(one) - low) / (most - low):.1f},"
                f"{top + high - high * value / 100:.1f}"
                for one, value in zip(tolerances, values, strict=True)
            )
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2">'
                f"<title>{name}</title></polyline>"
            )
    for row, (name, colour) in enumerate(zip(lost, COLOURS, strict=False)):
        y = top + 14 + 20 * row
        x = left + 2 * wide + 84
        parts.append(f'<path d="M{x} {y - 4}h18" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{x + 26}" y="{y}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])
