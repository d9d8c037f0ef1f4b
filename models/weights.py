"""A model by its name: which weights exactly, and where and how they are to be loaded.

Nothing here imports torch unless it must look for a device, so that a driver stays light.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal, NamedTuple

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
    "pinned",
    "place",
    "revision_of",
]

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
"""Of weights; auto is bfloat16 on devices that compute in it, and float32 elsewhere."""

logger = logging.getLogger(__name__)

# What decides a model's answers: weights, configs, vocabularies. Not its README.
SUFFIXES = (".json", ".safetensors", ".txt")
LOADED = (*SUFFIXES, ".jinja", ".model")
COMMIT = re.compile(r"[0-9a-f]{40}")
REPO = re.compile(r"[\w.-]+(/[\w.-]+)?")


def folder_of(model: str) -> str:
    """Where a model can be loaded from here: a copy of a folder at a URL, any other name as it is.

    A folder on storage of fsspec (`s3://...`) is copied once, to `capfilt/models` of the user's
    cache (XDG_CACHE_HOME), and again when its listing tells another size, time or tag of a file.

    Args:
        model: A URL, a model folder, or the name of a model on the hub.

    Raises:
        FileNotFoundError: There is nothing at the URL.
        ValueError: The storage lets nobody read, or a name there would lie outside of the folder.
    """
    if "://" not in model:
        return model
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    fs, root = fsspec.core.url_to_fs(model.rstrip("/"), use_listings_cache=False)
    if isinstance(fs, LocalFileSystem):
        return str(root)
    try:
        there = fs.find(root, detail=True)
    except OSError:
        raise
    except Exception as error:  # each storage has its own, as for credentials that are not there
        raise ValueError(f"{model}: cannot be read: {error}") from error
    files = {}
    for path, info in there.items():
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
            if not folder.is_dir():  # another process may have been faster
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return str(folder)


def revision_of(model: str, revision: str | None = None) -> str:
    """Name the weights that loading a model would give, without loading it.

    Args:
        model: A model folder, here or at a URL, or the name of a model on the hub.
        revision: A branch, tag or commit of the hub; a folder has none.

    Returns:
        For a folder, the first 16 hex characters of the SHA-256 of its weights, configs and
        vocabularies, whatever the folder is called. For a name, the 40 of a commit: `revision`
        where it is one, else the commit that the local cache of the hub holds for it, else the
        one that the hub itself names.

    Raises:
        FileNotFoundError: There is neither such a folder nor a cached commit.
        ValueError: The folder holds no weights, or a folder came with a revision.
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
            f"revision {revision or 'main'!r}, and the hub cannot be asked; give a folder, or "
            f"download it where the hub can be reached with `hf download {model}`, or set "
            f"revision to the 40 characters of a commit"
        )
    return commit


def check_files(model: str) -> None:
    """Refuse a model folder whose weights or configs are cut short or are none; cheap.

    A name of the hub is left to its client, which checks what it fetches.

    Raises:
        DamagedError: It names the file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        folder = Path(folder_of(model)).expanduser()
    except FileNotFoundError:  # `revision_of` says so
        return
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, "np") as tensors:
                    tensors.keys()
            elif file.suffix == ".json":
                json.loads(file.read_bytes())
        except (SafetensorError, ValueError) as error:
            raise DamagedError(
                f"{file} is damaged ({error}); copy or save the model anew"
            ) from None


def pinned(model: str, revision: str | None = None) -> str | None:
    """The revision to load so that the weights are those of `revision_of`; none for a folder.

    A branch of the hub may move between the two.

    Raises:
        FileNotFoundError: As `revision_of`.
    """
    is_folder = "://" in model or Path(model).expanduser().is_dir()
    return revision if is_folder else revision_of(model, revision)


def device_of(device: str) -> str:
    """The device that a name means here: auto is cuda where there is one, else cpu."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def dtype_of(dtype: Dtype, device: str) -> Literal["float32", "bfloat16", "float16"]:
    """The dtype that a name means on a device.

    auto is bfloat16 on CUDA and on CPUs with instructions for products in it (AVX-512 BF16,
    AMX), and float32 elsewhere.
    """
    if dtype != "auto":
        return dtype
    import torch

    if device.startswith("cuda"):
        return "bfloat16"
    can = [
        getattr(torch.cpu, name, lambda: False)()
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    ]
    return "bfloat16" if device == "cpu" and any(can) else "float32"


class Placement(NamedTuple):
    """Where and how a model is loaded.

    Attributes:
        device: cpu, cuda, cuda:1, ...
        dtype: Of the weights.
        threads: That decode images.
    """

    device: str
    dtype: torch.dtype
    threads: int


def place(device: str, dtype: Dtype, threads: int | None) -> Placement:
    """Settle where and how a model is loaded here.

    Args:
        device: See `device_of`.
        dtype: See `dtype_of`.
        threads: Threads that decode images and, on a CPU, that compute; set for the whole
            process. Unset leaves torch's own number, and lets at most eight decode.
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
    whole = hashlib.sha256()
    for file in files:
        stat = file.stat()
        whole.update(f"{file.name}\0{_sha256(file, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return whole.hexdigest()[:16]


@functools.lru_cache(maxsize=256)
def _sha256(file: Path, size: int, modified_ns: int) -> str:
    """The digest of a file, read again only when its size or time changes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _cached_commit(name: str, revision: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(path).parent.name if isinstance(path, str) else None


@functools.lru_cache(maxsize=16)
def _hub_commit(name: str, revision: str) -> str | None:
    """The commit that the hub has for a revision; None where it has none or cannot be asked."""
    from huggingface_hub import HfApi

    try:
        commit: str | None = HfApi().model_info(name, revision=revision, timeout=10).sha
    except Exception as error:  # whatever HTTP library the hub's client uses
        logger.info("the hub does not name a commit of %s at %s: %s", name, revision, error)
        return None
    return commit
