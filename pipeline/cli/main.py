"""capfilt on the command line: one subcommand a stage, and those that look at a run."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from models.errors import (
    IncompleteError,
    InputError,
    PluginError,
    PoolMismatchError,
    exit_status_of,
)
from models.objectives.registry import OBJECTIVES
from pipeline.cli.completion import SHELLS, autocomplete
from pipeline.cli.help import (
    EXAMPLES,
    WAY,
    Help,
    Parser,
    examples,
    stage_details,
    stage_line,
    way,
)
from pipeline.execution.signals import interruptible
from stages.registry import STAGES

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.storage.run import Run

__all__ = ["main"]

PLAIN_WIDTH = 10_000
"""Width used when stdout is not a terminal, so that lines are not wrapped."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit status."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
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
    command: Callable[[argparse.Namespace, Console], int] = options.call
    from rich.console import Console  # which `--help` does without

    is_plain = not sys.stdout.isatty()
    width = PLAIN_WIDTH if is_plain else None
    console = Console(emoji=False, markup=False, soft_wrap=is_plain, width=width)
    with interruptible() as interrupt:
        status = _guarded(command, options, console)
    return 128 + interrupt.number if interrupt.number else status


def _guarded(
    command: Callable[[argparse.Namespace, Console], int],
    options: argparse.Namespace,
    console: Console,
) -> int:
    """Run a command; print an error as one message, and return the exit status."""
    from rich.console import Console

    from stages.redaction import redacted

    stderr = Console(stderr=True, soft_wrap=True, emoji=False)
    try:
        return command(options, console)
    except KeyboardInterrupt:
        stderr.print("stopped; the same command resumes", highlight=False)
        return 1
    except BrokenPipeError:
        return 1
    except Exception as error:
        if (status := exit_status_of(error)) is None:  # a bug, of which the traceback is needed
            raise
        message = _message(error, getattr(options, "out", None) or "standard output")
        message = redacted(f"capfilt {options.command}: {message}")
        stderr.print(message, highlight=False, markup=False)
        return status


