"""The whole pipeline over real photographs, real alt-text and every fault of a real web."""

import collections
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers import fakes, web
from rich.console import Console

from pipeline.execution.progress import Progress
from pipeline.execution.session import Session, write_report
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan
from pipeline.results.funnel import funnel
from pipeline.results.verdict_table import write_verdicts
from pipeline.results.verdicts import Results
from pipeline.results.verify import verify
from pipeline.storage.run import Run

CLEAN = ("small", "wide", "flat", "foreign", "low_text")


@pytest.fixture(scope="module")
def ended(realweb, tmp_path_factory, ray_here):
    """A finished run over it, its verdicts beside the truth, and its seconds."""
    built, _ = realweb
    folder = tmp_path_factory.mktemp("run")
    models = fakes.tiny_blip(folder / "tiny")
    made = Manifest.parse(
        {
            "name": "realweb",
            "run": str(folder / "run"),
            "stages": {
                "download": {
                    "source": str(built / "pairs.parquet"),
                    "image_size": 256,
                    "shard_size": 120,
                    "timeout": 3,
                    "allow_private_addresses": True,
                    "requests_per_second": None,
                    "connections_per_host": None,
                },
                "clean": {},
                "dedup": {},
                "select": {
                    "model": str(fakes.SHARED / "data" / "en_core_web_sm_port"),
                    "min_frequency": 1,
                },
                "caption": {"model": str(models / "captioner"), "prompt": ""},
                "filter": {"model": str(models / "matcher")},
                "export": {"human": [str(built / "human.jsonl")]},
            },
        }
    )
    started = time.monotonic()
    with Session(made, workers=2, progress=Progress(Console(quiet=True), quiet=True)) as opened:
        opened.run()
    seconds = time.monotonic() - started
    run, plan = Run(made.run), Plan(made)
    write_report(Results(run, plan))
    out = folder / "verdicts.parquet"
    write_verdicts(Results(run, plan), str(out))
    verdicts = {(r["url"], r["caption"]): r for r in pq.read_table(out).to_pylist()}
    truth = pq.read_table(built / "truth.parquet").to_pylist()
    rows = [{**row, **verdicts[row["url"], web.as_read(row["caption"])]} for row in truth]
    return run, plan, rows, seconds


@web.needs_shared
def test_every_row_is_accounted_for_and_nothing_hangs(ended):
    run, plan, rows, seconds = ended
    found = funnel(Results(run, plan))
    assert found["stages"][0]["rows"] == len({(r["url"], r["caption"]) for r in rows})
    for stage in found["stages"]:
        assert stage["state"] == "done" and stage["not_measured"] == 0
        assert stage["rows"] == stage["kept"] + sum(stage["reasons"].values())
    assert list(verify(run)) == []
    assert seconds < 240


@web.needs_shared
def test_every_fault_is_caught_with_its_reason(ended):
    _, _, rows, _ = ended
    seen = collections.defaultdict(set)
    for row in rows:
        if row["drop_at"] == "download":
            assert row["stage"] == "download", row
            seen[row["kind"]].add(row["reason"])
    assert seen.keys() == web.FAULTS.keys()
    assert {kind: reasons - web.FAULTS[kind] for kind, reasons in seen.items()} == {
        kind: set() for kind in web.FAULTS
    }


@web.needs_shared
@pytest.mark.parametrize("kind", CLEAN)
def test_what_clean_should_drop_is_gone_after_it(ended, kind):
    _, _, rows, _ = ended
    due = [row for row in rows if row["kind"] == kind]
    if kind == "low_text":  # what is blank is no caption
        due = [row for row in due if web.as_read(row["caption"])]
    gone = [row for row in due if row["stage"] in ("download", "clean")]
    kept = [(row["caption"], row["stage"]) for row in due if row not in gone]
    assert len(gone) >= 0.95 * len(due), kept


@web.needs_shared
def test_boilerplate_is_gone_after_dedup(ended):
    _, _, rows, _ = ended
    due = [row for row in rows if row["kind"] == "boilerplate"]
    assert due and all(row["stage"] in ("clean", "dedup") for row in due)


@web.needs_shared
def test_no_photo_survives_twice_and_few_good_ones_are_lost(ended):
    _, _, rows, _ = ended
    survivors = [row for row in rows if row["stage"] not in ("download", "clean", "dedup")]
    photos = collections.Counter(row["photo"] for row in survivors)
    assert {photo: number for photo, number in photos.items() if number > 1} == {}
    good = {row["photo"] for row in rows if row["drop_at"] == "keep"}
    lost = good - set(photos)
    why = [(row["photo"], row["reason"]) for row in rows if row["photo"] in lost]
    assert len(lost) <= 0.02 * len(good), why


@web.needs_shared
def test_the_report_and_the_export_stand(ended):
    run, _, _, _ = ended
    page = Path(run.at("report", "index.html")).read_text()
    assert "realweb" in page and "<script src" not in page
    table = pq.read_table(run.at("curated", "human-00000.parquet"))
    assert set(table["caption_source"].to_pylist()) == {"human"}
