"""Filter: every text of every live image, web and synthetic alike, is scored against its image."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.text.pre_caption import pre_caption
from models.weights import folder_of, pinned, revision_of
from stages.base import Cutoff, Floats, ModelConfig, Stage, floats, threshold
from stages.schema import web_captions

if TYPE_CHECKING:
    from models.inference.clip import Clip
    from models.inference.matcher import Matcher

__all__ = ["FilterConfig", "FilterStage"]

Recipe = Literal["blip", "clip", "blip2", "laion_coco"]

OPENAI_CLIP = "openai/clip-vit-large-patch14"
SECOND_CLIP = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

LISTS: pa.DataType = pa.list_(pa.float32())
KINDS = ("web", "synthetic", "further")
"""The texts of an image: its web caption, synthetic ones, and web captions of its duplicates."""


@dataclass(frozen=True, kw_only=True)
class FilterConfig(ModelConfig):
    """What matches.

    Attributes:
        recipe: Which texts of an image are kept. blip (CapFilt, arXiv:2201.12086, section 3.3):
            each by itself, by the ITM model. clip (LAION, arXiv:2111.02114): each by itself, by
            CLIP similarity. blip2 (arXiv:2301.12597, section 3.4): the two most similar by CLIP
            of synthetic and web texts together, whatever their similarity. laion_coco: of the
            synthetic captions, the five most similar by CLIP, and of them the one most similar
            by a second CLIP.
        model: The ITM model of blip: a folder of `save_pretrained` or a name on the hub; by
            default the released one, fine-tuned on COCO. It reads a text as training does: in lower
            case, without `.!"()*#:;~`, and cut to 35 tokens. It should not share its training with
            the captioner: where they share parameters it believes nearly all that the captioner
            says (section 4.5, table 4).
        min_itm: The least ITM probability of a text that blip keeps; 0.5 is the paper's rule,
            that the ITM head does not call the text unmatched.
        clip: The CLIP of the other recipes, OpenAI's ViT-L/14 where unset; with blip, a CLIP that
            measures beside ITM, none where unset.
        clip_revision: A branch, tag or commit of the hub.
        min_clip: The least CLIP similarity of a text that is kept, whatever the recipe; unset is
            none. LAION has 0.28 to 0.3 with ViT-B/32; DataComp's best 30% (arXiv:2304.14108) is
            0.243 with ViT-L/14.
        second_clip: The second CLIP of laion_coco. (The original's, RN50x64, has no checkpoint
            that transformers loads; the default is LAION's ViT-H/14.)
        second_clip_revision: A branch, tag or commit of the hub.
    """

    stage = "filter"

    recipe: Recipe = "blip"
    model: str = "Salesforce/blip-itm-base-coco"
    min_itm: float = threshold(0.5)
    clip: str | None = None
    clip_revision: str | None = None
    min_clip: float | None = threshold(None)
    second_clip: str = SECOND_CLIP
    second_clip_revision: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.min_itm <= 1:
            raise ValueError(
                f"filter.min_itm must be a probability from 0 to 1, got {self.min_itm}; the "
                f"paper's is 0.5"
            )
        if self.min_clip is not None and not -1 <= self.min_clip <= 1:
            raise ValueError(
                f"filter.min_clip must be a cosine from -1 to 1, got {self.min_clip}; LAION's is "
                f"0.28"
            )
        if self.min_clip is not None and self.recipe == "blip" and self.clip is None:
            raise ValueError(
                f"filter.min_clip needs a CLIP with recipe: blip; set filter.clip, for example to "
                f"{OPENAI_CLIP}"
            )
        if self.min_clip is None and self.recipe == "clip":
            raise ValueError("filter.min_clip must be set with recipe: clip; LAION's is 0.28")

    def models(self) -> dict[str, tuple[str, str | None]]:
        """What the recipe needs, and nothing else: name and revision of itm, clip, second_clip."""
        needed: dict[str, tuple[str, str | None]] = {}
        if self.recipe == "blip":
            needed["itm"] = self.model, self.revision
        if self.recipe != "blip" or self.clip is not None:
            needed["clip"] = self.clip or OPENAI_CLIP, self.clip_revision
        if self.recipe == "laion_coco":
            needed["second_clip"] = self.second_clip, self.second_clip_revision
        return needed

    def measurement(self) -> dict[str, Any]:
        """The dtype and which weights exactly of each model; recipes of the same models share it.

        Raises:
            FileNotFoundError: A model is neither a folder nor known to the hub.
        """
        weights = {}
        for role, name in self.models().items():
            try:
                weights[role] = revision_of(*name)
            except FileNotFoundError as error:
                field = "model" if role == "itm" else role
                raise FileNotFoundError(f"{self.stage}.{field}: {error}") from None
        return {"dtype": self.dtype, "weights": weights}


class FilterStage(Stage[FilterConfig]):
    """Scores the web caption, further web captions and synthetic captions of each image.

    The rule of CapFilt: a text is dropped if the ITM head calls it unmatched with its image. Web
    and synthetic texts are not compared; an image keeps none, one or all of them, and with none
    it leaves the set. Human pairs do not pass here: they are never filtered.

    How a healthy run looks, from the paper's tables 2 and 4: about 25 % of synthetic captions
    are rejected with nucleus sampling and about 19 % with beam search; about 8 % means that
    captioner and filter share parameters. Its sizes of data sets put the rejected web captions
    of CC3M, CC12M and SBU near 8 %.
    """

    name = "filter"
    version = 3
    config_type = FilterConfig
    reads = ("image", "caption")
    uses = ("text", "synthetic", "further_captions")
    writes = pa.schema(
        [
            *(
                pa.field(f"{score}_{kind}", pa.float32() if kind == "web" else LISTS)
                for score in ("itm", "itc", "clip")
                for kind in KINDS
            ),
            pa.field("second_clip_synthetic", LISTS),
            pa.field("itm_decoded", pa.bool_()),
        ]
    )
    """ITM probabilities, ITC cosines and CLIP similarities: of the web caption, null without one,
    and of each synthetic and further web caption in its place, null where it is blank; all null
    where the recipe does not measure them or the image could not be decoded, which `itm_decoded`
    tells. BLIP reads a text as `models.text.pre_caption` prepares it, as in training, and CLIP
    reads it as it is. Texts that are read alike have the scores of the first; one of which nothing
    is left to read is blank."""
    reasons: ClassVar[Mapping[str, str]] = {
        "undecodable": "The image cannot be decoded, so no text can match it.",
        "no_text": "The image has no caption, web or synthetic, that says anything.",
        "unmatched": "The filter finds that no text of the image describes it.",
        "dissimilar": "CLIP finds no text of the image, of those that match, similar enough.",
    }
    help = "score web and synthetic captions with BLIP's ITM head"
    examples = ("capfilt filter manifest.yaml --set filter.min_itm=0.4",)
    paper = (
        "BLIP (arXiv:2201.12086), BLIP-2 (arXiv:2301.12597), LAION (arXiv:2111.02114), LAION-COCO"
    )
    loader = "BlipForImageTextRetrieval; CLIPModel"
    histograms = ()

    _matcher: Matcher | None = None
    _clip: Clip | None = None
    _second_clip: Clip | None = None

    def load(self) -> None:
        """Load the models of the recipe."""
        needed = self.config.models()
        if "itm" in needed:
            from models.inference.matcher import Matcher

            self._matcher = Matcher.from_pretrained(**self._placed(*needed["itm"]))
        if "clip" in needed:
            from models.inference.clip import Clip

            self._clip = Clip.from_pretrained(**self._placed(*needed["clip"]))
            if "second_clip" in needed:
                self._second_clip = Clip.from_pretrained(**self._placed(*needed["second_clip"]))

    def _placed(self, model: str, revision: str | None) -> dict[str, Any]:
        return {
            "model": folder_of(model),
            "revision": pinned(model, revision),
            "device": self.config.device,
            "dtype": self.config.dtype,
            "threads": self.config.cpus,
        }

    def annotate(self, rows: pa.Table) -> pa.Table:
        """Score the texts of rows; see `Stage.annotate`."""
        if self._matcher is None and self._clip is None:
            self.load()
        texts = _texts(rows)
        prepared = [
            {kind: [text and pre_caption(text) for text in own] for kind, own in some.items()}
            for some in texts
        ]
        images = [image or b"" for image in rows["image"].to_pylist()]
        size = self.config.batch_size
        asked: dict[str, list[list[str]]] = {}
        found: dict[str, list[dict[str | None, float]]] = {}
        if self._matcher is not None:
            asked["itm"] = [_distinct(itertools.chain(*some.values())) for some in prepared]
            matches = self._matcher.score(images, asked["itm"], size)
            for score in ("itm", "itc"):
                values = [[getattr(match, score) for match in some] for some in matches]
                found[score] = _named(asked["itm"], values)
        if self._clip is not None:
            asked["clip"] = [_distinct(itertools.chain(*some.values())) for some in texts]
            found["clip"] = _named(asked["clip"], self._clip.score(images, asked["clip"], size))
        if self._second_clip is not None:
            synthetic = [_distinct(some["synthetic"]) for some in texts]
            scores = self._second_clip.score(images, synthetic, size)
            found["second_clip"] = _named(synthetic, scores)
        table = []
        for index in range(len(rows)):
            row: dict[str, Any] = {}
            for name in self.writes.names[:-1]:
                score, kind = name.rsplit("_", 1)
                known = found[score][index] if score in found else {}
                read = prepared if score in ("itm", "itc") else texts
                row[name] = [known.get(text) for text in read[index][kind]]
                if kind == "web":
                    [row[name]] = row[name]
            opened = any(known[index] for known in found.values())
            was_asked = any(some[index] for some in asked.values())
            table.append({**row, "itm_decoded": opened or not was_asked})
        return pa.Table.from_pylist(table, schema=self.writes)

    def judge(self, annotations: pa.Table) -> pa.StringArray:
        """Reject the rows none of whose texts is kept."""
        texts = _Scored(annotations)
        role = next(iter(self.config.models()))
        scores = texts.scores(role)
        matched = scores >= np.float32(self.config.min_itm) if role == "itm" else scores > -np.inf
        reasons = np.full(len(annotations), "no_text", object)
        reasons[texts.rows[~np.isnan(scores)]] = "unmatched"
        reasons[texts.rows[matched]] = "dissimilar"
        reasons[~annotations["itm_decoded"].to_numpy()] = "undecodable"
        reasons[texts.rows[self._keeps(texts)]] = None
        return pa.array(reasons, pa.string())

    def cutoffs(self, annotations: pa.Table) -> Iterator[Cutoff]:
        """See `Stage.cutoffs`; the number of a row is the highest score of its texts."""
        for reason, name, score in (
            ("unmatched", "min_itm", "itm"),
            ("dissimilar", "min_clip", "clip"),
        ):
            if (limit := self.limit(name)) is not None:
                columns = [annotations[f"{score}_{kind}"] for kind in KINDS]
                best = np.fmax.reduce([_highest(column) for column in columns])
                yield Cutoff(reason, name, limit, best)

    def keep_texts(self, annotations: pa.Table) -> pa.Table:
        """Which texts of each row are kept.

        Args:
            annotations: `writes` of n rows.

        Returns:
            keep_web (bool), keep_synthetic and keep_further (list<bool>, as long as
            `itm_synthetic` and `itm_further`) of the n rows, False without a score.
        """
        texts = _Scored(annotations)
        keeps = self._keeps(texts)
        columns: dict[str, Any] = {}
        for kind in KINDS:
            values = pa.array(keeps[texts.parts[kind]])
            columns[f"keep_{kind}"] = (
                values
                if kind == "web"
                else pa.ListArray.from_arrays(
                    pa.array(np.concatenate([[0], np.cumsum(texts.lengths[kind])]), pa.int32()),
                    values,
                    type=pa.list_(pa.bool_()),
                )
            )
        return pa.table(columns)

    def _keeps(self, texts: _Scored) -> npt.NDArray[np.bool_]:
        """The verdict on every text, by the recipe. Scores are float32, and so are thresholds."""
        config = self.config
        keep = np.ones(len(texts.rows), bool)
        if config.recipe == "blip":
            keep &= texts.scores("itm") >= np.float32(config.min_itm)
        if config.min_clip is not None:
            keep &= texts.scores("clip") >= np.float32(config.min_clip)
        if config.recipe == "blip2":
            keep &= _best(texts.rows, texts.scores("clip"), 2)
        if config.recipe == "laion_coco":
            synthetic = np.zeros(len(texts.rows), bool)
            synthetic[texts.parts["synthetic"]] = True
            first = np.where(synthetic, texts.scores("clip"), np.nan)
            five = _best(texts.rows, first, 5)
            keep &= _best(texts.rows, np.where(five, texts.scores("second_clip"), np.nan), 1)
        return keep


class _Scored:
    """The texts of annotated rows, one after another: all web captions, synthetic ones, further.

    Attributes:
        rows: The row of each text.
        lengths: How many texts of a kind each row has.
        parts: Where the texts of a kind are.
    """

    def __init__(self, annotations: pa.Table) -> None:
        self.annotations = annotations
        count = len(annotations)
        self.lengths = {"web": np.ones(count, np.int64)}
        for kind in KINDS[1:]:
            lengths: Any = pc.list_value_length(annotations[f"itm_{kind}"]).fill_null(0)
            self.lengths[kind] = lengths.to_numpy().astype(np.int64)
        every = np.arange(count)
        self.rows = np.concatenate([np.repeat(every, self.lengths[kind]) for kind in KINDS])
        stops = np.cumsum([self.lengths[kind].sum() for kind in KINDS])
        starts = [0, *stops[:-1]]
        self.parts = {k: slice(a, b) for k, a, b in zip(KINDS, starts, stops, strict=True)}

    def scores(self, score: str) -> npt.NDArray[np.float32]:
        """A score of every text, NaN where it has none."""
        values = np.full(len(self.rows), np.nan, np.float32)
        for kind, part in self.parts.items():
            if f"{score}_{kind}" in self.annotations.column_names:
                column: Any = self.annotations[f"{score}_{kind}"]
                flat = column if kind == "web" else pc.list_flatten(column)
                values[part] = flat.to_numpy()
        return values


def _best(
    rows: npt.NDArray[np.int64], scores: npt.NDArray[np.float32], count: int
) -> npt.NDArray[np.bool_]:
    """The texts with the `count` highest scores of each row.

    Of texts with one score, which are one text said again, the first stands for all.
    """
    order = np.lexsort((-scores, rows))
    row, score = rows[order], scores[order]
    begins = _changes(row)
    counts = ~np.isnan(score) & (begins | _changes(score))
    ranks = np.cumsum(counts)
    before = np.maximum.accumulate(np.where(begins, ranks - counts, 0))
    best = np.zeros(len(rows), bool)
    best[order[counts & (ranks - before <= count)]] = True
    return best


def _changes(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Whether each value is unlike the one before it; the first is."""
    return np.concatenate([np.ones(1, bool), values[1:] != values[:-1]])[: len(values)]


def _highest(scores: Any) -> Floats:
    """The highest score of each row of a column of scores or of lists of them; NaN without one."""
    if not pa.types.is_list(scores.type):
        return floats(scores)
    lists = scores.combine_chunks()
    highest = np.full(len(lists), np.nan)
    np.fmax.at(highest, np.asarray(pc.list_parent_indices(lists)), floats(lists.flatten()))
    return highest


def _texts(rows: pa.Table) -> list[dict[str, list[str | None]]]:
    """The texts of each row by kind, exactly one of the web."""
    columns: dict[str, list[Any]] = {"web": [[text] for text in web_captions(rows).to_pylist()]}
    for kind, name in (("synthetic", "synthetic"), ("further", "further_captions")):
        found = rows[name].to_pylist() if name in rows.column_names else [None] * len(rows)
        columns[kind] = [some or [] for some in found]
    return [dict(zip(KINDS, some, strict=True)) for some in zip(*columns.values(), strict=True)]


def _distinct(texts: Iterable[str | None]) -> list[str]:
    """Texts that say something, each once, in order."""
    return list(dict.fromkeys(text for text in texts if text and text.strip()))


def _named(
    texts: list[list[str]], scores: Sequence[Sequence[float]]
) -> list[dict[str | None, float]]:
    """The score of each text by itself; none where the image was not opened."""
    return [
        dict(zip(some, found, strict=bool(found)))
        for some, found in zip(texts, scores, strict=True)
    ]
