"""Caption: a captioner writes synthetic captions of every live image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.errors import StageUnavailableError
from models.random import seed_of
from models.text.captions import INVISIBLE
from models.text.repetition import repeats_at_end
from models.weights import folder_of
from stages.base import Stage
from stages.caption_config import ALT_TEXT, CaptionConfig, Prompt
from stages.schema import web_captions

if TYPE_CHECKING:
    from models.inference.decoding import Caption, ChatCaptioner
    from models.text.captions import LanguageDetector

__all__ = ["CaptionConfig", "CaptionStage"]

WRITES: dict[str, pa.DataType] = {
    "synthetic": pa.list_(pa.string()),
    "synthetic_names": pa.list_(pa.string()),
    "synthetic_fused": pa.list_(pa.bool_()),
    "synthetic_words": pa.list_(pa.int32()),
    "synthetic_repeated": pa.list_(pa.float32()),
    "synthetic_truncated": pa.list_(pa.bool_()),
    "caption_failures": pa.list_(
        pa.struct([("name", pa.string()), ("error", pa.string()), ("message", pa.string())])
    ),
}
"""The captions, in the order of the prompts. For each of them: the name of its prompt, null if it
has none; whether its prompt has the web caption in it; the number of its words, 0 if it is empty;
the share of its words that occurred before, 0.67 for "dai dai dai"; and whether it was cut off at
the maximum length. `caption_failures` lists the captions that could not be had: the name of the
prompt, one of the stage's reasons, and details."""

MAX_ALT_TEXT = 1000
"""Maximum characters of a web caption in a prompt."""

MAX_MESSAGE = 300
"""Characters that are kept of a caption that repeats itself."""

BRACKETS = str.maketrans("<>[]", "()()")


def _own_captioner(model: str, revision: str | None) -> Any:
    """The class that runs a captioner of an architecture that transformers does not have."""
    from models.inference.trained import Describes, architecture_in
    from models.objectives.registry import reader_of

    try:
        found = reader_of(architecture_in(model, revision))
    except ValueError:
        return None
    return found if issubclass(found, Describes) else None


