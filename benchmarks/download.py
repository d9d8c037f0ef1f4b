"""Download and resize: ours beside img2dataset, both as a library in one process.

python -m benchmarks.download [--images 1000] [--https] [--size 640x480] [--repeats 3]

Drawn JPEGs on a loopback server in a process of its own; both keep the aspect ratio, shorter side
to 384, JPEG quality 95, 32 threads. CPU seconds are this process's, imports left out.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stages import sources
from stages.download import DownloadConfig, DownloadStage

THREADS = 32


def draw(index: int, width: int, height: int) -> bytes:
    """A JPEG with the detail of a photograph: smooth shapes and some noise."""
    random = np.random.default_rng(index)
    smooth = Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8))
    shapes = np.asarray(smooth.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    noise = random.normal(0, 6, (height, width, 1)).astype(np.float32)
    stream = io.BytesIO()
    Image.fromarray((shapes + noise).clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=85)
    return stream.getvalue()


def serve(width: int, height: int, certificate: str) -> None:
    """Answer /N with one of 50 drawn images until killed."""
    images = [draw(index, width, height) for index in range(50)]

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            body = images[int(self.path[1:]) % len(images)]
            self.send_response(200)
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    ThreadingHTTPServer.request_queue_size = 256
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    mean = sum(map(len, images)) // len(images)
    print(f"{server.server_port} {mean}", flush=True)
    server.serve_forever()


def ours(list_path: Path, folder: Path) -> Callable[[], tuple[int, int]]:
    config = DownloadConfig(
        source=str(list_path),
        threads=THREADS,
        allow_private_addresses=True,
        requests_per_second=None,
        connections_per_host=None,
        shard_size=10**6,
    )
    stage = DownloadStage(config)
    stage.load()

    def run() -> tuple[int, int]:
        (rows,) = sources.shards(config)
        kept = stage.annotate(rows)
        pq.write_table(kept, folder / "ours.parquet", use_dictionary=False)
        return kept.num_rows, kept["image"].null_count

    return run


def theirs(list_path: Path, folder: Path) -> Callable[[], tuple[int, int]]:
    from img2dataset.downloader import Downloader
    from img2dataset.resizer import Resizer
    from img2dataset.writer import ParquetSampleWriter

    rows = pq.read_table(list_path)
    downloader = Downloader(
        sample_writer_class=ParquetSampleWriter,
        resizer=Resizer(384, "keep_ratio", True, encode_quality=95),
        thread_count=THREADS,
        save_caption=True,
        extract_exif=False,
        output_folder=str(folder),
        column_list=rows.column_names,
        timeout=10,
        number_sample_per_shard=rows.num_rows,
        oom_shard_count=5,
        compute_hash="sha256",
        verify_hash_type=None,
        encode_format="jpg",
        retries=0,
        user_agent_token="capfilt",
        disallowed_header_directives=["noai", "noimageai", "noindex", "noimageindex"],
    )

    def run() -> tuple[int, int]:
        shard = folder / "shard.feather"
        with pa.OSFile(str(shard), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
            writer.write_table(rows)
        downloader((0, str(shard)))
        statuses = pq.read_table(folder / "00000.parquet", columns=["status"])["status"]
        return len(statuses), len(statuses) - statuses.to_pylist().count("success")

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--https", action="store_true", help="needs the openssl command")
    parser.add_argument("--serve", metavar="CERTIFICATE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    if options.serve is not None:
        serve(width, height, options.serve)
    folder = Path(tempfile.mkdtemp(prefix="capfilt-benchmark-"))
    certificate = ""
    if options.https:
        certificate = str(folder / "both.pem")
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
        names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
        files = ["-keyout", certificate, "-out", str(folder / "cert.pem")]
        subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
        with open(certificate, "ab") as both:
            both.write((folder / "cert.pem").read_bytes())
        trusted = Path(ssl.get_default_verify_paths().cafile or os.devnull).read_bytes()
        (folder / "trusted.pem").write_bytes(trusted + (folder / "cert.pem").read_bytes())
        os.environ["SSL_CERT_FILE"] = str(folder / "trusted.pem")
    server = subprocess.Popen(
        [sys.executable, __file__, "--serve", certificate, "--size", options.size],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        port, size = map(int, server.stdout.readline().split())
        base = f"{'https' if options.https else 'http'}://127.0.0.1:{port}"
        urls = [f"{base}/{index}" for index in range(options.images)]
        captions = [f"picture {index}" for index in range(options.images)]
        pq.write_table(pa.table({"url": urls, "caption": captions}), folder / "list.parquet")
        print(f"{options.images} JPEGs of {options.size}, {size} bytes on average, over {base[:5]}")
        runs = {
            "capfilt": ours(folder / "list.parquet", folder),
            "img2dataset": theirs(folder / "list.parquet", folder),
        }
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for _ in range(options.repeats):
            for name, run in runs.items():
                wall, cpu = time.perf_counter(), time.process_time()
                rows, lost = run()
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                assert (rows, lost) == (options.images, 0), (name, rows, lost)
                rates[name].append((rows / cpu, rows / wall))
        for name, found in rates.items():
            by_cpu, by_wall = (statistics.median(column) for column in zip(*found, strict=True))
            print(f"{name:12} {by_cpu:6.0f} images per CPU second, {by_wall:6.0f} a second")
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
