"""The `capfilt` command: parse the command line, dispatch, and return the exit status."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from models.errors import PluginError, exit_status_of
from models.objectives.registry import OBJECTIVES
from pipeline.cli import commands
from pipeline.cli.completion import SHELLS, autocomplete
from pipeline.cli.help import (
    EXAMPLES,
    WAY,
    Help,
    Parser,
    Version,
    examples,
    stage_details,
    stage_line,
    way,
)
from pipeline.execution.signals import interruptible
from stages.registry import STAGES

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["main"]

Command: TypeAlias = "Callable[[argparse.Namespace, Console], int]"
"""A function of `pipeline.cli.commands`; it returns the exit status."""

PLAIN_WIDTH = 10_000
"""Width used when stdout is not a terminal, so that lines are not wrapped."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        arguments: The command line after `capfilt`; None takes that of the process.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if not {"AWS_RETRY_MODE", "AWS_MAX_ATTEMPTS"} & os.environ.keys():
        # S3 may throttle for a minute; the defaults give up after 40 s.
        os.environ |= {"AWS_RETRY_MODE": "standard", "AWS_MAX_ATTEMPTS": "15"}
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        parser = _parser()
        autocomplete(parser)
        options = parser.parse_args(arguments)
    except PluginError as error:
        print(f"capfilt: {error}", file=sys.stderr)
        return error.exit_status
    if options.command is None:
        parser.print_help()
        print("".join(f"\n{line}" for line in way()))
        return 0
    from rich.console import Console  # imported late, so that `--help` starts fast

    is_plain = not sys.stdout.isatty()
    width = PLAIN_WIDTH if is_plain else None
    console = Console(emoji=False, markup=False, soft_wrap=is_plain, width=width)
    with interruptible() as interrupt:
        status = _guarded(options.call, options, console)
    return 128 + interrupt.number if interrupt.number else status


def _guarded(command: Command, options: argparse.Namespace, console: Console) -> int:
    """Run a command; print an error as one message, and return the exit status."""
    from rich.console import Console

    from stages.redaction import redacted

    # A terminal breaks a long line inside a word; elsewhere a message stays one line.
    stderr = Console(stderr=True, soft_wrap=not sys.stderr.isatty(), emoji=False)
    try:
        return command(options, console)
    except KeyboardInterrupt:
        stderr.print("stopped; the same command resumes", highlight=False)
        return 1
    except BrokenPipeError:
        return 1
    except Exception as error:
        if (status := exit_status_of(error)) is None:  # a bug: show the traceback
            raise
        message = _message(error, getattr(options, "out", None) or "standard output")
        message = redacted(f"capfilt {options.command}: {message}")
        stderr.print(message, highlight=False, markup=False)
        return status


