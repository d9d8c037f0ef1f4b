"""Decisions on their way to the file."""

import json
import os
import threading

from helpers.reviews import decide, request, serving

from pipeline.results.open_run import open_plan
from pipeline.review.ledger import Ledger
from stages.review import Decision, read_decisions


def test_each_decision_is_on_disk_when_it_is_answered(run):
    file = open_plan(run).manifest.reviews
    with serving(run) as server:
        pairs = server.pairs
        assert decide(server, pair=0, verdict="accept")[0] == 200
        assert read_decisions(file) == {pairs[0].key: Decision("accept")}
        assert decide(server, pair=1, verdict="reject")[0] == 200
        status, found = decide(server, pair=2, verdict="fix", fixed="  a new\n text ")
        assert (status, found["decision"]) == (200, {"verdict": "fix", "fixed": "a new text"})
        same = decide(server, pair=3, verdict="fix", fixed=pairs[3].caption + " ")[1]
        assert same["decision"] == {"verdict": "accept", "fixed": None}
        decide(server, pair=0, verdict="reject")
        decide(server, pair=1, verdict=None)
        assert read_decisions(file) == {
            pairs[0].key: Decision("reject"),
            pairs[2].key: Decision("fix", "a new text"),
            pairs[3].key: Decision("accept"),
        }
        sample = json.loads(request(server, "GET", f"/{server.token}/pairs")[2])
        said = [pair["decision"] for pair in sample["pairs"][:4]]
        assert [one and one["verdict"] for one in said] == ["reject", None, "fix", "accept"]


def test_decisions_at_once_are_all_kept(run):
    with serving(run) as server:
        threads = [
            threading.Thread(target=decide, args=(server,), kwargs={"pair": n, "verdict": "reject"})
            for n in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        keys = {pair.key for pair in server.pairs[:20]}
    assert set(read_decisions(open_plan(run).manifest.reviews)) == keys


def test_the_order_of_decisions_does_not_show_in_the_file(tmp_path):
    keys = [("b", "x"), ("a", "y"), ("a", "x")]
    files = []
    for order in (keys, keys[::-1]):
        ledger = Ledger(str(tmp_path / f"{len(files)}.jsonl"))
        ledger.decide(("c", "x"), Decision("accept"))
        for key in order:
            ledger.decide(key, Decision("fix", "\u00e9"))
        ledger.decide(("c", "x"), None)
        files.append((tmp_path / f"{len(files)}.jsonl").read_bytes())
    assert files[0] == files[1] and read_decisions(str(tmp_path / "0.jsonl")) == ledger.decisions


def test_a_decision_that_cannot_be_written_is_refused_and_undone(run):
    with serving(run) as server:
        assert decide(server, pair=0, verdict="accept")[0] == 200
        reviews = open_plan(run).manifest.reviews
        os.rename(reviews, f"{reviews}.aside")
        os.mkdir(reviews)  # nothing can be renamed onto a folder
        status, found = decide(server, pair=1, verdict="accept")
        assert status == 500 and found["error"]
        assert set(server.ledger.decisions) == {server.pairs[0].key}
