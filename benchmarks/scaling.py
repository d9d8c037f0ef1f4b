"""Seconds and memory of each stage as the pool grows, with the real `capfilt run`.

    python -m benchmarks.scaling --model PIPELINE                    # 10,000 to 100,000 rows
    python -m benchmarks.scaling --model PIPELINE --rows 1000000     # some 45 minutes on two cores

Draws images of a few kB with captions into Parquet files with a column of images (at 1,000,000
rows 4 GB under --folder, and the run as much again), then runs download, clean, dedup, select and
export on them in a process of its own. Memory is the sum over that process and all that it started,
Ray's daemons included, of the proportional share of each (PSS), looked at every second. Spilled
bytes are looked for in Ray's own folder and log. PIPELINE is a spaCy pipeline for select; without
one select draws a random half. Numbers of rows that --out already has are not run again; --plot
writes them as SVG.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SHARD = 1000
STAGES = ("download", "clean", "dedup", "select", "export")
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "old", "small", "large", "wooden")
THINGS = (
    *("dog", "house", "boat", "train", "bridge", "horse", "window", "garden", "kite", "bird"),
    *("table", "tower", "lamp", "truck", "fence", "river", "chair", "church", "market", "violin"),
)
VERBS = ("standing", "lying", "waiting", "shown", "seen", "left alone", "repaired", "photographed")
PLACES = ("morning", "evening", "city", "harbour", "village", "forest", "mountains", "rain")


def caption(rng: random.Random) -> str:
    """A sentence with four noun phrases; one in fifty is what a shop says of everything."""
    if rng.random() < 0.02:
        return f"free shipping on all orders from shop number {int(40 * rng.random() ** 2)}"
    things = [THINGS[int(len(THINGS) * rng.random() ** 2)] for _ in range(3)]
    looks = [rng.choice(COLOURS) for _ in range(3)]
    number = rng.randrange(2, 1000)
    return (
        f"a {looks[0]} {things[0]} {rng.choice(VERBS)} beside {number} {looks[1]} {things[1]}s "
        f"near the {looks[2]} {things[2]} in the {rng.choice(PLACES)}"
    )


def drawn(seed: int) -> bytes:
    """Clouds of 128 x 96 pixels as JPEG, about 3 kB."""
    rng = np.random.default_rng(seed)
    clouds = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    file = io.BytesIO()
    clouds.resize((128, 96), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def make(folder: Path, rows: int, start: int) -> None:
    """A file of rows from `start` on; one image in twenty is a copy of the one seven before."""
    path = folder / f"{start:09d}.parquet"
    if path.exists():
        return
    rng = random.Random(start)
    images: list[bytes] = []
    for row in range(start, start + rows):
        is_copy = rng.random() < 0.05 and row >= start + 7
        images.append(images[-7] if is_copy else drawn(row))
    table = pa.table(
        {
            "url": [f"https://host{n % 9973}.example/{n}.jpg" for n in range(start, start + rows)],
            "caption": [caption(rng) for _ in range(rows)],
            "image": pa.array(images, pa.binary()),
        }
    )
    partial_path = path.with_suffix(".partial")
    pq.write_table(table, partial_path, row_group_size=SHARD)
    partial_path.rename(path)


def manifest(folder: Path, rows: int, model: str | None) -> Path:
    """Where the manifest of a run over the first rows lies."""
    select = {"model": model} if model else {"method": "random", "fraction": 0.5}
    path = folder / f"{rows}.yaml"
    content = {
        "name": f"scaling {rows}",
        "run": str(folder / f"run-{rows}"),
        "stages": {
            "download": {
                "source": str(folder / "list" / "*.parquet"),
                "limit": rows,
                "shard_size": SHARD,
            },
            "clean": {},
            "dedup": {},
            "select": select,
            "export": {},
        },
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def tree(root: int) -> list[int]:
    """A process and all that it started, directly or not."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError):
                stat = Path(f"/proc/{entry}/stat").read_text()
                parents[int(entry)] = int(stat.rsplit(")", 1)[1].split()[1])
    found = [root]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def pss(process: int) -> int:
    """Bytes of a process, those shared with others by parts."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def command(process: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
    return ""


def spilled(folder: Path) -> bool:
    """Whether Ray's object store has written to disk."""
    if any(path.is_file() for path in folder.glob("**/ray_spilled_objects*/**/*")):
        return True
    logs = folder.glob("session_2*/logs/raylet*.out")
    return any("Spilled" in log.read_text(errors="replace") for log in logs)


