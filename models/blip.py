"""BLIP's captioner and filter (arXiv:2201.12086) over stock checkpoints, at speed.

    captioner = Captioner.from_pretrained("Salesforce/blip-image-captioning-base")
    captioner.caption([jpeg], seeds=[0])          # [["a dog running on the grass"]]
    matcher = Matcher.from_pretrained("Salesforce/blip-itm-base-coco")
    matcher.score([jpeg], [["a dog", "a cat"]])   # [[Match(itm=0.97, itc=0.41), Match(...)]]

The weights and their layers are those of transformers; the loops are not. An image is seen once,
and its keys and values for cross-attention are made once, whatever the number of captions drawn
from it or of texts matched with it.

Shapes: n images, k captions of an image or texts of an image, t tokens, P patches and one more,
D width, h heads, V vocabulary.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from transformers import BertTokenizer, BlipForConditionalGeneration, BlipForImageTextRetrieval

from models.images import ImageError, Preprocess
from models.weights import Dtype, device_of

__all__ = ["Captioner", "Decoding", "Match", "Matcher", "uniforms"]

logger = logging.getLogger(__name__)

Decoding = Literal["nucleus", "beam", "greedy"]
ResultT = TypeVar("ResultT")

NEVER = -1.0e9  # what transformers adds to the score of a beam that may not be chosen


class _Blip:
    """A stock BLIP model with its tokenizer and preprocessing, in evaluation mode on one device."""

    architecture: ClassVar[Any]

    def __init__(self, model: Any, tokenizer: Any, preprocess: Preprocess) -> None:
        """Wrap a model that is already loaded.

        Raises:
            ValueError: The preprocessing makes images of another size than the model sees.
        """
        side = model.config.vision_config.image_size
        if preprocess.size != side:
            raise ValueError(
                f"the image processor makes {preprocess.size} pixels a side, the model sees "
                f"{side}; save both from the same training"
            )
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.device: torch.device = model.device
        self._most = sys.maxsize  # images in a batch that are known to fit

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        revision: str | None = None,
        device: str = "auto",
        dtype: Dtype = "auto",
        threads: int | None = None,
    ) -> Self:
        """Load a model folder or a model of the hub; safetensors only, no code of the hub.

        Args:
            model: A folder of `save_pretrained`, or a name on the hub.
            revision: A branch, tag or commit of the hub.
            device: cpu, cuda, cuda:1, ...; auto takes CUDA where there is one.
            dtype: Of the weights; auto is bfloat16 on CUDA and float32 elsewhere.
            threads: Threads that decode images and, on a CPU, that compute; set for the whole
                process. Unset leaves torch's own number.

        Raises:
            ValueError: The checkpoint lacks weights of this architecture.
        """
        device = device_of(device)
        if dtype == "auto":
            dtype = "bfloat16" if device.startswith("cuda") else "float32"
        if threads is not None:
            torch.set_num_threads(threads)
        loaded, info = cls.architecture.from_pretrained(
            model,
            revision=revision,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            output_loading_info=True,
        )
        if info["missing_keys"]:
            raise ValueError(
                f"{model!r} is not a {cls.architecture.__name__}: it lacks "
                f"{len(info['missing_keys'])} weights, {min(info['missing_keys'])} among them"
            )
        return cls(
            loaded.to(device),
            BertTokenizer.from_pretrained(model, revision=revision or "main"),
            Preprocess.from_pretrained(
                model, revision, threads=threads or min(8, os.cpu_count() or 1)
            ),
        )

    def _each(
        self,
        images: Sequence[bytes],
        batch_size: int | None,
        run: Callable[[list[int], Tensor], list[ResultT]],
    ) -> list[ResultT | None]:
        """Run batches of images, the next one decoded while this one computes.

        `run` takes positions in `images` and their pixels, uint8 (n, size, size, 3). A batch
        that does not fit the device is halved, and so are the later ones.

        Returns:
            What `run` gave for each image, None for one that cannot be decoded.
        """
        if batch_size is None:
            batch_size = 128 if self.device.type == "cuda" else 16
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        results: list[ResultT | None] = [None] * len(images)
        found: list[ResultT] | None
        with torch.inference_mode():
            for positions, squares in self._decoded(images, batch_size):
                done = 0
                while done < len(positions):
                    size = min(self._most, len(positions) - done)
                    part = slice(done, done + size)
                    try:
                        pixels = torch.from_numpy(squares[part]).to(self.device)
                        found = run(positions[part], pixels)
                    except torch.OutOfMemoryError:
                        if size == 1:
                            raise
                        found = None
                    if found is None:  # after the except clause, which keeps tensors alive
                        self._most = size // 2
                        logger.warning("out of memory: batches of %d images from now", self._most)
                        torch.cuda.empty_cache()
                        continue
                    for position, result in zip(positions[part], found, strict=True):
                        results[position] = result
                    done += size
        return results

    def _decoded(
        self, images: Sequence[bytes], batch_size: int
    ) -> Iterator[tuple[list[int], npt.NDArray[np.uint8]]]:
        """Batches of (positions, pixels), a batch ahead; images that do not open are left out."""
        starts = range(0, len(images), batch_size)
        with ThreadPoolExecutor(self.preprocess.threads) as pool:

            def begin(start: int) -> list[Future[npt.NDArray[np.uint8] | None]]:
                return [pool.submit(self._square, i) for i in images[start : start + batch_size]]

            ahead = begin(0)
            for start in starts:
                batch, ahead = ahead, begin(start + batch_size)
                squares = [future.result() for future in batch]
                whole = [(start + i, s) for i, s in enumerate(squares) if s is not None]
                if whole:
                    yield [position for position, _ in whole], np.stack([s for _, s in whole])

    def _square(self, image: bytes) -> npt.NDArray[np.uint8] | None:
        try:
            return self.preprocess.square(image)
        except ImageError as error:
            logger.debug("an image does not open: %s", error)
            return None

    def _see(self, squares: Tensor) -> Tensor:
        """The vision transformer's features of uint8 (n, size, size, 3), as (n, P, D)."""
        vision = self.model.vision_model
        x = vision.embeddings(self.preprocess.normalize(squares))
        for layer in vision.encoder.layers:
            attention = layer.self_attn
            query, key, value = (
                attention.qkv(layer.layer_norm1(x))
                .unflatten(2, (3, attention.num_heads, attention.head_dim))
                .permute(2, 0, 3, 1, 4)
            )
            context = _attention(query, key, value)
            x = x + attention.projection(context.transpose(1, 2).flatten(2))
            x = x + layer.mlp(layer.layer_norm2(x))
        return vision.post_layernorm(x)  # type: ignore[no-any-return]


