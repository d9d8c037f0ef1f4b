import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from models.errors import ManifestError
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan
from stages.registry import STAGES

MINIMAL = {
    "name": "birds",
    "stages": {"download": {"source": "birds.parquet"}, "clean": {}, "dedup": {}, "export": {}},
}


def write(tmp_path, content):
    path = tmp_path / "m.yaml"
    is_text = isinstance(content, str)
    path.write_text(content if is_text else yaml.safe_dump(content, sort_keys=False))
    return str(path)


def changed(**changes):
    return {**MINIMAL, **changes}


def test_a_minimal_manifest_has_defaults(tmp_path):
    manifest = Manifest.load(write(tmp_path, MINIMAL))
    assert manifest.run == "runs/birds" and manifest.seed == 0
    assert list(manifest.stages) == ["download", "clean", "dedup", "export"]


ABLATIONS = {"ablation", "longtail", "objectives", "rivals"}
SHIPPED = [
    path
    for path in sorted((Path(__file__).parents[3] / "manifests").glob("*.yaml"))
    if path.stem not in ABLATIONS
]


@pytest.mark.parametrize("path", SHIPPED)
def test_every_shipped_manifest_is_valid(path):
    made = Manifest.load(str(path))
    assert made.stages or made.train


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a list", "a mapping"),
        ("a: [", "not YAML"),
        (changed(name=3), "name: a manifest needs a name"),
        (
            changed(
                train={
                    "a": {"objective": "filter", "model": "train:b/matcher", "data": ["x.jsonl"]},
                    "b": {"objective": "filter", "model": "train:a", "data": ["x.jsonl"]},
                }
            ),
            "train.a.model: trainings start from each other: a -> b -> a",
        ),
        (
            changed(train={"a": {"objective": "filter", "model": "train:a", "data": ["x"]}}),
            "train.a.model: trainings start from each other: a -> a",
        ),
        (changed(sead=1), "sead: unknown key; did you mean 'seed'"),
        (changed(seed="x"), "seed: a whole number"),
        (changed(stages={}), "stages: name at least one"),
        (changed(stages=["download"]), "stages: a mapping"),
        (
            changed(stages={"download": {"source": "x"}, "claen": {}}),
            "stages.claen: unknown stage; did you mean 'clean'",
        ),
        (
            changed(stages={"download": {"source": "x", "shard_sise": 3}}),
            "stages.download.shard_sise: unknown field; did you mean 'shard_size'",
        ),
        (
            changed(stages={"download": {"source": "x", "shard_size": "many"}}),
            "stages.download.shard_size: .* got 'many'",
        ),
        (changed(stages={"download": {}}), "stages.download.source: this field is needed"),
        (changed(stages={"clean": {}}), "download must be the first"),
        (
            changed(stages={"download": {"source": "x"}, "export": {}, "clean": {}}),
            "export must be the last",
        ),
        (
            changed(stages={"download": {"source": "x"}, "dedup": {}, "clean": {}}),
            "stages.dedup: takes 'text' of clean: put clean before dedup",
        ),
        (
            changed(stages={"download": {"source": "x"}, "filter": {"model": "train:nobody"}}),
            "stages.filter.model: `train` has no 'nobody'",
        ),
        (changed(evaluate={"data": "t.jsonl"}), "evaluate.models: this field is needed"),
        (changed(train={"a": {"objective": "sing"}}), "train.a.objective"),
    ],
)
def test_a_mistake_is_named_with_its_field(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(ManifestError, match=message) as error:
        Manifest.load(path)
    assert path in str(error.value)


def test_all_mistakes_are_told_at_once(tmp_path):
    wrong = changed(seed=-1, stages={"download": {"source": "x", "a": 1, "b": 2}})
    with pytest.raises(ManifestError) as error:
        Manifest.load(write(tmp_path, wrong))
    assert len(str(error.value).splitlines()) == 3


def test_a_missing_manifest_is_named():
    with pytest.raises(ManifestError, match=r"nowhere\.yaml: no such manifest"):
        Manifest.load("nowhere.yaml")


def test_fields_are_overridden_from_the_command_line(tmp_path):
    path = write(tmp_path, MINIMAL)
    manifest = Manifest.load(path, ["download.shard_size=7", "seed=3", "name=owls"], run="r")
    assert manifest.stages["download"].shard_size == 7
    assert (manifest.seed, manifest.name, manifest.run) == (3, "owls", "r")
    with pytest.raises(ManifestError, match=r"write stage\.field=value"):
        Manifest.load(path, ["download.shard_size"])
    with pytest.raises(ManifestError, match="unknown field"):
        Manifest.load(path, ["clean.nothing=1"])


def test_a_seed_reaches_the_stages_that_take_one(tmp_path):
    stages = {"download": {"source": "x"}, "select": {"model": "m"}}
    manifest = Manifest.load(write(tmp_path, changed(seed=5, stages=stages)))
    assert manifest.stages["select"].seed == 5
    stages["select"]["seed"] = 8
    manifest = Manifest.load(write(tmp_path, changed(seed=5, stages=stages)))
    assert manifest.stages["select"].seed == 8


TOP = {"method": "top_fraction", "fraction": 0.3}


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            {"select": {**TOP, "score": "itm_wep"}, "filter": {"model": "m"}},
            "stages.select: select.score: 'itm_wep' is not a column of an earlier stage; choose "
            "from repeats, width",
        ),
        ({"clean": {}, "select": {**TOP, "score": "itm_web"}}, "choose from .*text_words"),
        ({"clean": {}, "select": {**TOP, "score": "text"}}, "'text' is not numeric; choose from"),
        ({"select": {"captions": "both"}}, "captions: both needs the stage caption before select"),
    ],
)
def test_a_column_that_settings_name_must_stand_before_them(tmp_path, stages, message):
    with pytest.raises(ManifestError, match=message):
        Manifest.load(write(tmp_path, changed(stages={"download": {"source": "x"}, **stages})))


