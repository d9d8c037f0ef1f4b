from __future__ import annotations

import json
import shutil

import pytest
from helpers import fakes
from helpers.sound_runs import carry_out, manifest

from pipeline.demo.tokenizer import write_tokenizer
from pipeline.execution.session import write_report
from pipeline.results.verdicts import Results
from pipeline.review.ledger import Ledger
from pipeline.storage.run import Run
from pipeline.training.job import TrainingJob
from stages.review import Decision


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    fakes.photo_folder(folder / "photos", 16)
    (folder / "person.jpg").write_bytes(fakes.jpeg(500))
    line = {"image": "person.jpg", "captions": ["a person", "somebody by a door"]}
    (folder / "people.jsonl").write_text(json.dumps(line) + "\n")
    write_tokenizer(folder / "tokenizer")
    return folder


@pytest.fixture(scope="session")
def done(place, ray_here):
    Ledger(str(place / "run" / "reviews.jsonl")).decide(("0" * 32, "x"), Decision("accept"))
    made = manifest(place, place / "run")
    run, plan = carry_out(made)
    TrainingJob(made, "new").carry_out()
    write_report(Results(run, plan))
    return run


@pytest.fixture
def copy(done, tmp_path):
    shutil.copytree(done.path, tmp_path / "run")
    return Run(str(tmp_path / "run"))
