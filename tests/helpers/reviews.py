"""A run to review, the server of its page, and what its people and its export do."""

import contextlib
import http.client
import json
import re
import subprocess
import sys
import threading

import pyarrow as pa
from rich.console import Console

from helpers import fakes
from pipeline.execution.cluster import Cluster
from pipeline.execution.progress import Progress
from pipeline.execution.runner import Runner
from pipeline.execution.worker import Worker
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan
from pipeline.results.open_run import open_plan
from pipeline.results.verdicts import Results
from pipeline.review.ledger import Ledger
from pipeline.review.sample import draw
from pipeline.review.server import ReviewServer
from pipeline.storage.run import Run
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
    pairs = draw(Results(run, plan), choice, number)
    with ReviewServer(Results(run, plan), pairs, Ledger(plan.manifest.reviews)) as server:
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
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=600)
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
