"""Rows that are lost: what count, the commands and verify say of them."""

import numpy as np
import pytest
from helpers import runs

from models.errors import ConservationError
from pipeline.cli.main import main
from pipeline.manifest.plan import Plan
from pipeline.results.funnel import funnel
from pipeline.results.verdicts import Judgement, Results
from pipeline.results.verify import verify


@pytest.fixture
def run(tmp_path):
    """A run that has still to caption and filter."""
    plan = Plan(runs.manifest(tmp_path))
    return runs.make_run(tmp_path, plan, shards=2, number=24, until="select"), plan


@pytest.fixture
def lossy(monkeypatch):
    """A fault by which rows that wait for a stage are counted nowhere."""
    monkeypatch.setattr(
        Judgement, "waiting", lambda self, name: np.zeros(len(self.reached[name]), bool)
    )


def test_every_row_is_counted_once(run):
    run, plan = run
    rows = 48
    for stage in funnel(Results(run, plan))["stages"]:
        total = stage["kept"] + sum(stage["reasons"].values()) + stage["not_measured"]
        assert stage["rows"] == total == rows
        rows = stage["kept"] + stage["not_measured"]


def test_rows_that_are_lost_are_an_error_of_its_own(run, lossy):
    with pytest.raises(ConservationError, match=r"caption: \d+ rows, but 0 kept, rejected or not"):
        funnel(Results(*run))


def test_the_commands_tell_it(run, lossy, capsys):
    run, _ = run
    assert main(["status", run.root]) == 1
    assert "capfilt status: caption: " in capsys.readouterr().err
    assert any(
        "caption: " in fault and "rows, but 0 kept" in fault for fault in map(str, verify(run))
    )
    assert main(["verify", run.root]) == 1
