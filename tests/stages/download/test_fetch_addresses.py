"""Which addresses are connected to, and which never."""

from __future__ import annotations

import pytest
from helpers.hosts import Internet, Server, ok, outcome, outcomes, reason, status

from stages.download.fetch import FetchError


@pytest.mark.parametrize("location", ["http://127.0.0.1/", "http://inside.test/robots.txt"])
def test_a_robots_txt_leads_to_no_private_address(server: Server, location: str) -> None:
    server.answers["/robots.txt"] = status(302, f"Location: {location}")
    internet = Internet(
        server, {"outside.test": [["93.184.216.34"]], "inside.test": [["192.168.0.7"]]}
    )
    one = internet.fetcher(robots="capfilt-test")
    assert outcome(one, "http://outside.test/a") == "blocked_address"
    assert internet.dialled == ["93.184.216.34"]


SPELLINGS = [
    *["127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "0", "0.0.0.0"],
    *["localhost", "LOCALHOST", "10.0.0.1", "169.254.169.254", "\uff11\uff12\uff17.0.0.1"],
    *["[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[fe80::1]"],
    *["user@127.0.0.1", "example.org@127.0.0.1", "example.org%40127.0.0.1@127.0.0.1"],
    *[
        "127.0.0.1.",
        "localhost.",
        "0x7f.0.0.0x1",
        "017700000001",
        "[::7f00:1]",
        "[64:ff9b::7f00:1]",
    ],
    *["[2002:7f00:1::]", "[::1%25lo]", "\u2460\u2461\u2466.0.0.1", "127\u30020\u30020\u30021"],
]


@pytest.mark.parametrize("host", SPELLINGS)
def test_no_spelling_of_a_private_address_is_connected_to(server: Server, host: str) -> None:
    url = f"http://{host}:{server.port}/"
    assert reason(url, allow_private_addresses=False) in ("blocked_address", "dns", "bad_url")
    assert server.connections == 0


def test_the_address_that_was_checked_is_the_one_connected_to(server: Server) -> None:
    server.answers["/"] = lambda sock, path: sock.sendall(ok(b"a"))
    internet = Internet(server, {"rebind.test": [["93.184.216.34"], ["127.0.0.1"]]})
    assert internet.fetcher().fetch("http://rebind.test/").content == b"a"
    assert internet.dialled == ["93.184.216.34"]
    assert b"Host: rebind.test\r\n" in server.requests[0]


def test_a_private_address_among_public_ones_is_left_out(server: Server) -> None:
    server.answers["/"] = ok(b"a")
    internet = Internet(server, {"both.test": [["10.0.0.1", "93.184.216.34"]]})
    internet.fetcher().fetch("http://both.test/")
    assert internet.dialled == ["93.184.216.34"]


@pytest.mark.parametrize(
    "location",
    ["http://127.0.0.1/", "http://inside.test/", "http://169.254.169.254/latest/", "//[::1]/"],
)
def test_a_redirect_to_a_private_address_is_blocked(server: Server, location: str) -> None:
    server.answers["/"] = status(302, f"Location: {location}")
    internet = Internet(
        server, {"outside.test": [["93.184.216.34"]], "inside.test": [["192.168.0.7"]]}
    )
    with pytest.raises(FetchError, match="blocked_address"):
        internet.fetcher().fetch("http://outside.test/")
    assert internet.dialled == ["93.184.216.34"]


def test_a_name_without_an_address_has_its_reason(server: Server) -> None:
    with pytest.raises(FetchError, match="dns"):
        Internet(server, {}).fetcher().fetch("http://nowhere.test/")


def test_names_with_private_addresses_see_no_connection(server: Server) -> None:
    inside = ["127.0.0.1", "169.254.169.254", "::1", "10.0.0.1"]
    names = {f"n{i}.test": [[inside[i % 4]]] for i in range(2000)}
    internet = Internet(server, names)
    urls = {name: f"{('http', 'https')[i % 2]}://{name}/" for i, name in enumerate(names)}
    assert set(outcomes(internet.fetcher(), urls).values()) == {"blocked_address"}
    assert not internet.dialled


def test_a_name_that_turns_private_is_not_followed_there(server: Server) -> None:
    server.answers["/a"] = status(302, "Location: http://turns.test/b")
    server.answers["/b"] = ok(b"b")
    internet = Internet(server, {"turns.test": [["93.184.216.34"], ["10.0.0.1"]]})
    assert outcome(internet.fetcher(), "http://turns.test/a") == "blocked_address"
    assert internet.dialled == ["93.184.216.34"]