def _message(error: Exception, output: str) -> str:
    """The message of an error that ends a command.

    Args:
        error: The error.
        output: The file to name if the disk refused a write and the error names no file.
    """
    from pipeline.storage.disk_errors import explain_disk_error

    if explanation := explain_disk_error(error, output):
        return f"{explanation}, and run the same command again"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}"
    if isinstance(error, MemoryError):
        return (
            "out of memory. Add memory, or lower download.shard_size or download.limit: reading a "
            "list takes one shard and 48 bytes for each row"
        )
    return str(error)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="capfilt",
        description="From a list of web image-text pairs to a clean, captioned, filtered data "
        "set, and to the models retrained on it.",
        epilog=WAY,
        formatter_class=Help,
    )
    parser.add_argument("--version", action=Version, nargs=0, help="print the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    def add(name: str, call: Command, text: str) -> Parser:
        command: Parser = subparsers.add_parser(
            name,
            help=text.replace("%", "%%"),  # argparse formats it
            description=text[0].upper() + text[1:] + ".",
            epilog=examples(EXAMPLES[name]) if name in EXAMPLES else None,
            formatter_class=Help,
        )
        command.set_defaults(call=call)
        return command

    def on_manifest(command: argparse.ArgumentParser) -> None:
        command.add_argument("manifest", metavar="MANIFEST", help="a YAML recipe")
        command.add_argument("--run", metavar="DIR", help="the run's folder or URL")
        command.add_argument(
            "--set",
            metavar="STAGE.FIELD=VALUE",
            action="append",
            default=[],
            help="override a field of the manifest",
        )
        command.add_argument("--workers", type=int, metavar="N", help="workers of each stage")
        command.add_argument("--address", help="a Ray cluster's address; RAY_ADDRESS otherwise")
        command.add_argument(
            "--working-dir", metavar="DIR", help="code to ship to the cluster's nodes"
        )
        command.add_argument(
            "--stall",
            type=float,
            metavar="SECONDS",
            help="stop the run if no shard finishes for this long; without it, only warn",
        )
        command.add_argument("--quiet", action="store_true", help="no progress")
        command.add_argument(
            "--log-json", action="store_true", help="log to stderr as JSON; CAPFILT_LOG=json too"
        )

    init = add("init", commands.init, "inspect a list or a folder and write a manifest for it")
    init.add_argument("source", metavar="SOURCE", nargs="+", help="lists of URLs, or local images")
    init.add_argument(
        "--out",
        metavar="FILE",
        default="manifest.yaml",
        help="the manifest to write (default manifest.yaml)",
    )
    init.add_argument("--force", action="store_true", help="replace FILE if it exists")
    run = add("run", commands.run, "run a manifest, from the list to the report")
    on_manifest(run)
    run.add_argument("--until", metavar="STAGE", help="stop after this stage")
    run.add_argument(
        "--dry-run", action="store_true", help="print what would be done and do nothing"
    )
    for name in STAGES:
        if name == "review":  # a command of its own, on a run
            continue
        stage = add(name, commands.stage, stage_line(name))
        stage.details = functools.partial(stage_details, name)
        on_manifest(stage)
        if name == "download":
            stage.add_argument(
                "--retry",
                metavar="REASONS",
                help="retry the rows of a finished pool that failed for these reasons, such as "
                "timeout,http_5xx",
            )
    export = add("export", commands.export, "write the curated pairs and the further exports")
    on_manifest(export)
    export.add_argument("--name", help="write only this export: curated, or a name of `exports`")
    train = add("train", commands.train, "train the models of a manifest")
    on_manifest(train)
    train.add_argument(
        "--objective",
        metavar="OBJECTIVE",
        choices=OBJECTIVES,
        help="train only the models of this objective",
    )
    train.add_argument("--name", help="train only the model of this name")
    train.add_argument(
        "--continue",
        dest="go_on",
        action="store_true",
        help="go on from a checkpoint although settings have changed, such as lr, steps, precision,"
        " batch_size, workers or streams; without it the training starts over and the checkpoint "
        "is set aside",
    )
    evaluate = add("evaluate", commands.evaluate, "measure a model on held-out images")
    evaluate.add_argument("model", metavar="MODEL_DIR")
    evaluate.add_argument(
        "--data",
        required=True,
        metavar="DATA",
        help="JSON lines with an image and its captions or label, COCO's JSON, or a folder with "
        "one folder of images for each label",
    )
    evaluate.add_argument(
        "--template",
        action="append",
        metavar="TEXT",
        help="the text for a label, with {} for the label; may be repeated",
    )
    evaluate.add_argument(
        "--tagger",
        default="en_core_web_sm",
        metavar="PIPELINE",
        help="the spaCy pipeline, or its folder, that makes near misses",
    )
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    ablate = add("ablate", commands.ablate, "run an ablation on the drawn web, over several seeds")
    ablate.add_argument("ablation", metavar="ABLATION", help="a YAML file")
    ablate.add_argument("--run", metavar="DIR", help="the folder for its runs")
    ablate.add_argument("--workers", type=int, metavar="N", help="workers of each stage")
    ablate.add_argument(
        "--dry-run", action="store_true", help="say how much it takes, and do nothing"
    )
    ablate.add_argument("--quiet", action="store_true", help="no progress")
    ablate.add_argument("--json", action="store_true", help="print JSON")
    status = add("status", commands.status, "print the funnel of a run")
    status.add_argument("run", metavar="RUN")
    status.add_argument("--json", action="store_true", help="print JSON")
    status.add_argument(
        "--watch",
        action="store_true",
        help="print the funnel again and again until every stage is done",
    )
    show = add("show", commands.show, "print everything known about one sample")
    show.add_argument("run", metavar="RUN")
    show.add_argument("uid", metavar="UID", help="a uid, a URL, or the beginning or end of one")
    show.add_argument("--json", action="store_true", help="print JSON")
    search = add(
        "search", commands.search, "find the images of a run that are most like a text or an image"
    )
    search.add_argument("run", metavar="RUN")
    search.add_argument("query", metavar="QUERY", help="a text, or the path of an image")
    search.add_argument(
        "--number", type=int, default=10, metavar="N", help="rows to find (default 10)"
    )
    search.add_argument(
        "--of",
        choices=("any", "kept", "rejected"),
        default="any",
        help="which rows to search (default any)",
    )
    search.add_argument("--out", metavar="FILE", help="the page with thumbnails to write, .html")
    search.add_argument("--json", action="store_true", help="print JSON")
    review = add("review", commands.review, "accept, reject or fix pairs by hand, on a local page")
    review.add_argument("run", metavar="RUN")
    review.add_argument(
        "--sample", type=int, default=200, metavar="N", help="pairs to show (default 200)"
    )
    review.add_argument(
        "--of",
        choices=("kept", "rejected", "borderline", "any"),
        default="kept",
        help="which pairs to draw from: those that export writes (default), those that the filter "
        "rejects, those nearest its threshold first, or all",
    )
    review.add_argument(
        "--port",
        type=int,
        default=0,
        metavar="N",
        help="the port of the page (default: any free port)",
    )
    view = add("view", commands.view, "search, filter and sort all rows on a local page")
    view.add_argument("run", metavar="RUN")
    view.add_argument(
        "--port", type=int, default=0, metavar="N", help="port of the page (default: a free one)"
    )
    report = add("report", commands.report, "write report/index.html and report/report.json")
    report.add_argument("run", metavar="RUN")
    compare = add("compare", commands.compare, "write a page that shows how two runs differ")
    compare.add_argument("before", metavar="RUN_A")
    compare.add_argument("after", metavar="RUN_B")
    compare.add_argument(
        "--out", metavar="FILE", help="the page to write (default: report/compare.html of RUN_B)"
    )
    plan = add(
        "plan", commands.plan, "estimate time and disk space for a long list from a run on a sample"
    )
    plan.add_argument("manifest", metavar="MANIFEST", help="a YAML recipe")
    plan.add_argument(
        "--rows", metavar="N", required=True, help="rows of the list, such as 14M or 5B"
    )
    plan.add_argument(
        "--from",
        dest="sample",
        metavar="RUN",
        help="a run of the same stages on a sample of the list; its measurements are extrapolated",
    )
    plan.add_argument(
        "--workers",
        metavar="STAGE=N",
        action="append",
        default=[],
        help="workers of a stage, or N for all stages; may be repeated (default 1)",
    )
    plan.add_argument(
        "--set",
        metavar="STAGE.FIELD=VALUE",
        action="append",
        default=[],
        help="override a field of the manifest",
    )
    plan.add_argument("--json", action="store_true", help="print JSON")
    verify = add(
        "verify",
        commands.verify,
        "check that every file of a run is whole and every row accounted for",
    )
    verify.add_argument("run", metavar="RUN")
    verdicts = add(
        "verdicts", commands.verdicts, "write a table of every input row with its verdict"
    )
    verdicts.add_argument("run", metavar="RUN")
    verdicts.add_argument("--out", required=True, metavar="FILE", help=".parquet, .csv or .jsonl")
    push = add("push", commands.push, "publish an export on the Hugging Face hub, with its card")
    push.add_argument("run", metavar="RUN")
    push.add_argument("--repo", required=True, metavar="ORG/NAME", help="the data set on the hub")
    push.add_argument(
        "--name", default="curated", metavar="EXPORT", help="the export to push (default: curated)"
    )
    push.add_argument("--private", action="store_true", help="make a new data set private")
    push.add_argument("--dry-run", action="store_true", help="list the files; push nothing")
    completion = add(
        "completion", commands.completion, "print the shell code that completes commands on TAB"
    )
    completion.add_argument("shell", metavar="SHELL", choices=SHELLS, help=" ".join(SHELLS))
    demo = add("demo", commands.demo, "run everything on a drawn web whose truth is known")
    demo.add_argument("--run", default="runs/demo", metavar="DIR")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--workers", type=int, metavar="N")
    demo.add_argument("--quiet", action="store_true", help="no progress")
    demo.add_argument(
        "--from-scratch",
        action="store_true",
        help="train the miniature models too, instead of using those that ship with capfilt",
    )
    return parser
