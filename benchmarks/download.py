"""Download and resize: ours beside img2dataset, both as a library in one process.

python -m benchmarks.download [--images 3000] [--size 640x480] [--repeats 5] [--scheme http]
python -m benchmarks.download --hang 0.2 [--images 16000]

Drawn JPEGs on a loopback server in a process of its own; both keep the aspect ratio, shorter side
to 384, JPEG quality 95, 32 threads. Over https, a tenth of the images. CPU seconds are this
process's, imports left out. With --hang, that share of 100 hosts takes connections and never
answers; the wall time is compared with the slower of fetching alone and decoding alone.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
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
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stages import sources
from stages.download import DownloadConfig, DownloadStage
from stages.download.resize import Resize

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


class Answers(asyncio.Protocol):
    """Answers /N with one of some images, and nothing at all to the hosts that hang.

    As light as can be, since it shares the cores with what is measured.
    """

    images: ClassVar[list[bytes]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.request = b""

    def data_received(self, data: bytes) -> None:
        self.request += data
        if not self.request.endswith(b"\r\n\r\n"):
            return
        request, self.request = self.request, b""
        if b"Host: " + HANGING.encode() in request:
            return
        path = request.split(b" ", 2)[1]
        number = path[1:]
        if number.isdigit():
            self.transport.write(self.images[int(number) % len(self.images)])
        else:
            self.transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        if b"Connection: close" in request:
            self.transport.close()


async def serve(width: int, height: int, certificate: str) -> None:
    """Answer until killed."""
    images = [draw(index, width, height) for index in range(50)]
    head = "HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
    Answers.images = [(head % len(image)).encode() + image for image in images]
    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Answers, "0.0.0.0", 0, ssl=context, backlog=4096)
    mean = sum(map(len, images)) // len(images)
    print(f"{server.sockets[0].getsockname()[1]} {mean}", flush=True)
    await server.serve_forever()


SHARD = 1000
HANGING = "127.0.2."
"""Where the hosts that never answer have their addresses."""


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


def agreement(width: int, height: int) -> str:
    """How far our images are from img2dataset's."""
    from img2dataset.resizer import Resizer

    ours, theirs = Resize(size=384), Resizer(384, "keep_ratio", True, encode_quality=95)
    means, ratios = [], []
    for index in range(20):
        content = draw(index, width, height)
        pair = [ours(content).image, theirs(io.BytesIO(content))[0]]
        one, other = (np.asarray(Image.open(io.BytesIO(image)), np.float32) for image in pair)
        means.append(float(np.abs(one - other).mean()))
        ratios.append(10 * np.log10(255**2 / float(np.square(one - other).mean())))
    mean, ratio = statistics.mean(means), statistics.mean(ratios)
    return f"the images differ by {mean:.2f} of 255 on average; PSNR {ratio:.1f} dB"


def compare(list_path: Path, folder: Path, images: int, repeats: int) -> None:
    runs = {"capfilt": ours(list_path, folder), "img2dataset": theirs(list_path, folder)}
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            rows, lost = run()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            assert (rows, lost) == (images, 0), (name, rows, lost)
            rates[name].append((rows / cpu, rows / wall))
    medians = {
        name: [statistics.median(column) for column in zip(*found, strict=True)]
        for name, found in rates.items()
    }
    for name, (by_cpu, by_wall) in medians.items():
        print(f"  {name:12} {by_cpu:6.0f} images per CPU second, {by_wall:6.0f} a second")
    ratios = [a / b for a, b in zip(medians["capfilt"], medians["img2dataset"], strict=True)]
    print(f"  {'ratio':12} {ratios[0]:6.2f} {'':23} {ratios[1]:6.2f}", flush=True)


def hang(port: int, share: float, images: int, threads: int, repeats: int) -> None:
    """The wall time with hosts that hang, beside fetching alone and decoding alone."""
    config = DownloadConfig(
        source="list.csv",
        threads=threads,
        timeout=5,
        retries=0,
        allow_private_addresses=True,
        requests_per_second=None,
        connections_per_host=None,
    )
    hanging = round(100 * share)
    hosts = [index * 37 % 100 for index in range(images)]
    urls = [
        f"http://{HANGING if host < hanging else '127.0.1.'}{host + 1}:{port}/{i}"
        for i, host in enumerate(hosts)
    ]
    good = [url for url, host in zip(urls, hosts, strict=True) if host >= hanging]
    walls: dict[str, list[float]] = {"network": [], "decode": [], "both, hanging": []}
    for _ in range(repeats):
        stage = DownloadStage(config)  # which does not know yet which hosts hang
        stage.load()
        start = time.perf_counter()
        nothing = [None] * len(good)
        contents = [content for _, content in stage._arrivals(good, nothing, nothing)]
        walls["network"].append(time.perf_counter() - start)
        start = time.perf_counter()
        for content in contents:
            stage._image(content, "")
        walls["decode"].append(time.perf_counter() - start)
        start = time.perf_counter()
        done = []
        for first in range(0, images, SHARD):
            shard = urls[first : first + SHARD]
            answers = stage._arrivals(shard, [None] * len(shard), [None] * len(shard))
            done += [stage._image(content, "").status for _, content in answers]
        walls["both, hanging"].append(time.perf_counter() - start)
        assert done.count("success") == len(good), (done.count("success"), len(good))
    medians = {name: statistics.median(found) for name, found in walls.items()}
    for name, seconds in medians.items():
        print(f"  {name:14} {seconds:6.1f} s")
    slower = max(medians["network"], medians["decode"])
    print(f"  {medians['both, hanging'] / slower:.2f} times the slower of network and decode")


def certify(folder: Path) -> str:
    """Make a certificate that this process trusts; needs the openssl command."""
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
    return certificate


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scheme", choices=("http", "https"), help="both where it is not given")
    parser.add_argument("--hang", type=float, metavar="SHARE")
    parser.add_argument("--threads", type=int, default=THREADS, help="with --hang")
    parser.add_argument("--serve", metavar="CERTIFICATE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    if options.serve is not None:
        asyncio.run(serve(width, height, options.serve))
    packages = ("img2dataset", "simplejpeg", "opencv-python-headless", "pillow", "pyarrow")
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages))
    folder = Path(tempfile.mkdtemp(prefix="capfilt-benchmark-"))
    schemes = [options.scheme] if options.scheme else ["http", "https"]
    try:
        for scheme in ["http"] if options.hang else schemes:
            images = options.images if scheme == "http" else max(1, options.images // 10)
            certificate = certify(folder) if scheme == "https" else ""
            server = subprocess.Popen(
                [sys.executable, __file__, "--serve", certificate, "--size", options.size],
                stdout=subprocess.PIPE,
                text=True,
            )
            assert server.stdout is not None
            try:
                port, size = map(int, server.stdout.readline().split())
                print(f"{images} JPEGs of {options.size}, {size} bytes on average, over {scheme}")
                if options.hang:
                    hang(port, options.hang, images, options.threads, options.repeats)
                    continue
                urls = [f"{scheme}://127.0.0.1:{port}/{index}" for index in range(images)]
                captions = [f"picture {index}" for index in range(images)]
                list_path = folder / f"{scheme}.parquet"
                pq.write_table(pa.table({"url": urls, "caption": captions}), list_path)
                compare(list_path, folder, images, options.repeats)
            finally:
                server.terminate()
                server.wait()
        if not options.hang:
            print(agreement(width, height))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