class CaptionStage(Stage[CaptionConfig]):
    """Writes `num_captions` synthetic captions of each image for each prompt.

    The random numbers of a caption are hash(seed, uid, number of the caption, number of the token),
    independent of batch, shard and worker. A server gets hash(seed, uid, number of the caption) as
    its seed. Captions are not judged here, except those that repeat themselves without end: an
    image with poor captions may have a good web caption, and the filter judges each text by itself.
    """

    name = "caption"
    version = 3
    config_type = CaptionConfig
    reads = ("image",)
    writes = pa.schema(WRITES)
    reasons: ClassVar[Mapping[str, str]] = {
        "undecodable": "The image cannot be decoded, so it has no captions.",
        "no_alt_text": "Every prompt has {alt_text} in it, and the row has no web caption.",
        "refused": "The server refuses the request, because of its size or content.",
        "timeout": "The server did not answer within `timeout` seconds, in `tries` tries.",
        "server_error": "The server fails on this request only: status 500 or above, or a broken "
        "connection, in `tries` tries.",
        "bad_answer": "The answer of the server is not a caption, in `tries` tries.",
        "repetitive": "Every caption repeats the same words without end.",
    }
    help = "write synthetic captions with BLIP or a vision-language model"
    examples = (
        "capfilt caption manifest.yaml --set caption.num_captions=2",
        "capfilt caption manifest.yaml --set caption.server=http://127.0.0.1:8000/v1",
    )
    paper = "BLIP (arXiv:2201.12086), BLIP-2 (arXiv:2301.12597), MiniGPT-4 (arXiv:2304.10592)"
    loader = "BlipForConditionalGeneration, any AutoModelForImageTextToText, vLLM, or a server"
    histograms = ()

    _captioner: Any = None
    _is_chat = False
    _detector: LanguageDetector | None = None

    def load(self) -> None:
        """Load the captioner, or check that the servers answer.

        Raises:
            ValueError: The settings do not fit the model.
            StageUnavailableError: A server does not answer, or vLLM is not installed.
        """
        config = self.config
        if config.clean_up:
            from models.text.captions import LanguageDetector

            self._detector = LanguageDetector(("en",))
        if config.server is not None:
            self._captioner, self._is_chat = self._served(), True
        elif config.engine == "vllm":
            self._captioner, self._is_chat = self._in_vllm(), True
        else:
            self._captioner, self._is_chat = self._loaded()

    def _served(self) -> ChatCaptioner:
        from models.inference.server import ServedCaptioner

        config = self.config
        try:
            revision = config.served()
        except FileNotFoundError as error:
            raise StageUnavailableError(str(error)) from None
        captioner = ServedCaptioner(
            config.servers,
            config.model,
            revision=revision,
            key_env=config.api_key_env,
            concurrency=config.concurrency,
            timeout=config.timeout,
            tries=config.tries,
            image_size=config.image_size,
            threads=config.cpus,
        )
        prompt = config.asked(is_chat=True)[0].text.replace(ALT_TEXT, "")
        captioner.check(config.settings_of_decoding(), prompt)
        return captioner

    def _in_vllm(self) -> ChatCaptioner:
        config = self.config
        try:
            from models.inference.vllm import VllmCaptioner
        except ImportError as error:
            raise StageUnavailableError(
                f"caption.engine: vllm cannot be imported where the worker runs ({error}). Install "
                'it there with `pip install "capfilt[vllm]"`, or serve the model anywhere and set '
                "caption.server"
            ) from None
        placement = config.placement()
        return VllmCaptioner.from_pretrained(
            folder_of(config.model),
            revision=placement["revision"],
            dtype=config.dtype,
            image_size=config.image_size,
            threads=config.cpus,
        )

    def _loaded(self) -> tuple[Any, bool]:
        """Load a captioner by transformers or our own loop; tell whether it is a chat model."""
        config = self.config
        model, engine = folder_of(config.model), config.engine
        if engine == "auto":
            from models.inference.vlm import architecture_of

            own = _own_captioner(model, config.placement()["revision"])
            if own is not None:
                self._refuse_chat_fields("is no chat model")
                return own.from_pretrained(model, **config.placement()), False
            is_blip = architecture_of(model, config.placement()["revision"]) == "blip"
            engine = "blip" if is_blip else "transformers"
        if engine == "transformers":
            from models.inference.vlm import GenericCaptioner

            captioner = GenericCaptioner.from_pretrained(model, **config.placement())
            if not captioner.is_chat:
                self._refuse_chat_fields("has no chat template")
            return captioner, captioner.is_chat
        self._refuse_chat_fields("is a BLIP")
        if config.continue_up_to:
            raise ValueError(
                f"caption.continue_up_to needs engine: transformers, {config.model!r} is a BLIP; "
                f"leave it unset"
            )
        from models.inference.captioner import Captioner

        return Captioner.from_pretrained(model, **config.placement()), False

    def _refuse_chat_fields(self, what: str) -> None:
        """Refuse settings that only chat models have."""
        config = self.config
        if config.max_tokens is not None:
            raise ValueError(
                f"caption.max_tokens is for chat models, and {config.model!r} {what}; set "
                "max_length"
            )
        if any(prompt.is_fused for prompt in config.asked(is_chat=False)):
            raise ValueError(
                f"caption.prompt: {ALT_TEXT} is for chat models, and {config.model!r} {what}"
            )

    def annotate(self, rows: pa.Table) -> pa.Table:
        """Write captions of rows; see `Stage.annotate`."""
        if self._captioner is None:
            self.load()
        written: list[_Written] = [_Written() for _ in range(rows.num_rows)]
        for questions in self._questions(rows):
            captions = self._write(questions)
            for question, some in zip(questions, captions, strict=True):
                self._take(written[question.row], question.prompt, some)
        columns = [one.columns() for one in written]
        return pa.Table.from_pylist(columns, schema=self.writes)

    def _questions(self, rows: pa.Table) -> list[list[_Question]]:
        """Put the prompts to rows: in one group for a chat model, else in one group per prompt."""
        prompts = self.config.asked(self._is_chat)
        images = [image or b"" for image in rows["image"].to_pylist()]
        uids = [str(uid) for uid in rows["uid"].to_pylist()]
        is_fused = any(prompt.is_fused for prompt in prompts)
        alt_texts = web_captions(rows).to_pylist() if is_fused else [None] * len(images)
        found: list[list[_Question]] = [[] for _ in prompts]
        for row, (image, uid, alt_text) in enumerate(zip(images, uids, alt_texts, strict=True)):
            for number, prompt in enumerate(prompts):
                name = () if prompt.name is None else (prompt.name,)
                text = _filled(prompt, alt_text)
                seed = seed_of(self.config.seed, uid, *name, bits=64)
                found[number].append(_Question(row, prompt, text, image, seed))
        if not self._is_chat:
            return found
        return [[question for some in zip(*found, strict=True) for question in some]]

    def _write(self, questions: Sequence[_Question]) -> list[list[Caption] | None]:
        """Write the captions of each question; None if the row lacks the web caption."""
        config = self.config
        asked = [question for question in questions if question.text is not None]
        images, seeds = [one.image for one in asked], [one.seed for one in asked]
        settings, size = config.settings_of_decoding(), config.batch_size
        more = {"continue_from": config.continue_up_to} if config.continue_up_to else {}
        prompts = [one.text for one in asked]
        prompt: Any = prompts if self._is_chat else (prompts[0] if prompts else "")
        captions = iter(
            self._captioner.caption(images, seeds, settings, prompt=prompt, batch_size=size, **more)
        )
        return [None if one.text is None else next(captions) for one in questions]

    def _take(self, row: _Written, prompt: Prompt, captions: list[Caption] | None) -> None:
        """Add the captions of a question, or its failures, to the row."""
        if captions is None:
            row.fail(prompt, "no_alt_text")
            return
        if not captions and not any(f["error"] == "undecodable" for f in row.failures):
            row.fail(Prompt(None, ""), "undecodable")
        for caption in captions:
            if caption.error is not None:
                row.fail(prompt, caption.error, caption.message)
            elif self._is_chat and repeats_at_end(caption.text):
                row.fail(prompt, "repetitive", caption.text[:MAX_MESSAGE])
            else:
                row.add(prompt, self._cleaned(caption.text), caption.truncated)

    def _cleaned(self, text: str) -> str:
        detector = self._detector
        if detector is None:
            return text
        from models.text.paragraphs import clean_paragraph

        return clean_paragraph(text, lambda sentence: detector(sentence)[1] >= 0.5)

    def judge(self, annotations: pa.Table) -> pa.StringArray:
        """Reject rows without any caption, for the reason of their first failure."""
        count = pc.list_value_length(annotations["synthetic"]).fill_null(0).to_numpy()
        reasons = np.full(len(annotations), None, object)
        for row in np.flatnonzero(count == 0):
            failures = annotations["caption_failures"][int(row)].as_py() or []
            errors = [failure["error"] for failure in failures]
            reasons[row] = next(
                (e for e in errors if e != "no_alt_text"), (*errors, "undecodable")[0]
            )
        return pa.array(reasons, pa.string())


