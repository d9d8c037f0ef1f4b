"""Review by hand: the sample, the page and its server, and the export that follows."""

import contextlib
import http.client
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading

import fakes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from browser import CHROMIUM, Browser
from rich.console import Console

from pipeline.cli import main
from pipeline.cluster import Cluster
from pipeline.evidence import evidence
from pipeline.inspect import verify
from pipeline.manifest import Manifest, ManifestError
from pipeline.plan import Plan
from pipeline.progress import Progress
from pipeline.report import build
from pipeline.review.agreement import Agreement
from pipeline.review.ledger import Ledger
from pipeline.review.sample import draw
from pipeline.review.server import ReviewServer
from pipeline.runner import Runner
from pipeline.status import funnel, open_plan
from pipeline.store import Run
from pipeline.verdicts import judge
from pipeline.worker import Worker
from stages.review import Decision, read_decisions
from stages.schema import POOL, uid_of

COMMIT = "0" * 40
SCRIPT = "<script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"
BIDI = "a kite \u202egnp.exe \x1b[31m over the wall"
NUMBER = 24
SHARD = 8


def caption_of(index):
    return {0: SCRIPT, 1: BIDI, 2: None}.get(index, f"A photograph of the old boat number {index}")


def synthetic_of(index):
    return [f"a boat {index}", "" if index % 5 else "a boat on a lake", f"a boat {index}"]


def score(index, which=0):
    return ((index * 37 + which * 41) % 100) / 100


def content(root, **stages):
    return {
        "name": "hostile <b>run",
        "run": str(root),
        "stages": {
            "download": {"source": "list.parquet"},
            "caption": {"revision": COMMIT},
            "filter": {"revision": COMMIT},
            **stages,
            "export": {},
        },
        "exports": {"raw": {"filtered": False}},
    }


