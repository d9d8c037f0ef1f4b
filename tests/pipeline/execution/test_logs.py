"""Lines of the log, as JSON."""

import json
import logging

from pipeline.execution.logs import Formatter, log_context


def line(message, *arguments, **fields):
    record = logging.LogRecord("pipeline.x", logging.WARNING, "x.py", 1, message, arguments, None)
    record.fields = fields
    return json.loads(Formatter().format(record))


def test_a_line_says_what_it_is_about():
    with log_context(run="runs/x", stage="clean"):
        found = line("%d rows", 3, rows=3)
    assert (found["level"], found["message"], found["rows"]) == ("warning", "3 rows", 3)
    assert (found["run"], found["stage"]) == ("runs/x", "clean")
    assert "run" not in line("nothing")


def test_no_secret_of_a_url_is_logged():
    url = 'https://me:pass@h.example/a.jpg?sig=abc\\"&x=1'
    found = line("no answer of %s", url, url=url)
    for text in (found["message"], found["url"]):
        assert "pass" not in text and "abc" not in text and "x=1" in text