def _message(error: Exception, output: str) -> str:
    """The message of an error that ends a command.

    Args:
        error: The error.
        output: The file to name if a disk refuses to be written to and the error names no file.
    """
    from pipeline.storage.disk_errors import explain_disk_error

    if explanation := explain_disk_error(error, output):
        return f"{explanation}, and give the same command again"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}"
    if isinstance(error, MemoryError):
        return (
            "out of memory. Add memory, or lower download.shard_size or download.limit: of a list "
            "it holds a shard and 48 bytes a row"
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
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    def add(name: str, call: Any, text: str) -> Parser:
        command: Parser = commands.add_parser(
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
            "--working-dir", metavar="DIR", help="code to ship to a cluster that has it not"
        )
        command.add_argument(
            "--stall",
            type=float,
            metavar="SECONDS",
            help="give up where no shard has finished for so long; otherwise it is only told",
        )
        command.add_argument("--quiet", action="store_true", help="no progress")
        command.add_argument(
            "--log-json", action="store_true", help="log to stderr as JSON; CAPFILT_LOG=json too"
        )

    plan = add("plan", _plan, "say what a manifest takes for a long list, by a run of a sample")
    plan.add_argument("manifest", metavar="MANIFEST", help="a YAML recipe")
    plan.add_argument("--rows", metavar="N", required=True, help="of the list, as 14M or 5B")
    plan.add_argument(
        "--from",
        dest="sample",
        metavar="RUN",
        help="a run of the same stages on a sample of the list, which is extrapolated",
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
    init = add("init", _init, "look at a list or a folder and write a manifest that fits it")
    init.add_argument("source", metavar="SOURCE", nargs="+", help="lists, or images at hand")
    init.add_argument("--out", metavar="FILE", default="manifest.yaml", help="the manifest")
    init.add_argument("--force", action="store_true", help="replace FILE")
    run = add("run", _run, "carry out a manifest from the list to the report")
    on_manifest(run)
    run.add_argument("--until", metavar="STAGE", help="stop after this stage")
    run.add_argument("--dry-run", action="store_true", help="say what would be done, do nothing")
    for name in STAGES:
        if name == "review":  # a command of its own, on a run
            continue
        stage = add(name, _stage, stage_line(name))
        stage.details = functools.partial(stage_details, name)
        on_manifest(stage)
        if name == "download":
            stage.add_argument(
                "--retry",
                metavar="REASONS",
                help="download anew the rows of a finished pool that failed so, as in "
                "timeout,http_5xx",
            )
    export = add("export", _export, "write the curated pairs and the further exports")
    on_manifest(export)
    export.add_argument("--name", help="only this one: curated, or a name of `exports`")
    train = add("train", _train, "train the models of a manifest on its data")
    on_manifest(train)
    train.add_argument(
        "--objective",
        metavar="OBJECTIVE",
        choices=OBJECTIVES,
        help="only the models of this objective",
    )
    train.add_argument("--name", help="only the model of this name")
    evaluate = add("evaluate", _evaluate, "measure a model on held-out images")
    evaluate.add_argument("model", metavar="MODEL_DIR")
    evaluate.add_argument(
        "--data",
        required=True,
        metavar="DATA",
        help="JSON lines of image and captions or label, COCO's JSON, or a folder of labelled ones",
    )
    evaluate.add_argument(
        "--template",
        action="append",
        metavar="TEXT",
        help="what is said of a label, with {} in its place; may be repeated",
    )
    evaluate.add_argument(
        "--tagger",
        default="en_core_web_sm",
        metavar="PIPELINE",
        help="the spaCy pipeline, or its folder, for the accuracy on near misses",
    )
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    ablate = add("ablate", _ablate, "carry out an ablation on the drawn web, over several seeds")
    ablate.add_argument("ablation", metavar="ABLATION", help="a YAML file")
    ablate.add_argument("--run", metavar="DIR", help="the folder of its runs")
    ablate.add_argument("--workers", type=int, metavar="N", help="workers of each stage")
    ablate.add_argument("--quiet", action="store_true", help="no progress")
    ablate.add_argument("--json", action="store_true", help="print JSON")
    status = add("status", _status, "print the funnel of a run")
    status.add_argument("run", metavar="RUN")
    status.add_argument("--json", action="store_true", help="print JSON")
    status.add_argument("--watch", action="store_true", help="again and again until all is done")
    show = add("show", _show, "print all that is known of one sample")
    show.add_argument("run", metavar="RUN")
    show.add_argument("uid", metavar="UID", help="a uid, a URL, or the beginning or end of one")
    show.add_argument("--json", action="store_true", help="print JSON")
    review = add("review", _review, "accept, reject or fix pairs by hand, on a local page")
    review.add_argument("run", metavar="RUN")
    review.add_argument(
        "--sample", type=int, default=200, metavar="N", help="pairs to show (default 200)"
    )
    review.add_argument(
        "--of",
        choices=("kept", "rejected", "borderline", "any"),
        default="kept",
        help="of which: those that export writes (default), those that the filter rejects, those "
        "that it is least sure of first, or any",
    )
    review.add_argument("--port", type=int, default=0, metavar="N", help="a free one otherwise")
    report = add("report", _report, "write report/index.html and report/report.json")
    report.add_argument("run", metavar="RUN")
    compare = add("compare", _compare, "write a page on what differs between two runs")
    compare.add_argument("before", metavar="RUN_A")
    compare.add_argument("after", metavar="RUN_B")
    compare.add_argument(
        "--out", metavar="FILE", help="the page; by default report/compare.html of the second run"
    )
    verify = add("verify", _verify, "check every file of a run: readable, aligned, conserved")
    verify.add_argument("run", metavar="RUN")
    verdicts = add("verdicts", _verdicts, "write every input row and what became of it")
    verdicts.add_argument("run", metavar="RUN")
    verdicts.add_argument("--out", required=True, metavar="FILE", help=".parquet, .csv or .jsonl")
    completion = add("completion", _completion, "print what a shell needs to complete commands")
    completion.add_argument("shell", metavar="SHELL", choices=SHELLS, help=" ".join(SHELLS))
    demo = add("demo", _demo, "the main job on a drawn web with known truth")
    demo.add_argument("--run", default="runs/demo", metavar="DIR")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--workers", type=int, metavar="N")
    demo.add_argument("--quiet", action="store_true", help="no progress")
    demo.add_argument(
        "--from-scratch",
        action="store_true",
        help="train the miniature's starting point too, instead of taking the one that ships",
    )
    return parser


def _init(options: argparse.Namespace, console: Console) -> int:
    from pipeline.cli import init_manifest
    from pipeline.cli.init_source import describe, profile

    init_manifest.check(options.out, force=options.force)
    found = profile(options.source)
    for line in describe(found):
        console.print(line, highlight=False, markup=False)
    init_manifest.write(found, options.out, force=options.force)
    for told in (
        f"{options.out} is written; look at it, then",
        f"  capfilt run {shlex.quote(options.out)} --dry-run",
    ):
        console.print(told, highlight=False, markup=False)
    return 0


def _plan(options: argparse.Namespace, console: Console) -> int:
    from pipeline.execution.forecast import (
        forecast,
        forecast_table,
        notes,
        parse_rows,
        parse_workers,
    )
    from pipeline.manifest.manifest import Manifest
    from pipeline.manifest.plan import Plan
    from pipeline.results.open_run import open_results
    from pipeline.results.tables import cell, put

    rows = parse_rows(options.rows)
    plan = Plan(Manifest.load(options.manifest, options.set))
    if not plan.names:
        raise InputError(f"{options.manifest}: no stages; how long it trains cannot be planned")
    workers = parse_workers(options.workers, plan)
    if options.sample is None:
        raise InputError(
            "--from RUN is needed, a run of a sample of the list. Make one by\n"
            f"  capfilt run {shlex.quote(options.manifest)} --set download.limit=20000 "
            "--run runs/sample"
        )
    steps = list(forecast(plan, rows, open_results(_find_run(options.sample)), workers))
    told = list(notes(plan, steps))
    if options.json:
        found = [dataclasses.asdict(step) for step in steps]
        console.print_json(json.dumps({"rows": rows, "steps": found, "notes": told}))
        return 0
    console.print(f"{rows:,} rows, by {options.sample}", highlight=False, markup=False)
    put(console, forecast_table(steps))
    for line in told:
        console.print(cell(line), highlight=False)
    return 0


def _completion(options: argparse.Namespace, console: Console) -> int:
    from pipeline.cli.completion import script

    sys.stdout.write(script(options.shell))
    return 0


def _session(options: argparse.Namespace, console: Console) -> Any:
    """The manifest of a command, with a cluster and progress to carry it out."""
    from pipeline.manifest.manifest import Manifest

    return _open(Manifest.load(options.manifest, options.set, options.run), options, console)


def _open(manifest: Any, options: argparse.Namespace, console: Console) -> Any:
    from pipeline.execution.logs import VARIABLE
    from pipeline.execution.progress import Progress
    from pipeline.execution.session import Session

    if options.workers is not None and options.workers < 1:
        raise InputError(f"--workers must be at least 1, got {options.workers}")
    if options.stall is not None and not options.stall > 0:
        raise InputError(f"--stall must be above 0 seconds, got {options.stall:g}")
    if options.log_json:
        os.environ[VARIABLE] = "json"
    return Session(
        manifest,
        address=options.address,
        workers=options.workers,
        working_dir=options.working_dir,
        stall_seconds=options.stall,
        progress=Progress(console, options.quiet),
    )


def _run(options: argparse.Namespace, console: Console) -> int:
    from pipeline.manifest.manifest import Manifest
    from pipeline.manifest.rounds import rounds

    manifest = Manifest.load(options.manifest, options.set, options.run)
    for number, one in enumerate(rounds(manifest, options.manifest), 1):
        session = _open(one, options, console)
        if manifest.rounds > 1:
            console.print(f"round      {number} of {manifest.rounds}", highlight=False)
        if options.dry_run:
            for line in session.outline(options.until):
                console.print(line, highlight=False, markup=False)
            continue
        with session:
            session.run(options.until)
            if options.until is None:
                path = session.report()
                console.print(f"report     {path}", highlight=False, markup=False)
    return 0


def _stage(options: argparse.Namespace, console: Console) -> int:
    retry = getattr(options, "retry", None)
    with _session(options, console) as session:
        if retry is None:
            session.stage(options.command)
        else:
            session.retry([reason.strip() for reason in retry.split(",")])
    return 0


def _export(options: argparse.Namespace, console: Console) -> int:
    with _session(options, console) as session:
        session.export(options.name)
    return 0


def _train(options: argparse.Namespace, console: Console) -> int:
    with _session(options, console) as session:
        session.train(options.objective, options.name)
    return 0


def _evaluate(options: argparse.Namespace, console: Console) -> int:
    from rich.table import Table

    from models.weights import check_files, folder_of, revision_of
    from pipeline.results.tables import flat, put
    from pipeline.training.evaluate import TEMPLATES, evaluate

    if not os.path.isdir(folder_of(options.model)):
        revision_of(options.model)  # says what is missing at once, where loading would try again
    check_files(options.model)
    found = evaluate(
        options.model,
        options.data,
        templates=options.template or TEMPLATES,
        tagger=options.tagger,
    )
    if options.json:
        console.print_json(json.dumps(found))
        return 0
    bounds = dict(flat(found.pop("intervals", {})))
    table = Table("metric", "value", "95% interval", title=options.model)
    for name, value in flat(found):
        shown = f"{value:.4f}" if isinstance(value, float) else str(value)
        table.add_row(
            name, shown, "{:.4f} to {:.4f}".format(*bounds[name]) if name in bounds else ""
        )
    put(console, table)
    return 0


def _ablate(options: argparse.Namespace, console: Console) -> int:
    from pipeline.demo.ablation import Ablation, collect
    from pipeline.execution.progress import Progress
    from pipeline.report.ablation import write
    from pipeline.results.tables import ablation_tables, put
    from pipeline.storage.records import content_of

    ablation = Ablation.load(options.ablation, options.run)
    ablation.carry_out(options.workers, Progress(console, options.quiet or options.json))
    record = collect(ablation)
    ablation.publish(record)
    path = write(ablation.run, record)
    if options.json:
        console.print_json(json.dumps(content_of(record)))
        return 0
    for table in ablation_tables(record):
        put(console, table)
    console.print(f"report     {path}", highlight=False, markup=False)
    return 0


def _find_run(path: str) -> Run:
    """The run that a command is given, by its folder or URL.

    Raises:
        InputError: The URL holds a secret, which the run would write down.
    """
    from pipeline.manifest.yaml import find_problems
    from pipeline.storage.run import Run

    for _, fault in find_problems(path):
        raise InputError(f"RUN {fault}")
    return Run.find(path)


def _status(options: argparse.Namespace, console: Console) -> int:
    from pipeline.cli.watch import told_of, watch
    from pipeline.results.funnel import funnel, holder
    from pipeline.results.open_run import open_results
    from pipeline.results.tables import funnel_table, notice_lines, put

    run = _find_run(options.run)
    if options.watch:
        watch(run, console, as_json=options.json)
        return 0
    found = {**funnel(open_results(run)), "holder": holder(run)}
    if options.json:
        console.print_json(json.dumps(found))
    else:
        put(console, funnel_table(found))
        for line in notice_lines(found):
            console.print(line, soft_wrap=True)
        console.print(told_of(found["holder"]), highlight=False, markup=False)
    return 0


def _show(options: argparse.Namespace, console: Console) -> int:
    from pipeline.results.open_run import open_results
    from pipeline.results.sample import sample_history
    from pipeline.results.tables import put, sample_tables

    found = sample_history(open_results(_find_run(options.run)), options.uid)
    if options.json:
        console.print_json(json.dumps(found.plain(), default=str))
        return 0
    for table in sample_tables(found):
        put(console, table)
    if found.image is not None:
        path = _write_image(found.image)
        console.print(f"image      {path}", highlight=False, markup=False)
    return 0


def _write_image(image: bytes) -> str:
    """Write an encoded image to a new temporary file and return its path."""
    from stages.formats.base import extension_of

    suffix = f".{extension_of(image)}"
    with tempfile.NamedTemporaryFile(prefix="capfilt-", suffix=suffix, delete=False) as file:
        file.write(image)
    return file.name


def _review(options: argparse.Namespace, console: Console) -> int:
    from pipeline.execution.progress import Progress
    from pipeline.execution.session import Session
    from pipeline.results.open_run import open_results
    from pipeline.results.tables import agreement_table, put
    from pipeline.review.agreement import of_run
    from pipeline.review.ledger import Ledger
    from pipeline.review.sample import draw
    from pipeline.review.server import ReviewServer

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False)

    if options.sample < 1:
        raise InputError(f"--sample must be at least 1, got {options.sample}")
    if not 0 <= options.port <= 65535:
        raise InputError(f"--port must be from 0 to 65535, got {options.port}")
    run = _find_run(options.run)
    results = open_results(run)
    with run.lock():
        ledger = Ledger(results.plan.manifest.reviews)
        pairs = draw(results, options.of, options.sample)
        number = sum(pair.key in ledger.decisions for pair in pairs)
        with ReviewServer(results, pairs, ledger, options.port) as server:
            say(f"review     {len(pairs):,} pairs, {number:,} of them reviewed before")
            say(f"open       {server.url}")
            say("           every decision is saved at once; Done on the page, or Ctrl-C, ends it")
            sys.stdout.flush()
            with contextlib.suppress(KeyboardInterrupt):
                server.serve_forever()
    if not ledger.decisions:
        say("review     nothing is decided")
        return 0
    results = open_results(run)  # anew: its plan has the stage review now
    try:
        with Session(results.plan.manifest, progress=Progress(console, quiet=True)) as session:
            session.stage("review")
    except (IncompleteError, PoolMismatchError):
        say("review     the run is not finished; the next `capfilt run` counts the decisions in")
    found: Any = of_run(results)
    told = ", ".join(f"{found[name]:,} {name}" for name in ("accept", "reject", "fix"))
    say(f"review     {found['pairs']:,} pairs: {told}")
    if "agreement" in found:
        put(console, agreement_table(found["agreement"]))
    say("next       `capfilt export MANIFEST` writes the curated pairs accordingly")
    return 0


def _report(options: argparse.Namespace, console: Console) -> int:
    from pipeline.execution.session import write_report
    from pipeline.results.open_run import open_results

    path = write_report(open_results(_find_run(options.run)))
    console.print(path, highlight=False, markup=False)
    return 0


def _compare(options: argparse.Namespace, console: Console) -> int:
    from pipeline.report.compare import write
    from pipeline.results.open_run import open_results

    runs = [_find_run(path) for path in (options.before, options.after)]
    before, after = map(open_results, runs)
    path, counts = write(before, after, options.out)
    console.print(
        f"{counts['both']:,} rows in both, {counts['changed']:,} with another verdict -> {path}",
        highlight=False,
        markup=False,
    )
    return 0


def _verify(options: argparse.Namespace, console: Console) -> int:
    from pipeline.results.tables import cell
    from pipeline.results.verify import verify

    status = 0
    for fault in verify(_find_run(options.run)):
        status = max(status, fault.exit_status)
        console.print(cell(fault), highlight=False)
    if not status:
        message = f"{options.run}: every file is whole and aligned, every row accounted for"
        console.print(cell(message), highlight=False)
    return status


def _verdicts(options: argparse.Namespace, console: Console) -> int:
    from pipeline.results.open_run import open_results
    from pipeline.results.verdict_table import write_verdicts

    rows = write_verdicts(open_results(_find_run(options.run)), options.out)
    console.print(f"{rows:,} rows -> {options.out}", highlight=False, markup=False)
    return 0


def _demo(options: argparse.Namespace, console: Console) -> int:
    from pipeline.demo.run import demo
    from pipeline.execution.progress import Progress

    return demo(
        options.run,
        seed=options.seed,
        workers=options.workers,
        from_scratch=options.from_scratch,
        progress=Progress(console, options.quiet),
        console=console,
    )
