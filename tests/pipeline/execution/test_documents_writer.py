"""Interleaved documents from a list on disk and images on a real server to an export."""

import itertools
import json

import pytest
from helpers import web
from rich.console import Console

from pipeline.demo.tokenizer import write_tokenizer
from pipeline.execution.progress import Progress
from pipeline.execution.session import Session
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan
from pipeline.results.verify import verify
from pipeline.storage.run import Run
from pipeline.training.job import TrainingJob
from pipeline.training.streams import open_streams
from stages.schema import uid_of

PROSE = (
    "The old harbour lies to the north of the town and has been there for ages.",
    "Boats of all sizes come to it every morning with fish that people have waited for.",
    "In winter the quay is quiet, but in summer visitors fill each bench along the water.",
)


@pytest.fixture
def server():
    with web.Pictures() as served:
        yield served


def record(*images):
    parts = [*((url, None) for url in images), *((None, text) for text in PROSE)]
    return {"images": [url for url, _ in parts], "texts": [text for _, text in parts]}


def test_documents_keep_the_images_that_pass_and_go_without_any(server, tmp_path, ray_here):
    server.broken = {"2": 404, "4": 404}
    # numpy strips zero bytes from the end of a string of fixed length.
    ends_in_zero = next(
        str(number)
        for number in itertools.count(5)
        if uid_of(f"{server.base}/{number}", None).endswith("00")
    )
    lines = [
        json.dumps(record(*(f"{server.base}/{name}" for name in (ends_in_zero, "2", "1")))),
        "not a document",
        json.dumps(record(f"{server.base}/4")),
        json.dumps(record()),
        json.dumps(record(f"{server.base}/1")),
    ]
    (tmp_path / "pages.jsonl").write_text("\n".join(lines) + "\n")
    write_tokenizer(tmp_path / "tokenizer")
    made = Manifest.parse(
        {
            "name": "pages",
            "run": str(tmp_path / "run"),
            "train": {
                "flamingo": {
                    "objective": "flamingo",
                    "data": ["curated/documents"],
                    "document_batch_size": 2,
                }
            },
            "stages": {
                "download": {
                    "source": str(tmp_path / "pages.jsonl"),
                    "image_size": 64,
                    "shard_size": 2,
                    "timeout": 60,
                    "allow_private_addresses": True,
                },
                "clean": {},
                "export": {
                    "documents": {
                        "tokenizer": str(tmp_path / "tokenizer"),
                        "min_words": 20,
                        "shard_size": 1,
                    }
                },
            },
        }
    )
    quiet = Progress(Console(quiet=True), quiet=True)
    with Session(made, workers=1, progress=quiet) as session:
        session.run(until="export")
    run, plan = Run(made.run), Plan(made)
    folder = (*plan.folder("export"), "documents")
    assert list(verify(run)) == []
    told = run.read_json("curated", "manifest.json")["documents"]
    assert told["reasons"] == {"unreadable": 1, "no_image_left": 1, "no_image": 1}
    assert (told["rows"], told["kept"]) == (5, 2)
    verdicts = run.read_table(*folder, "verdicts.parquet").to_pylist()
    assert [v["live_images"] for v in verdicts] == [2, 0, 0, 0, 1]
    pool = {}
    for shard in run.shards("pool"):
        for row in run.read_table("pool", f"{shard}.parquet").to_pylist():
            pool[row["url"]] = row
    assert server.hits["/1"] == 1  # on two pages, fetched once
    for number, urls in enumerate([(ends_in_zero, "1"), ("1",)]):
        lines = run.read(*folder, f"{number:05d}.jsonl").decode().splitlines()
        (page,) = map(json.loads, lines)
        wanted = [pool[f"{server.base}/{url}"] for url in urls]
        assert page["images"] == [row["uid"] for row in wanted]
        assert page["text"].count("<image>") == len(urls)
        assert page["text"].endswith("<EOC>") and PROSE[1] in page["text"]
        images = run.read_table(*folder, f"images-{number:05d}.parquet").to_pylist()
        assert [image["image"]["bytes"] for image in images] == [row["image"] for row in wanted]
    # A training takes them by the word of its export.
    job = TrainingJob(made, "flamingo")
    (stream,) = open_streams(job.config, job.sources())
    pages = [page for page, _ in itertools.islice(stream.examples(), 2)]
    assert sorted([image for image, _ in page.images] for page in pages) == sorted(
        [pool[f"{server.base}/{url}"]["image"] for url in urls]
        for urls in ((ends_in_zero, "1"), ("1",))
    )
    assert told["files"] == {
        name: run.sha256(*folder, name)
        for number in range(2)
        for name in (f"images-{number:05d}.parquet", f"{number:05d}.jsonl")
    }
    content = run.read(*folder, "00000.jsonl")
    run.write(content.replace(b"<image>", b"<imagf>"), *folder, "00000.jsonl")
    run.remove(*folder, "images-00001.parquet")
    told = "\n".join(map(str, verify(run)))
    assert "documents/00000.jsonl: damaged: its bytes are not those of manifest.json" in told
    assert "documents/images-00001.parquet: damaged: it is missing" in told
