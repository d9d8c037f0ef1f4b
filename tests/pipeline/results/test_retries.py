"""Retrying the failures of a finished pool, against a real server that gets better."""

import pytest
from helpers import web
from rich.console import Console

from models.errors import IncompleteError
from pipeline.execution.progress import Progress
from pipeline.execution.session import Session
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan
from pipeline.results.funnel import funnel
from pipeline.results.verdicts import Results
from pipeline.results.verify import verify
from pipeline.storage.run import Run


@pytest.fixture
def server():
    with web.Pictures() as served:
        yield served


def open_session(made):
    return Session(made, workers=2, progress=Progress(Console(quiet=True), quiet=True))


def caption(number):
    """A caption whose words, not its number alone, tell it from the others."""
    colours, things = ("red", "green", "blue", "white", "black"), ("dog", "boat", "kite", "tree")
    return f"A {colours[number % 5]} {things[number // 5 % 4]} far away on a sunny day"


def manifest(server, folder, rows=20):
    lines = ["url,caption"]
    lines += [f"{server.base}/{i},{caption(i)}" for i in range(rows)]
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    download = {
        "source": str(folder / "list.csv"),
        "image_size": 64,
        "shard_size": 6,
        "retries": 0,
        "requests_per_second": None,
        "connections_per_host": None,
        "allow_private_addresses": True,
    }
    return Manifest.parse(
        {
            "name": "retry",
            "run": str(folder / "run"),
            "stages": {"download": download, "clean": {}, "dedup": {}, "export": {}},
        }
    )


def pairs(run):
    found = {}
    for shard in run.shards("curated"):
        for row in run.read_table("curated", f"{shard}.parquet").to_pylist():
            found[row["uid"]] = row["caption"]
    return found


def test_a_retry_brings_rows_to_life_and_leaves_all_others_as_they_are(server, tmp_path, ray_here):
    server.broken = {"3": 503, "4": 404, "11": 503, "12": 503}
    made = manifest(server, tmp_path)
    run, plan = Run(made.run), Plan(made)
    with open_session(made) as session:
        session.run()
    assert funnel(Results(run, plan))["stages"][0]["reasons"] == {"http_5xx": 3, "http_404": 1}
    assert len(pairs(run)) == 16
    pool = {s: run.read_table("pool", f"{s}.parquet") for s in run.shards("pool")}
    clean = {s: run.read_table(*plan.folder("clean"), f"{s}.parquet") for s in pool}

    server.broken = {"12": 503}
    before = server.hits.copy()
    with open_session(made) as session:
        session.retry(["http_5xx", "timeout"])
    asked = {path for path in server.hits if server.hits[path] != before[path]}
    assert asked - {"/robots.txt"} == {"/3", "/11", "/12"}
    assert funnel(Results(run, plan))["stages"][0]["reasons"] == {"http_404": 1, "http_5xx": 1}
    assert funnel(Results(run, plan))["stages"][1]["not_measured"] == 2
    assert funnel(Results(run, plan))["stages"][-1]["state"] == "waiting"

    with open_session(made) as session:
        session.run()
    found = funnel(Results(run, plan))
    assert all(s["state"] == "done" and s["not_measured"] == 0 for s in found["stages"])
    assert len(pairs(run)) == 18
    assert list(verify(run)) == []
    for shard, old in pool.items():
        now = run.read_table("pool", f"{shard}.parquet")
        assert now["uid"].equals(old["uid"])
        same = [i for i, error in enumerate(old["error"].to_pylist()) if error != "http_5xx"]
        assert now.take(same).equals(old.take(same))
        measured = run.read_table(*plan.folder("clean"), f"{shard}.parquet")
        assert measured.take(same).equals(clean[shard].take(same))


def test_rows_are_the_same_whichever_way_they_came(server, tmp_path, ray_here):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    server.broken = {"5": 500}
    mended = manifest(server, tmp_path / "a", rows=8)
    with open_session(mended) as session:
        session.stage("download")
        server.broken = {}
        session.retry(["http_5xx"])
    whole = manifest(server, tmp_path / "b", rows=8)
    with open_session(whole) as session:
        session.stage("download")
    one, two = Run(mended.run), Run(whole.run)
    assert one.shards("pool") == two.shards("pool") == ["00000", "00001"]
    for shard in one.shards("pool"):
        assert one.read_table("pool", f"{shard}.parquet").equals(
            two.read_table("pool", f"{shard}.parquet")
        )


def test_a_retry_says_what_is_wrong_with_it(server, tmp_path, ray_here):
    made = manifest(server, tmp_path, rows=2)
    with open_session(made) as session:
        with pytest.raises(IncompleteError, match="not finished"):
            session.retry(["timeout"])
        session.stage("download")
        with pytest.raises(ValueError, match="did you mean 'http_5xx'"):
            session.retry(["http_500"])
