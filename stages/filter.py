"""Filter: scores every text of every live image, web and synthetic alike, against its image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.text.pre_caption import pre_caption
from models.text.sentences import split_sentences
from models.weights import folder_of, pinned, revision_of
from stages.base import Cutoff, Floats, ModelConfig, Stage, StageConfig, floats, threshold
from stages.embed import vectors
from stages.schema import web_captions

__all__ = ["KINDS", "FilterConfig", "FilterStage", "with_kept_sentences"]

Recipe = Literal["blip", "clip", "blip2", "laion_coco"]
Unit = Literal["text", "sentence"]

OPENAI_CLIP = "openai/clip-vit-large-patch14"
SECOND_CLIP = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

KINDS = ("web", "synthetic", "further")
"""The texts of an image: its web caption, synthetic ones, and web captions of its duplicates."""
SCORES = ("itm", "itc", "clip", "second_clip")
LISTS: pa.DataType = pa.list_(pa.float32())
SENTENCES: pa.DataType = pa.list_(
    pa.struct([pa.field("text", pa.string()), *(pa.field(name, pa.float32()) for name in SCORES)])
)
"""The sentences of a text with the scores of each; joined, they are the text."""


CUT: Mapping[Unit, str] = {
    "text": "texts are longer than the model reads and were cut; filter.unit: sentence judges "
    "every sentence of them",
    "sentence": "texts have a sentence that is longer than the model reads and was cut",
}
"""What a run says of the texts that were cut, after their number."""


@dataclass(frozen=True, kw_only=True)
class FilterConfig(ModelConfig):
    """Which texts match their image.

    Attributes:
        recipe: Which texts of an image are kept. blip (CapFilt, arXiv:2201.12086, section 3.3):
            each by itself, by the ITM model. clip (LAION, arXiv:2111.02114): each by itself, by
            CLIP similarity. blip2 (arXiv:2301.12597, section 3.4): the two most similar by CLIP
            of synthetic and web texts together, whatever their similarity. laion_coco: of the
            synthetic captions, the five most similar by CLIP, and of them the one most similar
            by a second CLIP.
        unit: What is judged. text: each text as a whole, cut to what the model reads; the run and
            the report count the texts that were cut. sentence: a text that is longer than a model
            of the recipe reads is split into sentences, and each is judged by itself, as a short
            text is. Sentences that fail are dropped, the others joined in order; a text is
            dropped if no sentence of it is kept.
        model: The ITM model of blip: a folder of `save_pretrained` or a name on the hub; by default
            the released one, fine-tuned on COCO. A folder that the objective `qformer`, `vlmo` or
            `vilt` (its `retrieval/`) has trained serves, too. A BLIP reads a text as training does:
            in lower case, without `.!"()*#:;~`, and cut to the tokens it was trained on, BLIP's 35
            where its config.json has no `max_text_tokens`. It should not share its training with
            the captioner: where they share parameters it believes nearly all that the captioner
            says (section 4.5, table 4).
        min_itm: The least ITM probability of a text that blip keeps; 0.5 is the paper's rule,
            that the ITM head does not call the text unmatched.
        clip: The dual encoder of the other recipes, OpenAI's CLIP ViT-L/14 where unset; with blip,
            one that measures beside ITM, none where unset. CLIP, SigLIP, SigLIP 2 and MetaCLIP 2
            as transformers loads them, and what the objectives `coca` and `beit3` (`goal:
            retrieval`) train. SigLIP 2 and MetaCLIP 2 read many languages. If it is the
            model of an earlier stage embed, with its dtype, that stage's embeddings of the images
            are compared with the texts, and no image is encoded again.
        clip_revision: A branch, tag or commit of the hub.
        min_clip: The least cosine of a text that is kept, whatever the recipe; unset is none. A
            threshold belongs to its model: LAION's 0.28 to 0.3 to CLIP ViT-B/32, DataComp's 0.243
            (its best 30%, arXiv:2304.14108) to OpenAI's CLIP ViT-L/14. Cosines of SigLIP are far
            lower; see the histogram in the report before choosing.
        second_clip: The second dual encoder of laion_coco. (The original's, RN50x64, has no
            checkpoint that transformers loads; the default is LAION's ViT-H/14.)
        second_clip_revision: A branch, tag or commit of the hub.
    """

    stage = "filter"
    places = (
        *("model", "revision", "clip", "clip_revision"),
        *("second_clip", "second_clip_revision"),
    )

    recipe: Recipe = "blip"
    unit: Unit = "text"
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
                f"filter.min_clip must be a cosine from -1 to 1, got {self.min_clip}; LAION's "
                f"for CLIP ViT-B/32 is 0.28"
            )
        if self.min_clip is not None and self.recipe == "blip" and self.clip is None:
            raise ValueError(
                f"filter.min_clip needs a model with recipe: blip; set filter.clip, for example to "
                f"{OPENAI_CLIP}"
            )
        if self.min_clip is None and self.recipe == "clip":
            raise ValueError(
                "filter.min_clip must be set with recipe: clip: the least cosine that is kept. "
                "LAION's for CLIP ViT-B/32 is 0.28, DataComp's for CLIP ViT-L/14 0.243; another "
                f"model ({self.clip or OPENAI_CLIP}) may need another"
            )

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

    @property
    def spares(self) -> Mapping[str, tuple[str, ...]]:
        """The image, where one dual encoder alone judges and embed has embedded it."""
        return {"image": ("image_embedding",)} if self.models().keys() == {"clip"} else {}

    def uses(self, earlier: Mapping[str, StageConfig]) -> tuple[str, ...]:
        """The embeddings of images by the model of `clip`, where the stage embed made them."""
        models, embed = self.models(), earlier.get("embed")
        if "clip" not in models or not isinstance(embed, ModelConfig):
            return ()
        is_same = (embed.model, embed.revision) == models["clip"] and embed.dtype == self.dtype
        return ("image_embedding",) if is_same else ()

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
        unit = {} if self.unit == "text" else {"unit": self.unit}
        return {"dtype": self.dtype, "weights": weights, **unit}


class FilterStage(Stage[FilterConfig]):
    """Scores the web caption, further web captions and synthetic captions of each image.

    The rule of CapFilt: a text is dropped if the ITM head calls it unmatched with its image. Web
    and synthetic texts are not compared; an image keeps none, one or all of them, and with none
    it leaves the set. Human pairs do not pass here: they are never filtered. A text that is too
    long for the model can be judged sentence by sentence (`FilterConfig.unit`).

    How a healthy run looks, from the paper's tables 2 and 4: about 25 % of synthetic captions
    are rejected with nucleus sampling and about 19 % with beam search; about 8 % means that
    captioner and filter share parameters. Its sizes of data sets put the rejected web captions
    of CC3M, CC12M and SBU near 8 %.
    """

    name = "filter"
    version = 4
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
            *(
                pa.field(f"sentences_{kind}", SENTENCES if kind == "web" else pa.list_(SENTENCES))
                for kind in KINDS
            ),
            *(
                pa.field(f"unread_{kind}", pa.int32() if kind == "web" else pa.list_(pa.int32()))
                for kind in KINDS
            ),
            pa.field("itm_decoded", pa.bool_()),
        ]
    )
    """Each score stands for the web caption (null without one), and in lists for each synthetic
    and further web caption (null where it is blank). All are null where the recipe does not
    measure them or the image cannot be decoded, which `itm_decoded` says.

    - itm: the ITM probability. itc: the cosine by the ITM model. clip, second_clip: the cosine by
      the dual encoders. BLIP reads a text as `pre_caption` prepares it, a dual encoder reads it
      as it is. Texts that are read alike have one score. A text that is judged in sentences has
      the best score of its sentences.
    - sentences: the sentences of a text that is judged in sentences; null for others.
    - unread: how many tokens of the text were cut off, by the model that read least.
    """
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

    _matcher: Any = None
    _clip: Any = None
    _second_clip: Any = None

    def load(self) -> None:
        """Load the models of the recipe."""
        needed = self.config.models()
        if "itm" in needed:
            self._matcher = self._load("itm", *needed["itm"])
        if "clip" in needed:
            self._clip = self._load("clip", *needed["clip"])
        if "second_clip" in needed:
            self._second_clip = self._load("clip", *needed["second_clip"])

    def _load(self, role: str, model: str, revision: str | None) -> Any:
        """A model that scores texts: a stock one, or one that transformers does not have.

        Raises:
            ValueError: It cannot be what it is wanted for.
        """
        from models.inference.dual_encoder import DualEncoder
        from models.inference.matcher import Matcher
        from models.inference.trained import Embeds, Judges, Trained, architecture_in
        from models.objectives.registry import reader_of

        arguments = self._arguments(model, revision)
        kind: Any = Matcher if role == "itm" else DualEncoder
        try:
            found = reader_of(architecture_in(arguments["model"], arguments["revision"]))
        except ValueError:  # whose class says best what is wrong with the model
            found = kind
        if issubclass(found, Trained):
            matches, embeds = issubclass(found, Judges), issubclass(found, Embeds)
            if matches != (role == "itm") or not (matches or embeds):
                use = "recipe: blip" if matches else "recipe: clip"
                raise ValueError(
                    f"{self.config.stage}: {model!r} is a {found.__name__}, which cannot be "
                    f"{role!r} of recipe {self.config.recipe}: use {use}, or another model"
                )
            kind = found
        return kind.from_pretrained(**arguments)

    def _arguments(self, model: str, revision: str | None) -> dict[str, Any]:
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
        sentences = self._sentences(texts)
        has_images = "image" in rows.column_names
        images = [image or b"" for image in rows["image"].to_pylist()] if has_images else []
        scored: dict[str, _Scores] = {}
        for role, (model, prepare, kinds) in self._readers().items():
            asked = [
                _distinct(
                    prepare(part)
                    for kind in kinds
                    for text in row[kind]
                    if text
                    for part in _asked(text, sentences)
                )
                for row in texts
            ]
            if role == "clip" and "image_embedding" in rows.column_names:
                found = _compare(model, rows["image_embedding"], asked)
            else:
                found = model.score(images, asked, self.config.batch_size)
            known = [
                dict(zip(some, matches, strict=bool(matches)))
                for some, matches in zip(asked, found, strict=True)
            ]
            scored[role] = _Scores(prepare=prepare, asked=asked, known=known)
        table = []
        for number, row in enumerate(texts):
            columns: dict[str, Any] = {}
            for kind, own in row.items():
                found_of = [_measure(scored, number, text, sentences) for text in own]
                for name in (*SCORES, "sentences", "unread"):
                    if f"{name}_{kind}" in self.writes.names:
                        values = [measures.get(name) for measures in found_of]
                        columns[f"{name}_{kind}"] = values[0] if kind == "web" else values
            opened = any(scores.known[number] for scores in scored.values())
            was_asked = any(scores.asked[number] for scores in scored.values())
            table.append({**columns, "itm_decoded": opened or not was_asked})
        return pa.Table.from_pylist(table, schema=self.writes)

    def _readers(self) -> dict[str, tuple[Any, Callable[[str], str], tuple[str, ...]]]:
        """The models of the recipe: each with what it does to a text first, and what it reads."""
        found: dict[str, tuple[Any, Callable[[str], str], tuple[str, ...]]] = {}
        if self._matcher is not None:
            from models.inference.trained import Trained

            prepare = _as_it_is if isinstance(self._matcher, Trained) else pre_caption
            found["itm"] = self._matcher, prepare, KINDS
        if self._clip is not None:
            found["clip"] = self._clip, _as_it_is, KINDS
        if self._second_clip is not None:
            found["second_clip"] = self._second_clip, _as_it_is, ("synthetic",)
        return found

    def _sentences(self, texts: list[dict[str, list[str | None]]]) -> dict[str, list[str]]:
        """The sentences of those texts that are judged in sentences."""
        if self.config.unit == "text":
            return {}
        distinct = _distinct(text for row in texts for own in row.values() for text in own)
        unread = [0] * len(distinct)
        for model, _, _ in self._readers().values():
            unread = [max(pair) for pair in zip(unread, model.unread(distinct), strict=True)]
        long = (text for text, tokens in zip(distinct, unread, strict=True) if tokens)
        found = {text: split_sentences(text) for text in long}
        return {text: parts for text, parts in found.items() if len(parts) > 1}

    def judge(self, annotations: pa.Table) -> pa.StringArray:
        """Reject the rows none of whose texts is kept."""
        units = _Units(annotations)
        role = next(iter(self.config.models()))
        scores = units.scores(role)
        matched = scores >= np.float32(self.config.min_itm) if role == "itm" else scores > -np.inf
        rows = units.rows[units.texts]
        reasons = np.full(len(annotations), "no_text", object)
        reasons[rows[~np.isnan(scores)]] = "unmatched"
        reasons[rows[matched]] = "dissimilar"
        reasons[~annotations["itm_decoded"].to_numpy()] = "undecodable"
        reasons[rows[self._keeps(units)]] = None
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
        """Which texts of each row are kept, and what is left of them.

        Args:
            annotations: `writes` of n rows.

        Returns:
            n rows, for each kind of text KIND; of the web caption a value, of others a list as
            long as `itm_KIND`:

            - keep_KIND: bool, whether the text is kept; False without a score.
            - sentences_kept_KIND: list of bool, the same of its sentences; null for a text that
              is judged as a whole.
            - kept_text_KIND: the sentences that are kept, joined; null where the text is whole.
            - kept_itm_KIND: the least ITM probability of the sentences that are kept; null for a
              text that is judged as a whole, or of which nothing is kept.
        """
        units = _Units(annotations)
        keep = self._keeps(units)
        keeps = units.any(keep)
        columns: dict[str, Any] = {}
        for kind in KINDS:
            columns[f"keep_{kind}"] = units.nested(kind, pa.array(keeps[units.parts[kind]]))
            for name, values in units.left(kind, keep).items():
                columns[f"{name}_{kind}"] = units.nested(kind, values)
        return pa.table(columns)

    def _keeps(self, units: _Units) -> npt.NDArray[np.bool_]:
        """The verdict on every unit, by the recipe. Scores are float32, and so are thresholds."""
        config = self.config
        keep = np.ones(len(units.texts), bool)
        if config.recipe == "blip":
            keep &= units.scores("itm") >= np.float32(config.min_itm)
        if config.min_clip is not None:
            keep &= units.scores("clip") >= np.float32(config.min_clip)
        if config.recipe == "blip2":
            keep &= _best(units.rows, units.mean("clip", keep), 2)[units.texts]
        if config.recipe == "laion_coco":
            synthetic = np.zeros(len(units.rows), bool)
            synthetic[units.parts["synthetic"]] = True
            first = np.where(synthetic, units.mean("clip", keep), np.nan)
            five = _best(units.rows, first, 5)
            second = np.where(five, units.mean("second_clip", keep), np.nan)
            keep &= _best(units.rows, second, 1)[units.texts]
        return keep

    def count_cut(self, annotations: pa.Table) -> int:
        """How many texts of some annotated rows a model did not read to their end."""
        units = _Units(annotations)
        return sum(int((units.of_texts(f"unread_{kind}") > 0).sum()) for kind in KINDS)

    def notices(self, annotations: pa.Table) -> dict[str, int]:
        """Texts that were cut; see `Stage.notices`."""
        number = self.count_cut(annotations)
        return {CUT[self.config.unit]: number} if number else {}


def with_kept_sentences(rows: pa.Table, keeps: pa.Table) -> pa.Table:
    """Rows beside what is left of those texts that were judged in sentences.

    Args:
        rows: n rows.
        keeps: What `FilterStage.keep_texts` says of them.

    Returns:
        The rows with the columns kept_text_KIND and kept_itm_KIND.
    """
    for name in keeps.column_names:
        if name.startswith(("kept_text_", "kept_itm_")):
            rows = rows.append_column(name, keeps[name])
    return rows


@dataclass(frozen=True)
class _Scores:
    """What one model found: for each row what it was asked, and the match of each text."""

    prepare: Callable[[str], str]
    asked: list[list[str]]
    known: list[dict[str, Any]]

    def of(self, row: int, text: str) -> dict[str, Any]:
        """The measures of a text of a row; nothing where it has none."""
        match = self.known[row].get(self.prepare(text))
        return {} if match is None else match._asdict()


def _measure(
    scored: Mapping[str, _Scores], row: int, text: str | None, sentences: Mapping[str, list[str]]
) -> dict[str, Any]:
    """The scores of a text, its sentences and how many tokens of it were not read."""
    if not text:
        return {}
    parts = []
    unread: dict[str, int] = {}
    for part in _asked(text, sentences):
        found: dict[str, Any] = {}
        for role, scores in scored.items():
            measures = scores.of(row, part)
            unread[role] = unread.get(role, 0) + measures.pop("unread", 0)
            if "cosine" in measures:
                measures[role] = measures.pop("cosine")
            found |= measures
        parts.append(found)
    whole: dict[str, Any] = {
        name: max(values)
        for name in SCORES
        if (values := [part[name] for part in parts if name in part])
    }
    if whole:
        whole["unread"] = max(unread.values())
    if text in sentences:
        own = zip(sentences[text], parts, strict=True)
        whole["sentences"] = [{"text": sentence, **measures} for sentence, measures in own]
    return whole


def _asked(text: str, sentences: Mapping[str, list[str]]) -> list[str]:
    """What the models read of a text: the text itself, or each of its sentences."""
    return [part.strip() for part in sentences[text]] if text in sentences else [text]


def _compare(model: Any, column: Any, texts: list[list[str]]) -> list[list[Any]]:
    """The similarities of the texts of each row with its image, of which there is an embedding."""
    import torch

    embeddings, has = vectors(column)
    units = torch.nn.functional.normalize(torch.from_numpy(embeddings.astype(np.float32)), dim=-1)
    some = [own for own, there in zip(texts, has, strict=True) if there]
    found = iter(model.compare(units, some))
    return [next(found) if there else [] for there in has]


class _Units:
    """The texts of annotated rows, and what is judged of them: a text, or each of its sentences.

    Attributes:
        rows: (m,) the row of each text: of all web captions, then synthetic, then further ones.
        lengths: How many texts of a kind each row has.
        parts: Where the texts of a kind are.
        texts: (u,) the text of each unit.
        num_units: (m,) how many units each text has.
    """

    def __init__(self, annotations: pa.Table) -> None:
        self.annotations = annotations
        count = len(annotations)
        self.lengths = {"web": np.ones(count, np.int64)}
        for kind in KINDS[1:]:
            self.lengths[kind] = _list_lengths(annotations[f"itm_{kind}"])
        every = np.arange(count)
        self.rows = np.concatenate([np.repeat(every, self.lengths[kind]) for kind in KINDS])
        stops = np.cumsum([self.lengths[kind].sum() for kind in KINDS])
        starts = [0, *stops[:-1]]
        self.parts = {k: slice(a, b) for k, a, b in zip(KINDS, starts, stops, strict=True)}
        self._sentences = {kind: self._flat(f"sentences_{kind}") for kind in KINDS}
        split = np.concatenate([_list_lengths(self._sentences[kind]) for kind in KINDS])
        self._is_split = split > 0
        self.num_units = np.maximum(split, 1)
        self.texts = np.repeat(np.arange(len(self.rows)), self.num_units)

    def _flat(self, name: str) -> Any:
        """A column of lists or values as one value for each text of its kind, null without one."""
        kind = name.rsplit("_", 1)[1]
        if name not in self.annotations.column_names:
            return pa.nulls(int(self.lengths[kind].sum()))
        column: Any = self.annotations[name].combine_chunks()
        if kind == "web":
            return column
        present = _list_lengths(column) > 0
        flat = pc.list_flatten(column)
        if present.all():
            return flat
        # A row that was written before a column existed, or by hand, may lack its list.
        has = np.repeat(present, self.lengths[kind])
        return flat.take(pa.array(np.cumsum(has) - 1, mask=~has))

    def of_texts(self, name: str) -> npt.NDArray[np.float32]:
        """A column as one number for each text of its kind, NaN where it has none."""
        return _floats(self._flat(name))

    def scores(self, score: str) -> npt.NDArray[np.float32]:
        """(u,) a score of every unit, NaN where it has none."""
        found = np.full(len(self.rows), np.nan, np.float32)
        parts: list[npt.NDArray[np.float32]] = []
        for kind, part in self.parts.items():
            if f"{score}_{kind}" in self.annotations.column_names:
                found[part] = self.of_texts(f"{score}_{kind}")
            if self._is_split[part].any():
                parts.append(_floats(pc.struct_field(self._flat_sentences(kind), score)))
        units = found[self.texts]
        if parts:
            units[self._is_split[self.texts]] = np.concatenate(parts)
        return units

    def _flat_sentences(self, kind: str) -> Any:
        return pc.list_flatten(self._sentences[kind])

    def any(self, keep: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """(m,) whether any unit of each text is kept; `keep` is (u,)."""
        found = np.zeros(len(self.rows), bool)
        found[self.texts[keep]] = True
        return found

    def mean(self, score: str, keep: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        """(m,) the mean score of the kept units of each text, NaN where none is."""
        size = len(self.rows)
        number = np.bincount(self.texts[keep], minlength=size)
        total = np.bincount(self.texts[keep], self.scores(score)[keep].astype(float), size)
        mean = np.full(size, np.nan, np.float32)
        mean[number > 0] = total[number > 0] / number[number > 0]
        return mean

    def left(self, kind: str, keep: npt.NDArray[np.bool_]) -> dict[str, Any]:
        """What is left of the texts of a kind, as `FilterStage.keep_texts` describes it.

        Args:
            kind: One of `KINDS`.
            keep: (u,) which units are kept.
        """
        part = self.parts[kind]
        number = part.stop - part.start
        types: dict[str, Any] = {
            "sentences_kept": pa.list_(pa.bool_()),
            "kept_text": pa.string(),
            "kept_itm": pa.float32(),
        }
        if not self._is_split[part].any():
            return {name: pa.nulls(number, type) for name, type in types.items()}
        ends = np.cumsum(self.num_units)
        flags: list[list[bool] | None] = [None] * number
        texts: list[str | None] = [None] * number
        scores: list[float | None] = [None] * number
        sentences = self._sentences[kind]
        for place in np.flatnonzero(self._is_split[part]).tolist():
            own = sentences[place].as_py()
            end = int(ends[part.start + place])
            kept = keep[end - len(own) : end].tolist()
            flags[place] = kept
            left = [sentence for sentence, is_kept in zip(own, kept, strict=True) if is_kept]
            if not left:
                continue
            if len(left) < len(own):
                texts[place] = "".join(sentence["text"] for sentence in left).strip()
            matched = [sentence["itm"] for sentence in left if sentence["itm"] is not None]
            scores[place] = min(matched, default=None)
        values: list[Any] = [flags, texts, scores]
        found = zip(types.items(), values, strict=True)
        return {name: pa.array(column, type) for (name, type), column in found}

    def nested(self, kind: str, values: Any) -> Any:
        """One value for each text of a kind, as a column of n rows."""
        if kind == "web":
            return values
        ends = np.concatenate([[0], np.cumsum(self.lengths[kind])])
        return pa.ListArray.from_arrays(
            pa.array(ends, pa.int32()), values, type=pa.list_(values.type)
        )


def _list_lengths(column: Any) -> npt.NDArray[np.int64]:
    """(n,) how long the list of each row is, 0 for null and for what is no list."""
    if not pa.types.is_list(column.type):
        return np.zeros(len(column), np.int64)
    lengths: Any = pc.list_value_length(column).fill_null(0)
    found: npt.NDArray[np.int64] = lengths.to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def _floats(values: Any) -> npt.NDArray[np.float32]:
    """A column as float32, null as NaN."""
    cast = values.cast(pa.float32()).fill_null(np.nan)
    found: npt.NDArray[np.float32] = cast.to_numpy(zero_copy_only=False)
    return found


def _as_it_is(text: str) -> str:
    return text


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