def test_a_column_that_settings_name_is_an_input_wherever_it_comes_from(tmp_path):
    stages = {"download": {"source": "x"}, "clean": {}, "dedup": {}, "caption": {"model": "m"}}
    stages |= {"filter": {"model": "m"}, "select": {**TOP, "score": "itm_web"}, "export": {}}
    plan = Plan(Manifest.load(write(tmp_path, changed(stages=stages))))
    assert plan.inputs("select")["itm_web"] == "filter"
    stages["select"]["score"] = "image_distance"
    plan = Plan(Manifest.load(write(tmp_path, changed(stages=stages))))
    assert plan.inputs("select")["image_distance"] == "dedup"
    stages["select"] = {"captions": "synthetic"}
    plan = Plan(Manifest.load(write(tmp_path, changed(stages=stages))))
    assert plan.inputs("select")["synthetic"] == "caption"


def test_dedup_reads_images_only_where_clean_has_not_seen_them(tmp_path):
    stages = {"download": {"source": "list.csv"}, "dedup": {}}
    without = Plan(Manifest.parse({"name": "x", "run": str(tmp_path), "stages": stages}))
    assert without.inputs("dedup")["image"] == "download"
    stages = {"download": {"source": "list.csv"}, "clean": {}, "dedup": {}}
    behind = Plan(Manifest.parse({"name": "x", "run": str(tmp_path), "stages": stages}))
    assert "image" not in behind.inputs("dedup")
    assert behind.inputs("dedup")["image_phash"] == "clean"


def test_a_threshold_changes_the_decision_and_not_the_fingerprint(tmp_path):
    path = write(tmp_path, MINIMAL)
    one = Plan(Manifest.load(path))
    two = Plan(Manifest.load(path, ["clean.max_aspect=2.5"]))
    assert one.fingerprint("clean") == two.fingerprint("clean")
    assert one.decision("clean") != two.decision("clean")
    assert one.decision("export") != two.decision("export")
    assert one.folder("dedup") == two.folder("dedup")
    assert one.summary_folder("dedup") != two.summary_folder("dedup")


def test_each_stage_is_one_word_everywhere():
    root = Path(__file__).parents[3]
    for name in STAGES.ours:
        stage = STAGES[name]
        assert stage.__module__ in (f"stages.{name}", f"stages.{name}.stage")
        assert stage.__name__ == f"{name.title()}Stage"
        assert stage.config_type.__name__ == f"{name.title()}Config"
        tests = root / "tests" / "stages"
        places = (tests / f"test_{name}.py", tests / name / "test_stage.py")
        assert any(place.exists() for place in places)
        assert stage.reasons is not None and stage.version >= 1


