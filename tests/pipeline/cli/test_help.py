"""The way on, examples, what was meant, and the shell's TAB."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from helpers import fakes

from pipeline.cli.help import EXAMPLES, WAY
from pipeline.cli.main import _parser, main
from pipeline.manifest.fields import describe
from pipeline.manifest.manifest import KEYS
from pipeline.manifest.reference import kinds
from pipeline.storage.run import Run
from stages.registry import RESERVED, STAGES

ROOT = Path(__file__).resolve().parents[3]


def commands():
    (action,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    return action.choices


def examples():
    """The examples of each command."""
    return {**{name: STAGES[name].examples for name in STAGES.ours}, **EXAMPLES}


def test_every_command_has_examples_that_it_understands():
    assert set(examples()) == set(commands()) >= set(STAGES)
    assert all(examples().values())
    shown = [example for some in examples().values() for example in some]
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
        shown = "\n  ".join(["examples:", *examples()[name]])
        assert capsys.readouterr().out.endswith(f"{shown}\n")


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"capfilt {metadata.version('capfilt')}\n"


@pytest.mark.parametrize("width", [80, 110])
def test_help_fits_the_terminal_and_breaks_no_word(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    main([])
    shown = capsys.readouterr().out
    for name in commands():
        with pytest.raises(SystemExit):
            main([name, "--help"])
        text = capsys.readouterr().out
        shown += text.split("\nexamples:\n")[0]  # a command to copy stays one line
    assert [line for line in shown.splitlines() if len(line) > width] == []


@pytest.mark.parametrize("name", [name for name in STAGES.ours if name != "review"])
def test_the_help_of_a_stage_tells_its_fields_and_reasons(capsys, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main([name, "--help"])
    shown = capsys.readouterr().out
    for field in describe(STAGES[name].config_type):
        assert re.search(
            rf"^  {field.name} \(.*\)\n      {re.escape(field.text[:60])}", shown, re.M
        )
    for reason, text in STAGES[name].every_reason().items():
        assert f"\n  {reason}: {text[:60]}" in shown


@pytest.mark.slow
def test_the_list_of_commands_is_made_without_a_library_that_takes_long():
    code = (
        "import sys; from pipeline.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: "
    )
    code += "print(*sorted(sys.modules))"
    command = [sys.executable, "-OO", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *shown, modules = done.stdout.splitlines()
    assert not {"numpy", "pyarrow", "pydantic", "ray", "rich", "torch"} & set(modules.split())
    listed = dict(re.findall(r"^    (\w+) +(\w.*)$", "\n".join(shown), re.M))
    for name in STAGES.ours:
        assert name == "review" or STAGES[name].help.startswith(listed[name])


@pytest.mark.slow
def test_the_help_of_a_stage_needs_no_docstrings():
    command = [sys.executable, "-OO", "-m", "pipeline.cli", "select", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "\n  min_frequency (whole number; threshold; default 3)\n  max_per_phrase" in done.stdout
    assert "\n  no_noun_phrase: " in done.stdout


def with_entry_point(folder, line, *arguments):
    """Run the command line beside an installed distribution with one entry point."""
    info = folder / "inks-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: inks\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text(f"[capfilt.stages]\n{line}\n")
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environ)


@pytest.mark.slow
def test_a_stage_that_cannot_be_imported_stops_only_what_needs_it(tmp_path):
    (tmp_path / "m.yaml").write_text("{name: m, stages: {download: {source: x}, ink: {}}}")
    command = ("run", str(tmp_path / "m.yaml"), "--dry-run")
    done = with_entry_point(tmp_path, "ink = no_such:Ink", *command)
    assert done.returncode == 2
    assert "m.yaml: stages.ink: entry point ink = no_such:Ink in capfilt.stages of" in done.stderr
    assert "inks 2.0: cannot be imported: ModuleNotFoundError: " in done.stderr
    assert "Fix or uninstall the distribution" in done.stderr
    again = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    for given, status in (("--help", 0), ("ink --help", 2)):
        command = [sys.executable, "-m", "pipeline.cli", *given.split()]
        done = subprocess.run(command, capture_output=True, text=True, env=again)
        assert done.returncode == status, done.stderr
    assert done.stderr.startswith("capfilt: entry point ink = no_such:Ink")


@pytest.mark.slow
def test_a_stage_with_a_name_of_ours_stops_every_command(tmp_path):
    done = with_entry_point(tmp_path, "clean = inks:Ink", "--help")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "capfilt: entry point clean = inks:Ink in capfilt.stages of inks 2.0: capfilt has a stage "
        "'clean'. Rename it, or uninstall the distribution\n"
    )


@pytest.mark.slow
def test_a_stage_without_a_line_of_help_is_listed_by_its_package(tmp_path):
    done = with_entry_point(tmp_path, "ink = no_such:Ink", "--help")
    assert re.search(r"^    ink +a stage of inks 2\.0$", done.stdout, re.M)


def test_no_stage_of_another_package_can_be_called_as_a_command_or_a_key():
    assert set(commands()) | set(KEYS) <= {*STAGES.ours, *RESERVED}


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
        ("ablate a.yaml --rn x", "ablate: no option '--rn'; did you mean '--run'?"),
        ("clean m.yaml --until dedup", "no option '--until'; `capfilt run` has '--until'\n"),
        ("clean m.yaml --dryrun", "no option '--dryrun'; `capfilt run` has '--dry-run'\n"),
        ("train m.yaml --resume", "no option '--resume'\n"),
        ("--versions", "no option '--versions'; did you mean '--version'?"),
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
            "must be one of noun_phrases, balance, metadata, random, top_fraction, sample, target, "
            "neg_clip_loss, density, got 'balnce'; did you mean 'balance'?",
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


@pytest.mark.slow
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


@pytest.mark.slow
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
