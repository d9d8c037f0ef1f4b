import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.documents import PAGES, write_documents

from pipeline.manifest.manifest import Manifest
from pipeline.manifest.train_config import Source
from pipeline.storage.records import DocumentsRecord, ExportRecord
from pipeline.training.data import files_of
from pipeline.training.job import TrainingJob
from pipeline.training.loop import train


def training_of(folder: Path, branch: str = "", **settings: Any) -> TrainingJob:
    fields = {"objective": "captioner", "model": "tiny", **settings}
    content = {"name": "t", "run": str(folder / "run"), "train": {"model": fields}}
    return TrainingJob(Manifest.parse(content, branch=branch), "model")


@pytest.fixture
def human(tmp_path: Path) -> str:
    (tmp_path / "human.jsonl").write_text('{"image": "a.png", "caption": "a dog"}\n')
    return str(tmp_path / "human.jsonl")


def test_the_words_for_a_runs_own_data_are_its_folders(tmp_path: Path, human: str) -> None:
    curated = tmp_path / "run/curated"
    curated.mkdir(parents=True)
    pq.write_table(pa.table({"image": [b"x"], "caption": ["x"]}), curated / "00000.parquet")
    training = training_of(tmp_path, data=[{"path": "curated", "weight": 0.5}, human])
    with pytest.raises(ValueError, match=r"train\.model\.data: .* is not finished"):
        training.sources()
    (curated / "manifest.json").write_text(json.dumps({"files": []}))
    assert training.sources() == [Source(path=str(curated), weight=0.5), Source(path=human)]


def test_the_documents_of_an_export_are_named_by_its_word(tmp_path: Path) -> None:
    training = training_of(tmp_path, objective="flamingo", data=["curated/documents"])
    with pytest.raises(ValueError, match=r"curated/documents of .* is not finished; run `capfilt"):
        training.sources()

    def finish(documents: DocumentsRecord | None) -> None:
        record = ExportRecord(decision="d", pairs={}, images=0, files=[], documents=documents)
        training.run.write_record(record, "curated", "manifest.json")

    finish(None)
    with pytest.raises(ValueError, match="curated has no documents; an export writes some where"):
        training.sources()
    finish(DocumentsRecord(rows=7, files={}))
    with pytest.raises(ValueError, match="curated kept none of its 7 documents"):
        training.sources()
    folder = write_documents(tmp_path / "run/curated/documents", PAGES[:1])
    names = [path.rpartition("/")[2] for path in files_of(Source(path=folder))]
    finish(DocumentsRecord(rows=7, kept=1, files=dict.fromkeys(names, "0" * 64)))
    assert training.sources() == [Source(path=folder)]
    # The digests are those of the record, so that no image is read for them.
    before = training.fingerprint
    finish(DocumentsRecord(rows=7, kept=1, files=dict.fromkeys(names, "1" * 64)))
    assert training.fingerprint != before
    pool = training_of(tmp_path, objective="flamingo", data=["pool/documents"])
    with pytest.raises(ValueError, match="pool has no documents"):
        pool.sources()
    # A folder of that name elsewhere is a path like any other.
    elsewhere = write_documents(tmp_path / "elsewhere/documents", PAGES[:1])
    other = training_of(tmp_path, objective="flamingo", data=[elsewhere])
    assert other.sources() == [Source(path=elsewhere)]


def test_a_file_that_is_nowhere_is_told_with_the_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.model\.data: .*no file .*gone\.jsonl"):
        training_of(tmp_path, data=["gone.jsonl"]).sources()


def test_the_fingerprint_is_of_what_changes_the_model(tmp_path: Path, human: str) -> None:
    def fingerprint(**settings: Any) -> str:
        return training_of(tmp_path, data=[human], **settings).fingerprint

    plain = fingerprint()
    assert plain == fingerprint(checkpoint_every=7, loaders=2, sample_every=3, tensorboard=True)
    assert fingerprint(streams=2) == fingerprint(streams=2, workers=2) != plain
    assert fingerprint(lr=2e-5) != plain
    assert training_of(tmp_path, data=[{"path": human, "weight": 2}]).fingerprint != plain
    Path(human).write_text('{"image": "a.png", "caption": "a cat"}\n')
    assert fingerprint() != plain


def test_a_training_that_leads_workers_occupies_nothing_itself(tmp_path: Path) -> None:
    training = training_of(tmp_path, workers=2, threads=3)
    assert training.resources.cpus == 0
    assert training.worker_resources.cpus == 3
    assert training_of(tmp_path, threads=3).resources.cpus == 3


def trained(training: TrainingJob, files: dict[str, bytes]) -> None:
    """Leave a model as the training does."""
    for path, content in files.items():
        training.run.write(content, "models", training.name, *path.split("/"))
    mark = {"fingerprint": training.fingerprint, "files": training.run.digests("models", "model")}
    training.run.write_json(mark, "models", "model.json")


def test_a_model_that_cannot_be_taken_over_whole_replaces_none(tmp_path: Path, human: str) -> None:
    trunk = training_of(tmp_path, data=[human])
    branch = training_of(tmp_path, "rounds/2", data=[human])
    files = {"config.json": b"{}", "captioner/model.safetensors": b"weights"}
    trained(trunk, files)
    trained(branch, {"config.json": b"old"})
    trunk.run.remove("models", "model", "config.json")
    with pytest.raises(FileNotFoundError):
        branch.carry_out()
    assert branch.is_done and branch.run.read("models", "model", "config.json") == b"old"
    trained(trunk, files)
    branch.carry_out()
    assert branch.is_done
    assert {f: branch.run.read("models", "model", *f.split("/")) for f in files} == files


def test_a_training_continues_under_changed_settings_if_it_is_asked_to(
    tmp_path: Path, tokenizer: str, pairs: str
) -> None:
    settings = {
        "model": "nano",
        "tokenizer": tokenizer,
        "data": [pairs],
        "image_size": 32,
        "batch_size": 4,
        "steps": 4,
        "precision": "fp32",
    }
    before = training_of(tmp_path, **settings)
    train(before.config, before.sources(), before.out, stop_at=2)
    after = training_of(tmp_path, **settings, lr=1e-4)
    assert not after.is_done
    after.carry_out(go_on=True)
    assert after.is_done
    record = json.loads((tmp_path / "run/models/model.json").read_text())
    assert record["result"]["resumed_from"] == 2
    assert "lr 1e-05 -> 0.0001" in (tmp_path / "run/models/model/README.md").read_text()


def test_how_far_a_training_is_is_told_even_after_a_skipped_step(tmp_path: Path) -> None:
    training = training_of(tmp_path, steps=9)
    folder = tmp_path / "run/models/model.partial"
    folder.mkdir(parents=True)
    for row, told in (
        ({"loss": 1.5}, "model step 3 of 9, loss 1.500, 20 images/s"),
        ({"skipped": 2}, "model step 3 of 9, 2 steps skipped, 20 images/s"),
    ):
        line = json.dumps({"step": 3, "epoch": 0, "images_per_second": 20.0, **row})
        (folder / "metrics.jsonl").write_text(line + "\n")
        assert training.progress() == told
