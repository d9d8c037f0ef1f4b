"""Ablations: variants of one manifest, run with several seeds, shown as tables with intervals.

    name: ablation
    manifest: demo.yaml             # relative to this file; each seed draws its own web
    seeds: [0, 1, 2]
    webs:                           # what is drawn; the first is the main one
      half: {pages: 1000}
      noisy: {pages: 1000, false_texts: 0.8, chains: [nucleus]}
    chains:                         # changes to the manifest; the first chain is the main run
      nucleus: {train: {none: {like: curated, data: [export:none]}}}
      beam: {stages: {caption: {decoding: beam}}}
    metrics: {TR@1: retrieval.itm.TR@1, noise: report.texts.synthetic.reject_rate}
    tables:
      - title: Decoding
        rows: {none: nucleus/none, beam: beam/curated, nucleus: nucleus/curated}
        against: {nucleus: [beam]}
    curves:
      - {title: Noise, x: {half: 0.46, noisy: 0.8}, base: nucleus/none, metric: TR@1,
         rows: {CapFilt: nucleus/curated}}

A row of a table is a model that a chain trains. Chains with the same web and seed share the pool,
and the annotations and models that they have in common with the first. Finished work is reused, so
the same command resumes.

In the texts of the manifest and of a chain, `runs/demo/web/` is the folder of the web, and
`runs/demo/miniature/web/` that of the web that the miniature was trained on (drawn where a chain
names it). `runs/demo/vision` is an image encoder that has learnt labelled drawings of the web's
world, trained once for all seeds. `chain:CHAIN/MODEL` is a model of an earlier chain, and
`kept:CHAIN` the number of images that an earlier chain exports, human ones left out.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pydantic

from models.errors import ManifestError, YamlError
from pipeline.demo import run as drawn
from pipeline.demo.web import Drawing
from pipeline.demo.world import WORLDS
from pipeline.execution.progress import Progress
from pipeline.execution.session import write_report
from pipeline.manifest import yaml
from pipeline.manifest.manifest import A_NAME, Manifest, is_name
from pipeline.manifest.validation import explain
from pipeline.results.open_run import open_results
from pipeline.storage.records import AblationRecord
from pipeline.storage.run import ABLATION, Run
from pipeline.storage.successor import standing
from stages.download import DownloadStage
from stages.export import ExportStage

__all__ = ["Ablation", "Curve", "Expectation", "Site", "Table", "merge"]

WEB = "runs/demo/web"
"""The web of the demo in a chain; the web of each seed takes its place."""

MINIATURE = "runs/demo/miniature/web"
"""The web of the miniature in a chain; one is drawn for all seeds if a chain names it."""

VISION = "runs/demo/vision"
"""The image encoder of a world; it is trained if the base manifest or a chain names it."""

SHIPPED = "pipeline/demo/miniature"
"""The miniature's folder, wherever the command is started."""

CHAIN, KEPT = "chain:", "kept:"
"""Prefixes of what an earlier chain has made: the model of a name, the number of its images."""


