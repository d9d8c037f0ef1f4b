"""The commands that the pages in docs/ show, each carried out as a reader would."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from helpers import fakes

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "folder.md", "list.md", "recipes.md")
"""Those with commands, in the order of reading; later ones use what earlier ones made."""

NOISE = re.compile(r"^Generating train split: .*$", re.M)
"""What `datasets` says by itself in the page's own Python."""


def blocks(page, language):
    """The marks and the content of each fenced block of a page in a language."""
    text = (ROOT / "docs" / page).read_text()
    return re.findall(rf"^( *)```{language}([^\n]*)\n(.*?)^\1```", text, re.M | re.S)


def commands(page):
    """Each command with whether it takes weights from the hub."""
    for _, marks, content in blocks(page, "console"):
        assert marks.strip() in ("", "weights"), f"{page}: {marks}"
        for line in content.splitlines():
            if line.startswith("$ "):
                yield line.removeprefix("$ "), marks.strip() == "weights"


class Reader:
    """Somebody with a shell, a folder of photos and weights of their own."""

    def __init__(self, folder):
        self.folder = folder
        shutil.copytree(ROOT / "docs", folder / "docs")
        shutil.copytree(ROOT / "manifests", folder / "manifests")
        fakes.photo_folder(folder / "photos", 8, captions=False)
        models = fakes.tiny_blip(folder)
        self.weights = [
            *("--set", f"caption.model={models / 'captioner'}", "--set", "filter.min_itm=0.2"),
            *("--set", f"filter.model={models / 'matcher'}"),
        ]
        (folder / "bin").mkdir()
        for name, target in (("capfilt", "-m pipeline.cli"), ("python", "")):
            script = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {target} "$@"\n'
            (folder / "bin" / name).write_text(script)
            (folder / "bin" / name).chmod(0o755)
        self.behind = []

    def give(self, command, takes_weights):
        """Carry out a command; what it writes to stdout and stderr."""
        if takes_weights:
            program, verb, manifest, *rest = shlex.split(command)
            command = shlex.join([program, verb, manifest, *self.weights, *rest])
        environ = {
            "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "HOME": str(self.folder),
            "HF_HUB_OFFLINE": "1",
        }
        how = {"cwd": self.folder, "env": environ, "stdin": subprocess.DEVNULL, "text": True}
        if command.endswith("&"):
            line = f"exec {command.removesuffix('&')}"
            self.behind.append(subprocess.Popen(["bash", "-c", line], **how))
            while not (self.folder / "pairs.csv").exists():
                assert self.behind[-1].poll() is None
                time.sleep(0.05)
            return "", ""
        done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=900, **how)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout, done.stderr


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """What every command of every page wrote, by page, one page after the other in one folder."""
    reader = Reader(tmp_path_factory.mktemp("reader"))
    told = {}
    try:
        for page in PAGES:
            told[page] = [(given, *reader.give(given, w)) for given, w in commands(page)]
    finally:
        for process in reader.behind:
            process.send_signal(signal.SIGTERM)
            process.wait()
    for given in told.values():  # what `show` has written of images
        for _, out, _ in given:
            for path in re.findall(r"^image +(/.*/capfilt-[^/]*)$", out, re.M):
                Path(path).unlink(missing_ok=True)
    return reader.folder, told


def test_every_page_with_commands_is_read():
    with_commands = {p.name for p in (ROOT / "docs").glob("*.md") if [*commands(p.name)]}
    assert with_commands == set(PAGES)


@pytest.mark.slow
def test_every_command_succeeds_and_no_library_writes_on_the_terminal(read):
    _, told = read
    assert sum(map(len, told.values())) >= 20
    for page, given in told.items():
        for command, _, errors in given:
            assert not NOISE.sub("", errors).strip(), f"{page}: {command}\n{errors}"


@pytest.mark.slow
def test_the_folder_has_its_captions(read):
    folder, told = read
    outputs = {command: out for command, out, _ in told["folder.md"]}
    assert "captions   none" in outputs["capfilt init photos/"]
    assert "pairs: synthetic" in outputs["capfilt status runs/photos --watch"]
    shown = outputs["capfilt show runs/photos 0003.jpg"]
    assert "web/0003.jpg" in shown and re.search(r"^synthetic +kept +\d", shown, re.M)
    assert "\x1b" not in shown and re.search(r"^image +/.*\.jpg$", shown, re.M)
    assert (folder / "runs" / "photos" / "report" / "index.html").exists()
    assert "num_rows" in told["folder.md"][-1][1]


