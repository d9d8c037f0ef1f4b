"""What the whole package does not do: run what it reads, load pickles, tell secrets."""

from __future__ import annotations

import ast
import json
import re
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.blips import WORDS, save, save_blip2, save_clip, tokenizer_of
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from safetensors.torch import load_file
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

from models.inference.captioner import Captioner
from models.inference.dual_encoder import DualEncoder
from models.inference.matcher import Matcher
from models.inference.vlm import GenericCaptioner
from models.objectives.blip import MED
from models.objectives.clip import Contrastive
from models.weights import revision_of
from stages.download import DownloadConfig
from stages.redaction import redacted

ROOT = Path(__file__).parents[1]
SOURCES = [
    path for layer in ("pipeline", "stages", "models") for path in (ROOT / layer).rglob("*.py")
]

MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "xmlrpc"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "os.system",
    "os.popen",
    "torch.load",
    "torch.hub.load",
    "tempfile.mktemp",
    "yaml.unsafe_load",
    "yaml.full_load",
    "yaml.load_all",
}
AUTO = re.compile(r"Auto\w+\.from_pretrained")


def faults(path: Path) -> Iterator[str]:
    """What a module does that none is to do."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            yield from (f"imports {name}" for name in names if name.split(".")[0] in MODULES)
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {key.arg: ast.unparse(key.value) for key in node.keywords}
        if name in BUILTINS or name in CALLS or name.endswith(".extractall"):
            yield f"calls {name}"
        if name == "yaml.load" and ast.unparse(node.args[1]) != "_Loader":
            yield "loads YAML that is not safe"
        if name.endswith(".load") and given.get("allow_pickle", "False") != "False":
            yield "loads arrays of objects"
        if name.startswith("subprocess.") and given.get("shell", "False") != "False":
            yield "starts a shell"
        if given.get("trust_remote_code", "False") != "False":
            yield "trusts remote code"
        if AUTO.search(name) and given.get("trust_remote_code") != "False":
            yield f"{name} may ask whether to trust remote code"
        if (
            "Model" in name
            and name.endswith(".from_pretrained")
            and (given.get("use_safetensors") != "True")
        ):
            yield f"{name} may read a pickle"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_runs_what_it_reads(path: Path) -> None:
    assert list(faults(path)) == []


def test_the_one_loader_of_yaml_knows_plain_types_alone() -> None:
    import yaml

    from pipeline.manifest.yaml import _Loader

    assert issubclass(_Loader, yaml.SafeLoader)
    assert _Loader.yaml_constructors == yaml.SafeLoader.yaml_constructors


def test_templates_escape_everything() -> None:
    for path in (ROOT / "pipeline").rglob("*.j2"):
        text = path.read_text(encoding="utf-8")
        assert "|safe" not in text.replace(" ", "") and "autoescape" not in text, path
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Environment"):
                given = {key.arg: ast.unparse(key.value) for key in node.keywords}
                assert given.get("autoescape") == "True", path


class Canary:
    """Makes a folder where it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.place,)


