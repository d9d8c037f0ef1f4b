"""Pushing an export to a data set of the Hugging Face hub, with card, report and metadata."""

from __future__ import annotations

import json
import os
import posixpath
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from models.errors import CapfiltError, IncompleteError, InputError
from pipeline.publishing.croissant import croissant
from pipeline.results import retries
from pipeline.results.verdicts import Results
from pipeline.storage.records import ExportRecord
from pipeline.storage.run import Run
from pipeline.storage.successor import standing
from stages.export import ExportStage

__all__ = ["HubFile", "files_to_push", "push"]

COMMIT_FILES = 100
"""Files of a commit; a push that is interrupted goes on after the last whole one."""

LAST = ("manifest.json", "croissant.json", "README.md")
"""Files of the last commit, which say that all others are there."""

REPORT = ("index.html", "report.json")


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file of a push.

    Attributes:
        name: Its path in the repository.
        size: Bytes.
        content: Returns a local path to it, or its bytes.
    """

    name: str
    size: int
    content: Callable[[], str | bytes]


def files_to_push(
    results: Results, repo: str, export: str = "curated", *, checked: bool = False
) -> list[HubFile]:
    """List the files of a push, in the order in which they are pushed.

    Args:
        results: The results of a run.
        repo: The repository, `org/name`.
        export: `curated`, or the name of a further export.
        checked: Whether every byte of the shards is held against manifest.json first.

    Raises:
        DamagedError: A shard is missing, or is not as it was written.
        IncompleteError: The export is not finished, or a setting has changed since.
        InputError: The manifest has no such export, or the repository's name is wrong.
    """
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise InputError(f"--repo {repo}: write org/name, such as my-org/birds")
    run, plan = results.run, results.plan
    names = {plan.folder(name)[-1]: name for name in plan.exports}
    if export not in names:
        known = ", ".join(names) or "none"
        raise InputError(f"{run.root}: no export {export!r}; the manifest has {known}")
    folder = standing(run, *plan.folder(names[export]))
    record = run.find_record(ExportRecord, *folder, "manifest.json")
    if record is None:
        raise IncompleteError(f"{run.url(*folder)}: the export is not finished; `capfilt run` it")
    if record.decision != retries.pool_state(run, plan.decision(names[export])):
        raise IncompleteError(
            f"{run.url(*folder)}: the export is older than the settings of the run; "
            "`capfilt run` makes it anew"
        )
    for file in record.files if checked else ():
        parts = (*folder, *file.name.split("/"))
        if not run.exists(*parts) or run.digest(*parts) != file.sha256:
            raise run.damaged("its bytes are not those of manifest.json", *parts)
    described = json.dumps(
        croissant(
            record,
            name=repo.rpartition("/")[2],
            url=f"https://huggingface.co/datasets/{repo}",
            about=f"{sum(record.pairs.values()):,} image-text pairs over {record.images:,} images, "
            "curated with capfilt after CapFilt (BLIP, arXiv 2201.12086).",
            license=plan.export(names[export]).config.license,
            shards=_shards(plan.export(names[export]), record),
            is_drawn=plan.export(names[export]).is_drawn,
        ),
        indent=1,
    ).encode()
    paths = [path for path in run.files(*folder) if not path.startswith("_")]
    files = [_of_run(run, path, *folder, *path.split("/")) for path in paths]
    files += [
        _of_run(run, f"report/{name}", "report", name)
        for name in REPORT
        if run.exists("report", name)
    ]
    files.append(HubFile(name="croissant.json", size=len(described), content=lambda: described))
    return sorted(files, key=lambda file: (file.name in LAST, file.name))


def push(
    results: Results,
    repo: str,
    *,
    export: str = "curated",
    private: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> str:
    """Push an export to a data set of the hub, and return its URL.

    The token and the endpoint are those of `huggingface_hub`: HF_TOKEN and HF_ENDPOINT, or what
    `hf auth login` has stored. Files that are there already are not sent again. Files of an
    earlier push that are no part of this one are deleted; others are left alone.

    Args:
        results: The results of a run.
        repo: The repository, `org/name`; it is made if it is not there.
        export: `curated`, or the name of a further export.
        private: Make a private repository; one that is there keeps its visibility.
        say: Is told a line about each commit.

    Raises:
        DamagedError: A shard of the export is damaged; nothing is sent.
        IncompleteError: See `files_to_push`.
        InputError: The hub refuses the token or the name.
        CapfiltError: The hub cannot be reached or fails; the same call goes on.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    files = files_to_push(results, repo, export, checked=True)
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        url = str(api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True))
        there = api.list_repo_files(repo, repo_type="dataset")
        stale = [*_stale(api, repo, there, {file.name for file in files})]
        for number, batch in enumerate(batches := [*_batches(files)], 1):
            changes: list[Any] = [
                CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=file.content())
                for file in batch
            ]
            if number == len(batches):
                changes += [CommitOperationDelete(path_in_repo=name) for name in stale]
            api.create_commit(
                repo,
                changes,
                repo_type="dataset",
                commit_message=f"Push {export} of {results.plan.manifest.name} with capfilt, "
                f"{number} of {len(batches)}",
            )
            say(
                f"push       {number}/{len(batches)} commits, {sum(f.size for f in batch):,} bytes "
                "are there"
            )
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403, 404):
            raise InputError(
                f"--repo {repo}: the hub refuses it ({status}). Set HF_TOKEN to a token that may "
                "write to it, from https://huggingface.co/settings/tokens"
            ) from error
        raise CapfiltError(_failed(repo, error)) from error
    except Exception as error:
        if isinstance(error, OSError | RuntimeError) or _is_of_http(error):
            raise CapfiltError(_failed(repo, error)) from error
        raise
    return url


def _is_of_http(error: Exception) -> bool:
    """Whether an error comes from the HTTP library that huggingface_hub uses."""
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2")


def _failed(repo: str, error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{repo}: the push failed ({lines[0]}); the same command goes on where it stopped"


def _shards(export: ExportStage, record: ExportRecord) -> dict[str, str]:
    """The glob of the data files of each split that the export has."""
    globs = {split: export.format.data_files(split) for split in record.splits}
    return {split: pattern for split, pattern in globs.items() if pattern}


def _of_run(run: Run, name: str, *parts: str) -> HubFile:
    size = int(run.fs.size(run.at(*parts)) or 0)
    read = (lambda: run.at(*parts)) if run.is_local else (lambda: run.read(*parts))
    return HubFile(name=name, size=size, content=read)


def _batches(files: Sequence[HubFile]) -> Iterator[Sequence[HubFile]]:
    """The files of each commit; those of `LAST` make the last one."""
    data = [file for file in files if file.name not in LAST]
    for start in range(0, len(data), COMMIT_FILES):
        yield data[start : start + COMMIT_FILES]
    yield [file for file in files if file.name in LAST]


def _stale(api: Any, repo: str, there: Sequence[str], new: set[str]) -> Iterator[str]:
    """Files of the repository that an earlier push has written and this one does not."""
    if "manifest.json" not in there:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = api.hf_hub_download(repo, "manifest.json", repo_type="dataset", local_dir=folder)
        try:
            with open(path, "rb") as file:
                names = {str(entry["name"]) for entry in json.load(file)["files"]}
        except (ValueError, KeyError, TypeError):
            return  # another program's
    for name in there:
        if name not in new and (name in names or posixpath.dirname(name) in names):
            yield name
