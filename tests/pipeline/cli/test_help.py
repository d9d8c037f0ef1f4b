"""The way on, examples, what was meant, and the shell's TAB."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import fakes

from pipeline.cli.help import EXAMPLES, WAY
from pipeline.cli.main import _parser, main
from pipeline.manifest.fields import describe
from pipeline.manifest.manifest import STAGES
from pipeline.manifest.reference import kinds
from pipeline.storage.run import Run

ROOT = Path(__file__).resolve().parents[3]


def commands():
    (action,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    return action.choices


def test_every_command_has_examples_that_it_understands():
    assert set(EXAMPLES) == set(commands()) >= set(STAGES)
    shown = [example for some in EXAMPLES.values() for example in some]
    shown += re.findall(r"^  (capfilt \S.*?)(?:  .*)?$", WAY, re.M)
    for example in shown:
        line = re.sub(r'^eval "\$\((.*)\)".*$', r"\1", example).split(" > ")[0]
        program, *given = shlex.split(line, comments=True)
        assert program == "capfilt"
        if given[0] != "COMMAND":
            assert _parser().parse_args(given).command == given[0]


def test_the_help_of_a_command_ends_with_its_examples(capsys):
    for name in commands():
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0
        assert capsys.readouterr().out.endswith("\n  ".join(["examples:", *EXAMPLES[name]]) + "\n")


def test_without_arguments_it_points_at_what_lies_there(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([]) == 0 and "here:" not in capsys.readouterr().out
    (tmp_path / "manifest.yaml").write_text("")
    assert main([]) == 0
    assert "here: manifest.yaml; `capfilt run manifest.yaml --dry-run`" in capsys.readouterr().out
    (tmp_path / "runs" / "birds").mkdir(parents=True)
    (tmp_path / "runs" / "birds" / "run.json").write_text("{}")
    assert main([]) == 0
    assert "here: the run runs/birds; `capfilt status runs/birds`" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("stauts", "no command 'stauts'; did you mean 'status'?"),
        ("photos", "no command 'photos'; for a manifest that fits it, `capfilt init photos`"),
        ("a.csv", "`capfilt init a.csv`"),
        ("m.yaml", "`capfilt run m.yaml`"),
        ("runs/birds", "`capfilt status runs/birds`"),
        ("xyzzy", "no command 'xyzzy'; `capfilt` lists all"),
        ("run --dryrun m.yaml", "no option '--dryrun'; did you mean '--dry-run'?"),
        ("status", "capfilt status: still needed: RUN"),
        ("status a b", "'b' is one argument too many"),
        ("run m.yaml --workers two", "--workers: must be a whole number, got 'two'"),
        ("train m.yaml --objective filtr", "--objective: no 'filtr'; did you mean 'filter'?"),
        ("completion fsh", "did you mean 'fish'?"),
    ],
)
def test_a_slip_is_told_with_what_was_meant(capsys, tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "runs" / "birds").mkdir(parents=True)
    (tmp_path / "runs" / "birds" / "run.json").write_text("{}")
    with pytest.raises(SystemExit) as ended:
        main(given.split())
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert message in told and "usage:" not in told
    assert "shows examples" in told.splitlines()[-1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("run photos", "photos: a folder, not a manifest; `capfilt init photos` writes one"),
        ("run pairs.csv", "`capfilt init pairs.csv` writes one for a list"),
        ("run manifets.yaml", "no such manifest; did you mean 'manifest.yaml'?"),
        ("run lava.yaml", "manifests/llava.yaml'?"),
        ("run manifest.yaml --set captoin.model=x", "no 'captoin'; did you mean 'caption'?"),
        ("run manifest.yaml --set clean.max_aspekt=2", "did you mean 'max_aspect'?"),
        (
            "run manifest.yaml --set clean.min_side=abc",
            "stages.clean.min_side: must be a whole number or on/off or null, got 'abc'",
        ),
        ("run manifest.yaml --set clean.min_words=", None),
        ("run manifest.yaml --set clean.languages=3", "must be a list of text, got 3"),
        ("run manifest.yaml --set clean.preset=flamngo", "clean.preset must be one of flamingo"),
        (
            "run manifest.yaml --set select.method=balnce",
            "must be one of noun_phrases, balance, random, top_fraction, got 'balnce'; did you "
            "mean 'balance'?",
        ),
        (
            "run manifest.yaml --set export.documents.max_tokns=9",
            "stages.export.documents.max_tokns: unknown field; did you mean 'max_tokens'?",
        ),
        (
            "run manifest.yaml --set export.documents.max_words=abc",
            "stages.export.documents.max_words: must be a whole number, got 'abc'",
        ),
        ("status runs/brids", "no run there; did you mean 'runs/birds'?"),
        ("status runs", "no run there, but in it runs/birds"),
        ("verdicts runs/birds --out no/v.csv", "nothing is downloaded yet"),
        ("show runs/birds x", "nothing is downloaded yet"),
    ],
)
def test_a_wrong_input_is_told_with_the_fix(capsys, tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.manifest.manifest.RECIPES", str(ROOT / "manifests"))
    fakes.photo_folder(tmp_path / "photos", 1)
    (tmp_path / "pairs.csv").write_text("url,caption\nhttp://a.org/1.jpg,A dog\n")
    content = "name: m\nstages: {download: {source: photos}, clean: {}}"
    (tmp_path / "manifest.yaml").write_text(content)
    record = {"manifest": {"name": "m", "stages": {"download": {"source": "photos"}}}}
    Run("runs/birds").write_json(record, "run.json")
    program, *rest = given.split()
    status = main([program, *rest, *(["--dry-run"] if program == "run" else [])])
    told = capsys.readouterr().err
    if message is None:
        assert status == 0
        return
    assert status == 2 and message in told, told
    assert "Traceback" not in told and "pydantic" not in told


def completed(line, shell="bash"):
    environ = {
        **os.environ,
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SHELL": shell,
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    command = f"{shlex.quote(sys.executable)} -m pipeline.cli 8>&1 9>/dev/null >/dev/null"
    done = subprocess.run(["bash", "-c", command], env=environ, capture_output=True, text=True)
    return done.stdout.split("\n")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("capfilt stat", ["status"]),
        ("capfilt run m.yaml --unt", ["--until"]),
        ("capfilt run m.yaml --until ca", ["caption"]),
        ("capfilt run m.yaml --set clean.max_as", ["clean.max_aspect="]),
        ("capfilt run m.yaml --set caption.decoding=n", ["caption.decoding=nucleus"]),
        ("capfilt download m.yaml --retry timeout,http_5", ["timeout,http_5xx"]),
        ("capfilt completion f", ["fish"]),
    ],
)
def test_tab_completes(line, expected):
    assert completed(line) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(capsys, shell):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "capfilt" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_every_field_of_every_config_is_told():
    for kind in kinds().values():
        assert all(field.text and field.type for field in describe(kind))
