import http.client
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.demo.server import SiteServer

BODY = bytes(range(256)) * 8


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteServer]:
    folder = tmp_path_factory.mktemp("web")
    (folder / "secret.jpg").write_bytes(b"outside the site")
    for answer in ("ok", "noai", "cut", "slow"):
        (folder / "site" / answer).mkdir(parents=True)
        (folder / "site" / answer / "a b.jpg").write_bytes(BODY)
    (folder / "site" / "ok" / "link.jpg").symlink_to(folder / "secret.jpg")
    with SiteServer(folder / "site", drip_seconds=0.02) as server:
        yield server


def status(url: str | urllib.request.Request) -> int:
    try:
        with urllib.request.urlopen(url, timeout=600) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_file_is_served_with_its_type(server: SiteServer) -> None:
    with urllib.request.urlopen(f"{server.url}/ok/a%20b.jpg", timeout=600) as response:
        assert response.read() == BODY
        assert response.headers["Content-Type"] == "image/jpeg"
        assert response.headers["X-Robots-Tag"] is None


def test_it_listens_on_loopback_only(server: SiteServer) -> None:
    assert server.url.startswith("http://127.0.0.1:")


def test_nothing_is_served_without_the_token(server: SiteServer) -> None:
    with SiteServer(server.site, token="demo-5f3a") as guarded:
        url = f"{guarded.url}/ok/a%20b.jpg"
        for agent, code in {"capfilt/1": 403, "": 403, "capfilt/1 (+demo-5f3a)": 200}.items():
            assert status(urllib.request.Request(url, headers={"User-Agent": agent})) == code
        assert status(guarded.url) == 403


@pytest.mark.parametrize("code", [403, 404, 500])
def test_a_status_is_answered_by_the_path(server: SiteServer, code: int) -> None:
    assert status(f"{server.url}/{code}/x.jpg") == code


@pytest.mark.parametrize(
    "path",
    [
        "/ok/missing.jpg",
        "/ok",
        "/",
        "/../secret.jpg",
        "/ok/../../secret.jpg",
        "/%2e%2e/secret.jpg",
        "/ok/..%2f..%2fsecret.jpg",
        "//etc/passwd",
        "/ok/link.jpg",
        "/ok/%00.jpg",
        "/ok/" + "x" * 300 + ".jpg",
    ],
)
def test_what_is_not_in_the_site_is_not_found(server: SiteServer, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
    connection.request("GET", path)
    response = connection.getresponse()
    assert (response.status, response.read()) == (404, b"")
    connection.close()


def test_a_page_may_stand_in_for_an_image(server: SiteServer) -> None:
    with urllib.request.urlopen(f"{server.url}/html/a.jpg", timeout=600) as response:
        assert response.headers["Content-Type"].startswith("text/html")
        assert response.read().startswith(b"<!doctype html>")


def test_an_image_may_be_opted_out(server: SiteServer) -> None:
    with urllib.request.urlopen(f"{server.url}/noai/a%20b.jpg", timeout=600) as response:
        assert response.headers["X-Robots-Tag"] == "noai, noimageai"


def test_a_cut_answer_is_incomplete(server: SiteServer) -> None:
    with (
        urllib.request.urlopen(f"{server.url}/cut/a%20b.jpg", timeout=600) as response,
        pytest.raises(http.client.IncompleteRead) as caught,
    ):
        response.read()
    assert caught.value.partial == BODY[: len(BODY) // 2]


def test_a_slow_answer_drips(server: SiteServer) -> None:
    with urllib.request.urlopen(f"{server.url}/slow/a%20b.jpg", timeout=600) as response:
        assert response.length == len(BODY)
        assert response.read1(16) == BODY[:1]


def test_a_hanging_answer_times_out(server: SiteServer) -> None:
    with pytest.raises(TimeoutError):
        urllib.request.urlopen(f"{server.url}/hang/a.jpg", timeout=0.2)


def test_a_connection_answers_one_request_after_another(server: SiteServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
    connection.connect()
    kept = connection.sock
    for path, code in (("/ok/a%20b.jpg", 200), ("/404/x.jpg", 404), ("/ok/a%20b.jpg", 200)):
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        assert response.status == code
        assert connection.sock is kept
    connection.request("HEAD", "/ok/a%20b.jpg")
    response = connection.getresponse()
    assert (response.read(), response.headers["Content-Length"]) == (b"", str(len(BODY)))
    connection.close()


def test_a_client_that_leaves_does_no_harm(server: SiteServer) -> None:
    for path in ("slow/a%20b.jpg", "ok/a%20b.jpg", "hang/x"):
        for _ in range(3):
            client = socket.create_connection(("127.0.0.1", server.port), timeout=600)
            client.sendall(f"GET /{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            client.close()
    assert status(f"{server.url}/ok/a%20b.jpg") == 200


def test_many_clients_are_served_at_once(server: SiteServer) -> None:
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda: codes.append(status(f"{server.url}/ok/a%20b.jpg")))
        for _ in range(24)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [200] * 24


def test_it_stops_though_a_request_hangs(tmp_path: Path) -> None:
    with SiteServer(tmp_path) as server:
        clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
        for client, path in zip(clients, ("hang/x", "404/x", None), strict=True):
            if path is not None:
                client.sendall(f"GET /{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        time.sleep(0.1)
    for client in clients:
        client.settimeout(600)
        while client.recv(4096):
            pass
        client.close()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(server.url, timeout=600)