@dataclass(frozen=True, kw_only=True)
class DrawnWeb(Drawing):
    """A web of an ablation.

    Attributes:
        chains: The chains that are run on it; empty runs all.
    """

    chains: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Site:
    """A web with a seed.

    Attributes:
        web: A key of `Ablation.webs`.
        seed: The seed.
    """

    web: str
    seed: int

    @property
    def label(self) -> str:
        """The web and the seed in words."""
        return f"{self.web}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """A difference that others have published, to say how many seeds would find it.

    Attributes:
        row: The label of a row.
        against: The label of the row that it is compared to.
        metric: The metric.
        difference: The published difference.
        spread: The standard deviation of the differences over seeds that is expected, above 0.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}

    row: str
    against: str
    metric: str
    difference: float
    spread: float

    def __post_init__(self) -> None:
        if not self.spread > 0:
            raise ValueError(f"tables.expects.spread must be above 0, got {self.spread}")


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table of an ablation.

    Attributes:
        title: The title.
        rows: `CHAIN/MODEL` by label; all rows are compared to the first.
        metrics: The metrics shown; empty shows all of the ablation.
        lacks: Metrics that do not apply to a row, by its label.
        web: The web; empty is the first.
        against: Labels of further rows that a row is compared to, by its label.
        ceiling: The label of the row that differences are also given as a share of.
        expects: Differences that others have published.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}

    title: str
    rows: dict[str, str]
    metrics: tuple[str, ...] = ()
    lacks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    web: str = ""
    against: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ceiling: str | None = None
    expects: tuple[Expectation, ...] = ()

    def faults(self) -> Iterator[str]:
        """Yield a message for each field that names a label without a row."""
        named = {
            "lacks metrics of": self.lacks,
            "compares": [*self.against, *itertools.chain(*self.against.values())],
            "has the ceiling": [self.ceiling] if self.ceiling is not None else [],
            "expects a difference of": [
                label for one in self.expects for label in (one.row, one.against)
            ],
        }
        for what, labels in named.items():
            if unknown := [label for label in labels if label not in self.rows]:
                yield (
                    f"tables: {self.title!r} {what} {', '.join(unknown)}; its rows are "
                    f"{', '.join(self.rows)}"
                )


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The gain of rows over a base, from web to web.

    Attributes:
        title: The title.
        x: What distinguishes each web, such as its pages, by the name of the web.
        base: `CHAIN/MODEL` that the rows are compared to.
        rows: `CHAIN/MODEL` by label.
        metric: The metric.
        x_label: What x is; empty takes the title.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}

    title: str
    x: dict[str, float]
    base: str
    rows: dict[str, str]
    metric: str
    x_label: str = ""


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """A validated ablation.

    Attributes:
        name: Its name.
        manifest: Path of the base manifest, relative to the file.
        seeds: Seeds of the webs, the stages and the trainings; each has its own run.
        chains: Mappings, by name, that are merged into the manifest. See the module for what texts
            in them stand for.
        metrics: Path of each metric in the evaluation of a model, or, with the prefix `report.` or
            `truth.`, in the report or in truth.json of its chain.
        tables: The tables.
        webs: The webs that each seed draws; the main one has the run's own folder.
        curves: Gains from web to web.
        run: Folder of all its runs.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}

    name: str
    manifest: str
    seeds: tuple[int, ...]
    chains: dict[str, dict[str, Any]]
    metrics: dict[str, str]
    tables: tuple[Table, ...]
    webs: dict[str, DrawnWeb] = field(default_factory=lambda: {"web": DrawnWeb()})
    curves: tuple[Curve, ...] = ()
    run: str = ""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be one or more different numbers, got {self.seeds}")
        if not self.chains or not self.webs:
            raise ValueError("chains and webs must have at least one entry")
        for name in (self.name, *self.chains, *self.webs):
            if not is_name(name):
                raise ValueError(
                    f"the name of an ablation, a web or a chain must be {A_NAME}: {name!r}"
                )
        for name, web in self.webs.items():
            if unknown := set(web.chains) - self.chains.keys():
                raise ValueError(
                    f"webs.{name}.chains: no chain {', '.join(sorted(unknown))}; there are "
                    f"{', '.join(self.chains)}"
                )
        for table in self.tables:
            web_name = table.web or self.main
            for label, row in table.rows.items():
                self._check_row(f"tables: row {label!r} of {table.title!r}", row, [web_name])
            self._check_metrics(
                f"tables: {table.title!r}",
                (
                    *table.metrics,
                    *itertools.chain(*table.lacks.values()),
                    *(one.metric for one in table.expects),
                ),
            )
            for fault in table.faults():
                raise ValueError(fault)
        for curve in self.curves:
            for label, row in {"base": curve.base, **curve.rows}.items():
                self._check_row(f"curves: {label!r} of {curve.title!r}", row, curve.x)
            self._check_metrics(f"curves: {curve.title!r}", [curve.metric])

    def _check_row(self, what: str, row: str, webs: Iterable[str]) -> None:
        chain, slash, model = row.partition("/")
        if chain not in self.chains or not slash or not model:
            raise ValueError(
                f"{what} must be CHAIN/MODEL with a chain of {', '.join(self.chains)}, got {row!r}"
            )
        for web in webs:
            if web not in self.webs:
                raise ValueError(f"{what}: no web {web!r}; there are {', '.join(self.webs)}")
            if chain not in self.chains_on(web):
                raise ValueError(f"{what}: webs.{web}.chains has no {chain!r}; add it there")

    def _check_metrics(self, what: str, metrics: Iterable[str]) -> None:
        for metric in metrics:
            if metric not in self.metrics:
                raise ValueError(f"{what} shows {metric!r}; metrics has {', '.join(self.metrics)}")

    @classmethod
    def load(cls, path: str, run: str | None = None) -> Ablation:
        """Read and validate an ablation.

        Raises:
            ManifestError: The file is not a valid ablation; the message says where.
        """
        try:
            content = yaml.load_file(path)
            if not isinstance(content, dict):
                raise ManifestError(
                    f"{path}: an ablation must be a mapping with `manifest` and `tables`"
                )
            if problems := [
                f"{path}: {field}: {message}" for field, message in yaml.find_problems(content)
            ]:
                raise ManifestError("\n".join(problems))
            given = {"run": f"runs/{content.get('name')}", **content}
            if isinstance(given.get("manifest"), str):
                given["manifest"] = str(Path(path).parent / given["manifest"])
            if run is not None:
                given["run"] = run
            return pydantic.TypeAdapter(cls).validate_python(given)
        except FileNotFoundError:
            raise ManifestError(f"{path}: no such file") from None
        except YamlError as error:
            raise ManifestError(str(error)) from None
        except pydantic.ValidationError as error:
            problems = [
                f"{path}: {w or 'ablation'}: {message}" for w, message in explain(error, cls)
            ]
            raise ManifestError("\n".join(problems)) from None

    @property
    def main(self) -> str:
        """The name of the first web."""
        return next(iter(self.webs))

    def sites(self) -> Iterator[Site]:
        """Every web with every seed."""
        for web in self.webs:
            for seed in self.seeds:
                yield Site(web=web, seed=seed)

    def chains_on(self, web: str) -> tuple[str, ...]:
        """The chains that are run on a web, in order; the first has the run's own folder."""
        chosen = self.webs[web].chains
        return tuple(chain for chain in self.chains if not chosen or chain in chosen)

    def folder(self, site: Site) -> str:
        """The folder of the run of a web and seed."""
        own = "" if site.web == self.main else f"/{site.web}"
        return f"{self.run}{own}/seed-{site.seed}"

    def branch(self, site: Site, chain: str) -> str:
        """The folder, within the run, for the files of one chain only."""
        return "" if chain == self.chains_on(site.web)[0] else f"chains/{chain}"

    def opened(self, site: Site, chain: str) -> Run:
        """The run of a chain."""
        return Run(self.folder(site), self.branch(site, chain))

    def carry_out(self, workers: int | None, progress: Progress) -> None:
        """Run every chain on every web with every seed, one after the other, skipping what is done.

        The chains of one web and seed follow each other, as later ones may need earlier ones.
        """
        if MINIATURE in str(self.chains):
            drawn.prepare(
                self.miniature, drawn.MINIATURE_SEED, progress, drawing=drawn.MINIATURE_DRAWING
            )
        starts_from_vision = self.starts_from_vision
        for site in self.sites():
            web = drawn.prepare(self.folder(site), site.seed, progress, drawing=self.drawing(site))
            if starts_from_vision:
                folder, world = Path(self.vision(site)), WORLDS[self.webs[site.web].world]
                drawn.image_encoder(folder, web.folder / "tokenizer", world, progress)
            for chain in self.chains_on(site.web):
                manifest = self.manifest_of(site, chain, web)
                progress.say(f"chain      {chain}, {site.label}")
                drawn.carry_out(manifest, web, workers, progress)
                results = open_results(self.opened(site, chain))
                if ExportStage.name in manifest.stages:
                    drawn.judge(results, web.folder)
                write_report(results)

    @property
    def miniature(self) -> str:
        """The folder of the run whose web the miniature was trained on."""
        return f"{self.run}/miniature"

    @property
    def starts_from_vision(self) -> bool:
        """Whether a model starts from the image encoder of labelled drawings."""
        base = Manifest.load(self.manifest, [], self.run).source
        return f"'{VISION}'" in f"{base} {self.chains}"

    def vision(self, site: Site) -> str:
        """The folder of the image encoder that has learnt the world of a site."""
        return f"{self.run}/vision/{self.webs[site.web].world}"

    def drawing(self, site: Site) -> Drawing:
        """Return the settings with which the web of a site is drawn."""
        web = self.webs[site.web]
        return Drawing(**{one.name: getattr(web, one.name) for one in dataclasses.fields(Drawing)})

    def planned(self, site: Site) -> drawn.Web:
        """The web of a site as it is or will be."""
        return drawn.find(self.folder(site)) or drawn.Web(
            Path(self.folder(site)) / "web", drawn.PORT, "token"
        )

    def publish(self, record: AblationRecord) -> None:
        """Add the tables of an ablation to the reports of all runs and chains."""
        for site in self.sites():
            Run(self.folder(site)).write_record(record, ABLATION)
            for chain in self.chains_on(site.web):
                write_report(open_results(self.opened(site, chain)))

    def manifest_of(self, site: Site, chain: str, web: drawn.Web) -> Manifest:
        """The manifest of a chain for a web.

        Raises:
            ManifestError: It is not valid, or needs what no earlier chain makes.
        """
        base = Manifest.load(self.manifest, [f"seed={site.seed}"], self.folder(site)).source
        whole = merge(base, self.chains[chain])
        content = _replaced(whole, lambda text: self._stands_for(text, site, web))
        stages = content.get("stages")
        if isinstance(stages, dict) and ExportStage.name in stages:
            stages[ExportStage.name] = stages.pop(ExportStage.name)  # a chain may add stages
        if isinstance(stages, dict) and isinstance(stages.get(DownloadStage.name), dict):
            stages[DownloadStage.name]["contact"] = web.token
        return Manifest.parse(content, f"{self.manifest} + {chain}", self.branch(site, chain))

    def _stands_for(self, text: str, site: Site, web: drawn.Web) -> Any:
        """Return the value that replaces a text of a chain; the module lists such texts."""
        if text.startswith(f"{WEB}/"):
            return str(web.folder / text.removeprefix(f"{WEB}/"))
        if text == VISION:
            return self.vision(site)
        if text.startswith(f"{SHIPPED}/"):
            return str(drawn.SHIPPED / text.removeprefix(f"{SHIPPED}/"))
        if text.startswith(f"{MINIATURE}/"):
            return f"{self.miniature}/web/{text.removeprefix(f'{MINIATURE}/')}"
        if text.startswith(CHAIN):
            chain, _, model = text.removeprefix(CHAIN).partition("/")
            self._check_chain(text, site, chain)
            return self.opened(site, chain).url("models", *model.split("/"))
        if text.startswith(KEPT):
            chain = text.removeprefix(KEPT)
            self._check_chain(text, site, chain)
            return kept(self.opened(site, chain)) or 1
        return text

    def _check_chain(self, text: str, site: Site, chain: str) -> None:
        if chain not in self.chains_on(site.web):
            raise ManifestError(
                f"{self.manifest}: {text}: no chain {chain!r} on {site.web}; there are "
                f"{', '.join(self.chains_on(site.web))}"
            )


def kept(run: Run) -> int:
    """The number of downloaded images that a run exports; 0 before it does."""
    if not run.exists("curated", "manifest.json"):
        return 0
    folder = standing(run, "curated")
    seen: set[str] = set()
    for shard in run.shards(*folder):
        pairs = run.read_table(*folder, f"{shard}.parquet", columns=["uid", "caption_source"])
        for uid, source in zip(*(column.to_pylist() for column in pairs.columns), strict=True):
            if source != "human":
                seen.add(uid)
    return len(seen)


def _replaced(value: Any, stands_for: Callable[[str], Any]) -> Any:
    """Replace the texts in nested mappings and lists."""
    if isinstance(value, dict):
        return {key: _replaced(one, stands_for) for key, one in value.items()}
    if isinstance(value, list):
        return [_replaced(one, stands_for) for one in value]
    return stands_for(value) if isinstance(value, str) else value


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge changes into nested mappings; null removes an entry, lists are replaced."""
    merged = copy.deepcopy(dict(base))
    for key, value in changes.items():
        if value is None:
            merged.pop(key, None)
            continue
        old = merged.get(key)
        merged[key] = (
            merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return merged
