"""Resolves model names: the folder or revision of the weights, and the device and dtype to load.

torch is imported only to look for a device, so that drivers start fast.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from models.errors import DamagedError

if TYPE_CHECKING:
    import torch

__all__ = [
    "Dtype",
    "Placement",
    "check_files",
    "device_of",
    "dtype_of",
    "folder_of",
    "has_chat_template",
    "parts_of",
    "pinned",
    "place",
    "revision_of",
]

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
"""Data type of weights; auto is bfloat16 on devices that support it, and float32 elsewhere."""

logger = logging.getLogger(__name__)

# Files that determine a model's output: weights, configs, vocabularies and chat templates, but not
# its README.
SUFFIXES = (".jinja", ".json", ".safetensors", ".txt")
LOADED = (*SUFFIXES, ".model")
CHAT_FILES = ("chat_template.jinja", "chat_template.json")
CHAT_CONFIGS = ("processor_config.json", "tokenizer_config.json")
LAYERS = re.compile(r"layers$|depths?$")
FREE_LAYERS = 1000
"""The number of layers that a config may have whatever its weights are, and its names."""
SIZES = re.compile(r"(size|dim|width)s?$")
FREE_SIZE = 1 << 24
"""The largest size that a config may have whatever its weights are, and its names."""
COMMIT = re.compile(r"[0-9a-f]{40}")
REPO = re.compile(r"[\w.-]+(/[\w.-]+)?")


def folder_of(model: str) -> str:
    """Return where to load a model from: a local copy for a URL, and the unchanged name otherwise.

    A folder at an fsspec URL (`s3://...`) is copied to `capfilt/models` in the user's cache
    (XDG_CACHE_HOME). It is copied again if the size, time or ETag of a file changes.

    Args:
        model: A URL, a model folder, or a model name on the hub.

    Raises:
        FileNotFoundError: There is no folder at the URL.
        ValueError: The storage cannot be read, or a file name leads out of the folder.
    """
    if "://" not in model:
        return model
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    fs, root = fsspec.core.url_to_fs(model.rstrip("/"), use_listings_cache=False)
    if isinstance(fs, LocalFileSystem):
        return str(root)
    try:
        infos = fs.find(root, detail=True)
    except OSError:
        raise
    except Exception as error:  # storages have their own types, such as for missing credentials
        raise ValueError(f"{model}: cannot be read: {error}") from error
    files = {}
    for path, info in infos.items():
        name = PurePosixPath(path.removeprefix(root).lstrip("/"))
        if ".." in name.parts or name.is_absolute() or "\\" in str(name):
            raise ValueError(f"{model}: the name {str(name)!r} leads out of the folder")
        if name.suffix in LOADED:
            stamp = info.get("ETag") or info.get("etag") or info.get("LastModified")
            files[str(name)] = [path, info["size"], str(stamp or info.get("mtime"))]
    if not files:
        raise FileNotFoundError(f"no model folder at {model!r}; train or copy the model there")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "capfilt", "models")
    listing = json.dumps([model, files], sort_keys=True).encode()
    folder = cache / hashlib.sha256(listing).hexdigest()[:32]
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=cache))
        try:
            for file, (path, *_) in files.items():
                (partial / file).parent.mkdir(parents=True, exist_ok=True)
                fs.get_file(path, str(partial / file))
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process may have copied it first
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return str(folder)


def parts_of(model: str) -> list[str]:
    """The folders of a model that hold weights: the model folder itself, or else those in it.

    Args:
        model: A model folder, here or at a URL; a name on the hub has none.
    """
    top = Path(folder_of(model)).expanduser()
    if not top.is_dir():
        return []
    if any(top.glob("*.safetensors")):
        return [str(top)]
    return [str(folder) for folder in sorted(top.iterdir()) if any(folder.glob("*.safetensors"))]


def revision_of(model: str, revision: str | None = None) -> str:
    """Identify the weights of a model without loading it.

    Args:
        model: A model folder, local or at a URL, or a model name on the hub.
        revision: A branch, tag or commit on the hub; must be None for a folder.

    Returns:
        For a folder, the first 16 hex characters of the SHA-256 of its weights, configs and
        vocabularies; its name does not matter. For a hub name, the 40 characters of a commit:
        `revision` if it is one, else the commit in the local hub cache, else the commit on the hub.

    Raises:
        FileNotFoundError: There is no such folder, and no commit is known for the name.
        ValueError: The folder has no weights, or a revision is given for a folder.
    """
    folder = Path(folder_of(model)).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(
                f"{model!r} is a folder, which has no revision {revision!r}; leave revision unset"
            )
        return _revision_of_folder(folder)
    if not REPO.fullmatch(model) or model.startswith("."):
        raise FileNotFoundError(f"no model folder at {model!r}; train or copy the model there")
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    commit = _cached_commit(model, revision or "main") or _hub_commit(model, revision or "main")
    if commit is None:
        raise FileNotFoundError(
            f"{model!r} is neither a folder nor in the local cache of the Hugging Face hub at "
            f"revision {revision or 'main'!r}, and the hub cannot be reached; give a folder, or "
            f"download it with `hf download {model}` while the hub can be reached, or set "
            f"revision to the 40 characters of a commit"
        )
    return commit


def check_files(model: str) -> None:
    """Check that the weights and configs of a model folder are not damaged; cheap.

    A config may not ask for far more layers or larger sizes than the weights have: whatever builds
    the model from it would end only with the memory of the machine. Models on the hub are not
    checked here, since the hub's client checks its downloads.

    Raises:
        DamagedError: A file is damaged, or the config is not that of the weights; the message names
            the file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        folder = Path(folder_of(model)).expanduser()
    except FileNotFoundError:  # `revision_of` reports this
        return
    shapes: list[list[int]] = []
    configs: dict[Path, Any] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, "np") as tensors:
                    names = tensors.keys()
                    shapes += [tensors.get_slice(name).get_shape() for name in names]
            elif file.suffix == ".json":
                configs[file] = json.loads(file.read_bytes())
        except (SafetensorError, ValueError, RecursionError) as error:
            raise DamagedError(
                f"{file} is damaged ({error}); copy or save the model again"
            ) from None
    if shapes and (config := configs.get(folder / "config.json")):
        bounds = (
            (LAYERS, max(FREE_LAYERS, len(shapes))),
            (SIZES, max(FREE_SIZE, sum(map(math.prod, shapes)))),
        )
        for name, value in _numbers(config):
            for pattern, most in bounds:
                if pattern.search(name) and value > most:
                    raise DamagedError(
                        f"{folder / 'config.json'} says {name} {value}, but the weights have "
                        f"{len(shapes)} tensors of {sum(map(math.prod, shapes))} numbers; copy or "
                        "save the model again"
                    )


