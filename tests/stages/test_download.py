from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps
from pydantic import TypeAdapter, ValidationError

from stages import sources
from stages.download import DownloadConfig, DownloadStage
from stages.schema import POOL, uid_of
from stages.sources import Source

SHARED = Path(__file__).resolve().parents[2] / "../shared"


class Web(ThreadingHTTPServer):
    """Files by path on loopback; a path in `held` is answered once all others have been."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.statuses: dict[str, int] = {}
        self.held: set[str] = set()
        self.asked: set[str] = set()
        self.agents: set[str] = set()
        self.others_asked = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    server: Web

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        web, path = self.server, self.path.lstrip("/")
        web.agents.add(self.headers["User-Agent"])
        web.asked.add(path)
        if web.asked >= web.files.keys() - web.held:
            web.others_asked.set()
        if path in web.held:
            web.others_asked.wait(20)
        body = web.files.get(path)
        self.send_response(404 if body is None else web.statuses.get(path, 200))
        for name, value in web.headers.get(path, {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def encode(image: Image.Image, kind: str = "JPEG", **settings: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()


def photo(width: int = 640, height: int = 480, seed: int = 0) -> Image.Image:
    """A smooth picture: what a codec keeps."""
    corners = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC)


def stage(**settings: Any) -> DownloadStage:
    given = {
        "source": "list.csv",
        "retries": 0,
        "allow_private_addresses": True,
        "threads": 4,
        "requests_per_second": None,  # one host, our own
        "connections_per_host": None,
    }
    one = DownloadStage(DownloadConfig(**{**given, **settings}))
    one.load()
    return one


def listed(urls: list[str], files: list[str] | None = None) -> pa.Table:
    nothing = [None] * len(urls)
    return pa.table(
        {
            "uid": [uid_of(url, None) for url in urls],
            "source": ["web"] * len(urls),
            "source_uid": nothing,
            "url": urls,
            "caption": nothing,
            "repeats": [0] * len(urls),
            "file": files or nothing,
            "offset": nothing,
            "length": nothing,
            "row": nothing,
        },
        schema=sources.LIST,
    )


def measured(
    one: DownloadStage, urls: list[str], files: list[str] | None = None
) -> list[dict[str, Any]]:
    table = one.annotate(listed(urls, files))
    assert table.schema == one.writes
    assert table["url"].to_pylist() == urls
    rows: list[dict[str, Any]] = table.to_pylist()
    for row in rows:
        assert (row["status"] == "success") == (row["error"] is None) == (row["image"] is not None)
        assert row["error"] is None or row["error"] in one.reasons
    return rows


def only(web: Web, content: bytes, **settings: Any) -> dict[str, Any]:
    """The row of one file."""
    web.files["file"] = content
    (row,) = measured(stage(**settings), [web.url("file")])
    return row


def pixels(row: dict[str, Any]) -> npt.NDArray[np.int16]:
    with Image.open(io.BytesIO(row["image"])) as image:
        assert image.mode == "RGB"
        assert image.size == (row["width"], row["height"])
        return np.asarray(image).astype(np.int16)


def difference(row: dict[str, Any], expected: Image.Image) -> float:
    """The mean difference to an image, in grey levels."""
    size = (row["width"], row["height"])
    wanted = np.asarray(expected.convert("RGB").resize(size, Image.Resampling.BOX))
    return float(np.abs(pixels(row) - wanted.astype(np.int16)).mean())


def test_a_row_of_a_list_becomes_a_row_of_the_pool(web: Web) -> None:
    content = encode(photo())
    row = only(web, content)
    assert row["status"] == "success"
    assert (row["width"], row["height"]) == (512, 384)
    assert (row["original_width"], row["original_height"]) == (640, 480)
    assert row["sha256"] == hashlib.sha256(content).hexdigest()
    assert difference(row, photo()) < 3
    assert [field.name for field in POOL] == ["uid", *DownloadStage.writes.names]
    assert web.agents == {"capfilt/0.1"}


def test_small_images_are_enlarged_on_request_only(web: Web) -> None:
    content = encode(photo(100, 50))
    assert only(web, content)["width"] == 100
    assert only(web, content, resize_only_if_bigger=False)["height"] == 384


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_dropped(web: Web, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = photo(300, 200)
    row = only(web, encode(image, exif=exif, quality=95))
    turned = image.copy()
    turned.getexif()[0x0112] = orientation
    upright = ImageOps.exif_transpose(turned)
    assert (row["original_width"], row["original_height"]) == upright.size
    assert difference(row, upright) < 3
    with Image.open(io.BytesIO(row["image"])) as kept:
        assert not kept.getexif()


def modes() -> dict[str, tuple[bytes, Image.Image]]:
    """Encoded images of every mode, and what they show."""
    image, grey = photo(200, 150), photo(200, 150).convert("L")
    clear = image.convert("RGBA")
    clear.putalpha(0)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    white = Image.new("RGB", image.size, "white")
    palette = image.quantize(64)
    frames = [photo(200, 150, seed) for seed in (0, 1, 2)]
    return {
        "grey jpeg": (encode(grey), grey),
        "cmyk jpeg": (encode(image.convert("CMYK"), quality=95), image),
        "progressive jpeg": (encode(image, progressive=True), image),
        "png": (encode(image, "PNG"), image),
        "transparent png": (encode(clear, "PNG"), white),
        "palette png": (encode(palette, "PNG"), palette),
        "transparent palette": (encode(palette, "PNG", transparency=bytes(64)), white),
        "16-bit png": (encode(deep, "PNG"), grey),
        "grey alpha png": (encode(grey.convert("LA"), "PNG"), grey),
        "bilevel png": (encode(Image.new("1", (50, 40), 1), "PNG"), Image.new("L", (50, 40), 255)),
        "webp": (encode(image, "WEBP"), image),
        "gif": (encode(palette, "GIF"), palette),
        "animated gif": (encode(frames[0], "GIF", save_all=True, append_images=frames[1:]), image),
        "animated webp": (
            encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
            image,
        ),
        "bmp": (encode(image, "BMP"), image),
        "tiff": (encode(image, "TIFF"), image),
    }


@pytest.mark.parametrize("mode", modes())
def test_every_kind_of_image_becomes_plain_rgb(web: Web, mode: str) -> None:
    content, shown = modes()[mode]
    row = only(web, content)
    assert row["error"] is None
    assert difference(row, shown) < 9


def test_a_large_jpeg_is_decoded_at_a_fraction_and_keeps_its_original_size(web: Web) -> None:
    row = only(web, encode(photo(3000, 2001)))
    assert (row["original_width"], row["original_height"]) == (3000, 2001)
    assert (row["width"], row["height"]) in ((575, 384), (576, 384))
    assert difference(row, photo(3000, 2001)) < 3


def bomb() -> bytes:
    return encode(Image.new("1", (30_000, 30_000)), "PNG")


HTML = b"<!doctype html>\n<html><title>Just a moment</title><svg/></html>"
SVG = b'\xef\xbb\xbf<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>'


def broken() -> list[tuple[str, bytes, str]]:
    jpeg, png, webp = (encode(photo(), kind) for kind in ("JPEG", "PNG", "WEBP"))
    small = encode(photo(80, 60))
    with_thumbnail = jpeg[:2] + b"\xff\xe1" + (len(small) + 2).to_bytes(2, "big") + small + jpeg[2:]
    assert small.endswith(b"\xff\xd9")
    return [
        ("a third of a jpeg", jpeg[: len(jpeg) // 3], "truncated"),
        ("nearly all of a jpeg", jpeg[:-400], "truncated"),
        (
            "a third of a jpeg with a thumbnail",
            with_thumbnail[: len(with_thumbnail) // 3],
            "truncated",
        ),
        ("half of a png", png[: len(png) // 2], "truncated"),
        ("half of a webp", webp[: len(webp) // 2], "undecodable"),
        ("a page", HTML, "not_an_image"),
        ("zeros", b"\0\0\0\0" + jpeg[4:], "not_an_image"),
        ("a drawing", SVG, "svg"),
        ("a bomb", bomb(), "too_many_pixels"),
        ("too long for jpeg", encode(Image.new("L", (70_000, 20)), "PNG"), "not_resized"),
    ]


@pytest.mark.parametrize(("content", "error"), [pytest.param(*b[1:], id=b[0]) for b in broken()])
def test_a_broken_image_is_a_row_with_its_reason(web: Web, content: bytes, error: str) -> None:
    row = only(web, content, resize_mode="no")
    assert (row["status"], row["error"]) == ("failed_to_resize", error)
    assert row["image"] is None
    assert row["width"] is None
    assert row["sha256"] == hashlib.sha256(content).hexdigest()


def test_a_failed_download_is_a_row_with_its_reason(web: Web) -> None:
    web.files.update({"empty": b"", "large": b"x" * 1001})
    urls = [web.url("empty"), web.url("large"), web.url("nowhere"), "", "ftp://a.test/", "\ufffd\0"]
    rows = measured(stage(max_bytes=1000), urls)
    assert [row["status"] for row in rows] == ["failed_to_download"] * 6
    errors = [row["error"] for row in rows]
    assert errors == ["empty", "too_large", "http_404", "bad_url", "bad_url", "bad_url"]
    assert all(row["sha256"] is None for row in rows)


def test_judge_gives_the_error_of_each_row(web: Web) -> None:
    web.files["a"] = encode(photo())
    one = stage()
    table = one.annotate(listed([web.url("a"), web.url("b")]))
    verdicts = one.judge(table)
    assert isinstance(verdicts, pa.StringArray)
    assert verdicts.to_pylist() == [None, "http_404"]
    assert one.judge(table.slice(0, 0)).to_pylist() == []
    assert one.annotate(listed([])).num_rows == 0


OPT_OUTS = [
    ("noai", True),
    ("noimageai, nofollow", True),
    ("NoIndex", True),
    ("noimageindex", True),
    ("capfilt: noai", True),
    ("otherbot: noai", False),
    ("all", False),
]


@pytest.mark.parametrize(("tag", "refused"), OPT_OUTS)
def test_an_opt_out_is_honored_unless_told_otherwise(web: Web, tag: str, refused: bool) -> None:
    web.headers["file"] = {"X-Robots-Tag": tag}
    content = encode(photo(64, 64))
    assert only(web, content)["error"] == ("opted_out" if refused else None)
    assert only(web, content, honor_opt_out=False)["error"] is None


def test_the_user_agent_says_who_and_how_to_reach_them(web: Web) -> None:
    web.files["a"] = encode(photo(64, 64))
    measured(stage(user_agent="lab/2", contact="https://lab.test/bot"), [web.url("a")])
    assert web.agents == {"lab/2 (+https://lab.test/bot)"}


def test_private_addresses_are_not_connected_to_by_default(web: Web) -> None:
    rows = measured(stage(allow_private_addresses=False), [web.url(f"{i}") for i in range(200)])
    assert {row["error"] for row in rows} == {"blocked_address"}
    assert not web.asked


def test_a_server_that_holds_an_answer_back_holds_up_no_other_row(web: Web) -> None:
    names = [f"{index}.png" for index in range(60)]
    for index, name in enumerate(names):
        web.files[name] = encode(photo(16, 16, index), "PNG")
    web.held = {"0.png", "1.png", "30.png"}
    rows = measured(stage(threads=4, timeout=15.0), [web.url(name) for name in names])
    assert web.others_asked.is_set()
    assert [row["error"] for row in rows] == [None] * len(names)
    for index, row in enumerate(rows):
        assert row["sha256"] == hashlib.sha256(web.files[names[index]]).hexdigest()


def test_a_host_that_never_answers_is_given_up(web: Web) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        base = f"http://127.0.0.1:{silent.getsockname()[1]}"
        rows = measured(stage(timeout=0.2, threads=1), [f"{base}/{index}" for index in range(40)])
        assert {row["error"] for row in rows} == {"timeout"}
        silent.setblocking(False)
        asked = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                silent.accept()[0].close()
                asked += 1
    assert asked == 1  # for its robots.txt


def test_images_do_not_depend_on_threads_or_on_the_rows_around_them(web: Web) -> None:
    urls = []
    for index, (content, _) in enumerate(modes().values()):
        web.files[str(index)] = content
        urls.append(web.url(str(index)))
    urls.append(web.url("nowhere"))
    one, many = stage(threads=1), stage(threads=16)
    whole = one.annotate(listed(urls))
    assert many.annotate(listed(urls)) == whole
    reversed_order = many.annotate(listed(urls[::-1]))
    assert reversed_order.take(list(range(len(urls)))[::-1]) == whole
    halves = [many.annotate(listed(urls[:5])), many.annotate(listed(urls[5:]))]
    assert pa.concat_tables(halves) == whole


def test_a_local_folder_is_read_and_nothing_outside_it(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(encode(photo()))
    (tmp_path / "secret.jpg").write_bytes(encode(photo()))
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "empty.jpg").touch()
    os.mkfifo(folder / "pipe.jpg")
    lines = ["file_name,caption", "../secret.jpg,up", f"{tmp_path}/secret.jpg,there", "no.jpg,lost"]
    (folder / "metadata.csv").write_text("\n".join(lines))
    one = stage(source=str(folder))
    (rows,) = sources.shards(one.config)
    errors = one.annotate(rows)["error"].to_pylist()
    found = dict(zip([Path(url).name for url in rows["url"].to_pylist()], errors, strict=True))
    assert found == {
        "a.jpg": None,
        "empty.jpg": "empty",
        "link.jpg": "outside_source",
        "pipe.jpg": "missing",
        "secret.jpg": "outside_source",
        "no.jpg": "missing",
    }


def test_a_local_path_is_not_fetched_and_a_listed_url_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encode(photo()))
    one = stage(source=str(tmp_path))
    for url in (str(tmp_path / "a.jpg"), (tmp_path / "a.jpg").as_uri()):
        (row,) = measured(one, [url])
        assert row["error"] == "bad_url"
    for file in ("http://127.0.0.1:9/a.jpg", f"{tmp_path}/x::http://127.0.0.1:9/a.jpg"):
        (row,) = measured(one, ["http://127.0.0.1:9/a.jpg"], [file])
        assert row["error"] in ("outside_source", "missing")
    (row,) = measured(one, ["http://127.0.0.1:9/a.jpg"], [str(tmp_path / "a.jpg")])
    assert row["error"] is None


def test_a_host_that_holds_all_its_answers_back_holds_up_no_other(web: Web) -> None:
    content = encode(photo(40, 30))
    slow, quick = [f"slow/{i}" for i in range(40)], [f"quick/{i}" for i in range(20)]
    web.files.update(dict.fromkeys(slow + quick, content))
    web.held.update(slow)
    urls = [web.url(path) for path in slow[:-1]]
    urls += [f"http://localhost:{web.server_port}/{path}" for path in [*quick, slow[-1]]]
    rows = measured(stage(connections_per_host=3, timeout=60), urls)
    assert [row["error"] for row in rows] == [None] * 60
    assert web.others_asked.is_set()


def test_a_host_with_too_many_rows_gives_up_those_whose_turn_does_not_come(web: Web) -> None:
    web.files.update({str(index): encode(photo(40, 30)) for index in range(12)})
    one = stage(requests_per_second=0.01, burst=6, max_wait=1.0)
    errors = [row["error"] for row in measured(one, [web.url(str(index)) for index in range(12)])]
    assert errors == [None] * 5 + ["no_turn"] * 7  # one turn went to robots.txt


def test_robots_txt_is_kept_to_by_the_name_that_is_sent(web: Web) -> None:
    web.files["robots.txt"] = b"User-agent: *\nDisallow: /\n\nUser-agent: CapFilt\nDisallow: /no\n"
    web.files.update({name: encode(photo(40, 30)) for name in ("yes", "no")})
    urls = [web.url("yes"), web.url("no")]
    assert [row["error"] for row in measured(stage(), urls)] == [None, "robots"]
    other = stage(user_agent="someone/2")
    assert [row["error"] for row in measured(other, urls)] == ["robots"] * 2
    assert [row["error"] for row in measured(stage(robots=False), urls)] == [None] * 2


def test_what_is_switched_off_is_said(caplog: pytest.LogCaptureFixture) -> None:
    stage(robots=False)
    assert "without robots, requests_per_second, connections_per_host" in caplog.text
    caplog.clear()
    stage(requests_per_second=5.0, connections_per_host=2)
    assert not caplog.text


INSIDE = ["127.0.0.1", "169.254.169.254", "::1", "10.0.0.1"]


@pytest.mark.parametrize("robots", [True, False])
def test_ten_thousand_private_addresses_see_no_connection(
    monkeypatch: pytest.MonkeyPatch, robots: bool
) -> None:
    def getaddrinfo(host: str, *args: Any, **kwargs: Any) -> list[Any]:
        return [(0, 0, 0, "", (INSIDE[int(host.split(".")[0][1:]) % 4], 0))]

    dialled: list[Any] = []

    def create_connection(address: Any, *args: Any, **kwargs: Any) -> socket.socket:
        dialled.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket, "create_connection", create_connection)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        hosts = ["127.0.0.1", "169.254.169.254", "[::1]", "10.0.0.1", "name"]
        urls = [
            f"{('http', 'https')[i % 2]}://{hosts[i % 5].replace('name', f'n{i // 5}.test')}"
            f":{port}/{i}.jpg"
            for i in range(10_000)
        ]
        one = DownloadStage(DownloadConfig(source="list.csv", robots=robots))
        one.load()
        rows = measured(one, urls)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert {row["error"] for row in rows} == {"blocked_address"}
    assert not dialled


def test_a_redirect_of_a_public_host_leads_to_no_private_address(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    public, connect, dialled = "93.184.216.34", socket.create_connection, set()

    def create_connection(address: Any, *args: Any, **kwargs: Any) -> socket.socket:
        dialled.add(address)
        return connect(("127.0.0.1", web.server_port), *args, **kwargs)

    monkeypatch.setattr(socket, "create_connection", create_connection)
    targets = ["127.0.0.1", "169.254.169.254", "[::1]", "10.0.0.1", "2130706433", "localhost"]
    for index, host in enumerate(targets):
        web.files[str(index)] = b""
        web.statuses[str(index)] = 302
        web.headers[str(index)] = {"Location": f"http://{host}:{web.server_port}/secret"}
    urls = [f"http://{public}/{index}" for index in range(len(targets))]
    rows = measured(stage(allow_private_addresses=False), urls)
    assert [row["error"] for row in rows] == ["blocked_address"] * len(targets)
    assert dialled == {(public, 80)}
    assert "secret" not in web.asked


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"source": ""}, "download.source"),
        ({"source": ()}, "download.source"),
        ({"source": ("a.csv", "")}, "download.source"),
        ({"image_size": 0}, "download.image_size must be at least 1, got 0"),
        ({"limit": 0}, "download.limit"),
        ({"timeout": 0}, "download.timeout"),
        ({"timeout": float("nan")}, "download.timeout"),
        ({"threads": 0}, "download.threads"),
        ({"retries": -1}, "download.retries"),
        ({"max_bytes": 0}, "download.max_bytes"),
        ({"max_pixels": 10**9}, "download.max_pixels"),
        ({"max_redirects": -1}, "download.max_redirects"),
        ({"shard_size": 0}, "download.shard_size"),
        ({"requests_per_second": 0}, "download.requests_per_second must be above 0, or null"),
        ({"requests_per_second": float("nan")}, "download.requests_per_second"),
        ({"burst": 0}, "download.burst"),
        ({"connections_per_host": 0}, "download.connections_per_host"),
        ({"max_wait": float("inf")}, "download.max_wait"),
        ({"encode_quality": 101}, "download.encode_quality"),
        ({"encode_format": "png"}, "download.encode_quality must be from 0 to 9 for png, got 95"),
        ({"user_agent": " "}, "download.user_agent"),
        ({"contact": "me\r\nX: y"}, "download.contact"),
        ({"contact": "mé"}, "download.contact"),
        ({"resize_mode": "squash"}, "resize_mode"),
        ({"treads": 3}, "treads"),
    ],
)
def test_an_impossible_setting_is_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TypeAdapter(DownloadConfig).validate_python({"source": "list.csv", **settings})


def test_a_config_is_read_from_plain_values() -> None:
    adapter = TypeAdapter(DownloadConfig)
    config = adapter.validate_python({"source": ["a.csv", "b.csv"], "timeout": 3})
    assert config == DownloadConfig(source=("a.csv", "b.csv"), timeout=3.0)
    assert config.sources == (Source(path=("a.csv", "b.csv")),)
    assert adapter.validate_python({"source": "a.csv"}).sources == (Source(path="a.csv"),)


def test_only_what_changes_the_pool_is_measured() -> None:
    config = DownloadConfig(source="a.csv")
    patient = dataclasses.replace(config, timeout=60, retries=5, threads=1, contact="us@lab.test")
    assert patient.measurement() == config.measurement()
    slow = dataclasses.replace(
        config, requests_per_second=1, burst=1, connections_per_host=1, max_wait=9
    )
    assert slow.measurement() == config.measurement()
    for change in (
        {"image_size": 256},
        {"limit": 3},
        {"source": "b.csv"},
        {"max_bytes": 9},
        {"robots": False},
        {"honor_opt_out": False},
    ):
        changed: Any = change
        assert dataclasses.replace(config, **changed).measurement() != config.measurement()


def test_every_outcome_is_explained() -> None:
    for reason, sentence in DownloadStage.reasons.items():
        assert reason.isidentifier()
        assert sentence.endswith(".")


def test_construction_imports_no_img2dataset() -> None:
    program = (
        "import sys; from stages.download import *;"
        "DownloadStage(DownloadConfig(source='a.csv')); print('img2dataset' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


EXPECTED = {
    "http_404": "http_404",
    "http_500": "http_5xx",
    "http_403": "http_403",
    "http_hang": "timeout",
    "http_loop": "redirect_loop",
    "http_reset": "connect",
    "truncated": "truncated",
    "html": "not_an_image",
    "empty": "empty",
    "corrupt": "not_an_image",
    "opt_out": "opted_out",
    "endless": "too_large",
    "bomb": "too_many_pixels",
    "svg": "svg",
}


@pytest.fixture(scope="session")
def real_web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small web of real photographs with every fault, served on loopback."""
    make, photos = SHARED / "realweb/make.py", SHARED / "data/flickr8k"
    alttext = SHARED / "data/alttext/laion_10k.parquet"
    if not all(path.exists() for path in (make, photos / "images", alttext)):
        pytest.skip("../shared/realweb or its photographs are not here")
    folder = tmp_path_factory.mktemp("realweb")
    with Web() as free:
        port = free.server_port
    inputs = ["--photos", photos / "images", "--captions", photos / "captions.tsv"]
    places = ["--alttext", alttext, "--out", folder, "--base", f"http://127.0.0.1:{port}"]
    subprocess.run(
        [sys.executable, make, *map(str, inputs + places)], check=True, capture_output=True
    )
    serve = [sys.executable, str(SHARED / "realweb/serve.py"), str(folder / "site")]
    server = subprocess.Popen(
        [*serve, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert server.stdout is not None
    try:
        assert b"serving" in server.stdout.readline()
        yield folder
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


def test_every_fault_of_a_real_web_has_its_reason_and_no_good_image_is_lost(real_web: Path) -> None:
    one = stage(source=str(real_web / "pairs.parquet"), timeout=3.0, retries=1, threads=32)
    truth = {
        (row["url"], row["caption"]): row
        for row in pq.read_table(real_web / "truth.parquet").to_pylist()
    }
    shards = list(sources.shards(one.config))
    rows = [row for shard in shards for row in one.annotate(shard).to_pylist()]
    assert sum(row["repeats"] + 1 for row in rows) == len(truth)
    wrong = [
        (kind, row["error"])
        for row in rows
        for kind in [truth[row["url"], row["caption"]]["kind"]]
        if row["error"] != EXPECTED.get(kind)
    ]
    assert not wrong
    assert {kind for kind in EXPECTED} <= {row["kind"] for row in truth.values()}
