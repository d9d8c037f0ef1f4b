"""The settings of the stage caption: which captioner to ask, and what."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from models.weights import folder_of, has_chat_template
from stages.base import ModelConfig, Resources, StageConfig
from stages.redaction import redacted

if TYPE_CHECKING:
    from models.inference.decoding import Settings

__all__ = ["ALT_TEXT", "CaptionConfig", "Prompt"]

NUCLEI: dict[str, tuple[int, float]] = {"paper": (0, 1.0), "repository": (50, 1.1)}
"""top_k and repetition penalty of BLIP's paper and of its released code."""

PLAIN_PROMPT = "a picture of "
"""The default prompt of models that go on from it, such as BLIP."""

CHAT_PROMPT = (
    "Describe this image in one or two sentences. Say only what can be seen, and do not begin "
    "with 'The image' or 'This image'."
)
"""The default prompt of chat models."""

CHAT_TOKENS = 256
"""The default of `max_tokens`."""

ALT_TEXT = "{alt_text}"
FIELD = re.compile(r"\{\w+\}")
NOT_SERVER = ("device", "dtype", "revision", "batch_size")
"""Fields that only a model in the workers has."""

NOT_CHAT = ("max_length", "min_length", "num_beams", "continue_up_to")
"""Fields that servers and vLLM do not have."""

ONLY_SERVER = ("concurrency", "timeout", "tries", "api_key_env")
"""Fields that only servers have."""


class Prompt(NamedTuple):
    """A prompt for each image.

    Attributes:
        name: The name in `prompts`; None for `prompt`.
        text: The text, which may have `{alt_text}` for the web caption.
    """

    name: str | None
    text: str

    @property
    def is_fused(self) -> bool:
        """Whether the web caption is part of it."""
        return ALT_TEXT in self.text