def make_run(root, **stages):
    """A run with a real pool, measured by a captioner and a filter that were thought up."""
    made = content(root, **stages)
    plan = Plan(Manifest.parse(made))
    run = Run(str(root))
    run.write_json({"manifest": made, "branch": ""}, "run.json")
    rows = [
        {
            **dict.fromkeys(POOL.names),
            "uid": uid_of(f"https://x.example/{n}", caption_of(n)),
            "source": "web",
            "url": f"https://x.example/{n}",
            "caption": caption_of(n),
            "repeats": 0,
            "status": "success",
            "image": b"not an image" if n == 7 else fakes.jpeg(n, (240, 180)),
            **dict.fromkeys(("width", "original_width"), 240),
            **dict.fromkeys(("height", "original_height"), 180),
            "sha256": f"{n:064x}",
        }
        for n in range(NUMBER)
    ]
    for start in range(0, NUMBER, SHARD):
        shard = f"{start // SHARD:05d}.parquet"
        some = pa.Table.from_pylist(rows[start : start + SHARD], POOL)
        run.write_table(some, "pool", shard)
        here = range(start, start + SHARD)
        texts = [synthetic_of(n) for n in here]
        marks = [
            [score(n, 1), score(n, 2) if t[1] else None, score(n, 1)]
            for n, t in zip(here, texts, strict=True)
        ]
        columns = {
            "caption": {"synthetic": texts},
            "filter": {
                "itm_web": [None if caption_of(n) is None else score(n) for n in here],
                "itm_synthetic": marks,
                "itm_decoded": [True] * SHARD,
            },
        }
        for name, values in columns.items():
            schema = plan.stage(name).writes
            table = {
                field.name: pa.array(values.get(field.name, [None] * SHARD), field.type)
                for field in schema
            }
            table = {"uid": some["uid"], "measured": [True] * SHARD, **table}
            run.write_table(pa.table(table), *plan.folder(name), shard)
    runner = Runner(plan.manifest, Cluster(), Progress(Console(quiet=True), quiet=True))
    for name in ("download", "caption", "filter"):
        state = {"complete_for": runner._reached(name), "shards": NUMBER // SHARD, "seconds": 1.0}
        run.write_json(state, *plan.folder(name), "_stage.json")
    return run


def commit(run):
    """What the end of a session does: the stage review, no cluster needed."""
    manifest = open_plan(run).manifest
    Runner(manifest, Cluster(), Progress(Console(quiet=True), quiet=True)).stage("review")


def pairs_of(run, name="export"):
    """The pairs that export would write now, as a list of dicts."""
    worker = Worker(open_plan(run).manifest)
    found = []
    for shard in run.shards("pool"):
        pairs = worker.plan.export(name).pairs(*worker._kept(name, shard))
        found += pairs.drop_columns("image").to_pylist()
    return found


@contextlib.contextmanager
def serving(run, choice="any", number=100):
    plan = open_plan(run)
    pairs = draw(run, plan, choice, number)
    with ReviewServer(run, plan, pairs, Ledger(plan.manifest.reviews)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def request(server, method, place, body=None, **headers):
    """(status, headers, content) of a request as a browser on the page would send it."""
    own = f"127.0.0.1:{server.server_port}"
    sent = {"Host": own}
    if method == "POST":
        sent |= {"Origin": f"http://{own}", "Content-Type": "application/json"}
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent["Content-Length"] = str(len(body))
    sent = {k: v for k, v in (sent | headers).items() if v is not None}
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    try:
        connection.putrequest(method, place, skip_host=True, skip_accept_encoding=True)
        for name, value in sent.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def decide(server, **decision):
    status, _, content = request(server, "POST", f"/{server.token}/decide", decision)
    return status, json.loads(content)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A run that nobody changes."""
    return make_run(tmp_path_factory.mktemp("fresh") / "run")


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


def test_the_sample_of_kept_pairs_is_what_export_writes(fresh):
    pairs = draw(fresh, open_plan(fresh), "kept", 1000)
    exported = {(pair["uid"], pair["caption"]) for pair in pairs_of(fresh)}
    assert {pair.key for pair in pairs} == exported and len(pairs) == len(exported)
    sources = {(p["uid"], p["caption"]): p["caption_source"] for p in pairs_of(fresh)}
    assert {pair.key: pair.source for pair in pairs} == sources


def test_every_scored_pair_is_kept_or_rejected(fresh):
    plan = open_plan(fresh)
    kept, rejected, both = (
        {p.key: p for p in draw(fresh, plan, c, 1000)} for c in ("kept", "rejected", "any")
    )
    assert kept | rejected == both and not set(kept) & set(rejected)
    assert all(pair.score >= 0.5 for pair in kept.values())
    assert all(pair.score < 0.5 for pair in rejected.values())


@pytest.mark.parametrize("choice", ["kept", "rejected", "borderline", "any"])
def test_a_larger_sample_begins_with_the_smaller(fresh, choice):
    plan = open_plan(fresh)
    assert draw(fresh, plan, choice, 5) == draw(fresh, plan, choice, 12)[:5]


def test_the_seed_draws_the_sample(fresh):
    plan = open_plan(fresh)
    made = content(fresh.root, caption={"revision": COMMIT, "seed": 0})
    other = Plan(Manifest.parse({**made, "seed": 1}))
    assert draw(fresh, plan, "any", 10) != draw(fresh, other, "any", 10)


def test_borderline_pairs_come_nearest_first_from_both_sides(fresh):
    pairs = draw(fresh, open_plan(fresh), "borderline", 1000)
    distances = [abs(np.float32(pair.score) - 0.5) for pair in pairs]
    assert all(a <= b + 1e-6 for a, b in itertools.pairwise(distances))
    assert {pair.is_kept for pair in pairs[:6]} == {True, False}


def test_a_row_points_at_its_image(fresh):
    for pair in draw(fresh, open_plan(fresh), "any", 1000):
        row = fresh.read_table("pool", f"{pair.shard}.parquet").slice(pair.row, 1).to_pylist()[0]
        assert (row["uid"], row["url"]) == (pair.uid, pair.url)


def test_a_sample_does_not_lose_what_was_rejected_by_hand(run):
    before = draw(run, open_plan(run), "kept", 10)
    ledger = Ledger(open_plan(run).manifest.reviews)
    for pair in before:
        ledger.decide(pair.key, Decision("reject"))
    commit(run)
    assert draw(run, open_plan(run), "kept", 10) == before


@pytest.mark.parametrize("choice", ["rejected", "borderline"])
def test_without_a_filter_only_kept_pairs_can_be_asked_for(tmp_path, choice):
    made = content(tmp_path)
    del made["stages"]["filter"]
    plan = Plan(Manifest.parse(made))
    with pytest.raises(ValueError, match=f"--of {choice}: .* has no filter; use --of kept"):
        draw(Run(str(tmp_path)), plan, choice, 10)


def test_a_run_without_pairs_says_so(tmp_path):
    with pytest.raises(ValueError, match="no pair kept to look at"):
        draw(Run(str(tmp_path)), Plan(Manifest.parse(content(tmp_path))), "kept", 10)


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
            assert status == 403 and b"another name" in content
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


def test_export_follows_the_decisions(run):
    before, raw = pairs_of(run), pairs_of(run, "export:raw")
    old = open_plan(run).decision("export")
    pairs = draw(run, open_plan(run), "kept", 1000)
    web = next(p for p in pairs if p.source == "web")
    synthetic = next(p for p in pairs if p.source == "synthetic" and p.uid != web.uid)
    fixed = next(p for p in pairs if p.uid not in (web.uid, synthetic.uid))
    ledger = Ledger(open_plan(run).manifest.reviews)
    for pair in (web, synthetic):
        ledger.decide(pair.key, Decision("reject"))
    ledger.decide(fixed.key, Decision("fix", "written by hand"))
    ledger.decide(pairs[-1].key, Decision("accept"))
    assert open_plan(run).decision("export") != old
    commit(run)

    def changed(rows):
        for row in rows:
            key = row["uid"], row["caption"]
            if key == fixed.key:
                yield {**row, "caption": "written by hand", "itm_score": None}
            elif key not in (web.key, synthetic.key):
                yield row

    assert pairs_of(run) == list(changed(before)) != before
    assert pairs_of(run, "export:raw") == list(changed(raw)) != raw
    assert {p["caption_source"] for p in pairs_of(run)} == {"web", "synthetic"}
    ledger.decide(web.key, None)
    assert open_plan(run).decision("export") != old


def test_a_row_all_of_whose_captions_are_rejected_is_told_in_the_funnel(run):
    plan = open_plan(run)
    uid = draw(run, plan, "kept", 1)[0].uid
    ledger = Ledger(plan.manifest.reviews)
    mine = [pair for pair in draw(run, plan, "any", 1000) if pair.uid == uid]
    for pair in mine:
        ledger.decide(pair.key, Decision("reject"))
    waiting = funnel(run, open_plan(run))["stages"]
    assert [stage["name"] for stage in waiting][-2:] == ["review", "export"]
    commit(run)
    plan = open_plan(run)
    found = {stage["name"]: stage for stage in funnel(run, plan)["stages"]}
    review = found["review"]
    assert review["state"] == "done" and review["not_measured"] == 0
    assert review["reasons"] == {"rejected": 1}
    assert review["rows"] == found["filter"]["kept"] == review["kept"] + 1
    assert not [pair for pair in pairs_of(run) if pair["uid"] == uid]
    assert list(verify(run, plan)) == []
    told = evidence(run, plan, uid)
    assert told.verdict == "review: rejected"
    (step,) = [step for step in told.steps if step.name == "review"]
    assert {entry["verdict"] for entry in step.measures["reviews"]} == {"reject"}


def test_a_threshold_that_is_loosened_later_costs_no_decision(run):
    plan = open_plan(run)
    pair = draw(run, plan, "rejected", 1)[0]
    Ledger(plan.manifest.reviews).decide(pair.key, Decision("fix", "written by hand"))
    commit(run)
    assert "written by hand" not in [p["caption"] for p in pairs_of(run)]
    record = run.read_json("run.json")
    record["manifest"]["stages"]["filter"]["min_itm"] = 0.0
    run.write_json(record, "run.json")
    assert "written by hand" in [p["caption"] for p in pairs_of(run)]
    for shard in run.shards("pool"):
        assert judge(run, open_plan(run), shard, open_plan(run).names).is_complete


def test_review_may_name_its_file_and_must_stand_last(tmp_path):
    file = str(tmp_path / "shared.jsonl")
    manifest = Manifest.parse(content(tmp_path, review={"file": file}))
    assert manifest.reviews == file and Plan(manifest).names[-1] == "review"
    assert Manifest.parse(content(tmp_path, review={})).reviews == f"{tmp_path}/reviews.jsonl"
    made = content(tmp_path)
    made["stages"] = {"download": {"source": "x"}, "review": {}, "filter": {"revision": COMMIT}}
    with pytest.raises(ManifestError, match="review must be the last stage before export"):
        Manifest.parse(made)


def test_without_decisions_a_manifest_has_no_review(tmp_path):
    assert "review" not in Manifest.parse(content(tmp_path)).stages


def test_the_report_counts_decisions_and_agreement(run):
    plan = open_plan(run)
    ledger = Ledger(plan.manifest.reviews)
    kept, rejected = (draw(run, plan, choice, 1000) for choice in ("kept", "rejected"))
    for pair in kept[:5]:
        ledger.decide(pair.key, Decision("accept"))
    ledger.decide(kept[5].key, Decision("fix", "written by hand"))
    for pair in rejected[:2]:
        ledger.decide(pair.key, Decision("reject"))
    ledger.decide(rejected[2].key, Decision("accept"))
    ledger.decide(("f" * 32, "of another run"), Decision("accept"))
    commit(run)
    plan = open_plan(run)
    build.write(run, plan, funnel(run, plan))
    review = run.read_json("report", "report.json")["review"]
    assert review["pairs"] == 9 and review["outdated"] == 1
    assert (review["accept"], review["reject"], review["fix"]) == (6, 2, 1)
    table = {"both_keep": 5, "only_filter": 1, "only_people": 1, "neither": 2}
    kappa = (7 / 9 - (6 * 6 + 3 * 3) / 81) / (1 - (6 * 6 + 3 * 3) / 81)
    assert review["agreement"] == {**table, "accuracy": 7 / 9, "kappa": pytest.approx(kappa)}
    page = run.read("report", "index.html").decode()
    assert "Review by hand" in page and "accuracy 77.8%" in page and "kappa 0.50" in page


def test_the_report_counts_as_kept_what_is_exported(run):
    plan = open_plan(run)
    ledger = Ledger(plan.manifest.reviews)
    for pair in draw(run, plan, "kept", 1000)[:7]:
        ledger.decide(pair.key, Decision("reject"))
    commit(run)
    plan = open_plan(run)
    build.write(run, plan, funnel(run, plan))
    texts = run.read_json("report", "report.json")["texts"]
    assert texts["web"]["kept"] + texts["synthetic"]["kept"] == len(pairs_of(run))


@pytest.mark.parametrize(
    ("cells", "accuracy", "kappa"),
    [
        ((20, 5, 10, 15), 0.7, 0.4),  # the example of many textbooks
        ((10, 0, 0, 10), 1.0, 1.0),
        ((0, 10, 10, 0), 0.0, -1.0),
        ((10, 0, 0, 0), 1.0, None),
        ((10, 5, 0, 0), 10 / 15, None),
        ((10, 0, 5, 0), 10 / 15, None),
        ((0, 0, 0, 0), None, None),
    ],
)
def test_agreement_is_accuracy_and_cohens_kappa(cells, accuracy, kappa):
    names = ("both_keep", "only_filter", "only_people", "neither")
    found = Agreement(**dict(zip(names, cells, strict=True)))
    assert found.accuracy == (accuracy if accuracy is None else pytest.approx(accuracy))
    assert found.kappa == (kappa if kappa is None else pytest.approx(kappa))


def start(run, *options):
    """`capfilt review` as a process of its own, and the address it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "review", run.root, *options],
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)/(\S+)/", line):
            return process, _Address(int(found.group(1)), found.group(2))
    raise AssertionError("no address")


