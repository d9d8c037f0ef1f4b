from __future__ import annotations

from typing import Any

import idna
import pytest
from helpers.hosts import Server, fetcher, ok, reason
from hypothesis import given
from hypothesis import strategies as st

from stages.download.urls import SchemeError, Target, join


def _never(*args: object) -> Any:
    raise AssertionError("nothing may be looked up or connected to")


@pytest.mark.parametrize(
    "url",
    [
        "",
        " \u200b",
        "ftp://example.org/cat.jpg",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "http://",
        "http:///cat.jpg",
        "http://[::1/cat.jpg",
        "http://[2606:4700::1%\u0436]/a.jpg",
        "http://[fe80::1%25eth0]/a.jpg",
        "http://exa mple.org/",
        "http://example.org\r\nX-Injected: 1/",
        "http://example.org:99999/",
        "http://example.org:0/",
        "http://example.org:port/",
        "http://" + "a" * 70 + ".org/",
        "http://" + ".".join(["a" * 60] * 5) + "/",
        "http://example.org/" + "a" * 9000,
        "http://example.org/\ud800",
        "http://1.2.3.4.5/",
        "http://256.1.1.1/",
        "http://\u0000/",
    ],
)
def test_what_is_not_a_web_address_is_a_bad_url(url: str) -> None:
    assert reason(url, resolve=_never, dial=_never) == "bad_url"


@pytest.mark.parametrize(
    "url", ["cat.jpg", "//example.org/cat.jpg", "example.org/a.jpg", "example.org:80/a.jpg"]
)
def test_what_has_no_scheme_is_told_so(url: str) -> None:
    assert reason(url, resolve=_never, dial=_never) == "no_scheme"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://stra\u00dfe.de/a.jpg", "http://xn--strae-oqa.de/a.jpg"),
        ("http://fa\u00df.de/a.jpg", "http://xn--fa-hia.de/a.jpg"),
        ("http://\u03ba\u03bb\u03b1\u03c1\u03b1-\u03c3\u03c9\u03bb\u03b9\u03c2.\u03b5\u03c5/",
         "http://xn----ylba7abgd9bnh0e.xn--qxa6a/"),
        ("http://B\u00dcCHER.example/", "http://xn--bcher-kva.example/"),
        ("http://\u2603.net/", "http://xn--n3h.net/"),
        ("http://my_host.example.com/a b?q=\u00e9#f", "http://my_host.example.com/a%20b?q=%C3%A9"),
        ("http:\\\\h\\a\\..\\b", "http://h/b"),
        ("http:/h:80/x", "http://h/x"),
        ("https://h:443", "https://h/"),
        ("https://h:80", "https://h:80/"),
        ("\u200b\ufeff https://h\n", "https://h/"),
        ("HTTP://User:Pass@H/A", "http://h/A"),
        ("http://h/a/%2e%2E/b/./c/..", "http://h/b/"),
        ("http://h/a..b/.c", "http://h/a..b/.c"),
        ("http://h?x=1", "http://h/?x=1"),
        ("http://h/%zz%20", "http://h/%zz%20"),
        ("http://0x7f.1/", "http://127.0.0.1/"),
        ("http://2130706433", "http://127.0.0.1/"),
        ("http://[::FFFF:1.2.3.4]/", "http://[::ffff:102:304]/"),
    ],
)  # fmt: skip
def test_a_url_leads_where_browsers_go(url: str, expected: str) -> None:
    assert Target.of(url).url == expected


def test_a_name_that_is_not_ascii_is_asked_as_browsers_ask_it(server: Server) -> None:
    asked: list[str] = []

    def resolve(host: str) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    server.answers["/a"] = ok(b"a")
    one = fetcher(resolve=resolve)
    assert one.fetch(f"http://stra\u00dfe.test:{server.port}/a").content == b"a"
    assert asked == ["xn--strae-oqa.test"]
    assert f"Host: xn--strae-oqa.test:{server.port}\r\n".encode() in server.requests[0]


label = st.text("abc\u00df\u00e9\u03c2\u03c3\u0645\u0928\u200d-0", min_size=1, max_size=8)


@given(name=st.lists(label, min_size=1, max_size=3).map(".".join))
def test_names_agree_with_the_package_idna_where_it_takes_them(name: str) -> None:
    try:
        expected = idna.encode(name, uts46=True, std3_rules=False).decode()
    except idna.IDNAError:
        return
    if expected.rpartition(".")[2].isdigit():
        return  # an IPv4 address to browsers
    assert Target.of(f"http://{name}/").host == expected


@given(url=st.text(max_size=60) | st.text(max_size=40).map("http://".__add__))
def test_a_url_is_read_or_refused_and_reading_it_again_changes_nothing(url: str) -> None:
    try:
        target = Target.of(url)
    except SchemeError:
        return
    except ValueError:
        return
    assert target.url.isascii() and target.url.isprintable() and " " not in target.url
    assert Target.of(target.url) == target


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("b", "http://h/a/b"),
        ("/b", "http://h/b"),
        ("//g/b", "http://g/b"),
        (" https://g/b ", "https://g/b"),
        ("\\\\g\\b", "http://g/b"),
        ("?q", "http://h/a/?q"),
    ],
)
def test_a_location_may_be_relative(location: str, expected: str) -> None:
    assert join("http://h/a/", location) == expected