def _numbers(config: Any) -> Iterator[tuple[str, int]]:
    """The integers of a config, with their names, at any depth."""
    waiting = [("", config)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(name, one) for one in value]
        elif type(value) is int:
            yield name, value


def pinned(model: str, revision: str | None = None) -> str | None:
    """Return the commit to load, so that the weights are those of `revision_of`; None for a folder.

    A branch name is not enough, since the branch may move between the two calls.

    Raises:
        FileNotFoundError: See `revision_of`.
    """
    is_folder = "://" in model or Path(model).expanduser().is_dir()
    return revision if is_folder else revision_of(model, revision)


def has_chat_template(model: str, revision: str | None = None) -> bool:
    """Return whether a folder or a model on the hub has a chat template, by its files.

    The hub is asked only for a model that is not in its local cache.

    Raises:
        OSError: There is no such folder or model, or the hub cannot be reached.
    """
    from transformers.utils.hub import cached_file

    is_here = Path(model).is_dir() or _cached_commit(model, revision or "main") is not None
    if not is_here and _hub_commit(model, revision or "main") is None:
        raise FileNotFoundError(f"{model!r} is not here, and the hub does not answer for it")

    def path(name: str) -> str | None:
        found: str | None = cached_file(
            model,
            name,
            revision=revision,
            local_files_only=is_here,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return found

    if any(path(name) is not None for name in CHAT_FILES):
        return True
    configs = (path(name) for name in CHAT_CONFIGS)
    return any(
        "chat_template" in json.loads(Path(config).read_text(encoding="utf-8"))
        for config in configs
        if config is not None
    )


def device_of(device: str) -> str:
    """Return the device for a name; auto is cuda if it is available, else cpu."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def dtype_of(dtype: Dtype, device: str) -> Literal["float32", "bfloat16", "float16"]:
    """Return the dtype for a name on a device.

    auto is bfloat16 on CUDA and on CPUs with bfloat16 instructions (AVX-512 BF16, AMX), and
    float32 elsewhere.
    """
    if dtype != "auto":
        return dtype
    import torch

    if device.startswith("cuda"):
        return "bfloat16"
    has_instructions = [
        getattr(torch.cpu, name, lambda: False)()
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    ]
    return "bfloat16" if device == "cpu" and any(has_instructions) else "float32"


class Placement(NamedTuple):
    """The device, dtype and threads of a loaded model.

    Attributes:
        device: cpu, cuda, cuda:1, ...
        dtype: Data type of the weights.
        threads: Number of threads that decode images.
    """

    device: str
    dtype: torch.dtype
    threads: int


def place(device: str, dtype: Dtype, threads: int | None) -> Placement:
    """Choose device, dtype and threads to load a model with.

    Args:
        device: See `device_of`.
        dtype: See `dtype_of`.
        threads: Number of threads that decode images and, on a CPU, run the model; sets torch's
            number of threads for the whole process. None keeps torch's number, and decodes with at
            most eight threads.
    """
    import torch

    device = device_of(device)
    if threads is not None:
        torch.set_num_threads(threads)
    weights: torch.dtype = getattr(torch, dtype_of(dtype, device))
    return Placement(device, weights, threads or min(8, os.cpu_count() or 1))


def _revision_of_folder(folder: Path) -> str:
    files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES and file.is_file())
    if not any(file.suffix == ".safetensors" for file in files):
        raise ValueError(
            f"{str(folder)!r} holds no .safetensors weights; save the model there with "
            f"save_pretrained"
        )
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(f"{file.name}\0{_sha256(file, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return digest.hexdigest()[:16]


@functools.lru_cache(maxsize=256)
def _sha256(file: Path, size: int, modified_ns: int) -> str:
    """Return the digest of a file; cached until its size or time changes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _cached_commit(name: str, revision: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(path).parent.name if isinstance(path, str) else None


@functools.lru_cache(maxsize=16)
def _hub_commit(name: str, revision: str) -> str | None:
    """Return the hub's commit for a revision; None if it has none or cannot be reached."""
    from huggingface_hub import HfApi

    try:
        commit: str | None = HfApi().model_info(name, revision=revision, timeout=10).sha
    except Exception as error:  # whatever HTTP library the hub's client uses
        logger.info("no commit of %s at %s from the hub: %s", name, revision, error)
        return None
    return commit