class _Question(NamedTuple):
    """A prompt put to a row; `text` is None if the row lacks the web caption for it."""

    row: int
    prompt: Prompt
    text: str | None
    image: bytes
    seed: int


@dataclass
class _Written:
    """The captions and failures of a row."""

    captions: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)

    def add(self, prompt: Prompt, text: str, truncated: bool) -> None:
        words = text.split()
        self.captions.append(
            {
                "synthetic": text,
                "synthetic_names": prompt.name,
                "synthetic_fused": prompt.is_fused,
                "synthetic_words": len(words),
                "synthetic_repeated": _repeated(words),
                "synthetic_truncated": truncated,
            }
        )

    def fail(self, prompt: Prompt, error: str, message: str = "") -> None:
        self.failures.append({"name": prompt.name, "error": error, "message": message})

    def columns(self) -> dict[str, Any]:
        names = [name for name in WRITES if name != "caption_failures"]
        found: dict[str, Any] = {name: [one[name] for one in self.captions] for name in names}
        return {**found, "caption_failures": self.failures}


def _filled(prompt: Prompt, alt_text: str | None) -> str | None:
    """Put the web caption into a prompt; None if there is no web caption.

    Angle and square brackets of the web caption become round, as they may have a meaning in the
    chat template of a model.
    """
    if not prompt.is_fused:
        return prompt.text
    text = " ".join(INVISIBLE.sub("", alt_text or "").translate(BRACKETS).split())
    return prompt.text.replace(ALT_TEXT, text[:MAX_ALT_TEXT]) if text else None


def _repeated(words: list[str]) -> float:
    return 1 - len(set(words)) / len(words) if words else 0.0
