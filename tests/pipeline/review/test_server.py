"""Who may ask for the page, and what it answers."""

import json
import re

import pytest
from helpers.reviews import request, serving


def test_only_the_whole_address_opens_the_page(fresh):
    with serving(fresh) as server:
        token = server.token
        for place in ("/", "", f"/{token}", f"/{token}x/", f"/{token[:-1]}/", "//", f"//{token}/x"):
            for tail in ("", "pairs", "images/0"):
                status, _, content = request(server, "GET", place + tail)
                assert status in (403, 404), place
                assert token not in content.decode() and b"old boat" not in content
        assert request(server, "GET", f"/{token}/")[0] == 200
        for place in ("x", "images/", "images/999", "images/-1", "images/0x1", "images/../pairs"):
            assert request(server, "GET", f"/{token}/{place}")[0] == 404, place
        assert request(server, "GET", f"/{token}/images/{'9' * 5000}")[0] == 404


@pytest.mark.parametrize(
    "host", [None, "", "evil.example", "127.0.0.1", "localhost:1", "127.0.0.1:{p}.evil.example"]
)
def test_a_request_under_another_name_is_refused(fresh, host):
    with serving(fresh) as server:
        host = host and host.replace("{p}", str(server.server_port))
        for method, place in (
            ("GET", ""),
            ("GET", "pairs"),
            ("GET", "images/0"),
            ("POST", "decide"),
        ):
            body = {"pair": 0, "verdict": "reject"} if method == "POST" else None
            status, _, content = request(
                server, method, f"/{server.token}/{place}", body, Host=host
            )
            assert status == 403 and b"the Host header is not this server" in content
    assert not fresh.exists("reviews.jsonl")


def test_the_name_localhost_will_do(fresh):
    with serving(fresh) as server:
        host = f"localhost:{server.server_port}"
        assert request(server, "GET", f"/{server.token}/", Host=host)[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": None}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "https://127.0.0.1:{p}"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Content_Type": None, "Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Length": None}, 411),
        ({"Content-Length": "-1"}, 411),
        ({"Content-Length": "99999999"}, 413),
    ],
)
def test_a_decision_from_elsewhere_is_refused(fresh, headers, status):
    with serving(fresh) as server:
        headers = {k: v and v.replace("{p}", str(server.server_port)) for k, v in headers.items()}
        body = {"pair": 0, "verdict": "reject"}
        found = request(server, "POST", f"/{server.token}/decide", body, **headers)
        assert found[0] == status
        assert request(server, "GET", f"/{server.token}/pairs")[0] == 200
    assert not fresh.exists("reviews.jsonl")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[" * 60_000, 400),
        ([], 400),
        ({}, 404),
        ({"pair": 10_000, "verdict": "accept"}, 404),
        ({"pair": -1, "verdict": "accept"}, 404),
        ({"pair": True, "verdict": "accept"}, 404),
        ({"pair": "0", "verdict": "accept"}, 404),
        ({"pair": 0, "verdict": "maybe"}, 400),
        ({"pair": 0, "verdict": ["accept"]}, 400),
        ({"pair": 0, "verdict": "fix"}, 400),
        ({"pair": 0, "verdict": "fix", "fixed": " \n "}, 400),
        ({"pair": 0, "verdict": "fix", "fixed": "x" * 2001}, 400),
        ({"pair": 0, "verdict": "fix", "fixed": "a \x1b b"}, 400),
        ({"pair": 0, "verdict": "fix", "fixed": "a \u202e b"}, 400),
        ({"pair": 0, "verdict": "fix", "fixed": "\ud800"}, 400),
    ],
)
def test_what_is_no_decision_is_refused_and_says_why(fresh, body, status):
    with serving(fresh) as server:
        found, _, content = request(server, "POST", f"/{server.token}/decide", body)
        assert found == status and json.loads(content)["error"]
    assert not fresh.exists("reviews.jsonl")


def test_the_page_allows_itself_and_nothing_else(fresh):
    with serving(fresh) as server:
        _, headers, page = request(server, "GET", f"/{server.token}/")
        _, other, _ = request(server, "GET", f"/{server.token}/")
        kinds = [request(server, "GET", f"/{server.token}/{p}")[1] for p in ("pairs", "images/0")]
    policy = headers["Content-Security-Policy"]
    nonce = re.search("script-src 'nonce-([^']+)'", policy).group(1)
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy and "*" not in policy
    assert policy != other["Content-Security-Policy"]
    text = page.decode()
    assert text.count(f'nonce="{nonce}"') == text.count("<script") + text.count("<style") == 2
    assert re.findall(r'(?:src|href)="([^"]*)', text) == ["data:,"]
    assert not re.search(r"https?://|url\(|@import", text)
    assert "<b>run" not in text and "hostile &lt;b&gt;run" in text
    for found in (headers, *kinds):
        assert found["X-Content-Type-Options"] == "nosniff"
        assert found["Cache-Control"] == "no-store"
        assert found["Cross-Origin-Resource-Policy"] == "same-origin"
    assert [kind["Content-Type"] for kind in kinds] == ["application/json", "image/jpeg"]


def test_images_are_encoded_anew_and_a_broken_one_is_missing(fresh):
    with serving(fresh) as server:
        for index, pair in enumerate(server.pairs):
            status, _, content = request(server, "GET", f"/{server.token}/images/{index}")
            if pair.url.endswith("/7"):
                assert status == 404
            else:
                assert status == 200 and content.startswith(b"\xff\xd8")
