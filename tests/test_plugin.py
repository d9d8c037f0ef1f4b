"""A stage and an objective of another package, in an environment of its own, by the command line.

The package is tests/plugin; nothing of it is known to this repository.
"""

import json
import re
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from helpers import fakes
from helpers.plugin import PluginEnvironment
from PIL import Image

from pipeline.cli.main import main
from pipeline.demo.tokenizer import write_tokenizer
from pipeline.storage.run import Run

pytestmark = pytest.mark.slow

FOLDER = """
import sys
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan
print(Plan(Manifest.load(sys.argv[1], sys.argv[2:])).folder("ink")[-1])
"""


def ink_files(folder):
    """The content of each file of the stage, and when it was written, by its path."""
    files = folder.glob("run/annotations/ink-*/*.parquet")
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """An environment that has the package."""
    pytest.importorskip("setuptools", reason="--no-build-isolation needs it")
    return PluginEnvironment(tmp_path_factory.mktemp("plugin"))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """A manifest with the stage, over eight photos of which two are pale, in shards of three."""
    folder = tmp_path_factory.mktemp("pale")
    fakes.photo_folder(folder / "photos", 6, captions=False)
    for name, grey in (("fog", 250), ("snow", 240)):
        Image.new("RGB", (120, 90), (grey, grey, grey)).save(folder / "photos" / f"{name}.png")
    content = {
        "name": "pale",
        "run": str(folder / "run"),
        "stages": {
            "download": {"source": str(folder / "photos"), "image_size": 64, "shard_size": 3},
            "ink": {"min_contrast": 20.0},
            "export": {},
        },
    }
    (folder / "m.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "m.yaml"


@pytest.fixture(scope="module")
def done(plugin, manifest):
    """The folder of a run, and the stage's files when it was done, mended, and run once more."""
    folder = manifest.parent
    plugin.capfilt("run", str(manifest), "--workers", "1")
    states = [ink_files(folder)]
    (folder / "run" / sorted(states[0])[1]).unlink()
    for command in ("ink", "run"):
        plugin.capfilt(command, str(manifest), "--workers", "1")
        states.append(ink_files(folder))
    return folder, states


def test_its_command_is_listed_and_tells_its_fields(plugin):
    assert re.search(r"^    ink +reject images in which there is", plugin.capfilt("--help"), re.M)
    shown = plugin.capfilt("ink", "--help")
    assert "\n  min_contrast (number; threshold; default 10.0)\n      The least standard" in shown
    assert "\n  channel (brightness, red, green, blue; default brightness)\n" in shown
    assert "\n  pale: The contrast of the image is below min_contrast.\n" in shown
    assert "\npackage: capfilt-example 1.0\n" in shown
    assert shown.endswith("examples:\n  capfilt ink manifest.yaml --set ink.min_contrast=20\n")
    bare = plugin.python("-OO", "-m", "pipeline.cli", "ink", "--help").stdout
    assert "\n  min_contrast (number; threshold; default 10.0)\n\nreasons" in bare


def test_its_page_of_fields_and_reasons_is_made(plugin, tmp_path):
    made = plugin.python("-m", "pipeline.manifest.reference", str(tmp_path), "ink")
    assert made.returncode == 0, made.stderr
    (page,) = tmp_path.iterdir()
    text = page.read_text()
    assert page.name == "ink.md"
    assert "| `min_contrast` | number | `10.0` | **threshold** The least standard" in text
    assert "| `pale` | The contrast of the image is below min_contrast. |" in text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ink.min_contrst=3", "stages.ink.min_contrst: unknown field; did you mean 'min_contrast'"),
        ("ink.channel=gren", "stages.ink.channel: must be one of brightness, red, green, blue, "),
        ("ink.min_contrast=much", "stages.ink.min_contrast: must be a number, got 'much'"),
        ("inc.channel=red", "no 'inc'; did you mean 'ink'?"),
    ],
)
def test_a_wrong_field_is_told_with_the_fix(plugin, manifest, given, message):
    told = plugin.capfilt("run", str(manifest), "--dry-run", "--set", given, status=2)
    assert message in told