class _Images:
    """What the text layers need of n images: the keys and values of every cross-attention."""

    def __init__(self, layers: Any, features: Tensor) -> None:
        self.size = features.shape[0]
        self.keys_values = [
            (
                _heads(layer.crossattention.self, "key", features).contiguous(),
                _heads(layer.crossattention.self, "value", features).contiguous(),
            )
            for layer in layers
        ]

    def attend(self, index: int, layer: Any, x: Tensor) -> Tensor:
        """Cross-attention of layer `index` for (n * k, t, D), the k rows of an image together.

        The rows of an image are queries of one attention, so its keys are never repeated.
        """
        attention = layer.crossattention
        rows, length, width = x.shape
        query = _heads(attention.self, "query", x.reshape(self.size, -1, width))
        context = _attention(query, *self.keys_values[index])
        context = context.transpose(1, 2).reshape(rows, length, -1)
        return attention.output(context, x)  # type: ignore[no-any-return]


def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Attention of each head, (b, h, t, D / h); `mask` is true where a key may be read."""
    if query.device.type != "cpu" or query.dtype == torch.float32:
        return functional.scaled_dot_product_attention(query, key, value, mask, is_causal=causal)
    # In half precision a CPU's fused kernel takes up to ten times as long as its parts.
    scores: Tensor = query @ key.transpose(2, 3) * query.shape[3] ** -0.5
    if causal:
        mask = torch.ones(scores.shape[2:], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    context: Tensor = scores.softmax(-1) @ value
    return context


def _heads(attention: Any, name: str, x: Tensor) -> Tensor:
    """A projection of (b, t, D) split into heads, (b, h, t, D / h)."""
    split: Tensor = getattr(attention, name)(x).unflatten(2, (attention.num_attention_heads, -1))
    return split.transpose(1, 2)


def _self_attend(
    layer: Any, x: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool
) -> Tensor:
    attention = layer.attention
    query = _heads(attention.self, "query", x)
    context = _attention(query, key, value, mask, causal)
    return attention.output(context.transpose(1, 2).flatten(2), x)  # type: ignore[no-any-return]


def _feed_forward(layer: Any, x: Tensor) -> Tensor:
    return layer.output(layer.intermediate(x), x)  # type: ignore[no-any-return]


class _Decoder:
    """The text decoder over n images, k captions at a time for each, with its keys and values."""

    def __init__(self, model: Any, features: Tensor) -> None:
        self.bert = model.text_decoder.bert
        self.head = model.text_decoder.cls
        self.layers = self.bert.encoder.layer
        self.images = _Images(self.layers, features)
        self.cache: list[tuple[Tensor, Tensor]] = []

    def prompt(self, ids: Tensor, num_captions: int) -> Tensor:
        """Read a prompt (t,) once for each image; logits (n, k, V), float32, k alike."""
        logits = self._read(ids.expand(self.images.size, -1))
        self.cache = [
            (key.repeat_interleave(num_captions, 0), value.repeat_interleave(num_captions, 0))
            for key, value in self.cache
        ]
        return logits[:, None].expand(-1, num_captions, -1)

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token of each caption (n, k); logits (n, k, V), float32."""
        return self._read(tokens.reshape(-1, 1)).view(*tokens.shape, -1)

    def follow(self, beams: Tensor) -> None:
        """Let caption j of each image go on from caption beams[:, j], (n, k)."""
        first = torch.arange(len(beams), device=beams.device)[:, None] * beams.shape[1]
        rows = (first + beams).flatten()
        self.cache = [(key[rows], value[rows]) for key, value in self.cache]

    def _read(self, ids: Tensor) -> Tensor:
        """The logits (rows, V) after the last of the tokens (rows, t)."""
        past = self.cache[0][0].shape[2] if self.cache else 0
        x = self.bert.embeddings(input_ids=ids, past_key_values_length=past)
        cache: list[tuple[Tensor, Tensor]] = []
        for index, layer in enumerate(self.layers):
            attention = layer.attention.self
            key, value = _heads(attention, "key", x), _heads(attention, "value", x)
            if self.cache:
                old_key, old_value = self.cache[index]
                key, value = torch.cat([old_key, key], 2), torch.cat([old_value, value], 2)
            cache.append((key, value))
            x = _self_attend(layer, x, key, value, mask=None, causal=past == 0)
            x = self.images.attend(index, layer, x)
            x = _feed_forward(layer, x)
        self.cache = cache
        return self.head(x[:, -1]).float()  # type: ignore[no-any-return]