def carry_out(path: Path, rows: int) -> dict[str, Any]:
    """Run a manifest and say what it took."""
    run = Path(yaml.safe_load(path.read_text())["run"])
    shutil.rmtree(run, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="cs-", dir="/tmp") as own:
        environment = {**os.environ, "RAY_TMPDIR": own, "PYTHONPATH": str(ROOT)}
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "run", str(path), "--quiet"],
            env=environment,
        )
        most = most_driver = 0
        first = 0.0
        did_spill = False
        while process.poll() is None:
            parts = {one: pss(one) for one in tree(process.pid)}
            most = max(most, sum(parts.values()))
            most_driver = max(most_driver, parts[process.pid])
            did_spill = did_spill or spilled(Path(own))
            if not first and any((run / "pool").glob("*.parquet")):
                first = time.perf_counter() - started
            time.sleep(1)
        if process.returncode:
            raise SystemExit(f"capfilt run ended with status {process.returncode}")
        seconds = time.perf_counter() - started
    stages = {}
    for name in STAGES:
        (mark,) = [
            *run.glob(f"annotations/{name}-*/_stage.json"),
            *([run / "pool" / "_stage.json"] if name == "download" else []),
            *([run / "curated" / "_export.json"] if name == "export" else []),
        ]
        told = json.loads(mark.read_text())
        summaries = list(run.glob(f"annotations/{name}-*/summary-*/_summary.json"))
        summary = json.loads(summaries[0].read_text()) if summaries else {}
        stages[name] = {
            "rows": told["work"]["rows"],
            "seconds": told["seconds"],
            "work": round(told["work"]["seconds"], 3),
            "cpu": round(told["work"]["cpu_seconds"] + summary.get("cpu_seconds", 0), 3),
            "summary": round(summary.get("seconds", 0), 3),
        }
    return {
        "rows": rows,
        "seconds": round(seconds, 1),
        "first_shard": round(first, 1),
        "peak": most,
        "peak_driver": most_driver,
        "spilled": did_spill,
        "stages": stages,
    }


def table(results: list[dict[str, Any]]) -> str:
    """The results as Markdown: seconds, CPU seconds of the workers, and memory."""
    lines = []
    for of, what in (("seconds", "seconds"), ("cpu", "CPU seconds of the workers")):
        lines += [
            f"| {what}: rows | {' | '.join(STAGES)} | the rest | all |",
            "| ---: |" + " ---: |" * (len(STAGES) + 2),
        ]
        for result in results:
            parts = [result["stages"][name][of] for name in STAGES]
            rest = result["seconds"] - sum(parts)
            ends = f" | {sum(parts):,.1f}"
            if of == "seconds":
                ends = f"{rest:,.1f} | {result['seconds']:,.1f}"
            told = " | ".join(f"{part:,.1f}" for part in parts)
            lines.append(f"| {result['rows']:,} | {told} | {ends} |")
        lines.append("")
    lines += [
        "| rows | peak memory | of it the driver | Ray spilled | first shard after |",
        "| ---: | ---: | ---: | --- | ---: |",
    ]
    for result in results:
        lines.append(
            f"| {result['rows']:,} | {result['peak'] / 2**30:.2f} GiB | "
            f"{result['peak_driver'] / 2**30:.2f} GiB | {'yes' if result['spilled'] else 'no'} | "
            f"{result['first_shard']:.1f} s |"
        )
    lines += ["", "Time of a stage, its summary left out, over the workers' own on 2 workers:", ""]
    for result in results:
        shares = []
        for name in ("download", "clean", "dedup", "select"):
            stage = result["stages"][name]
            own = stage["seconds"] - stage["summary"]
            shares.append(f"{name} {own * 2 / max(stage['work'], 1e-9) - 1:+.1%}")
        lines.append(f"- {result['rows']:,}: {', '.join(shares)}")
    return "\n".join(lines)