LOADERS: dict[str, Callable[[str], Any]] = {
    "captioner": Captioner.from_pretrained,
    "matcher": Matcher.from_pretrained,
    "blip2": GenericCaptioner.from_pretrained,
    "clip": DualEncoder.from_pretrained,
    "contrastive": Contrastive.from_pretrained,
    "med": lambda folder: MED.from_pretrained(folder, parts=("captioner",)),
    "weights": revision_of,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A sound folder for each loader."""
    place = tmp_path_factory.mktemp("models")
    tokenizer = tokenizer_of(WORDS.split())
    save(place / "captioner", BlipForConditionalGeneration, tokenizer)
    save(place / "matcher", BlipForImageTextRetrieval, tokenizer)
    save_clip(place / "clip")
    save_blip2(place / "blip2")
    same = {"contrastive": "clip", "med": "captioner", "weights": "captioner"}
    return {name: place / same.get(name, name) for name in LOADERS}


@pytest.mark.parametrize("name", LOADERS)
def test_a_pickle_is_never_loaded(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    assert LOADERS[name](str(folders[name]))
    folder, place = tmp_path / "model", tmp_path / "was here"
    shutil.copytree(folders[name], folder)
    weights: dict[str, Any] = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**weights, "canary": Canary(place)}, folder / "pytorch_model.bin")
    shutil.copy(folder / "pytorch_model.bin", folder / "training_args.bin")
    with pytest.raises((OSError, ValueError)):
        LOADERS[name](str(folder))
    assert not place.exists()


@pytest.mark.parametrize("name", [name for name in LOADERS if name != "weights"])
@pytest.mark.parametrize("kind", ["known", "unknown"])
def test_code_beside_a_model_is_never_run(
    folders: dict[str, Path], tmp_path: Path, name: str, kind: str
) -> None:
    folder, place = tmp_path / "model", tmp_path / "was here"
    shutil.copytree(folders[name], folder)
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(place)!r}).mkdir()\n")
    classes = ("Config", "Model", "ModelForImageTextToText", "Tokenizer", "Processor")
    for file in folder.glob("*config.json"):
        settings = json.loads(file.read_text())
        settings["auto_map"] = {f"Auto{one}": f"evil.{one}" for one in classes}
        settings["auto_map"]["AutoTokenizer"] = ["evil.Tokenizer", "evil.Tokenizer"]
        if kind == "unknown" and file.name == "config.json":
            settings |= {"model_type": "evil", "architectures": ["Evil"]}
        settings["trust_remote_code"] = True
        file.write_text(json.dumps(settings))
    try:
        LOADERS[name](str(folder))
    except (OSError, ValueError, KeyError):
        pass
    else:
        assert kind == "known" or name in ("captioner", "matcher", "med", "contrastive")
    assert not place.exists()


def test_the_guards_are_up_unless_taken_down() -> None:
    config = DownloadConfig(source="x.csv")
    assert not config.allow_private_addresses and config.robots and config.honor_opt_out
    assert config.max_bytes < 10**8 and config.max_pixels < 10**8


SECRET = {
    "https://user:pa55@h.test/a.jpg": "https://***@h.test/a.jpg",
    "ftp://pa55@h.test/a": "ftp://***@h.test/a",
    "s3://KEY:pa55/w+ord@bucket/a": "s3://***@bucket/a",
    "//user:pa55@h.test/a.jpg": "//***@h.test/a.jpg",
    "https://h.test/a?x=1&X-Amz-Signature=pa55&y=2": "https://h.test/a?x=1&X-Amz-Signature=***&y=2",
    "https://h.test/a?Signature=pa55": "https://h.test/a?Signature=***",
    "https://h.test/a?sv=1&sig=pa55#top": "https://h.test/a?sv=1&sig=***#top",
    "https://h.test/a?token=pa55&amp;key=pa55": "https://h.test/a?token=***&amp;key=***",
    "https://h.test/a?accessToken=pa55": "https://h.test/a?accessToken=***",
    "https://h.test/a?AWSAccessKeyId=pa55": "https://h.test/a?AWSAccessKeyId=***",
    "https://h.test/a?X-Goog-Credential=pa55": "https://h.test/a?X-Goog-Credential=***",
    "https://h.test/a#access_token=pa55": "https://h.test/a#access_token=***",
    "see ftp://u:pa55@h/a, or http://h/?api_key=pa55.": "see ftp://***@h/a, or http://h/?api_key=***",
}


@pytest.mark.parametrize(("url", "shown"), SECRET.items())
def test_a_secret_is_hidden_and_nothing_else(url: str, shown: str) -> None:
    assert redacted(url) == shown and redacted(shown) == shown and "pa55" not in redacted(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://h.test:8080/@user/a.jpg",
        "https://h.test/@user/a:b@c.jpg",
        "https://h.test/a.jpg?itok=1&impolicy=2&monkey=3&width=4",
        "web/photos/a@2x.jpg",
        "write to a@b.test",
        "",
    ],
)
def test_what_is_public_stays(url: str) -> None:
    assert redacted(url) == url


@given(st.text(max_size=60), st.text("abc123/+%.", min_size=4, max_size=20), st.text(max_size=20))
def test_a_password_is_hidden_in_any_text(before: str, password: str, after: str) -> None:
    secret = f"Q{password}Q"
    shown = redacted(f"{before} ftp://user:{secret}@host/{after} http://h/?sig={secret}")
    assert secret not in shown


@pytest.mark.parametrize("part", ["://a:", "?", "?-", "?key", "//", "?access", "@", "=", "a.b-"])
def test_hiding_takes_no_time_of_a_hostile_text(part: str) -> None:
    assert redacted(part * 50_000 + "@=")


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    more = project["optional-dependencies"].values()
    found = [Requirement(line) for some in (project["dependencies"], *more) for line in some]
    return [one for one in found if one.name != project["name"]]  # its own extras


def test_dependencies_have_ranges_and_the_lock_is_within_them() -> None:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").split()
    locked = dict(line.lower().replace("_", "-").split("==") for line in lines)
    for requirement in requirements():
        bounds = {one.operator for one in requirement.specifier}
        assert bounds == {">=", "<"}, f"{requirement} has no range"
        name = requirement.name.lower().replace("_", "-")
        if name not in ("tensorboard", "vllm"):  # extras that the tests do not install
            assert requirement.specifier.contains(locked[name], prereleases=True), requirement
