"""The stage filter: scores the texts of each image, and keeps those that match it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.text.pre_caption import pre_caption
from models.text.sentences import split_sentences
from models.weights import folder_of, pinned
from stages.base import Cutoff, Floats, Stage, floats
from stages.filter.config import FilterConfig, Unit
from stages.filter.memory import SCORED, Memory
from stages.filter.scores import SCORES, ModelScores, compare, measure, parts_of
from stages.filter.texts import KINDS, distinct, texts_of
from stages.filter.units import Units, best_of

__all__ = ["FilterStage", "with_kept_sentences"]

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
"""The notice on texts that were cut, after their number."""


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
            pa.field("scored", SCORED),
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
    - scored: every score of the image so far. An image has other texts when a threshold changes
      which copies it has; those that were scored before are looked up.
    """
    remembers = ("scored",)
    bulky = ("scored",)
    later = ("scored",)
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
        texts = texts_of(rows)
        sentences = self._sentences(texts)
        has_images = "image" in rows.column_names
        images = [image or b"" for image in rows["image"].to_pylist()] if has_images else []
        memory = Memory.of(rows)
        scored: dict[str, ModelScores] = {}
        for role, (model, prepare, kinds) in self._readers().items():
            asked = [
                distinct(
                    prepare(part)
                    for kind in kinds
                    for text in row[kind]
                    if text
                    for part in parts_of(text, sentences)
                )
                for row in texts
            ]
            new = memory.new(role, asked)
            chosen, some = list(new), list(new.values())
            if role == "clip" and "image_embedding" in rows.column_names:
                embedded = rows["image_embedding"].take(pa.array(chosen, pa.int64()))
                found = compare(model, embedded, some)
            else:
                found = model.score([images[n] for n in chosen], some, self.config.batch_size)
            for number, unknown, matches in zip(chosen, some, found, strict=True):
                for text, match in zip(unknown, matches, strict=bool(matches)):
                    memory.add(number, role, text, match._asdict())
            known = memory.known(role, asked)
            scored[role] = ModelScores(prepare=prepare, asked=asked, known=known)
        table = []
        for number, row in enumerate(texts):
            columns: dict[str, Any] = {}
            for kind, own in row.items():
                found_of = [measure(scored, number, text, sentences) for text in own]
                for name in (*SCORES, "sentences", "unread"):
                    if f"{name}_{kind}" in self.writes.names:
                        values = [measures.get(name) for measures in found_of]
                        columns[f"{name}_{kind}"] = values[0] if kind == "web" else values
            opened = any(scores.known[number] for scores in scored.values())
            was_asked = any(scores.asked[number] for scores in scored.values())
            columns |= {"itm_decoded": opened or not was_asked, "scored": memory.column[number]}
            table.append(columns)
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
        every = distinct(text for row in texts for own in row.values() for text in own)
        unread = [0] * len(every)
        for model, _, _ in self._readers().values():
            unread = [max(pair) for pair in zip(unread, model.unread(every), strict=True)]
        long = (text for text, tokens in zip(every, unread, strict=True) if tokens)
        found = {text: split_sentences(text) for text in long}
        return {text: parts for text, parts in found.items() if len(parts) > 1}

    def judge(self, annotations: pa.Table) -> pa.StringArray:
        """Reject the rows none of whose texts is kept."""
        units = Units(annotations)
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
        units = Units(annotations)
        keep = self._keeps(units)
        keeps = units.any(keep)
        columns: dict[str, Any] = {}
        for kind in KINDS:
            columns[f"keep_{kind}"] = units.nested(kind, pa.array(keeps[units.parts[kind]]))
            for name, values in units.left(kind, keep).items():
                columns[f"{name}_{kind}"] = units.nested(kind, values)
        return pa.table(columns)

    def _keeps(self, units: Units) -> npt.NDArray[np.bool_]:
        """The verdict on every unit, by the recipe. Scores are float32, and so are thresholds."""
        config = self.config
        keep = np.ones(len(units.texts), bool)
        if config.recipe == "blip":
            keep &= units.scores("itm") >= np.float32(config.min_itm)
        if config.min_clip is not None:
            keep &= units.scores("clip") >= np.float32(config.min_clip)
        if config.recipe == "blip2":
            keep &= best_of(units.rows, units.mean("clip", keep), 2)[units.texts]
        if config.recipe == "laion_coco":
            synthetic = np.zeros(len(units.rows), bool)
            synthetic[units.parts["synthetic"]] = True
            first = np.where(synthetic, units.mean("clip", keep), np.nan)
            five = best_of(units.rows, first, 5)
            second = np.where(five, units.mean("second_clip", keep), np.nan)
            keep &= best_of(units.rows, second, 1)[units.texts]
        return keep

    def count_cut(self, annotations: pa.Table) -> int:
        """How many texts of some annotated rows a model did not read to their end."""
        units = Units(annotations)
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


def _as_it_is(text: str) -> str:
    return text


def _highest(scores: Any) -> Floats:
    """The highest score of each row of a column of scores or of lists of them; NaN without one."""
    if not pa.types.is_list(scores.type):
        return floats(scores)
    lists = scores.combine_chunks()
    highest = np.full(len(lists), np.nan)
    np.fmax.at(highest, np.asarray(pc.list_parent_indices(lists)), floats(lists.flatten()))
    return highest
