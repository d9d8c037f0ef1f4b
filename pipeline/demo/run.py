"""`capfilt demo`: runs the whole job on a drawn web and compares the result with the truth."""

from __future__ import annotations

import dataclasses
import functools
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from pipeline.demo import truth
from pipeline.demo.language import train_language
from pipeline.demo.server import SiteServer
from pipeline.demo.tokenizer import write_tokenizer
from pipeline.demo.vision import train_vision
from pipeline.demo.web import Drawing, build, mapped
from pipeline.demo.world import SMALL, WORLDS, World
from pipeline.execution.progress import Progress
from pipeline.execution.session import Session, write_report
from pipeline.manifest.manifest import Manifest
from pipeline.results.funnel import funnel
from pipeline.results.open_run import open_results
from pipeline.results.tables import flat, funnel_table
from pipeline.results.verdict_table import write_verdicts
from pipeline.results.verdicts import Results
from pipeline.storage.records import EvaluationRecord, TruthRecord, TruthScore
from pipeline.storage.run import Run
from pipeline.storage.successor import standing

__all__ = ["Web", "demo", "find", "prepare"]

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
SHIPPED = Path(__file__).resolve().parent / "miniature"
"""The pre-trained models that captioner and filter start from, made by `--from-scratch`."""

DRAWING = Drawing()
"""The web of the demo."""

MINIATURE_SEED, MINIATURE_DRAWING = 1_000_003, Drawing(pages=100, human=40_000)
"""The web whose human captions the miniature is trained on; its images occur with no other seed."""

PORT = 8757
"""The preferred port, so that two runs with one seed use the same URLs."""


@dataclasses.dataclass(frozen=True)
class Web:
    """A drawn web.

    Attributes:
        folder: Folder of its files.
        port: Port in its URLs.
        token: Token that the User-Agent of a request must contain. It is sent as
            `download.contact`, since a token in the URLs would change the uids.
    """

    folder: Path
    port: int
    token: str

    def serve(self) -> SiteServer:
        """Make a server for it."""
        return SiteServer(self.folder / "site", port=self.port, token=self.token)


def demo(
    run: str,
    *,
    seed: int = 0,
    workers: int | None = None,
    from_scratch: bool = False,
    progress: Progress,
    console: Console,
) -> int:
    """Draw a web, serve it, run manifests/demo.yaml on it, and print the results.

    Args:
        run: Folder of the run, which must be local; the web is in its folder `web/`.
        seed: Seed of the web, the stages and the trainings.
        workers: Workers of each stage.
        from_scratch: Train the pre-trained models instead of using those shipped with the demo.
        progress: Shows the progress.
        console: Console to print the results to.

    Returns:
        The exit status.
    """
    started = time.monotonic()
    captioner, matcher = SHIPPED / "captioner", SHIPPED / "matcher"
    if from_scratch:
        captioner, matcher = miniature(f"{run}/miniature", workers, progress)
    web = prepare(run, seed, progress)
    overrides = [f"seed={seed}", *paths(web, captioner, matcher)]
    manifest = Manifest.load(str(MANIFESTS / "demo.yaml"), overrides, run)
    carry_out(manifest, web, workers, progress)
    results = open_results(Run(run))
    judged = judge(results, web.folder)
    report = write_report(results)
    show(console, results, judged)
    console.print(
        f"\n{time.monotonic() - started:.0f} s in all; the report is {report}",
        highlight=False,
        markup=False,
    )
    return 0


def paths(web: Web, captioner: Path, matcher: Path) -> list[str]:
    """Return the overrides of manifests/demo.yaml for a web and pre-trained models."""
    folder = web.folder
    human = folder / "human.jsonl"
    return [
        f"download.source={folder / 'pairs.parquet'}",
        f"download.contact={web.token}",
        f"select.model={folder / 'language'}",
        f"export.human=[{human}]",
        f"train.captioner.model={captioner}",
        f"train.filter.model={matcher}",
        *(f"train.{name}.data=[{human}]" for name in ("captioner", "filter")),
        *(f"train.{name}.tokenizer={folder / 'tokenizer'}" for name in ("raw", "curated")),
        f"train.raw.data=[pool, {human}]",
        f"evaluate.data={folder / 'test.jsonl'}",
        f"evaluate.tagger={folder / 'language'}",
        f"train.filter.tagger={folder / 'language'}",
    ]


def carry_out(manifest: Manifest, web: Web, workers: int | None, progress: Progress) -> None:
    """Run a manifest while serving its web."""
    with web.serve(), Session(manifest, workers=workers, progress=progress) as session:
        session.run()


def miniature(run: str, workers: int | None, progress: Progress) -> tuple[Path, Path]:
    """Train the miniature models on drawings and on a web of their own.

    Returns:
        The folders of the captioner and of the matcher.
    """
    web = prepare(run, MINIATURE_SEED, progress, drawing=MINIATURE_DRAWING).folder
    vision = image_encoder(Path(run) / "vision", web / "tokenizer", SMALL, progress)
    overrides = [
        f"train.captioner.start.vision={vision}",
        f"train.captioner.tokenizer={web / 'tokenizer'}",
        f"train.matcher.tagger={web / 'language'}",
        *(f"train.{name}.data=[{web / 'human.jsonl'}]" for name in ("captioner", "matcher")),
    ]
    manifest = Manifest.load(str(MANIFESTS / "miniature.yaml"), overrides, run)
    with Session(manifest, workers=workers, progress=progress) as session:
        session.run()
    models = Path(run) / "models"
    return models / "captioner", models / "matcher"


