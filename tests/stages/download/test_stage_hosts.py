"""Download from hosts that are slow, hold back, forbid, or are not to be asked."""

from __future__ import annotations

import contextlib
import hashlib
import socket
from pathlib import Path
from typing import Any

import pytest
from helpers.downloads import Web, encode, measured, only, photo, stage

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
    rows = measured(stage(threads=4, timeout=600.0), [web.url(name) for name in names])
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
    rows = measured(stage(connections_per_host=3, timeout=600.0), urls)
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


@pytest.mark.parametrize("robots", [True, False])
def test_ten_thousand_private_addresses_see_no_connection(web: Web, robots: bool) -> None:
    hosts = ["127.0.0.1", "169.254.169.254", "[::1]", "10.0.0.1", "localhost"]
    urls = [
        f"{('http', 'https')[i % 2]}://{hosts[i % 5]}:{web.server_port}/{i}.jpg"
        for i in range(10_000)
    ]
    one = DownloadStage(DownloadConfig(source="list.csv", robots=robots))
    one.load()
    rows = measured(one, urls)
    assert {row["error"] for row in rows} == {"blocked_address"}
    assert not web.asked


def test_a_tdm_reservation_is_an_opt_out(web: Web) -> None:
    content = encode(photo(64, 64))
    for value, error in (("1", "opted_out"), ("0", None)):
        web.headers["file"] = {"TDM-Reservation": value}
        assert only(web, content)["error"] == error
    web.headers["file"] = {"tdm-reservation": "1"}
    assert only(web, content, honor_opt_out=False)["error"] is None


def test_hosts_that_a_file_denies_or_does_not_allow_are_not_asked(web: Web, tmp_path: Path) -> None:
    web.files.update({"a": encode(photo(64, 64)), "b": b""})
    web.statuses["b"] = 302
    web.headers["b"] = {"Location": f"http://www.denied.test:{web.server_port}/a"}
    denied, allowed = tmp_path / "deny.txt", tmp_path / "allow.txt"
    denied.write_text("# those who asked us\nDenied.test\n*.other.test\n\nstra\u00dfe.de\n")
    allowed.write_text("127.0.0.1\n")
    urls = [
        web.url("a"),
        web.url("b"),
        "http://denied.test/a",
        "http://www.other.test/a",
        "http://stra\u00dfe.de/a",
        "http://nearly-denied.test.invalid/a",
    ]
    errors = [row["error"] for row in measured(stage(deny_hosts=str(denied)), urls)]
    assert errors == [None, *["denied_host"] * 4, "dns"]
    errors = [row["error"] for row in measured(stage(allow_hosts=str(allowed)), urls)]
    assert errors == [None, *["denied_host"] * 5]


@pytest.mark.parametrize("line", ["http://a.test/", "a.test/b", "a b", "a..\u2603\ud7ff"])
def test_a_line_that_is_no_domain_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "deny.txt").write_text(f"a.test\n{line}\n")
    config = DownloadConfig(source="list.csv", deny_hosts=str(tmp_path / "deny.txt"))
    with pytest.raises(
        ValueError, match=r"download.deny_hosts: line 2 of .*deny.txt is not a domain"
    ):
        config.measurement()


def test_other_denied_hosts_make_another_pool_and_another_proxy_does_not(tmp_path: Path) -> None:
    def measurement(**given: Any) -> dict[str, Any]:
        return DownloadConfig(source="list.csv", **given).measurement()

    file = tmp_path / "deny.txt"
    file.write_text("a.test\nb.test\n")
    before = measurement(deny_hosts=str(file))
    file.write_text("B.test\na.test\n# a remark\n")
    assert measurement(deny_hosts=str(file)) == before
    file.write_text("a.test\n")
    assert measurement(deny_hosts=str(file)) != before
    assert measurement(proxy="socks5h://127.0.0.1:1080") == measurement()
    with pytest.raises(ValueError, match=r"deny_hosts: .*no.txt cannot be read"):
        measurement(deny_hosts=str(tmp_path / "no.txt"))
    with pytest.raises(ValueError, match=r"download.proxy must be a URL") as refused:
        measurement(proxy="ftp://user:secret@127.0.0.1")
    assert "secret" not in str(refused.value)
