import io
import re
import threading

import pytest
from rich.console import Console

from pipeline.execution import progress as progress_module
from pipeline.execution.progress import Progress


def shown(name, *results, terminal=False):
    out = io.StringIO()
    progress = Progress(Console(file=out, force_terminal=terminal, width=200))
    progress.start(name, len(results))
    for result in results:
        progress.advance(result)
    progress.finish()
    return out.getvalue()


def test_a_download_tells_what_failed_most():
    reasons = {"http_404": 60, "timeout": 30, "dns": 20, "tls": 1}
    text = shown("download", {"rows": 1000, "bytes": 5_000_000, "reasons": reasons})
    assert "1/1 shards" in text and "1,000 rows" in text and "89% ok" in text
    assert "images/s" in text and "MB/s" in text
    assert "6% http_404, 3% timeout, 2% dns" in text and "tls" not in text


def test_a_terminal_gets_a_bar_with_the_time_left():
    results = [{"rows": 10, "reasons": {"too_few_words": 1}}] * 4
    text = shown("clean", *results, terminal=True)
    assert "4/4" in text and "10% too_few_words" in text and "0:00:00" in text


def test_a_finished_stage_leaves_the_same_line_on_a_terminal_as_elsewhere():
    results = [{"rows": 10, "reasons": {"too_few_words": 1, "filename": 1}}] * 4
    told = [shown("clean", *results, terminal=terminal) for terminal in (True, False)]
    last = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", told[0]).split("\r")[-1].splitlines()
    numbers = [re.sub(r"[\d,]+ rows/s|[\d.]+ s$", "", line) for line in (last[-1], told[1].strip())]
    assert numbers[0] == numbers[1]
    assert "10% too_few_words, 10% filename" in numbers[0]


@pytest.mark.parametrize("width", [80, 100, 110])
def test_a_narrow_line_keeps_bar_shards_and_time_and_is_one_line(width):
    out = io.StringIO()
    progress = Progress(Console(file=out, force_terminal=True, width=width))
    progress.start("download", 1000)
    assert "working" in out.getvalue() or width == 80
    reasons = {"not_an_image": 60, "http_404": 30, "private_address": 20}
    for _ in range(3):
        progress.advance({"rows": 1000, "bytes": 5_000_000, "reasons": reasons})
    progress._bars.refresh()
    last = [line for line in out.getvalue().split("\r") if "shards" in line][-1]
    progress.finish()
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", last)
    assert all(len(line) <= width for line in plain.splitlines())
    assert "3/1000" in plain and ":" in plain


def test_lines_of_text_say_that_the_first_shard_is_worked_on(monkeypatch):
    monkeypatch.setattr(progress_module, "PLAIN_SECONDS", 0.001)
    told = threading.Event()

    class Written(io.StringIO):
        def write(self, text):
            if "working on the first" in text:
                told.set()
            return super().write(text)

    out = Written()
    progress = Progress(Console(file=out, width=200))
    progress.start("caption", 3)
    assert told.wait(600)
    assert "caption    0/3 shards  working on the first for 0 s" in out.getvalue()
    progress.finish()


def test_a_small_share_is_not_nought():
    text = shown("download", {"rows": 10_000, "reasons": {"dns": 4}})
    assert "<0.1% dns" in text and "99.9% ok" in text
