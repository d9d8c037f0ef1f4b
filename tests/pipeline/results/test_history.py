"""All that is known of one sample, as values and on the terminal."""

import json
import re
import tempfile
from pathlib import Path

import pytest
from helpers import fakes

from pipeline.cli.main import main
from pipeline.results.history import sample_history
from pipeline.results.open_run import open_results
from pipeline.storage.run import Run

STAGES = ["download", "clean", "dedup", "caption", "filter"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("evidence")
    return fakes.small_run(place / "run", fakes.tiny_blip(place))


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """A folder for temporary files that goes with the test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def of(folder, sample):
    run = Run(str(folder))
    return sample_history(open_results(run), sample)


def test_a_kept_sample_has_every_stage_and_the_scores_of_each_caption(folder):
    found = of(folder, "good.jpg")
    assert found.verdict == "kept" and found.image == fakes.jpeg(1, (300, 260))
    assert [step.name for step in found.steps] == STAGES
    assert {step.verdict for step in found.steps} == {"kept"}
    assert [c.source for c in found.captions] == ["web", "further", "synthetic"]
    assert found.captions[0].text == "A red house stands beside the river in the morning"
    assert found.captions[1].text == "The house by the river once more"
    assert all(c.is_kept and 0 <= c.itm <= 1 and -1 <= c.itc <= 1 for c in found.captions)


def test_copies_name_each_other_and_which_one_stays(folder):
    good, copy = of(folder, "good.jpg"), of(folder, "copy.jpg")
    assert copy.verdict == "dedup: duplicate_image"
    assert copy.representative == good.representative == good.pool["uid"]
    assert [c["url"] for c in good.copies] == ["web/copy.jpg"]
    assert [(c["url"], c["reason"]) for c in copy.copies] == [("web/good.jpg", None)]
    assert [s.verdict for s in copy.steps[-2:]] == ["not reached", "not reached"]


def test_a_reason_comes_with_its_sentence_its_thresholds_and_the_other_rules(folder):
    (clean,) = (step for step in of(folder, "name.jpg").steps if step.name == "clean")
    assert clean.verdict == "rejected" and clean.reason == "filename"
    assert clean.why == "The caption is a file name."
    assert "too_few_words" in clean.also and clean.measures["text_words"] == 1
    gone = of(folder, "gone.jpg")
    assert gone.verdict == "download: http_404" and gone.image is None


def test_a_threshold_that_a_reason_names_is_told(folder, tmp_path):
    run = Run(str(folder))
    record = run.read_json("run.json")
    record["manifest"]["stages"]["clean"] = {"min_side": 280}
    run.write_json(record, "run.json")
    try:
        found = of(folder, "good.jpg")
    finally:
        record["manifest"]["stages"]["clean"] = {}
        run.write_json(record, "run.json")
    assert found.verdict == "clean: image_too_small"
    assert found.steps[1].why.endswith("(min_side 280)")


def test_a_stage_that_has_not_measured_a_sample_says_so(folder):
    run = Run(str(folder))
    record = run.read_json("run.json")
    record["manifest"]["stages"]["caption"]["num_captions"] = 2
    run.write_json(record, "run.json")
    try:
        found = of(folder, "good.jpg")
    finally:
        record["manifest"]["stages"]["caption"].pop("num_captions")
        run.write_json(record, "run.json")
    assert found.verdict == "not measured by caption yet"
    assert [s.verdict for s in found.steps[-2:]] == ["not measured yet", "not measured yet"]


def test_a_sample_goes_by_uid_by_url_and_by_the_end_of_one(folder):
    uid = of(folder, "web/good.jpg").pool["uid"]
    assert of(folder, uid).pool["uid"] == of(folder, uid[:9]).pool["uid"] == uid
    with pytest.raises(ValueError, match="4 samples have a uid that begins with"):
        of(folder, "")
    with pytest.raises(ValueError, match=r"no sample has a uid .* nor such a URL; `capfilt verd"):
        of(folder, "ood.jpg")


def test_the_terminal_gets_it_all_and_a_pipe_gets_it_plain(folder, capsys):
    assert main(["show", str(folder), "copy.jpg"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and not set(shown) & set("│┃")
    assert "duplicate_image: Another row with the same file is kept." in shown
    assert any(line.split()[1:] == ["stays", "web/good.jpg"] for line in shown.splitlines())
    assert all(line == line.rstrip() for line in shown.splitlines())
    assert main(["show", str(folder), "good.jpg", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "kept" and found["image"] == {
        "bytes": len(fakes.jpeg(1, (300, 260)))
    }
    assert [step["name"] for step in found["steps"]] == STAGES


@pytest.mark.parametrize(
    ("image", "ending"),
    [(fakes.jpeg(1, (300, 260)), ".jpg"), (b"\x89PNG, cut", ".png"), (b"\x1b[31m", ".jpg")],
)
def test_it_names_a_file_with_the_bytes_of_the_image(
    folder, tmp_path, temporary, capsys, image, ending
):
    hurt = Run(str(tmp_path))
    table = Run(str(folder)).read_table("pool", "00000.parquet")
    row = table.to_pylist()[0] | {"uid": "../../x\x1b", "image": image}
    hurt.write_table(table.from_pylist([row], table.schema), "pool", "00000.parquet")
    content = {"name": "hurt", "run": str(tmp_path), "stages": {"download": {"source": "x"}}}
    hurt.write_json({"manifest": content}, "run.json")
    assert main(["show", str(tmp_path), "good.jpg"]) == 0
    (path,) = re.findall(r"^image +(/.*)$", capsys.readouterr().out, re.M)
    assert path.endswith(ending) and Path(path).read_bytes() == image
    assert list(temporary.iterdir()) == [Path(path)]


def test_what_the_web_wrote_cannot_steer_the_terminal(folder, tmp_path, capsys):
    run, hurt = Run(str(folder)), Run(str(tmp_path))
    rows = run.read_table("pool", "00000.parquet").to_pylist()[:1]
    rows[0]["caption"] = "\x1b[31m[red]\x1b]0;title\x07 :dog: [/red]"
    table = run.read_table("pool", "00000.parquet").schema.empty_table()
    hurt.write_table(table.from_pylist(rows, table.schema), "pool", "00000.parquet")
    content = {"name": "hurt", "run": str(tmp_path), "stages": {"download": {"source": "x"}}}
    hurt.write_json({"manifest": content}, "run.json")
    assert main(["show", str(tmp_path), "good.jpg"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\x07" not in shown and "[red]" in shown and ":dog:" in shown
