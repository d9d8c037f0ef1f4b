"""Download from hosts that are slow, hold back, forbid, or are not to be asked."""

from __future__ import annotations

import contextlib
import hashlib
import socket
from typing import Any

import pytest
from downloads import Web, encode, measured, only, photo, stage

from stages.download import DownloadConfig, DownloadStage

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
