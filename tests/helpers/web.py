"""Servers on loopback that several tests share: the real web of ../shared, plain or behind TLS."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import http.server
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import fakes

FAULTS = {
    "http_403": {"http_403"},
    "http_404": {"http_404"},
    "http_500": {"http_5xx"},
    "http_hang": {"timeout"},
    "http_loop": {"redirect_loop"},
    "http_reset": {"connect"},
    "truncated": {"truncated"},
    "html": {"not_an_image"},
    "empty": {"empty"},
    "corrupt": {"not_an_image", "undecodable"},
    "opt_out": {"opted_out"},
    "endless": {"too_large", "timeout"},
    "bomb": {"too_many_pixels"},
    "svg": {"svg"},
}
"""What download may say of each kind of fault that the real web holds."""

needs_shared = pytest.mark.skipif(
    not (fakes.SHARED / "realweb").exists(), reason="needs ../shared/realweb and ../shared/data"
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def build(out: Path, base: str) -> None:
    """Build the real web in a folder, its addresses under `base`."""
    data = fakes.SHARED / "data"
    command = [sys.executable, str(fakes.SHARED / "realweb" / "make.py")]
    for name in ("flickr8k", "coco"):
        command += ["--photos", str(data / name / "images")]
        command += ["--captions", str(data / name / "captions.tsv")]
    command += ["--alttext", str(data / "alttext" / "laion_10k.parquet")]
    command += ["--out", str(out), "--base", base]
    subprocess.run(command, check=True, capture_output=True, timeout=900)


@contextlib.contextmanager
def served(site: Path, port: int) -> Iterator[None]:
    """Serve what `build` made."""
    command = [sys.executable, str(fakes.SHARED / "realweb" / "serve.py"), str(site)]
    server = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None and server.stdout.readline()
        yield
    finally:
        server.kill()
        server.wait()


def certificate(folder: Path) -> Path:
    """A self-made certificate for 127.0.0.1 and its key, in one file that can also be trusted."""
    both, cert = folder / "both.pem", folder / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [*command.split(), *names, "-keyout", str(both), "-out", str(cert)],
        check=True,
        capture_output=True,
    )
    with both.open("ab") as file:
        file.write(cert.read_bytes())
    return both


@contextlib.contextmanager
def behind_tls(port: int, pem: Path) -> Iterator[int]:
    """Terminate TLS before a plain port; gives the port to connect to."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    loop = asyncio.new_event_loop()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ssl.SSLError):
            while block := await reader.read(65536):
                writer.write(block)
                await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pipe(reader, inner_writer), pipe(inner_reader, writer))

    async def end() -> None:
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    server = loop.run_until_complete(
        asyncio.start_server(connect, "127.0.0.1", 0, ssl=context, backlog=256)
    )
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class Pictures:
    """Pictures on loopback at /0, /1, ...; those whose number is in `broken` get its status."""

    def __init__(self) -> None:
        self.broken: dict[str, int] = {}
        self.hits: collections.Counter[str] = collections.Counter()
        pictures = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                pictures.hits[self.path] += 1
                number = self.path.strip("/")
                status = pictures.broken.get(number, 200) if number.isdigit() else 404
                body = fakes.jpeg(int(number)) if status == 200 else b""
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

        self.http = Server(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self) -> Pictures:
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.http.shutdown()
        self.http.server_close()


def as_read(caption: str | None) -> str | None:
    """A caption of the truth as a list is read: a blank one is none."""
    return caption if caption and caption.strip() else None
