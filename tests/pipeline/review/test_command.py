"""`capfilt review` as a process of its own."""

import json
import signal

import pytest
from helpers.reviews import decide, request, start

from pipeline.cli.main import main
from pipeline.results.funnel import funnel
from pipeline.results.open_run import open_results


@pytest.mark.slow
def test_a_killed_review_goes_on_where_it_was(run):
    process, server = start(run, "--of", "any", "--sample", "12")
    try:
        for index, verdict in enumerate(("accept", "reject", "accept")):
            assert decide(server, pair=index, verdict=verdict)[0] == 200
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process, again = start(run, "--of", "any", "--sample", "12")
    sample = json.loads(request(again, "GET", f"/{again.token}/pairs")[2])["pairs"]
    said = [pair["decision"] and pair["decision"]["verdict"] for pair in sample]
    assert said == ["accept", "reject", "accept", *[None] * 9]
    assert again.token != server.token
    assert request(again, "POST", f"/{again.token}/done", {})[0] == 200
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    assert "3 pairs: 2 accept, 1 reject, 0 fix" in out and "filter keeps" in out
    assert "capfilt export MANIFEST" in out
    review = next(s for s in funnel(open_results(run))["stages"] if s["name"] == "review")
    assert review["state"] == "done" and review["not_measured"] == 0


@pytest.mark.slow
def test_one_review_at_a_time(run, capsys):
    process, _ = start(run)
    try:
        assert main(["review", run.root]) == 1
        assert "is in use by process" in capsys.readouterr().err
    finally:
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=600)
    assert process.returncode == 0 and "no decisions yet" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sample", "0"), "--sample must be at least 1"),
        (("--port", "70000"), "--port must be from 0 to 65535"),
    ],
)
def test_wrong_options_are_status_2(fresh, capsys, options, message):
    assert main(["review", fresh.root, *options]) == 2
    assert message in capsys.readouterr().err