class Captioner(_Blip):
    """Writes captions of images with a BlipForConditionalGeneration."""

    architecture = BlipForConditionalGeneration

    def __init__(self, model: Any, tokenizer: Any, preprocess: Preprocess) -> None:
        super().__init__(model, tokenizer, preprocess)
        text = model.config.text_config
        self.begin = text.bos_token_id
        if self.begin is None or self.begin >= text.vocab_size:
            self.begin = tokenizer.get_vocab().get("[DEC]", text.vocab_size - 2)
        self.end = tokenizer.sep_token_id
        self.pad = tokenizer.pad_token_id

    def caption(
        self,
        images: Sequence[bytes],
        seeds: Sequence[int],
        *,
        decoding: Decoding = "nucleus",
        num_captions: int = 1,
        top_p: float = 0.9,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        num_beams: int = 3,
        prompt: str | None = "a picture of ",
        max_length: int = 20,
        min_length: int = 5,
        batch_size: int | None = None,
    ) -> list[list[str]]:
        """Write `num_captions` captions of each image.

        Nucleus sampling draws the number behind caption k's token t of an image from its seed,
        k and t alone, and takes the token of the nucleus, in the order of the vocabulary, where
        the cumulative probability passes that number. The batch and its order enter only by
        rounding: a token changes where that number is within a rounding error of the border
        between two tokens.

        Args:
            images: Encoded images.
            seeds: Of each image; 64 bits count.
            decoding: nucleus samples, beam gives the best of `num_beams`, greedy the likeliest
                token each time.
            num_captions: One for greedy, up to `num_beams` for beam.
            top_p: The mass of the nucleus; tokens tied with the least of it are in it.
            top_k: The tokens that may be in the nucleus; 0 is all, the paper's pure nucleus.
                (Code over transformers' `generate` that sets top_p alone has 50 here.)
            repetition_penalty: Divides the odds of what was said, prompt included. The paper is
                silent; its code has 1.1 with nucleus and 1.0 with beam.
            num_beams: Of beam search, as transformers does it with length_penalty 1.
            prompt: What every caption goes on from, left out of the result.
            max_length: Of tokens, [DEC] and the prompt counted.
            min_length: Of tokens, [DEC] and the prompt counted, before [SEP] is allowed.
            batch_size: Images at a time, halved where they do not fit. Unset is 128 on CUDA and
                16 on a CPU.

        Returns:
            For each image its captions, best first for beam; no caption at all, an empty list,
            for an image that cannot be decoded.

        Raises:
            ValueError: An argument is impossible.
        """
        if len(seeds) != len(images):
            raise ValueError(f"one seed for each image, got {len(seeds)} for {len(images)}")
        most = {"nucleus": sys.maxsize, "beam": num_beams, "greedy": 1}[decoding]
        if not 1 <= num_captions <= most:
            raise ValueError(
                f"num_captions must be from 1 to {most} with {decoding} decoding, got "
                f"{num_captions}; nucleus decoding gives any number"
            )
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")
        if top_k < 0 or repetition_penalty <= 0:
            raise ValueError(
                f"top_k must be at least 0 and repetition_penalty above 0, got {top_k} and "
                f"{repetition_penalty}"
            )
        words = self.tokenizer(prompt or "", add_special_tokens=False)["input_ids"]
        begun = torch.tensor([self.begin, *words], device=self.device)
        longest = self.model.config.text_config.max_position_embeddings
        if not len(begun) < max_length <= longest:
            raise ValueError(
                f"max_length counts the {len(begun)} tokens of [DEC] and the prompt and must be "
                f"from {len(begun) + 1} to {longest}, got {max_length}"
            )

        def run(positions: list[int], squares: Tensor) -> list[list[str]]:
            decoder = _Decoder(self.model, self._see(squares))
            rules = _Rules(self.end, min_length, repetition_penalty)
            if decoding == "beam":
                ids = self._beam(decoder, rules, begun, num_beams, max_length)[:, :num_captions]
            elif decoding == "greedy":
                ids = self._draw(decoder, rules, begun, 1, max_length, _likeliest)
            else:
                chances = uniforms(
                    [seeds[position] for position in positions],
                    num_captions,
                    max_length - len(begun),
                )
                drawn = iter(torch.from_numpy(chances).to(self.device).unbind(2))

                def choose(logits: Tensor) -> Tensor:
                    return _from_nucleus(logits, next(drawn), top_p, top_k)

                ids = self._draw(decoder, rules, begun, num_captions, max_length, choose)
            return [[self._text(row) for row in rows] for rows in ids[:, :, len(begun) :].tolist()]

        return [captions or [] for captions in self._each(images, batch_size, run)]

    def _draw(
        self,
        decoder: _Decoder,
        rules: _Rules,
        begun: Tensor,
        num_captions: int,
        max_length: int,
        choose: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Captions (n, k, t), token by token; `choose` takes logits (n, k, V), gives (n, k)."""
        logits = decoder.prompt(begun, num_captions)
        ids = begun.expand(*logits.shape[:2], -1)
        ended = torch.zeros(logits.shape[:2], dtype=torch.bool, device=self.device)
        while True:
            tokens = choose(rules(logits, ids)).masked_fill(ended, self.pad)
            ids = torch.cat([ids, tokens[:, :, None]], 2)
            ended = ended | (tokens == self.end)
            if ids.shape[2] == max_length or bool(ended.all()):
                return ids
            logits = decoder.step(tokens)

    def _beam(
        self, decoder: _Decoder, rules: _Rules, begun: Tensor, num_beams: int, max_length: int
    ) -> Tensor:
        """Captions (n, k, t), best first, found as transformers' `generate` finds them.

        Each image keeps k running beams and its k best finished captions, scored by the mean
        log-probability of their tokens; an image is done when its best running beam could not
        beat its worst finished caption, even if the search goes on for others of the batch.
        """
        logits = decoder.prompt(begun, num_beams)
        size, _, vocabulary = logits.shape
        first, written = len(begun), len(begun)
        running = torch.full((size, num_beams, max_length), self.pad, device=self.device)
        running[:, :, :first] = begun
        scores = torch.zeros(size, num_beams, device=self.device)
        scores[:, 1:] = NEVER  # the beams begin alike: only the first may branch
        finished, finished_scores = running.clone(), torch.full_like(scores, NEVER)
        is_finished = torch.zeros_like(scores, dtype=torch.bool)
        may_improve = torch.ones(size, 1, dtype=torch.bool, device=self.device)
        leading = torch.arange(2 * num_beams, device=self.device) < num_beams
        while True:
            chances = rules(functional.log_softmax(logits, -1), running[:, :, :written])
            total = (chances + scores[:, :, None]).flatten(1)
            best, where = total.topk(2 * num_beams)
            beams = where.div(vocabulary, rounding_mode="floor")
            longer = _pick(running, beams)
            longer[:, :, written] = where % vocabulary
            written += 1
            ends = (longer[:, :, written - 1] == self.end) | (written == max_length)

            ended = ends & leading
            mean = best / (written - first) + (~may_improve + 0.0) * NEVER + (~ended + 0.0) * NEVER
            finished_scores, chosen = torch.cat([finished_scores, mean], 1).topk(num_beams)
            finished = _pick(torch.cat([finished, longer], 1), chosen)
            is_finished = torch.cat([is_finished, ended], 1).gather(1, chosen)

            scores, chosen = (best + ends * NEVER).topk(num_beams)
            running, beams = _pick(longer, chosen), beams.gather(1, chosen)
            worst = finished_scores.min(1, keepdim=True).values.where(is_finished, NEVER)
            promising = scores[:, :1] / (written - first) > worst
            may_improve = may_improve & promising.any(1, keepdim=True)
            if written == max_length or not bool(may_improve.any()):
                return finished
            decoder.follow(beams)
            logits = decoder.step(running[:, :, written - 1])

    def _text(self, ids: list[int]) -> str:
        """The text of generated tokens: up to [SEP], BLIP's own tokens left out."""
        if self.end in ids:
            ids = ids[: ids.index(self.end)]
        vocabulary = len(self.tokenizer)
        ids = [i for i in ids if i < vocabulary and i != self.begin]
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text.removeprefix("##").strip()


class _Rules:
    """What logits must obey whatever the decoding: no early end, no repetition unpunished."""

    def __init__(self, end: int, min_length: int, repetition_penalty: float) -> None:
        self.end = end
        self.min_length = min_length
        self.repetition_penalty = repetition_penalty

    def __call__(self, logits: Tensor, ids: Tensor) -> Tensor:
        """New logits (n, k, V) after tokens (n, k, t)."""
        logits = logits.clone()
        if self.repetition_penalty != 1:
            said = logits.gather(2, ids)
            penalty = self.repetition_penalty
            logits.scatter_(2, ids, torch.where(said < 0, said * penalty, said / penalty))
        if ids.shape[2] < self.min_length:
            logits[:, :, self.end] = -torch.inf
        return logits


def _likeliest(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


def _pick(captions: Tensor, beams: Tensor) -> Tensor:
    """Captions (n, k, t) by their position (n, j), as (n, j, t)."""
    return captions.gather(1, beams[:, :, None].expand(-1, -1, captions.shape[2]))


def _from_nucleus(logits: Tensor, chances: Tensor, top_p: float, top_k: int) -> Tensor:
    """One token (n, k) of each row of logits (n, k, V), by chances (n, k) in [0, 1)."""
    probabilities = logits.softmax(-1)
    if 0 < top_k < logits.shape[-1]:
        least = probabilities.topk(top_k).values[..., -1:]
        probabilities = probabilities.where(probabilities >= least, 0)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    if top_p < 1:
        ascending = _sorted(probabilities)
        mass = ascending.double().cumsum(-1)
        edge = torch.searchsorted(mass, mass[..., -1:] - top_p, right=True)
        least = ascending.gather(-1, edge)
        probabilities = probabilities.where(probabilities >= least, 0)
    mass = probabilities.double().cumsum(-1)
    aim = chances[..., None] * mass[..., -1:]
    return torch.searchsorted(mass, aim, right=True).squeeze(-1)


def _sorted(values: Tensor) -> Tensor:
    """Ascending along the last axis; on a CPU by numpy, which is thirty times as fast."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), -1))
    return values.sort(-1).values


def uniforms(seeds: Sequence[int], num_captions: int, num_steps: int) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1), (n, k, t), each a function of its own (seed, k, t) alone.

    A chain of splitmix64's finaliser over the three counters.
    """
    state = _mixed(np.array([seed % 2**64 for seed in seeds], np.uint64)[:, None, None])
    state = _mixed(state ^ np.arange(num_captions, dtype=np.uint64)[:, None])
    state = _mixed(state ^ np.arange(num_steps, dtype=np.uint64))
    # 52 bits, so that rounding never takes the largest number times a mass up to that mass.
    return (state >> np.uint64(12)).astype(np.float64) * 2.0**-52


def _mixed(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        state = state + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


class Match(NamedTuple):
    """How an image and a text agree.

    Attributes:
        itm: The ITM head's probability that they match, in [0, 1]; BLIP's filter keeps a text
            from 0.5.
        itc: The cosine of their unimodal embeddings, in [-1, 1].
    """

    itm: float
    itc: float


class Matcher(_Blip):
    """Scores texts against images with a BlipForImageTextRetrieval.

    The multimodal encoder reads [ENC] in the place of [CLS], as its ITM head was trained; stock
    transformers leaves [CLS] there.
    """

    architecture = BlipForImageTextRetrieval

    max_text: ClassVar[int] = 35
    """Tokens of a text, [CLS] and [SEP] counted, as in BLIP's retrieval; the rest is cut."""

    _bucket: ClassVar[int] = 8
    _texts_at_once: ClassVar[int] = 512

    def __init__(self, model: Any, tokenizer: Any, preprocess: Preprocess) -> None:
        super().__init__(model, tokenizer, preprocess)
        last = model.config.text_config.vocab_size - 1
        self.encode: int = tokenizer.get_vocab().get("[ENC]", last)

    def score(
        self,
        images: Sequence[bytes],
        texts: Sequence[Sequence[str]],
        batch_size: int | None = None,
    ) -> list[list[Match]]:
        """Score every text against its image.

        A score depends on its image and text alone, the batch and the image's other texts
        entering only by rounding (below 1e-5 in float32).

        Args:
            images: Encoded images.
            texts: Of each image, any number, cut to `max_text` tokens.
            batch_size: Images at a time, halved where they do not fit. Unset is 128 on CUDA and
                16 on a CPU.

        Returns:
            For each image the scores of its texts; none at all, an empty list, for an image that
            cannot be decoded.
        """
        if len(texts) != len(images):
            raise ValueError(f"the texts of each image, got {len(texts)} for {len(images)}")

        def run(positions: list[int], squares: Tensor) -> list[list[Match]]:
            features = self._see(squares)
            known = _Images(self.model.text_encoder.encoder.layer, features)
            looks = functional.normalize(self.model.vision_proj(features[:, 0]).float(), dim=-1)
            found = [[Match(0, 0)] * len(texts[position]) for position in positions]
            for grid in self._grids([texts[position] for position in positions]):
                matched, cosines = self._match(known, looks, grid)
                for row, slot, itm, itc in zip(
                    grid.rows, grid.slots, matched.tolist(), cosines.tolist(), strict=True
                ):
                    found[row][slot] = Match(itm, itc)
            return found

        scores = self._each(images, batch_size, run)
        return [found or [] for found in scores]

    def _grids(self, texts: list[Sequence[str]]) -> Iterator[_Grid]:
        """The texts of a batch of images, those of about one length together."""
        places = [(row, slot) for row, some in enumerate(texts) for slot in range(len(some))]
        if not places:
            return
        tokens: list[list[int]] = self.tokenizer(
            [texts[row][slot] for row, slot in places], truncation=True, max_length=self.max_text
        )["input_ids"]
        buckets: defaultdict[int, list[int]] = defaultdict(list)
        for index, ids in enumerate(tokens):
            buckets[-(-len(ids) // self._bucket) * self._bucket].append(index)
        for length, indices in sorted(buckets.items()):
            for start in range(0, len(indices), self._texts_at_once):
                some = indices[start : start + self._texts_at_once]
                padded = torch.full((len(some), length), self.tokenizer.pad_token_id)
                for place, index in enumerate(some):
                    padded[place, : len(tokens[index])] = torch.tensor(tokens[index])
                yield _Grid(
                    ids=padded.to(self.device),
                    lengths=torch.tensor([len(tokens[i]) for i in some], device=self.device),
                    rows=[places[i][0] for i in some],
                    slots=[places[i][1] for i in some],
                )

    def _match(self, images: _Images, looks: Tensor, grid: _Grid) -> tuple[Tensor, Tensor]:
        """ITM probabilities and ITC cosines, each (texts,), of one pass over both readings."""
        encoder = self.model.text_encoder
        alone, count = grid.ids, len(grid.ids)
        seeing = alone.clone()
        seeing[:, 0] = self.encode
        rows = torch.tensor(grid.rows, device=self.device)
        place = torch.tensor(_place_in_row(grid.rows), device=self.device)
        width = int(place.max()) + 1

        x = encoder.embeddings(input_ids=torch.cat([alone, seeing]))
        is_text = torch.arange(alone.shape[1], device=self.device) < grid.lengths[:, None]
        mask = is_text.repeat(2, 1)[:, None, None]
        for index, layer in enumerate(encoder.encoder.layer):
            attention = layer.attention.self
            key, value = _heads(attention, "key", x), _heads(attention, "value", x)
            x = _self_attend(layer, x, key, value, mask, causal=False)
            queries = x.new_zeros(images.size, width, *x.shape[1:])
            queries[rows, place] = x[count:]
            seen = images.attend(index, layer, queries.flatten(0, 1))
            seen = seen.view(images.size, width, *x.shape[1:])[rows, place]
            x = _feed_forward(layer, torch.cat([x[:count], seen]))
        words = functional.normalize(self.model.text_proj(x[:count, 0]).float(), dim=-1)
        matched = self.model.itm_head(x[count:, 0]).float().softmax(-1)[:, 1]
        return matched, (looks[rows] * words).sum(-1)


class _Grid(NamedTuple):
    """Texts of about one length: ids (texts, t), and where each belongs."""

    ids: Tensor
    lengths: Tensor
    rows: list[int]
    slots: list[int]


def _place_in_row(rows: list[int]) -> list[int]:
    """For each text, how many earlier ones belong to the same image."""
    seen: defaultdict[int, int] = defaultdict(int)
    places = []
    for row in rows:
        places.append(seen[row])
        seen[row] += 1
    return places
