"""What the readers of a list tell is repeated by status, the report and init."""

import json

from helpers import fakes
from rich.console import Console

from pipeline.cli.main import main
from pipeline.execution.progress import Progress
from pipeline.execution.session import Session
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan
from pipeline.report.build import write
from pipeline.results.funnel import funnel
from pipeline.results.verdicts import Results
from pipeline.storage.run import Run

LINES = [
    "text files without an image of the same name, which are not used: 1, the first lost.txt",
    "hidden files and files of the operating system, which are left out: 1, the first ._0000.jpg",
    "images without a caption, among images that have one: 1, the first 0002.jpg",
]


def photos(folder):
    fakes.photo_folder(folder, 3)
    (folder / "0002.txt").rename(folder / "lost.txt")
    (folder / "._0000.jpg").write_bytes(b"\0\5\x16\7")
    return folder


def test_status_and_the_report_repeat_what_the_readers_told(tmp_path, ray_here, capsys):
    made = Manifest.parse(
        {
            "name": "told",
            "run": str(tmp_path / "run"),
            "stages": {"download": {"source": str(photos(tmp_path / "photos"))}, "export": {}},
        }
    )
    progress = Progress(Console(quiet=True), quiet=True)
    with Session(made, workers=1, progress=progress) as session:
        session.stage("download")
    run = Run(made.run)
    results = Results(run, Plan(made))
    found = funnel(results)
    assert found["notices"] == run.read_json("list", "_list.json")["notices"] == LINES
    write(results, found)
    page = (tmp_path / "run/report/index.html").read_text()
    notes = [note["text"] for note in run.read_json("report", "report.json")["notes"]]
    for line in LINES:
        assert f"Reading the input: {line}." in notes and line.split(":")[0] in page
    capsys.readouterr()
    assert main(["status", made.run]) == 0
    shown = capsys.readouterr().out
    assert all(f"note  {line}" in shown for line in LINES)
    assert main(["status", made.run, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notices"] == LINES


def test_status_repeats_what_the_readers_of_human_pairs_told(tmp_path, ray_here):
    human = tmp_path / "people.jsonl"
    lines = [{"image": f"photos/{n:04d}.jpg", "caption": "x" * n} for n in range(3)]
    human.write_text("\n".join(map(json.dumps, lines)))
    made = Manifest.parse(
        {
            "name": "told",
            "run": str(tmp_path / "run"),
            "stages": {
                "download": {"source": str(fakes.photo_folder(tmp_path / "photos", 3))},
                "export": {"human": [str(human)]},
            },
        }
    )
    progress = Progress(Console(quiet=True), quiet=True)
    with Session(made, workers=1, progress=progress) as session:
        session.stage("download")
        session.export()
    found = funnel(Results(Run(made.run), Plan(made)))
    assert found["notices"] == [
        "images without a caption, which are left out: 1, the first people/photos/0000.jpg"
    ]
    assert found["stages"][-1]["pairs"] == {"web": 3, "human": 2}


def test_init_repeats_what_the_readers_told(tmp_path, capsys):
    out = tmp_path / "m.yaml"
    assert main(["init", str(photos(tmp_path / "photos")), "--out", str(out)]) == 0
    shown, text = capsys.readouterr().out, out.read_text()
    for line in LINES:
        assert f"note       {line}" in shown and f"# Note: {line}" in text