def test_its_fields_complete(plugin):
    line = "capfilt run m.yaml --set ink.min"
    environ = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE": "1"}
    environ |= {"_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_SUPPRESS_SPACE": "1"}
    environ["_ARGCOMPLETE_STDOUT_FILENAME"] = str(plugin.folder / "completed")
    plugin.python("-m", "pipeline.cli", **environ)
    assert (plugin.folder / "completed").read_text() == "ink.min_contrast="


def test_its_command_measures_a_lost_shard_and_no_other(done):
    _, (whole, mended, again) = done
    assert len(whole) == 3 and whole.keys() == mended.keys()
    lost = sorted(whole)[1]
    for path in whole:
        assert whole[path][0] == mended[path][0]
        assert (whole[path] == mended[path]) is (path != lost)
    assert mended == again


def test_its_verdicts_are_in_every_view_of_the_run(plugin, done):
    folder, _ = done
    run = str(folder / "run")
    stages = json.loads(plugin.capfilt("status", run, "--json"))["stages"]
    assert [stage["name"] for stage in stages] == ["download", "ink", "export"]
    assert stages[1] == {**stages[1], "state": "done", "rows": 8, "kept": 6, "not_measured": 0}
    assert stages[1]["reasons"] == {"pale": 2}
    shown = json.loads(plugin.capfilt("show", run, "fog.png", "--json"))
    assert shown["verdict"] == "ink: pale"
    assert shown["steps"][1]["measures"] == {"ink_contrast": 0.0}
    assert shown["steps"][1]["why"].endswith("below min_contrast. (min_contrast 20.0)")
    assert "every row accounted for" in plugin.capfilt("verify", run)
    plugin.capfilt("verdicts", run, "--out", str(folder / "v.csv"))
    assert (folder / "v.csv").read_text().count('"ink","pale"') == 2
    assert Run(run).read_json("run.json")["versions"]["capfilt-example"] == "1.0"


def test_the_report_has_its_reasons_and_the_numbers_it_measured(done):
    run = Run(str(done[0] / "run"))
    numbers = run.read_json("report", "report.json")["numbers"]["ink"]["ink_contrast"]
    assert {name: sum(counts) for name, counts in numbers["series"].items()} == {
        "measured": 8,
        "kept": 6,
    }
    page = run.read("report", "index.html").decode()
    assert 'id="reason-ink-pale"' in page
    assert "nearest <code>min_contrast</code>, 20" in page
    (figure,) = re.findall(r"<h3>ink contrast</h3>.*?</figure>", page, re.S)
    assert "8 measured, 6 of rows kept" in figure
    assert '"text": "20"' in figure  # the line of the threshold


def test_its_version_and_settings_are_its_fingerprint(plugin, manifest, done):
    def folder(*settings):
        found = plugin.python("-c", FOLDER, str(manifest), *settings)
        assert found.returncode == 0, found.stderr
        return found.stdout.strip()

    (made,) = (done[0] / "run" / "annotations").iterdir()
    assert folder() == folder("ink.min_contrast=1") == made.name
    assert folder("ink.channel=red") != made.name
    module = plugin.packages / "capfilt_ink.py"
    code = module.read_text()
    assert code.count("version = 1") == 1
    module.write_text(code.replace("version = 1", "version = 2"))
    try:
        assert folder() != made.name
    finally:
        module.write_text(code)


def test_a_run_whose_package_is_not_installed_says_so(done, capsys):
    assert main(["status", str(done[0] / "run")]) == 2
    told = capsys.readouterr().err
    assert "stages.ink: unknown stage" in told
    assert "If another package has it, install that package here" in told


def test_the_measures_are_row_for_row_with_the_pool(done):
    run = Run(str(done[0] / "run"))
    (made,) = (done[0] / "run" / "annotations").iterdir()
    for shard in run.shards("pool"):
        pool = run.read_table("pool", f"{shard}.parquet")
        found = run.read_table("annotations", made.name, f"{shard}.parquet")
        assert found["uid"].equals(pool["uid"])
        assert found.schema.field("ink_contrast").type == pa.float32()


