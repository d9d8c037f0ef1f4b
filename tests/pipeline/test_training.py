import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.manifest import Manifest
from pipeline.pairs import Source
from pipeline.training import Training


def training_of(folder: Path, **settings: Any) -> Training:
    fields = {"objective": "captioner", "model": "tiny", **settings}
    content = {"name": "t", "run": str(folder / "run"), "train": {"model": fields}}
    return Training(Manifest.parse(content), "model")


@pytest.fixture
def human(tmp_path: Path) -> str:
    (tmp_path / "human.jsonl").write_text('{"image": "a.png", "caption": "a dog"}\n')
    return str(tmp_path / "human.jsonl")


def test_the_words_for_a_runs_own_data_are_its_folders(tmp_path: Path, human: str) -> None:
    curated = tmp_path / "run/curated"
    curated.mkdir(parents=True)
    pq.write_table(pa.table({"image": [b"x"], "caption": ["x"]}), curated / "00000.parquet")
    training = training_of(tmp_path, data=[{"path": "curated", "weight": 0.5}, human])
    with pytest.raises(ValueError, match=r"train\.model\.data: .* has no whole curated yet"):
        training.sources()
    (curated / "manifest.json").write_text(json.dumps({"files": []}))
    assert training.sources() == [Source(path=str(curated), weight=0.5), Source(path=human)]


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
