"""What each command does: a function a command, which returns the exit status."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from models.errors import IncompleteError, InputError, PoolMismatchError

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.storage.run import Run

__all__ = [
    "ablate",
    "compare",
    "completion",
    "demo",
    "evaluate",
    "export",
    "init",
    "plan",
    "push",
    "report",
    "review",
    "run",
    "search",
    "show",
    "stage",
    "status",
    "train",
    "verdicts",
    "verify",
    "view",
]


def init(options: argparse.Namespace, console: Console) -> int:
    """Inspect a source and write a manifest for it."""
    from pipeline.cli import init_manifest
    from pipeline.cli.init_source import describe, profile_source

    init_manifest.check(options.out, force=options.force)
    profile = profile_source(options.source)
    for line in describe(profile):
        console.print(line, highlight=False, markup=False)
    init_manifest.write(profile, options.out, force=options.force)
    for line in (
        f"wrote {options.out}; read it, then try",
        f"  capfilt run {shlex.quote(options.out)} --dry-run",
    ):
        console.print(line, highlight=False, markup=False)
    return 0


def plan(options: argparse.Namespace, console: Console) -> int:
    """Print the forecast for a long list, extrapolated from a run on a sample."""
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
        raise InputError(f"{options.manifest}: no stages; only the time of stages can be forecast")
    workers = parse_workers(options.workers, plan)
    if options.sample is None:
        raise InputError(
            "--from RUN is needed: a run on a sample of the list. Make one with\n"
            f"  capfilt run {shlex.quote(options.manifest)} --set download.limit=20000 "
            "--run runs/sample"
        )
    steps = list(forecast(plan, rows, open_results(_find_run(options.sample)), workers))
    lines = list(notes(plan, steps))
    if options.json:
        values = [dataclasses.asdict(step) for step in steps]
        console.print_json(json.dumps({"rows": rows, "steps": values, "notes": lines}))
        return 0
    console.print(
        f"{rows:,} rows, extrapolated from {options.sample}", highlight=False, markup=False
    )
    put(console, forecast_table(steps))
    for line in lines:
        console.print(cell(line), highlight=False)
    return 0


def completion(options: argparse.Namespace, console: Console) -> int:
    """Print the code that a shell evaluates to complete commands."""
    from pipeline.cli.completion import script

    sys.stdout.write(script(options.shell))
    return 0


def _session(options: argparse.Namespace, console: Console) -> Any:
    """A session for the manifest that a command is given."""
    from pipeline.manifest.manifest import Manifest

    return _open(Manifest.load(options.manifest, options.set, options.run), options, console)


def _open(manifest: Any, options: argparse.Namespace, console: Console) -> Any:
    """A session for a manifest, with the options for the cluster, the workers and the logs."""
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


def run(options: argparse.Namespace, console: Console) -> int:
    """Run a manifest, round by round, or print what would be done."""
    from pipeline.manifest.manifest import Manifest
    from pipeline.manifest.rounds import rounds

    manifest = Manifest.load(options.manifest, options.set, options.run)
    for number, round_manifest in enumerate(rounds(manifest, options.manifest), 1):
        session = _open(round_manifest, options, console)
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


def stage(options: argparse.Namespace, console: Console) -> int:
    """Run one stage of a manifest; for download, optionally retry failed rows."""
    retry = getattr(options, "retry", None)
    with _session(options, console) as session:
        if retry is None:
            session.stage(options.command)
        else:
            session.retry([reason.strip() for reason in retry.split(",")])
    return 0


def export(options: argparse.Namespace, console: Console) -> int:
    """Write the exports of a manifest."""
    with _session(options, console) as session:
        session.export(options.name)
    return 0


def train(options: argparse.Namespace, console: Console) -> int:
    """Train the models of a manifest."""
    from pipeline.training.ranks import launched_ranks

    if variables := launched_ranks(os.environ):
        return _train_as_rank(options, variables)
    with _session(options, console) as session:
        session.train(options.objective, options.name, go_on=options.go_on)
    return 0


def _train_as_rank(options: argparse.Namespace, variables: Mapping[str, str]) -> int:
    """Train as one of the ranks that torchrun or Slurm started, without Ray."""
    from pipeline.manifest.manifest import Manifest
    from pipeline.training.job import TrainingJob
    from pipeline.training.launched_jobs import carry_out
    from pipeline.training.ranks import joined

    manifest = Manifest.load(options.manifest, options.set, options.run)
    jobs = [
        TrainingJob(manifest, name)
        for name, config in manifest.train.items()
        if options.objective in (None, config.objective.name) and options.name in (None, name)
    ]
    if not jobs:
        raise InputError("the manifest trains no such model")
    with joined(variables):
        carry_out(jobs, go_on=options.go_on)
    return 0


def evaluate(options: argparse.Namespace, console: Console) -> int:
    """Measure a model on held-out images and print the metrics."""
    from rich.table import Table

    from models.weights import check_files, folder_of, revision_of
    from pipeline.results.tables import flat, put
    from pipeline.training.evaluate import TEMPLATES, evaluate
    from pipeline.training.validation import is_in_progress, model_in_progress

    with contextlib.ExitStack() as opened:
        model, title = options.model, options.model
        if is_in_progress(model):
            model, step = opened.enter_context(model_in_progress(model))
            title = f"{options.model}, in training, step {step}"
        if not os.path.isdir(folder_of(model)):
            revision_of(model)  # fails at once if it is missing; loading would retry
        check_files(model)
        metrics = evaluate(
            model,
            options.data,
            templates=options.template or TEMPLATES,
            tagger=options.tagger,
        )
    if options.json:
        console.print_json(json.dumps(metrics))
        return 0
    bounds = dict(flat(metrics.pop("intervals", {})))
    table = Table("metric", "value", "95% interval", title=title)
    for name, value in flat(metrics):
        text = f"{value:.4f}" if isinstance(value, float) else str(value)
        interval = "{:.4f} to {:.4f}".format(*bounds[name]) if name in bounds else ""
        table.add_row(name, text, interval)
    put(console, table)
    return 0


def ablate(options: argparse.Namespace, console: Console) -> int:
    """Run an ablation and print its tables."""
    from pipeline.demo.ablation import Ablation
    from pipeline.demo.measured import collect
    from pipeline.demo.schedule import schedule
    from pipeline.execution.progress import Progress
    from pipeline.report.ablation import write
    from pipeline.results.tables import ablation_tables, power_lines, put
    from pipeline.storage.records import content_of

    ablation = Ablation.load(options.ablation, options.run)
    if options.dry_run:
        record = collect(ablation)
        for line in (
            f"{ablation.name} -> {ablation.run}",
            *schedule(ablation).lines(),
            *power_lines(record),
        ):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        return 0
    ablation.carry_out(options.workers, Progress(console, options.quiet or options.json))
    record = collect(ablation)
    ablation.publish(record)
    path = write(ablation.run, record)
    if options.json:
        console.print_json(json.dumps(content_of(record)))
        return 0
    for table in ablation_tables(record):
        put(console, table)
    for line in power_lines(record):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"report     {path}", highlight=False, markup=False)
    return 0


def _find_run(path: str) -> Run:
    """The run at the folder or URL that a command is given.

    Raises:
        InputError: The URL holds a secret; a run records its own URL.
    """
    from pipeline.manifest.yaml import find_problems
    from pipeline.storage.run import Run

    for _, problem in find_problems(path):
        raise InputError(f"RUN {problem}")
    return Run.find(path)


def status(options: argparse.Namespace, console: Console) -> int:
    """Print the funnel of a run and who holds the run."""
    from pipeline.cli.watch import describe_holder, watch
    from pipeline.results.funnel import funnel, holder
    from pipeline.results.open_run import open_results
    from pipeline.results.tables import funnel_table, notice_lines, put

    run = _find_run(options.run)
    if options.watch:
        watch(run, console, as_json=options.json)
        return 0
    counts = {**funnel(open_results(run)), "holder": holder(run)}
    if options.json:
        console.print_json(json.dumps(counts))
    else:
        put(console, funnel_table(counts))
        for line in notice_lines(counts):
            console.print(line, soft_wrap=True)
        console.print(describe_holder(counts["holder"]), highlight=False, markup=False)
    return 0


def show(options: argparse.Namespace, console: Console) -> int:
    """Print everything known about one sample, and write its image to a file."""
    from pipeline.results.history import sample_history
    from pipeline.results.open_run import open_results
    from pipeline.results.tables import put, sample_tables

    history = sample_history(open_results(_find_run(options.run)), options.uid)
    if options.json:
        console.print_json(json.dumps(history.plain(), default=str))
        return 0
    for table in sample_tables(history):
        put(console, table)
    if history.image is not None:
        path = _write_image(history.image)
        console.print(f"image      {path}", highlight=False, markup=False)
    return 0


def search(options: argparse.Namespace, console: Console) -> int:
    """Print the rows most like a text or an image, or write a page of them."""
    from rich.table import Table

    from pipeline.report.search import write
    from pipeline.results.open_run import open_results
    from pipeline.results.search import embed_query, search
    from pipeline.results.tables import cell, put

    if options.number < 1:
        raise InputError(f"--number must be at least 1, got {options.number}")
    results = open_results(_find_run(options.run))
    query = embed_query(results, options.query)
    found = search(results, query, options.number, options.of)
    if options.out is not None:
        write(results, options.query, found, options.out)
        console.print(f"{len(found)} rows -> {options.out}", highlight=False, markup=False)
    elif options.json:
        console.print_json(json.dumps([one.plain() for one in found]))
    else:
        table = Table("cosine", "uid", "verdict")
        for name in ("caption", "url"):
            table.add_column(name, overflow="fold")
        for one in found:
            values = (one.uid[:12], one.verdict, one.caption, one.url)
            table.add_row(f"{one.cosine:.3f}", *map(cell, values))
        put(console, table)
    return 0


def _write_image(image: bytes) -> str:
    """Write an encoded image to a new temporary file and return its path."""
    from stages.formats.base import extension_of

    suffix = f".{extension_of(image)}"
    with tempfile.NamedTemporaryFile(prefix="capfilt-", suffix=suffix, delete=False) as file:
        file.write(image)
    return file.name


def review(options: argparse.Namespace, console: Console) -> int:
    """Serve a page on which a person decides pairs, then measure the stage review."""
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
    _check_port(options.port)
    run = _find_run(options.run)
    results = open_results(run)
    with run.lock():
        ledger = Ledger(results.plan.manifest.reviews)
        pairs = draw(results, options.of, options.sample)
        number = sum(pair.key in ledger.decisions for pair in pairs)
        with ReviewServer(results, pairs, ledger, options.port) as server:
            say(f"review     {len(pairs):,} pairs, {number:,} of them reviewed before")
            say(f"open       {server.url}")
            say(
                "           each decision is saved at once; press Done on the page or Ctrl-C to end"
            )
            sys.stdout.flush()
            with contextlib.suppress(KeyboardInterrupt):
                server.serve_forever()
    if not ledger.decisions:
        say("review     no decisions yet")
        return 0
    results = open_results(run)  # again: its plan now has the stage review
    try:
        with Session(results.plan.manifest, progress=Progress(console, quiet=True)) as session:
            session.stage("review")
    except (IncompleteError, PoolMismatchError):
        say("review     the run is not finished; the next `capfilt run` applies the decisions")
    reviews: Any = of_run(results)
    decisions = ", ".join(f"{reviews[name]:,} {name}" for name in ("accept", "reject", "fix"))
    say(f"review     {reviews['pairs']:,} pairs: {decisions}")
    if "agreement" in reviews:
        put(console, agreement_table(reviews["agreement"]))
    say("next       `capfilt export MANIFEST` writes the curated pairs with these decisions")
    return 0


def view(options: argparse.Namespace, console: Console) -> int:
    """Serve a page on which a person searches, filters and sorts all rows of a run."""
    from pipeline.results.open_run import open_results
    from pipeline.view.server import ViewServer

    _check_port(options.port)
    with ViewServer(open_results(_find_run(options.run)), options.port) as server:
        rows = server.index.table.num_rows
        for line in (
            f"view       {rows:,} rows",
            f"open       {server.url}",
            "           press Done on the page or Ctrl-C to end",
        ):
            console.print(line, highlight=False, markup=False)
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0


def _check_port(port: int) -> None:
    if not 0 <= port <= 65535:
        raise InputError(f"--port must be from 0 to 65535, got {port}")


def report(options: argparse.Namespace, console: Console) -> int:
    """Write the report of a run."""
    from pipeline.execution.session import write_report
    from pipeline.results.open_run import open_results

    path = write_report(open_results(_find_run(options.run)))
    console.print(path, highlight=False, markup=False)
    return 0


def compare(options: argparse.Namespace, console: Console) -> int:
    """Write the page that compares two runs."""
    from pipeline.report.compare import write
    from pipeline.results.open_run import open_results

    runs = [_find_run(path) for path in (options.before, options.after)]
    before, after = map(open_results, runs)
    path, counts = write(before, after, options.out)
    console.print(
        f"{counts['both']:,} rows in both runs, {counts['changed']:,} with different verdicts -> "
        f"{path}",
        highlight=False,
        markup=False,
    )
    return 0


def verify(options: argparse.Namespace, console: Console) -> int:
    """Check every file of a run; the exit status is that of the worst fault."""
    from pipeline.results.tables import cell
    from pipeline.results.verify import unchecked, verify

    run, status = _find_run(options.run), 0
    for fault in verify(run):
        status = max(status, fault.exit_status)
        console.print(cell(fault), highlight=False)
    if not status:
        message = f"{options.run}: every file is whole and aligned, every row accounted for"
        console.print(cell(message), highlight=False)
    if others := unchecked(run):
        console.print(cell(f"not looked at: {', '.join(others)}"), highlight=False)
    return status


def push(options: argparse.Namespace, console: Console) -> int:
    """Push an export to the Hugging Face hub, or list what would be pushed."""
    from pipeline.publishing import hub
    from pipeline.results.open_run import open_results

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False)

    results = open_results(_find_run(options.run))
    if options.dry_run:
        files = hub.files_to_push(results, options.repo, options.name)
        for file in files:
            say(f"{file.size:>15,}  {file.name}")
        say(f"{sum(file.size for file in files):>15,}  bytes in {len(files):,} files")
        return 0
    url = hub.push(results, options.repo, export=options.name, private=options.private, say=say)
    say(f"pushed     {url}")
    return 0


def verdicts(options: argparse.Namespace, console: Console) -> int:
    """Write the table of verdicts."""
    from pipeline.results.open_run import open_results
    from pipeline.results.verdict_table import write_verdicts

    rows = write_verdicts(open_results(_find_run(options.run)), options.out)
    console.print(f"{rows:,} rows -> {options.out}", highlight=False, markup=False)
    return 0


def demo(options: argparse.Namespace, console: Console) -> int:
    """Run the demo on a drawn web."""
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