class _Address:
    def __init__(self, server_port, token):
        self.server_port, self.token = server_port, token


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
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "3 pairs: 2 accept, 1 reject, 0 fix" in out and "filter keeps" in out
    assert "capfilt export MANIFEST" in out
    review = next(s for s in funnel(run, open_plan(run))["stages"] if s["name"] == "review")
    assert review["state"] == "done" and review["not_measured"] == 0


def test_one_review_at_a_time(run, capsys):
    process, _ = start(run)
    try:
        assert main(["review", run.root]) == 1
        assert "is in use by process" in capsys.readouterr().err
    finally:
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "nothing is decided" in out


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


def test_the_next_export_is_written_anew(tmp_path, ray_here, capsys):
    fakes.photo_folder(tmp_path / "photos", 9)
    made = {
        "name": "small",
        "run": str(tmp_path / "run"),
        "stages": {
            "download": {"source": str(tmp_path / "photos"), "image_size": 64, "shard_size": 4},
            "clean": {},
            "dedup": {},
            "export": {},
        },
    }
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump(made, sort_keys=False))
    run = Run(made["run"])
    assert main(["run", str(path), "--quiet"]) == 0
    first = run.read_json("curated", "manifest.json")
    with serving(run, "kept") as server:
        fixed, rejected = server.pairs[0], server.pairs[1]
        assert len(server.pairs) == 9
        assert decide(server, pair=0, verdict="fix", fixed="A caption by hand")[0] == 200
        assert decide(server, pair=1, verdict="reject")[0] == 200
    assert main(["export", str(path), "--quiet"]) == 0
    second = run.read_json("curated", "manifest.json")
    assert second["decision"] != first["decision"]
    assert second["pairs"] == {"web": 8}
    rows = [
        row
        for file in second["files"]
        for row in pq.read_table(run.at("curated", file["name"])).to_pylist()
    ]
    assert rejected.uid not in {row["uid"] for row in rows}
    assert {r["uid"]: r["caption"] for r in rows}[fixed.uid] == "A caption by hand"
    capsys.readouterr()
    assert main(["status", run.root, "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert [s["name"] for s in stages] == ["download", "clean", "dedup", "review", "export"]
    assert all(s["state"] == "done" and not s["not_measured"] for s in stages)
    assert stages[3]["reasons"] == {"rejected": 1}


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_keys_decide_in_a_browser(run, tmp_path):
    with serving(run, "any") as server, Browser(tmp_path / "profile") as browser:
        texts = [pair.caption for pair in server.pairs]
        hostile = [texts.index(SCRIPT), texts.index(BIDI)]
        browser.open(server.url)
        browser.wait("!document.querySelector('#one').hidden && image.complete")
        shown = "document.querySelector('#caption').textContent"
        place = "document.querySelector('#number').textContent"
        number = len(texts)
        assert browser.value(shown) == visible(texts[0])
        browser.picture(tmp_path / "one.png")
        browser.press("a")
        browser.press("r")
        assert browser.value(place) == f"3 of {number}"
        browser.press("f")
        assert browser.value("document.activeElement.id") == "text"
        browser.press("a")  # a letter, within the caption
        browser.type(" caption by hand")
        browser.picture(tmp_path / "fix.png")
        browser.press("Enter")
        browser.press("f")
        browser.press("Escape")
        assert browser.value("form.hidden && fix === document.activeElement")
        browser.press("ArrowLeft")
        browser.press("ArrowLeft")
        browser.press("u")
        browser.press("ArrowLeft")
        browser.wait("saving.then(() => true)")
        assert browser.value(place) == f"1 of {number}"
        assert read_decisions(server.ledger._file) == {
            server.pairs[0].key: Decision("accept"),
            server.pairs[2].key: Decision("fix", "a caption by hand"),
        }
        for index in hostile:
            while browser.value("current") < index:
                browser.press("ArrowRight")
            while browser.value("current") > index:
                browser.press("ArrowLeft")
            assert browser.value(shown) == visible(texts[index])
            assert browser.value("document.querySelectorAll('#caption *').length") == 0
            assert browser.value("getComputedStyle(caption).unicodeBidi") == "isolate"
        browser.press("g")
        browser.wait("document.querySelectorAll('#grid li').length === pairs.length")
        browser.wait(
            "[...document.querySelectorAll('#grid img')].slice(0, 8).every((i) => i.complete)"
        )
        browser.picture(tmp_path / "grid.png")
        browser.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark"}],
        )
        browser.press("g")
        browser.picture(tmp_path / "dark.png")
        assert "pwned" not in browser.value("document.title")
        assert browser.value("[...document.images].every((image) => image.alt)")
        browser.value("done()")
        browser.wait("document.querySelector('#finished') !== null")
        sent = [told["request"]["url"] for told in browser.told("Network.requestWillBeSent")]
        assert server.url in sent
        assert all(url.startswith(server.url) or url == "data:," for url in sent)
        assert not browser.told("Runtime.exceptionThrown")
        entries = [told["entry"] for told in browser.told("Log.entryAdded")]
        assert not [e for e in entries if not e.get("url", "").endswith(broken(server))]
        assert not browser.told("Runtime.consoleAPICalled")


def visible(text):
    return text.replace("\x1b", "\ufffd").replace("\u202e", "\ufffd")


def broken(server):
    """The end of the address of the image that cannot be decoded."""
    places = [n for n, pair in enumerate(server.pairs) if pair.url.endswith("/7")]
    return tuple(f"/images/{place}" for place in places)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_decision_that_is_not_saved_is_told_and_taken_back(run, tmp_path):
    with Browser(tmp_path / "profile", (390, 844)) as browser, serving(run, "kept") as server:
        browser.open(server.url)
        browser.wait("!document.querySelector('#one').hidden && image.complete")
        browser.picture(tmp_path / "phone.png")
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")
        os.mkdir(open_plan(run).manifest.reviews)  # nothing can be renamed onto a folder
        browser.press("r")
        browser.wait("saving.then(() => true)")
        assert not browser.value("document.querySelector('#trouble').hidden")
        assert browser.value("current") == 0
        assert browser.value("pairs[0].decision") is None
