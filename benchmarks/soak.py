"""Download very many URLs in one process, and watch its memory and file handles.

python -m benchmarks.soak [--urls 200000]

Small drawn JPEGs from a loopback server in a process of its own, one in ten with a fault: 404, a
redirect, a cut body, an early hint, a malformed header. Memory and handles are read after each
shard of 2,000 rows; they are flat if the last quarter has no more than the second.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stages import sources
from stages.download import DownloadConfig, DownloadStage
from stages.schema import uid_of

SHARD = 2000


def draw(index: int) -> bytes:
    stream = io.BytesIO()
    corners = np.random.default_rng(index).integers(0, 256, (3, 4, 3), np.uint8)
    Image.fromarray(corners).resize((64, 48), Image.Resampling.BICUBIC).save(stream, "JPEG")
    return stream.getvalue()


async def serve() -> None:
    images = [draw(index) for index in range(50)]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                path = request.split(b" ", 2)[1].decode()
                number = int(path[1:]) if path[1:].isdigit() else -1
                body = images[number % len(images)]
                head, status = b"", b"200 OK"
                fault = number % 50
                if number < 0 or fault == 10:
                    status, body = b"404 Not Found", b""
                elif fault == 20:
                    status, head = b"302 Found", b"Location: /%d\r\n" % (number + 1)
                elif fault == 40:
                    head = b"Powered by hand\r\n"
                if fault == 30:
                    writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
                length = len(body) + 100 * (fault == 45)
                head += b"Content-Length: %d\r\n\r\n" % length
                writer.write(b"HTTP/1.1 " + status + b"\r\n" + head + body)
                await writer.drain()
                if fault == 45:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


def state() -> tuple[float, int]:
    """Resident memory in MiB, and open file handles."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir("/proc/self/fd"))


def rows(base: str, first: int, number: int) -> pa.Table:
    urls = [f"{base}/{index}" for index in range(first, first + number)]
    nothing = [None] * number
    columns = {field.name: nothing for field in sources.LIST}
    columns |= {"uid": [uid_of(url, None) for url in urls], "source": ["web"] * number}
    columns |= {"url": urls, "repeats": [0] * number}
    return pa.table(columns, schema=sources.LIST)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--urls", type=int, default=200_000)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
        return
    server = subprocess.Popen(
        [sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        base = f"http://127.0.0.1:{int(server.stdout.readline())}"
        stage = DownloadStage(
            DownloadConfig(
                source="list.csv",
                retries=0,
                allow_private_addresses=True,
                requests_per_second=None,
                connections_per_host=None,
            )
        )
        stage.load()
        states, reasons = [], {}
        began = time.perf_counter()
        for first in range(0, options.urls, SHARD):
            table = stage.annotate(rows(base, first, min(SHARD, options.urls - first)))
            for reason in table["error"].to_pylist():
                reasons[reason] = reasons.get(reason, 0) + 1
            states.append(state())
        seconds = time.perf_counter() - began
    finally:
        server.kill()
    print(f"{options.urls} URLs in {seconds:.0f} s: {reasons}")
    quarter = max(1, len(states) // 4)
    for name, part in (("second", states[quarter : 2 * quarter]), ("last", states[-quarter:])):
        memory, handles = max(one[0] for one in part), max(one[1] for one in part)
        print(f"  {name:6} quarter: at most {memory:.0f} MiB, {handles} handles")


if __name__ == "__main__":
    main()