def plot(results: list[dict[str, Any]]) -> str:
    """CPU seconds of each stage over rows, both logarithmic, as SVG; a dotted line is linear."""
    width, height, left, right, top, bottom = 640, 400, 56, 96, 16, 44
    colours = ("#4269d0", "#d97706", "#16825d", "#c2405b", "#6d4bb8", "#57606a")
    lows = [r["rows"] for r in results]
    series = {name: [r["stages"][name]["cpu"] for r in results] for name in STAGES}
    series["all"] = [sum(some) for some in zip(*series.values(), strict=True)]
    x0, x1 = np.log10(min(lows)), np.log10(max(max(lows), min(lows) * 10))
    values = [max(v, 0.1) for some in series.values() for v in some]
    y0, y1 = np.floor(np.log10(min(values))), np.ceil(np.log10(max(values)))

    def at(rows: float, seconds: float) -> tuple[float, float]:
        x = left + (np.log10(rows) - x0) / (x1 - x0) * (width - left - right)
        y = (
            height
            - bottom
            - (np.log10(max(seconds, 0.1)) - y0) / (y1 - y0) * (height - top - bottom)
        )
        return round(float(x), 1), round(float(y), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#444">',
        "<title>CPU seconds of each stage over the rows of the list</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for power in range(int(y0), int(y1) + 1):
        x, y = at(min(lows), 10.0**power)
        parts.append(f'<path d="M{left} {y}H{width - right}" stroke="#e2e5e9"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{10.0**power:g} s</text>')
    for rows in lows:
        x, _ = at(rows, 1)
        parts.append(f'<path d="M{x} {top}V{height - bottom}" stroke="#e2e5e9"/>')
        parts.append(
            f'<text x="{x}" y="{height - bottom + 18}" text-anchor="middle">{rows:,}</text>'
        )
    parts.append(
        f'<text x="{(left + width - right) / 2}" y="{height - 8}" text-anchor="middle">'
        "rows of the list</text>"
    )
    last = []
    for (name, some), colour in zip(series.items(), colours, strict=True):
        points = [at(rows, seconds) for rows, seconds in zip(lows, some, strict=True)]
        slope = [at(lows[0], some[0]), at(lows[-1], some[0] * lows[-1] / lows[0])]
        dotted = " ".join(f"{x},{max(y, top)}" for x, y in slope)
        parts.append(
            f'<polyline points="{dotted}" fill="none" stroke="{colour}" stroke-dasharray="1 4"/>'
        )
        line = " ".join(f"{x},{y}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for (x, y), rows, seconds in zip(points, lows, some, strict=True):
            parts.append(
                f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}">'
                f"<title>{name}: {rows:,} rows, {seconds:,.1f} CPU s</title></circle>"
            )
        last.append((points[-1][1], name, colour))
    below = -np.inf
    for y, name, colour in sorted(last):
        below = max(y + 4, below + 14)
        parts.append(f'<text x="{width - right + 10}" y="{below}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--model", help="a spaCy pipeline; select draws at random without")
    parser.add_argument("--folder", type=Path, default=Path("runs/scaling"))
    parser.add_argument("--out", type=Path, help="results as JSON, kept from one call to the next")
    parser.add_argument("--plot", type=Path, help="an SVG of them")
    parser.add_argument("--keep", action="store_true", help="leave the runs")
    options = parser.parse_args()
    folder = options.folder.resolve()
    (folder / "list").mkdir(parents=True, exist_ok=True)
    out = options.out or folder / "results.json"
    results = json.loads(out.read_text()) if out.exists() else []
    for rows in options.rows:
        if rows in [result["rows"] for result in results]:
            continue
        size = 10_000
        starts = range(0, rows, size)
        with ProcessPoolExecutor(2) as pool:
            list(pool.map(partial(make, folder / "list", size), starts))
        path = manifest(folder, rows, options.model and str(Path(options.model).resolve()))
        results.append(carry_out(path, rows))
        results.sort(key=lambda result: result["rows"])
        out.write_text(json.dumps(results, indent=2))
        if not options.keep:
            shutil.rmtree(folder / f"run-{rows}")
    print(table(results))
    if options.plot:
        options.plot.write_text(plot(results))


if __name__ == "__main__":
    main()
