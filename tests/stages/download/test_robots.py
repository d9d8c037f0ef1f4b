from __future__ import annotations

import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.download.robots import MAX_BYTES, Robots, RobotsCache


def allows(text: str, path: str, token: str = "capfilt") -> bool:
    return Robots(text.encode(), token).allows(f"http://a.test{path}")


def rules(*lines: str) -> str:
    return "\n".join(["User-agent: *", *lines])


@pytest.mark.parametrize(
    ("lines", "path", "expected"),
    [
        ([], "/a", True),
        (["Disallow:"], "/a", True),
        (["Disallow: /"], "/a", False),
        (["Disallow: /fish"], "/fish.html", False),
        (["Disallow: /fish"], "/Fish.asp", True),
        (["Disallow: /fish/"], "/fish", True),
        (["Disallow: /fish*"], "/fishheads/a?b", False),
        (["Disallow: /*.php"], "/folder/a.php?b=c", False),
        (["Disallow: /*.php$"], "/a.php", False),
        (["Disallow: /*.php$"], "/a.php?b", True),
        (["Disallow: /*.php$"], "/a.php/b.php", False),
        (["Disallow: /fish*.php"], "/fish/a.php", False),
        (["Disallow: /a$"], "/a", False),
        (["Disallow: /a$"], "/ab", True),
        (["Disallow: /a$b"], "/a$bc", False),
        (["Disallow: /*a*a$"], "/a", True),
        (["Disallow: /**/b"], "/a/b", False),
        (["Disallow: *"], "/a", False),
        # The longest pattern decides, and of two as long the one that allows.
        (["Allow: /p", "Disallow: /"], "/page", True),
        (["Disallow: /", "Allow: /p"], "/page", True),
        (["Allow: /folder", "Disallow: /folder"], "/folder/a", True),
        (["Allow: /page", "Disallow: /*.htm"], "/page.htm", False),
        (["Allow: /$", "Disallow: /"], "/", True),
        (["Allow: /$", "Disallow: /"], "/a.htm", False),
        (["Allow: /example/page/", "Disallow: /example/page/disallowed.gif"],
         "/example/page/disallowed.gif", False),
        # One spelling of a character is as good as another.
        (["Disallow: /foo/bar?baz=http://foo.bar"], "/foo/bar?baz=http://foo.bar", False),
        (["Disallow: /ツ"], "/%E3%83%84", False),
        (["Disallow: /%e3%83%84"], "/%E3%83%84", False),
        (["Disallow: /%62%61%7A"], "/baz", False),
        (["Disallow: /baz"], "/%62%61%7A", False),
        (["Disallow: /a%2Fb"], "/a/b", True),
        (["Disallow: /a%2Ab"], "/a*b", False),
        (["Disallow: /a%2Ab"], "/acb", True),
        (["Disallow: /a%24"], "/a$b", False),
    ],
)  # fmt: skip
def test_a_path_is_judged_as_rfc_9309_says(lines: list[str], path: str, expected: bool) -> None:
    assert allows(rules(*lines), path) is expected


def test_the_groups_that_name_us_count_and_else_those_for_all() -> None:
    text = """
Disallow: /before
User-agent: other
Disallow: /
User-agent: CapFilt
user-agent : third
Disallow: /mine   # not this
Sitemap: http://a.test/

Disallow: /too
User-agent: *
Disallow: /all
User-agent: capfilt/0.9
Disallow: /again
"""
    for path, expected in {
        "/mine": False,
        "/too": False,
        "/again": False,
        "/all": True,
        "/before": True,
        "/else": True,
    }.items():
        assert allows(text, path) is expected
    assert not allows(text, "/all", "nobody")
    assert allows(text, "/mine", "nobody")
    assert not allows(text, "/else", "other")
    assert not allows(text, "/mine", "third")


@pytest.mark.parametrize("name", ["cap", "capfilter", "my-capfilt", "cap filt", "capfilt-images"])
def test_a_name_that_only_looks_like_ours_is_another(name: str) -> None:
    assert allows(f"User-agent: {name}\nDisallow: /", "/a")