CONTRACT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from helpers.contract import check_contract, small
from models.objectives.registry import OBJECTIVES
for locked in (False, True):
    folder = Path(sys.argv[3]) / str(locked)
    folder.mkdir()
    fields = {"model": "tiny", "locked": locked}
    check_contract(small(OBJECTIVES["siglip"], sys.argv[2], **fields), folder)
"""


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """A manifest that trains the objective on eight pairs."""
    folder = tmp_path_factory.mktemp("towers")
    write_tokenizer(folder / "tokenizer")
    photos = fakes.photo_folder(folder / "photos", 8, captions=False)
    lines = [{"image": f"{n:04d}.jpg", "caption": f"a thing with number {n}"} for n in range(8)]
    (photos / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    training = {
        "objective": "siglip",
        "model": "tiny",
        "tokenizer": str(folder / "tokenizer"),
        "data": [str(photos / "pairs.jsonl")],
        "image_size": 32,
        "batch_size": 4,
        "steps": 3,
        "threads": 1,
    }
    content = {"name": "towers", "run": str(folder / "run"), "train": {"towers": training}}
    (folder / "m.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder


def test_its_objective_keeps_the_contract(plugin, towers, tmp_path):
    tests = str(Path(__file__).parent)
    arguments = (tests, str(towers / "tokenizer"), str(tmp_path))
    done = plugin.python("-c", CONTRACT, *arguments)
    assert done.returncode == 0, done.stderr


def test_its_objective_trains_and_its_model_is_measured(plugin, towers):
    manifest, model = str(towers / "m.yaml"), towers / "run" / "models" / "towers"
    plugin.capfilt("train", manifest, "--objective", "siglip")
    rows = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["sigmoid"] == rows[0]["loss"] > 0 and rows[0]["bias"] == pytest.approx(
        -10, abs=0.1
    )
    card = (model / "README.md").read_text()
    assert "after SigLIP (arXiv 2303.15343). Loads as SiglipModel." in card
    assert "locked: false" in card and "Texts are read as the tokenizer makes them" in card
    data = str(towers / "photos" / "pairs.jsonl")
    found = json.loads(plugin.capfilt("evaluate", str(model), "--data", data, "--json"))
    assert found.keys() == {"images", "captions", "retrieval", "intervals", "near_misses"}
    assert found["retrieval"]["itc"]["TR@10"] == 1.0
    made = (model / "model.safetensors").stat().st_mtime_ns
    plugin.capfilt("train", manifest, "--objective", "siglip")
    assert (model / "model.safetensors").stat().st_mtime_ns == made
    record = Run(str(towers / "run")).read_json("run.json")
    assert record["versions"]["capfilt-example"] == "1.0"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("locket=true", "train.towers.locket: unknown field of objective siglip; did you mean"),
        ("locked=3", "train.towers.locked: must be on/off, got 3"),
        ("queue_size=3", "objective siglip; pretrain, filter, joint, albef have it"),
        (
            "objective=siglib",
            "train.towers.objective: no objective 'siglib'; did you mean 'siglip'",
        ),
    ],
)
def test_a_wrong_field_of_its_objective_is_told_with_the_fix(plugin, towers, given, message):
    arguments = ("run", str(towers / "m.yaml"), "--dry-run", "--set", f"train.towers.{given}")
    assert message in plugin.capfilt(*arguments, status=2)


def test_the_page_of_its_objective_is_made(plugin, tmp_path):
    made = plugin.python("-m", "pipeline.manifest.reference", str(tmp_path), "siglip")
    assert made.returncode == 0, made.stderr
    text = (tmp_path / "siglip.md").read_text()
    assert "Paper: SigLIP (arXiv 2303.15343). Loads as `SiglipModel`." in text
    assert "| `locked` | on/off | `false` | Whether the image tower is frozen" in text


def test_a_manifest_of_its_objective_cannot_be_read_where_it_is_not_installed(towers, capsys):
    assert main(["run", str(towers / "m.yaml"), "--dry-run"]) == 2
    told = capsys.readouterr().err
    assert "train.towers.objective: no objective 'siglip'" in told
    assert "install that package here" in told