@dataclass(frozen=True, kw_only=True)
class CaptionConfig(ModelConfig):
    """How captions are written (CapFilt, arXiv:2201.12086, section 3.3 and 4.4).

    The paper draws one caption per image by nucleus sampling with p = 0.9. It gives no lengths for
    CapFilt; the defaults are those of its released demo. Chat models are asked by their chat
    template; other models continue a prompt.

    Attributes:
        model: A folder written by `save_pretrained`, or a model name on the hub; by default the
            released BLIP, fine-tuned on COCO. Captioners that the objectives of `train` have made
            serve, too. With `server`, the name of the model on the server.
        server: URL of a server with OpenAI's API, including its prefix (http://127.0.0.1:8000/v1),
            or a list of URLs that share the rows. vLLM, SGLang, TGI, llama.cpp and
            `transformers serve` are such servers. Null runs the model in the workers.
        engine: How the workers run the model: blip is a fast loop for BLIP; transformers runs any
            AutoModelForImageTextToText (BLIP-2, LLaVA, Qwen-VL, ...) by `generate`; vllm runs a
            chat model in vLLM, with one GPU per worker (`pip install "capfilt[vllm]"`); auto is
            blip for a BLIP and transformers for any other model.
        prompt: The question to a chat model, or the beginning of the caption for any other model,
            which is left out of the result. Null asks a chat model for one or two sentences, and
            is "a picture of " for others; "" is no prompt. In the prompt of a chat model
            `{alt_text}` is replaced by the web caption: such captions are marked `fused`, and rows
            without a web caption get none.
        prompts: Several prompts by name, instead of `prompt`: {short: ..., dense: ...}. Each gives
            `num_captions` captions with its name.
        num_captions: Captions per prompt; 1 for greedy, at most `num_beams` for beam.
        decoding: nucleus, beam or greedy; servers and vLLM have no beam search.
        temperature: Divides the logits before a token is sampled; 1 in the paper.
        top_p: Probability mass of the nucleus.
        nucleus: paper samples by top_p alone (top_k 0, no repetition penalty); repository samples
            as the released code does, which adds transformers' default top_k of 50 and a
            repetition penalty of 1.1.
        top_k: Maximum tokens in the nucleus, 0 for all; null follows `nucleus`.
        repetition_penalty: Penalty for repeated tokens, 1 for none; null follows `nucleus`, and is
            1 for beam and greedy.
        num_beams: Beams of beam search.
        max_tokens: Maximum tokens of a caption by a chat model; null is 256.
        max_length: Maximum tokens of a caption by any other model, including the prompt and BLIP's
            [DEC].
        min_length: Minimum tokens, counted in the same way.
        continue_up_to: Captions by engine transformers with at most this many tokens are continued
            once, as in MiniGPT-4 (arXiv:2304.10592), which has 80; 0 continues none.
        clean_up: Whether to clean captions after the rules of MiniGPT-4's second stage, which
            removes repeated, unfinished and non-English sentences.
        image_size: For servers and vLLM: larger images are resized to this longer side, in pixels,
            before they are sent.
        concurrency: For servers: maximum requests in flight per worker, over all servers.
        timeout: For servers: seconds from sending a request to the end of its answer.
        tries: For servers: how often to send a request that fails. A server that is busy (status
            429 or 503) or cannot be reached is waited for instead, up to ten minutes.
        api_key_env: For servers: the environment variable of the workers with the API key, if the
            server needs one. The key is written to no file.
        seed: Seed of the sampling.
    """

    stage = "caption"
    places = ("model", "revision", "server")

    model: str = "Salesforce/blip-image-captioning-base"
    server: str | tuple[str, ...] | None = None
    engine: Literal["auto", "blip", "transformers", "vllm"] = "auto"
    prompt: str | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    num_captions: int = 1
    decoding: Literal["nucleus", "beam", "greedy"] = "nucleus"
    temperature: float = 1.0
    top_p: float = 0.9
    nucleus: Literal["paper", "repository"] = "paper"
    top_k: int | None = None
    repetition_penalty: float | None = None
    num_beams: int = 3
    max_tokens: int | None = None
    max_length: int = 20
    min_length: int = 5
    continue_up_to: int = 0
    clean_up: bool = False
    image_size: int = 1024
    concurrency: int = 64
    timeout: float = 300.0
    tries: int = 3
    api_key_env: str = "OPENAI_API_KEY"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_captions", "num_beams", "max_length", "concurrency", "tries"):
            if getattr(self, name) < 1:
                raise ValueError(f"caption.{name} must be at least 1, got {getattr(self, name)}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"caption.max_tokens must be at least 1, got {self.max_tokens}")
        most = {"greedy": 1, "beam": self.num_beams}.get(self.decoding, self.num_captions)
        if self.num_captions > most:
            raise ValueError(
                f"caption.num_captions must be at most {most} with {self.decoding} decoding, got "
                f"{self.num_captions}; use decoding: nucleus"
            )
        for name in ("temperature", "timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"caption.{name} must be above 0, got {getattr(self, name)}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"caption.top_p must be above 0 and at most 1, got {self.top_p}")
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(f"caption.top_k must be at least 0 (all tokens), got {self.top_k}")
        if self.repetition_penalty is not None and self.repetition_penalty <= 0:
            raise ValueError(
                f"caption.repetition_penalty must be above 0 (1 is none), got "
                f"{self.repetition_penalty}"
            )
        if not 0 <= self.min_length <= self.max_length:
            raise ValueError(
                f"caption.min_length must be from 0 to max_length ({self.max_length}), got "
                f"{self.min_length}"
            )
        if not 16 <= self.image_size <= 16_384:
            raise ValueError(
                f"caption.image_size must be from 16 to 16384 pixels, got {self.image_size}"
            )
        if self.continue_up_to < 0:
            raise ValueError(
                f"caption.continue_up_to must be at least 0 (none is continued), got "
                f"{self.continue_up_to}"
            )
        if self.continue_up_to and self.engine == "blip":
            raise ValueError(
                "caption.continue_up_to needs engine: transformers, BLIP writes one sentence; "
                "leave it unset"
            )
        self._check_prompts()
        self._check_engine()

    def _check_prompts(self) -> None:
        if self.prompts and self.prompt is not None:
            raise ValueError("caption.prompt and caption.prompts are both set; give one of them")
        for name, text in self.prompts.items():
            if not name.isidentifier() or len(name) > 40:
                raise ValueError(
                    f"caption.prompts: a name is up to 40 letters, digits and _, got {name!r}"
                )
            if not text.strip():
                raise ValueError(f"caption.prompts.{name} is empty; say what is asked")
        for prompt in (*self.prompts.values(), self.prompt or ""):
            unknown = set(FIELD.findall(prompt)) - {ALT_TEXT}
            if unknown:
                raise ValueError(
                    f"caption.prompt: {min(unknown)} stands for nothing; {ALT_TEXT} stands for the "
                    "web caption"
                )

    def _check_engine(self) -> None:
        if self.server is not None and self.engine != "auto":
            raise ValueError(
                "caption.engine is for a model that runs in the workers; leave it unset beside "
                "caption.server"
            )
        for server in self.servers:
            try:
                parts = urlsplit(server)
                is_url = parts.scheme in ("http", "https") and bool(parts.hostname)
            except ValueError:
                is_url = False
            if not is_url:
                raise ValueError(
                    f"caption.server must be a URL such as http://127.0.0.1:8000/v1, got "
                    f"{redacted(server)!r}"
                )
            if redacted(server) != server:
                raise ValueError(
                    f"caption.server: {redacted(server)} holds a secret, which every file of the "
                    "run would show; put it into the variable that caption.api_key_env names"
                )
        if self.server is not None and not self.servers:
            raise ValueError("caption.server names no URL")
        asks = self.server is not None or self.engine == "vllm"
        wrong: list[tuple[tuple[str, ...], str]] = []
        if self.server is not None:
            wrong.append((NOT_SERVER, "is for a model that runs in the workers, not for a server"))
        else:
            wrong.append((ONLY_SERVER, "is for caption.server, which is not set"))
        if asks:
            wrong.append((NOT_CHAT, "is not for chat models; set max_tokens"))
        elif self.engine == "blip":
            wrong.append((("max_tokens",), "is for chat models; BLIP goes by max_length"))
        if not asks:
            wrong.append((("image_size",), "is for caption.server and engine: vllm"))
        defaults = {one.name: one.default for one in dataclasses.fields(self)}
        for names, why in wrong:
            for name in names:
                if getattr(self, name) != defaults[name]:
                    raise ValueError(f"caption.{name} {why}")
        if asks and self.decoding == "beam":
            raise ValueError("caption.decoding: beam is for a model in transformers; use greedy")

    @property
    def is_remote(self) -> bool:
        """Whether a server writes the captions."""
        return self.server is not None

    @property
    def servers(self) -> tuple[str, ...]:
        """The URLs of the servers, without a final slash; empty without a server."""
        given = (self.server,) if isinstance(self.server, str) else self.server or ()
        return tuple(url.strip().rstrip("/") for url in given if url.strip())

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns of the web caption, if a prompt has it in it."""
        is_fused = any(prompt.is_fused for prompt in self.asked(is_chat=True))
        return ("caption", "text") if is_fused else ()

    @property
    def resources(self) -> Resources:
        """Only cores for a server, a GPU for vLLM unless on the CPU, otherwise as for any model."""
        if self.server is not None:
            return Resources(cpus=self.cpus)
        if self.engine == "vllm":
            return Resources(cpus=self.cpus, gpus=0.0 if self.device == "cpu" else 1.0)
        return super().resources

    def models(self) -> dict[str, tuple[str, str | None]]:
        """Return the model that a worker loads; none for a server."""
        return {} if self.server is not None else super().models()

    def asked(self, is_chat: bool) -> list[Prompt]:
        """Return the prompts, or the default prompt if none is set."""
        if self.prompts:
            return [Prompt(name, text) for name, text in self.prompts.items()]
        default = CHAT_PROMPT if is_chat else PLAIN_PROMPT
        return [Prompt(None, default if self.prompt is None else self.prompt)]

    def sampling(self) -> tuple[int, float]:
        """Return top_k and the repetition penalty; `nucleus` decides those that are null."""
        named = NUCLEI[self.nucleus] if self.decoding == "nucleus" else NUCLEI["paper"]
        given = self.top_k, self.repetition_penalty
        return (
            named[0] if given[0] is None else given[0],
            named[1] if given[1] is None else given[1],
        )

    def measurement(self) -> dict[str, Any]:
        """Return the fields that change a caption; see `ModelConfig.measurement`.

        The numbers of the sampling are in it instead of `nucleus`. For a server, what it says of
        its model takes the place of the weights; its URL and the fields of requests are left out.

        Raises:
            FileNotFoundError: A server cannot be reached, or has no such model.
        """
        top_k, repetition_penalty = self.sampling()
        numbers = {"top_k": top_k, "repetition_penalty": repetition_penalty}
        asks = self.server is not None or self.engine == "vllm"
        left_out = {"nucleus", "server", *ONLY_SERVER}
        left_out |= set(NOT_CHAT) if asks else {"image_size"}
        if self.server is None:
            fields = super().measurement()
        else:
            fields = StageConfig.measurement(self)
            left_out |= {"model", "cpus", "engine", *NOT_SERVER}
            fields["weights"] = self.served()
        fields = {name: value for name, value in fields.items() if name not in left_out}
        return {**fields, **numbers, "max_tokens": self.max_tokens or CHAT_TOKENS}

    def served(self) -> str:
        """Return what the servers say of the model; see `served_revision`.

        Raises:
            FileNotFoundError: A server cannot be reached, or has no such model.
        """
        from models.errors import StageUnavailableError
        from models.inference.server import served_revision

        try:
            return served_revision(self.servers, self.model, self.api_key_env)
        except StageUnavailableError as error:
            raise FileNotFoundError(f"caption.server: {error}") from None

    def settings_of_decoding(self) -> Settings:
        """Return the settings for the captioner."""
        from models.inference.decoding import Settings

        top_k, repetition_penalty = self.sampling()
        return Settings(
            decoding=self.decoding,
            num_captions=self.num_captions,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
            num_beams=self.num_beams,
            max_length=self.max_length,
            min_length=self.min_length,
            max_tokens=self.max_tokens or CHAT_TOKENS,
        )

    def explain(self) -> list[str]:
        """Say which model is asked, the prompts, and how long captions may be."""
        is_chat: bool | None = True
        if self.server is not None:
            each = f"{self.concurrency} requests at once a worker, {self.timeout:g} s each"
            lines = [f"asks {self.model} at {', '.join(self.servers)}: {each}"]
        else:
            try:
                is_chat = has_chat_template(folder_of(self.model), self.revision)
            except (OSError, ValueError):  # a model that is not here yet
                is_chat = None
            is_chat = True if self.engine == "vllm" else is_chat
            lines = [f"runs {self.model} in the workers"]
        if is_chat is None:
            lines.append("the prompt depends on the model, which is not here yet")
        number = f"{self.num_captions} caption{'s' * (self.num_captions > 1)}"
        for prompt in self.asked(is_chat=bool(is_chat)) if is_chat is not None else ():
            verb = "asks" if is_chat else "goes on from"
            name = f"{prompt.name}: " if prompt.name else ""
            fused = ", fused with the web caption" * prompt.is_fused
            lines.append(f"{name}{verb} {prompt.text!r} for {number}{fused}")
        most = f"{self.max_length} tokens with the prompt"
        if is_chat:
            most = f"{self.max_tokens or CHAT_TOKENS} tokens"
        how = {
            "nucleus": f"nucleus p={self.top_p:g}, temperature {self.temperature:g}",
            "beam": f"{self.num_beams} beams",
            "greedy": "greedy",
        }[self.decoding]
        return [*lines, f"{how}, at most {most}"]