def test_a_group_that_names_us_without_a_rule_lets_us_in() -> None:
    assert allows("User-agent: *\nDisallow: /\nUser-agent: capfilt\nDisallow:", "/a")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_every_end_of_line_and_a_mark_of_the_encoding_are_read(end: str, start: bytes) -> None:
    content = start + end.join(["User-agent: *", "Disallow: /a"]).encode()
    assert not Robots(content, "capfilt").allows("http://a.test/a")


@pytest.mark.parametrize(
    ("value", "expected"),
    [("10", 10.0), ("0.5", 0.5), ("0", None), ("-1", None), ("soon", None), ("1e400", None)],
)
def test_the_crawl_delay_of_our_group_is_read(value: str, expected: float | None) -> None:
    text = f"User-agent: *\nCrawl-delay: {value}\nUser-agent: x\nCrawl-delay: 99"
    assert Robots(text.encode(), "capfilt").crawl_delay == expected


def test_nothing_is_read_after_the_cap_and_no_half_line_before_it() -> None:
    head = b"User-agent: *\nDisallow: /a\n"
    filler = b"#" * (MAX_BYTES - len(head) - 12) + b"\n"
    content = head + filler + b"Disallow: /private\nDisallow: /b\n"
    robots = Robots(content, "capfilt")
    allowed = [robots.allows(f"http://a.test/{name}") for name in "abp"]
    assert allowed == [False, True, True]
    assert robots.rules == 1


def test_many_names_before_many_rules_cost_no_more_than_their_lines() -> None:
    names = "".join(f"User-agent: bot{index}\n" for index in range(12_000))
    lines = "".join(f"Disallow: /{index}\n" for index in range(12_000))
    robots = Robots((names + "User-agent: capfilt\n" + lines).encode(), "capfilt")
    assert robots.rules == 12_000
    assert not robots.allows("http://a.test/11999")


@given(content=st.binary(max_size=300), path=st.text(max_size=60))
def test_no_bytes_raise(content: bytes, path: str) -> None:
    Robots(content, "capfilt").allows(f"http://a.test/{quote(path)}")
    Robots(b"User-agent: *\nDisallow: " + content, "capfilt").allows(f"http://a.test/{quote(path)}")


# Protego compares a `*` and a `$` of a path as it escapes them, so paths are without.
@given(pattern=st.text("/ab*$2", max_size=12), path=st.text("/ab2", max_size=12))
def test_a_pattern_matches_as_its_regular_expression_does(pattern: str, path: str) -> None:
    pattern, path = "/" + pattern, "/" + path
    anchored = pattern.endswith("$")
    body = pattern.removesuffix("$") if anchored else pattern
    expression = ".*".join(map(re.escape, body.split("*"))) + ("$" if anchored else "")
    expected = re.match(expression, path, re.DOTALL) is None
    assert allows(rules(f"Disallow: {pattern}"), path) is expected


def test_one_reads_for_all_and_what_was_given_up_is_read_again() -> None:
    cache = RobotsCache[OSError]()
    here, there = ("http", "a.test", 80), ("https", "a.test", 443)
    future, is_first = cache.claim(here)
    assert is_first
    assert cache.claim(here) == (future, False)
    assert cache.claim(there)[1]
    cache.give_up(here, OSError("left"))
    assert isinstance(future.result(0), OSError)
    future, is_first = cache.claim(here)
    assert is_first
    robots = Robots()
    cache.keep(here, robots)
    assert cache.claim(here) == (future, False)
    assert future.result(0) is robots


def test_the_oldest_are_forgotten_where_the_rules_are_many() -> None:
    text = rules(*["Disallow: /a"] * 60_000)
    robots = Robots(text.encode()[:MAX_BYTES], "capfilt")
    cache = RobotsCache[OSError]()
    pending, _ = cache.claim(("http", "pending.test", 80))
    number = 200_000 // robots.rules + 2
    for index in range(number):
        cache.claim(("http", f"{index}.test", 80))
        cache.keep(("http", f"{index}.test", 80), robots)
    assert cache.claim(("http", "pending.test", 80)) == (pending, False)
    assert not cache.claim(("http", f"{number - 1}.test", 80))[1]
    assert cache.claim(("http", "0.test", 80))[1]
