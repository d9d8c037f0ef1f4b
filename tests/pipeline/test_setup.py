"""The command that installs the spaCy pipeline, with real pip, into a folder of its own."""

import os
import pty
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import spacy
import yaml

from pipeline.cli import main

LOADER = """
from pathlib import Path
from spacy.util import load_model_from_init_py
__version__ = "0.1.0"
def load(**overrides):
    return load_model_from_init_py(__file__, **overrides)
"""


@pytest.fixture
def wheel(tmp_path):
    """A wheel as `spacy package` makes them, of a pipeline with nothing in it."""
    name = f"en_tiny_{tmp_path.name.replace('_', '').lower()}"
    nlp = spacy.blank("en", meta={"name": name.removeprefix("en_"), "version": "0.1.0"})
    nlp.to_disk(tmp_path / "built")
    path = tmp_path / f"{name}-0.1.0-py3-none-any.whl"
    info = f"{name}-0.1.0.dist-info"
    texts = {
        f"{name}/__init__.py": LOADER,
        f"{name}/meta.json": (tmp_path / "built" / "meta.json").read_text(),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for file in (file for file in (tmp_path / "built").rglob("*") if file.is_file()):
            inner = f"{name}/{name}-0.1.0/{file.relative_to(tmp_path / 'built').as_posix()}"
            archive.write(file, inner)
        for inner, text in texts.items():
            archive.writestr(inner, text)
        record = "".join(f"{inner},,\n" for inner in archive.namelist())
        archive.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    return path


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Where pip installs, and Python looks, in place of the environment."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setenv("PIP_TARGET", str(site))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(site), str(Path.cwd()))))
    monkeypatch.syspath_prepend(str(site))
    return site


def call(capsys, *arguments):
    status = main(["setup", *map(str, arguments)])
    output = capsys.readouterr()
    return status, output.out, output.err


def at_a_terminal(answer, *arguments):
    """Status and output of the command line with a terminal on which `answer` is typed."""
    mine, its = pty.openpty()
    os.write(mine, answer.encode())
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    done = subprocess.run(command, stdin=its, capture_output=True, text=True, timeout=120)
    os.close(mine)
    os.close(its)
    return done.returncode, done.stdout, done.stderr


def test_a_wheel_is_installed_once_it_is_agreed_to(capsys, wheel, site):
    name = wheel.name.split("-")[0]
    status, out, _ = call(capsys, "--model", wheel, "--yes")
    assert status == 0 and "-m pip install --no-deps" in out
    assert out.endswith(f"{name} 0.1.0 is installed\n")
    assert spacy.load(name)("a dog").text == "a dog"
    status, out, _ = call(capsys, "--model", name)
    assert (status, out) == (0, f"{name} 0.1.0 is installed; nothing to do\n")


def test_without_a_terminal_nothing_is_installed_unless_told_to(capsys, wheel, site):
    status, out, err = call(capsys, "--model", wheel)
    assert status == 2 and "will be installed" in out and "--yes" in err
    assert not list(site.iterdir())


@pytest.mark.parametrize(("answer", "status"), [("y\n", 0), ("\n", 1)])
def test_a_terminal_is_asked(wheel, site, answer, status):
    found, out, err = at_a_terminal(answer, "setup", "--model", wheel)
    assert found == status, err
    assert "go on?" in out
    assert bool(list(site.iterdir())) == (status == 0)
    assert ("nothing was installed" in out) == (status == 1)


def test_a_run_offers_what_its_manifest_lacks_and_stops_when_it_may_not(tmp_path, site):
    stages = {"download": {"source": str(tmp_path)}, "select": {"model": "en_nowhere_sm"}}
    manifest = tmp_path / "m.yaml"
    manifest.write_text(yaml.safe_dump({"name": "m", "stages": stages}, sort_keys=False))
    run = ("run", manifest, "--run", tmp_path / "run")
    status, out, err = at_a_terminal("n\n", *run)
    assert status == 2 and "-m spacy download en_nowhere_sm" in out
    assert "capfilt setup --model en_nowhere_sm" in err
    status, out, _ = at_a_terminal("n\n", *run, "--dry-run")
    assert "go on?" not in out


def test_without_the_internet_it_says_what_else_to_do(capsys, site, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    status, _, err = call(capsys, "--model", "en_nowhere_sm", "--yes")
    assert status == 1
    assert "en_nowhere_sm could not be installed: " in err and "Error" in err
    assert "Traceback" not in err and "capfilt setup --model FILE.whl" in err


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("../en_core_web_sm", "not the name of a spaCy pipeline"),
        ("-r", "not the name"),
        ("https://example.org/en_core_web_sm", "not the name"),
        ("nowhere/en_core_web_sm-3.8.0.whl", "no such file"),
        ("{folder}", "a folder needs no setup"),
    ],
)
def test_what_cannot_be_installed_is_refused(capsys, tmp_path, model, message):
    status, _, err = call(capsys, f"--model={model.format(folder=tmp_path)}", "--yes")
    assert status == 2 and message in err
