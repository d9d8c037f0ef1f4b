"""Measures the client's share of the cost of captions that a server writes.

    python -m benchmarks.server --images 4000

A server on loopback runs in its own process. It answers at once, or it imitates a model: it works
on --slots requests at a time and writes --rate captions a second. Images are JPEGs of --side
pixels. `ServedCaptioner` keeps --concurrency requests in flight. The benchmark prints the client's
seconds and CPU seconds per caption on the server that answers at once, and the captions a second on
the server with a rate, beside that rate.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import re
import statistics
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

LENGTH = re.compile(rb"(?i)content-length: *(\d+)")
CAPTION = b"a red house stands beside the river in the morning"
COMPLETION = (
    b'{"object": "chat.completion", "model": "m", "choices": [{"index": 0, "message": '
    b'{"role": "assistant", "content": "' + CAPTION + b'"}, "finish_reason": "stop"}]}'
)
MODELS = b'{"object": "list", "data": [{"id": "m", "object": "model"}]}'


def answer(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


async def serve(ready: Connection, slots: int, seconds: float) -> None:
    room = asyncio.Semaphore(slots)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = LENGTH.search(head)
                await reader.readexactly(int(length[1]) if length else 0)
                if head.startswith(b"GET"):
                    writer.write(answer(MODELS))
                    continue
                if seconds:
                    async with room:
                        await asyncio.sleep(seconds)
                writer.write(answer(COMPLETION))
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, limit=2**24, backlog=512)
    ready.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def run(ready: Connection, slots: int, seconds: float) -> None:
    asyncio.run(serve(ready, slots, seconds))


@contextlib.contextmanager
def served(slots: int, seconds: float) -> Iterator[str]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=run, args=(there, slots, seconds), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}/v1"
    finally:
        process.terminate()


def captioned(url: str, images: list[bytes], concurrency: int) -> tuple[float, float]:
    """Seconds, and CPU seconds of this process, of captioning the images."""
    from models.inference.decoding import Settings
    from models.inference.server import ServedCaptioner

    captioner = ServedCaptioner([url], "m", concurrency=concurrency)
    began, cpu = time.perf_counter(), time.process_time()
    found = captioner.caption(
        images, range(len(images)), Settings(), prompt=["Describe this image."] * len(images)
    )
    took = time.perf_counter() - began, time.process_time() - cpu
    if not all(len(some) == 1 and some[0].error is None for some in found):
        raise RuntimeError("a caption is missing")
    return took


def main() -> None:
    from helpers import fakes

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--side", type=int, default=384)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--rate", type=float, default=50.0, help="captions a second")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    drawn = [fakes.jpeg(seed, (options.side, options.side)) for seed in range(64)]
    images = [bytes(bytearray(drawn[number % 64])) for number in range(options.images)]
    size = statistics.mean(map(len, drawn)) / 1000

    with served(options.slots, 0.0) as url:
        took = [captioned(url, images, options.concurrency) for _ in range(options.repeats)]
    wall, cpu = (1000 * statistics.median(part) / len(images) for part in zip(*took, strict=True))
    print(f"{len(images)} JPEGs of {options.side} pixels, {size:.0f} kB each")
    print(f"answered at once: {wall:.2f} ms a caption, {cpu:.2f} ms of CPU in the client")

    few = images[: max(options.concurrency, int(20 * options.rate))]
    with served(options.slots, options.slots / options.rate) as url:
        took = [captioned(url, few, options.concurrency) for _ in range(options.repeats)]
    seconds = statistics.median(wall for wall, _ in took)
    ideal = -(-len(few) // options.slots) * options.slots / options.rate
    print(
        f"at {options.rate:g} captions a second: {len(few) / seconds:.1f} a second; "
        f"{seconds:.1f} s for {ideal:.1f} s of the server's own time, "
        f"{seconds / ideal - 1:.1%} more"
    )


if __name__ == "__main__":
    main()