@pytest.mark.slow
def test_the_list_meets_the_reasons_that_the_page_shows(read):
    _, told = read
    outputs = {command: out for command, out, _ in told["list.md"]}
    found = outputs["capfilt init pairs.csv --out pairs.yaml"]
    assert "url: image link, caption: description" in found
    page = (ROOT / "docs" / "list.md").read_text()
    shown = re.findall(r"^(download|clean|dedup) +done +(\d+) +(\d+) +0 +[\d.]+  (.*)$", page, re.M)
    found = outputs["capfilt status runs/pairs"]
    assert len(shown) == 3
    for stage, rows, kept, reasons in shown:
        line = next(line for line in found.splitlines() if line.startswith(f"{stage} "))
        assert line.split()[1:5] == ["done", rows, kept, "0"]
        assert set(re.findall(r"\w+ \d+", reasons)) <= set(re.findall(r"\w+ \d+", line))
    copy = outputs["capfilt show runs/pairs copy.jpg"]
    assert "duplicate_image" in copy and re.search(r"^\w{12} +stays +http.*/3\.jpg$", copy, re.M)


def test_the_stage_of_the_page_is_the_package_that_is_tested():
    ((_, _, code),) = blocks("stage.md", "python")
    ((_, _, entry),) = blocks("stage.md", "toml")
    package = ROOT / "tests" / "plugin"
    assert textwrap.dedent(code) == (package / "capfilt_ink.py").read_text()
    assert textwrap.dedent(entry) in (package / "pyproject.toml").read_text()
    ((_, _, manifest),) = blocks("stage.md", "yaml")
    assert list(yaml.safe_load(manifest)["stages"]) == ["download", "ink", "export"]


def test_the_objective_of_the_page_is_the_package_that_is_tested():
    code = [textwrap.dedent(content) for _, _, content in blocks("objective.md", "python")]
    ((_, _, entry),) = blocks("objective.md", "toml")
    package = ROOT / "tests" / "plugin"
    assert "\n\n".join(code) == (package / "capfilt_siglip.py").read_text()
    assert textwrap.dedent(entry) in (package / "pyproject.toml").read_text()
    ((_, _, manifest),) = blocks("objective.md", "yaml")
    assert yaml.safe_load(manifest)["train"]["towers"]["objective"] == "siglip"


def test_the_stage_of_the_page_is_a_stage():
    scope = {}
    exec((ROOT / "tests" / "plugin" / "capfilt_ink.py").read_text(), scope)
    stage = scope["InkStage"](scope["InkConfig"]())
    rows = pa.table({"uid": ["a", "b"], "image": [fakes.jpeg(1), b"no image"]})
    found = stage.annotate(rows)
    assert found.schema == stage.writes
    assert stage.judge(found).to_pylist() == [None, "undecodable"]
    strict = scope["InkStage"](scope["InkConfig"](min_contrast=255.0))
    assert strict.judge(found).to_pylist() == ["pale", "undecodable"]


def test_every_guard_stands_where_the_page_says_and_is_held_by_a_test():
    page = (ROOT / "docs" / "security.md").read_text()
    rows = re.findall(r"^\| .* \| (.*) \| (`tests/.*) \|$", page, re.M)
    assert len(rows) > 15
    for places, tests in rows:
        for place in re.findall(r"`([^`]+)`", places):
            assert (ROOT / place).exists(), place
        path = ""
        for test in re.findall(r"`([^`]+)`", tests):
            named, _, function = test.partition("::")
            path = named or path
            held = rf"^def {function or 'test_[a-z_]+'}\("
            assert re.search(held, (ROOT / path).read_text(), re.M), test


def test_what_links_lead_to_is_there():
    for page in (ROOT / "docs").glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_recipe_has_its_line():
    page = (ROOT / "docs" / "recipes.md").read_text()
    for recipe in (ROOT / "manifests").iterdir():
        assert f"[{recipe.name}](../manifests/{recipe.name})" in page


def test_the_pages_of_fields_and_reasons_are_as_the_code_says():
    from pipeline.manifest import reference

    pages = {"manifest.md": reference.manifest(), "reasons.md": reference.reasons()}
    pages["objectives.md"] = reference.objectives()
    for name, made in pages.items():
        assert (ROOT / "docs" / name).read_text() == made, "`make docs` makes it anew"