def test_a_model_trained_by_the_manifest_comes_with_what_it_starts_from(tmp_path):
    content = {
        "name": "m",
        "stages": {
            "download": {"source": "x"},
            "caption": {"model": "train:captioner"},
            "filter": {"model": "train:filter"},
        },
        "train": {
            "pretrain": {"objective": "pretrain", "model": "base"},
            "captioner": {"objective": "captioner", "model": "train:pretrain"},
            "filter": {"objective": "filter", "model": "train:pretrain"},
        },
    }
    manifest = Manifest.load(write(tmp_path, content))
    plan = Plan(manifest)
    assert manifest.stages["filter"].model == "runs/m/models/filter"
    assert plan.trainings(manifest.stages["caption"]) == ("pretrain", "captioner")
    assert plan.trainings(manifest.stages["filter"]) == ("pretrain", "filter")
    assert plan.trainings(manifest.train["filter"]) == ("pretrain",)
    assert plan.trainings(manifest.train["pretrain"]) == ()


def test_a_part_of_a_trained_model_is_named_behind_it(tmp_path):
    stages = {
        "download": {"source": "x"},
        "caption": {"model": "train:both/captioner"},
        "filter": {"model": "train:both/matcher"},
    }
    train = {"both": {"objective": "joint", "data": [{"path": "h.jsonl", "weight": 2}]}}
    manifest = Manifest.load(write(tmp_path, changed(stages=stages, train=train)))
    assert manifest.stages["caption"].model == "runs/birds/models/both/captioner"
    assert Plan(manifest).trainings(manifest.stages["filter"]) == ("both",)


def test_a_manifest_may_train_alone(tmp_path):
    content = {"name": "alone", "train": {"model": {"data": ["h.jsonl"]}}}
    manifest = Manifest.load(write(tmp_path, content))
    assert not manifest.stages and list(manifest.train) == ["model"]


def test_an_evaluated_model_is_named_by_its_training_or_the_end_of_its_path():
    models = ["train:filter", "train:filter/captioner", "/x/blip/", "org/clip", "other/clip"]
    train = {"filter": {"objective": "joint", "data": ["pairs.jsonl"]}}
    content = changed(train=train, evaluate={"data": "t.jsonl", "models": models})
    found = Manifest.parse(content).evaluated
    assert list(found) == ["filter", "filter/captioner", "blip", "org/clip", "other/clip"]
    assert found["blip"] == "/x/blip/" and found["filter/captioner"].endswith("filter/captioner")


@pytest.mark.parametrize("path", SHIPPED)
def test_to_parse_touches_neither_disk_nor_network(path):
    source = Manifest.load(str(path), run="s3://bucket/run").source
    Manifest.parse(source)  # what it imports is read now
    calls = []

    def watch(frame, event, called):
        module = getattr(called, "__module__", None)
        if event == "c_call" and module in ("posix", "io", "_io", "_socket"):
            calls.append(called.__name__)

    sys.setprofile(watch)
    try:
        Path(os.devnull).exists()
        found = Manifest.parse(source, has_reviews=bool(source.get("stages")))
    finally:
        sys.setprofile(None)
    assert set(calls) - {"fspath"} == {"stat"} and calls.count("stat") == 1
    assert ("review" in found.stages) == bool(found.stages)


@pytest.mark.slow
def test_a_manifest_is_read_and_its_mistakes_are_told_without_docstrings():
    root = Path(__file__).parents[3]

    def given(*arguments):
        command = [sys.executable, "-OO", "-m", "pipeline.cli", "run", "manifests/demo.yaml"]
        how = {"cwd": root, "capture_output": True, "text": True, "timeout": 120}
        return subprocess.run([*command, "--dry-run", *arguments], **how)

    done = given()
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout.endswith("\n  report\n")
    done = given("--set", "download.timeout=true", "--set", "dedup.x=1")
    assert done.returncode == 2
    assert "stages.download.timeout: must be a number, got True" in done.stderr
    assert "stages.dedup.x: unknown field; known are " in done.stderr
    done = given("--set", "download.shard_size=x")
    assert "stages.download.shard_size: must be a whole number, got 'x'" in done.stderr
