"""What a run writes down of itself: true of its files, and enough to read it by."""

import contextlib
import io
import shutil

import pytest
from helpers import fakes
from rich.console import Console

from models.errors import IncompleteError, PoolMismatchError
from models.objectives.blip import MED
from pipeline.cli.main import main
from pipeline.execution.progress import Progress
from pipeline.execution.session import Session, write_report
from pipeline.manifest.manifest import Manifest
from pipeline.results.funnel import funnel
from pipeline.results.open_run import open_plan
from pipeline.results.verdicts import Results
from pipeline.results.verify import verify
from pipeline.storage.run import Run


def manifest(root, run, source="photos"):
    model = {"dtype": "float32", "prompt": "", "max_length": 6}
    stages = {
        "download": {"source": str(root / source), "image_size": 48, "shard_size": 4},
        "clean": {"min_side": 16},
        "dedup": {"against": [str(root / "test")]},
        "caption": {"model": str(root / "blip" / "models" / "captioner"), **model},
        "filter": {
            "model": str(root / "blip" / "models" / "matcher"),
            "dtype": "float32",
            "min_itm": 0,
        },
        "export": {},
    }
    return Manifest.parse({"name": "record", "run": str(run), "stages": stages})


def opened(made, console=None):
    return Session(made, workers=1, progress=Progress(console or Console(quiet=True)))


def carry_out(made):
    console = Console(record=True, width=300, file=io.StringIO())
    with opened(made, console) as session:
        session.run()
    return console.export_text()


@pytest.fixture(scope="module")
def root(tmp_path_factory, ray_here):
    """Photographs, models and a run that is done."""
    folder = tmp_path_factory.mktemp("record")
    for name, number in (("photos", 9), ("others", 9), ("test", 1)):
        fakes.photo_folder(folder / name, number)
    fakes.tiny_blip(folder / "blip")
    carry_out(manifest(folder, folder / "run"))
    return folder


@pytest.fixture
def run(root, tmp_path):
    """A copy of the run."""
    return Run(str(shutil.copytree(root / "run", tmp_path / "run")))


@contextlib.contextmanager
def hidden(*paths):
    for path in paths:
        path.rename(path.with_suffix(".hidden"))
    try:
        yield
    finally:
        for path in paths:
            path.with_suffix(".hidden").rename(path)


def test_a_run_is_read_where_its_models_and_evaluation_sets_are_not(root, run, tmp_path):
    plan = open_plan(run)
    whole, page = funnel(Results(run, plan)), write_report(Results(run, plan))
    numbers = run.read_json("report", "report.json")
    assert [stage["state"] for stage in whole["stages"]] == ["done"] * 6
    with hidden(root / "blip", root / "test", root / "photos"):
        plan = open_plan(run)
        assert funnel(Results(run, plan)) == whole and list(verify(run)) == []
        assert write_report(Results(run, plan)) == page
        assert run.read_json("report", "report.json") == numbers
        assert main(["verdicts", run.root, "--out", str(tmp_path / "verdicts.csv")]) == 0
        run.remove(*plan.folder("caption"), "00001.parquet")
        told = "\n".join(map(str, verify(run)))
        assert f"{plan.folder('caption')[-1]}/00001.parquet: missing" in told

        record = run.read_json("run.json")
        del record["measurement"]
        run.write_json(record, "run.json")
        told = list(map(str, verify(run)))
        assert any(line.startswith("caption: not checked, nor what follows") for line in told)


@pytest.mark.parametrize("command", ["run", "stage", "export"])
def test_a_command_that_is_refused_changes_nothing(root, run, tmp_path, command):
    def give(made):
        with opened(made) as session:
            getattr(session, command)(*(["clean"] if command == "stage" else []))

    before = run.digests()
    with pytest.raises(PoolMismatchError, match="holds a pool made with other settings"):
        give(manifest(root, run.root, "others"))
    assert run.digests() == before
    new = Run(str(tmp_path / "new"))
    with pytest.raises(ValueError, match=r"no such list or images: .*nowhere"):
        give(manifest(root, new.root, "nowhere"))
    if command != "run":
        with pytest.raises(IncompleteError, match="download is not complete"):
            give(manifest(root, new.root))
    assert new.files() == []


def test_a_finished_pool_stands_without_its_source(root, run):
    made = manifest(root, run.root)
    run.remove("curated")
    with hidden(root / "photos"):
        told = carry_out(made)
        assert told.count("no such list or images") == told.count("is finished, and is used") == 1
        assert run.read_json("curated", "manifest.json")["files"]
        run.remove("pool", "00001.parquet")
        with pytest.raises(ValueError, match="no such list or images"):
            carry_out(made)


def test_a_model_that_changed_is_told(root, run, tmp_path):
    made = manifest(root, run.root)
    assert "not the one that has measured" not in carry_out(made)
    matcher = root / "blip" / "models" / "matcher"
    with hidden(matcher):
        MED.from_pretrained("tiny", tokenizer=str(root / "blip" / "tokenizer")).save(
            tmp_path / "new"
        )
        shutil.copytree(tmp_path / "new" / "matcher", matcher)
        told = carry_out(made)
        shutil.rmtree(matcher)
    assert "filter     its itm is not the one that has measured" in told
    assert told.count("not the one that has measured") == 1