def image_encoder(folder: Path, tokenizer: Path, world: World, progress: Progress) -> Path:
    """Train an image encoder on labelled drawings of a world, unless it is there.

    Args:
        folder: Folder of the model.
        tokenizer: Tokenizer of a web of the world.
        world: What is drawn.
        progress: Is told how long it took.

    Returns:
        The folder.
    """
    if not folder.exists():
        started = time.monotonic()
        with mapped(os.cpu_count() or 1) as each:
            shares = train_vision(folder, tokenizer, world=world, each=each)
        seconds = time.monotonic() - started
        progress.say(f"vision     finds {shares['first kind']:.0%} of kinds after {seconds:.0f} s")
    return folder


def find(run: str) -> Web | None:
    """The web of a run, if it has been drawn."""
    store = Run(f"{run}/web")
    if not store.exists("web.json"):
        return None
    made = store.read_json("web.json")
    return Web(Path(store.root), made["port"], made["token"])


def prepare(run: str, seed: int, progress: Progress, *, drawing: Drawing = DRAWING) -> Web:
    """Draw the web of a run in its folder `web/`, and train its spaCy pipeline, unless they exist.

    Raises:
        ValueError: The run is not a local folder, or has another web.
    """
    if "://" in run:
        raise ValueError(f"{run}: the web must be on disk; give a local folder as --run")
    Run(run).check_folder()
    folder = Path(run) / "web"
    store = Run(str(folder))
    drawn = {
        one.name: getattr(drawing, one.name)
        for one in dataclasses.fields(drawing)
        if getattr(drawing, one.name) != one.default
    }
    if (web := find(run)) is not None:
        made = store.read_json("web.json")
        if made["seed"] != seed:
            raise ValueError(
                f"{folder} has the web of seed {made['seed']}; give another --run for seed {seed}"
            )
        if "drawn" in made and made["drawn"] != drawn:
            raise ValueError(
                f"{folder} has a web of {made['drawn'] or 'no settings'}; give another --run for "
                f"{drawn or 'one without'}"
            )
        return web
    port, token = _free_port(), f"demo-{secrets.token_hex(16)}"
    started = time.monotonic()
    world = WORLDS[drawing.world]
    processes = min(os.cpu_count() or 1, (drawing.pages + drawing.human) // 1000)
    with mapped(processes) as each:
        train = functools.partial(train_language, seed=seed, world=world)
        languages = each(train, [folder / "language"])
        build(
            folder,
            base_url=f"http://127.0.0.1:{port}",
            seed=seed,
            num_pages=drawing.pages,
            num_human=drawing.human,
            num_test=drawing.test,
            false_texts=drawing.false_texts,
            world=world,
            each=each,
        )
        list(languages)  # waits for it; with one process, `map` trains it here
    write_tokenizer(folder / "tokenizer", world)
    store.write_json({"seed": seed, "port": port, "token": token, "drawn": drawn}, "web.json")
    progress.say(f"web        drawn in {time.monotonic() - started:.1f} s at {folder}")
    return Web(folder, port, token)


def _free_port() -> int:
    for port in (PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise RuntimeError("no free port on 127.0.0.1")


def judge(results: Results, folder: Path) -> TruthRecord:
    """Compare the verdicts and the export with the truth, and write the result to truth.json."""
    run = results.run
    verdicts = run.at("verdicts.parquet")
    write_verdicts(results, verdicts)
    export = standing(run, "curated")
    exported = [
        run.read_table(*export, f"{shard}.parquet", columns=["uid", "caption", "caption_source"])
        for shard in run.shards(*export)
    ]
    judgement = truth.judge(
        pq.read_table(folder / "truth.parquet"),
        pq.read_table(verdicts),
        pa.concat_tables(exported),
    )
    scores = [TruthScore(**dataclasses.asdict(score)) for score in judgement.stages]
    record = TruthRecord(**{**dataclasses.asdict(judgement), "stages": scores})
    run.write_record(record, "truth.json")
    return record


def show(console: Console, results: Results, judged: TruthRecord) -> None:
    """Print the funnel, the comparison with the truth, and the metrics of the trained models."""
    console.print(funnel_table(funnel(results)))
    table = Table(title="against the truth", title_justify="left")
    for name in ("stage", "precision", "recall", "rejected", "due", "lost"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for score in judged.stages:
        table.add_row(
            score.stage,
            _share(score.precision),
            _share(score.recall),
            *map(str, (score.num_rejected, score.num_due, score.num_lost)),
        )
    console.print(table)
    console.print(
        f"web texts that are true: {_share(judged.raw_true)} as found, "
        f"{_share(judged.exported_true)} as exported ({judged.num_exported:,} texts); "
        f"synthetic: {_share(judged.synthetic_true)} of {judged.num_synthetic:,}",
        highlight=False,
    )
    record = results.run.find_record(EvaluationRecord, "evaluation.json")
    if record is None:
        return
    names = list(record.root)
    table = Table("metric", *names, title="held-out images", title_justify="left")
    columns = [_numbers(evaluation.metrics) for evaluation in record.root.values()]
    for metric in dict.fromkeys(metric for column in columns for metric in column):
        values = (column.get(metric, "-") for column in columns)
        table.add_row(metric, *(f"{v:.3f}" if isinstance(v, float) else str(v) for v in values))
    console.print(table)


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the numeric metrics by dotted name, without intervals."""
    values = flat({name: value for name, value in metrics.items() if name != "intervals"})
    return {name: value for name, value in values if not isinstance(value, str)}


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"
