"""A fast implementation of BLIP's filter (arXiv:2201.12086).

    matcher = Matcher.from_pretrained("Salesforce/blip-itm-base-coco")
    matcher.score([jpeg], [["a dog", "a cat"]])   # [[Match(itm=0.97, itc=0.41), Match(...)]]

Shapes: n images, t tokens, D width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import BlipForImageTextRetrieval

from models.attention import attend, encode_texts, first_fused, split_heads
from models.image.decode import Preprocess
from models.inference.batch_runner import check_one_each
from models.inference.blip import Blip, ImageMemory
from models.text.pre_caption import pre_caption

__all__ = ["Match", "Matcher"]


class Match(NamedTuple):
    """The scores of an image and a text.

    Attributes:
        itm: The ITM head's probability that they match, in [0, 1]; BLIP's filter keeps texts of at
            least 0.5.
        itc: The cosine of their unimodal embeddings, in [-1, 1].
        unread: The number of tokens at the end of the text that were cut off.
    """

    itm: float
    itc: float
    unread: int = 0


class Matcher(Blip):
    """Scores texts against images with a BlipForImageTextRetrieval.

    BLIP's multimodal encoder reads [ENC] instead of [CLS], as in the training of its ITM head;
    stock transformers keeps [CLS]. ALBEF's encoder reads [CLS].
    """

    architecture = BlipForImageTextRetrieval

    paper_max_text: ClassVar[int] = 35
    """The most tokens of a text in BLIP's retrieval, including [CLS] and [SEP]."""

    _bucket: ClassVar[int] = 8
    _texts_at_once: ClassVar[int] = 512

    def __init__(self, model: Any, tokenizer: Any, preprocess: Preprocess) -> None:
        super().__init__(model, tokenizer, preprocess)
        last = model.config.text_config.vocab_size - 1
        self.encode: int = tokenizer.get_vocab().get("[ENC]", last)
        self._positions: int = model.config.text_config.max_position_embeddings
        trained = int(getattr(model.config, "max_text_tokens", self.paper_max_text))
        self.max_text: int = min(trained, self._positions)
        """The most tokens of a text that are read, including [CLS] and [SEP]; the rest is cut.

        It is the number in the model's config, from its training, or BLIP's 35.
        """

    def unread(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens at the end of each text that are cut off."""
        return [max(0, len(ids) - self.max_text) for ids in self._tokenize(texts)]

    def score(
        self,
        images: Sequence[bytes],
        texts: Sequence[Sequence[str]],
        batch_size: int | None = None,
    ) -> list[list[Match]]:
        """Score every text against its image.

        A score depends only on its image and text; the batch and other texts matter only through
        rounding (below 1e-5 in float32).

        Args:
            images: Encoded images.
            texts: Any number of raw texts for each image. `pre_caption` prepares them, as in
                training, and each is cut to `max_text` tokens.
            batch_size: Images at a time, halved if they do not fit. By default 256 on CUDA and 16
                on a CPU.

        Returns:
            The scores of the texts of each image; an empty list for an image that cannot be
            decoded.
        """
        check_one_each(images, texts, "list of texts")

        def judge(positions: list[int], squares: Tensor) -> list[list[Match]]:
            features = self.see(squares)
            memory = ImageMemory(self.model.text_encoder, features)
            embedded = self._embed(features)
            matches = [[Match(0, 0)] * len(texts[position]) for position in positions]
            for grid in self._grids([texts[position] for position in positions]):
                logits, cosines = self._match(memory, embedded, grid)
                matched = logits.softmax(-1)[:, 1]
                for row, slot, *match in zip(
                    grid.rows,
                    grid.slots,
                    matched.tolist(),
                    cosines.tolist(),
                    grid.unread,
                    strict=True,
                ):
                    matches[row][slot] = Match(*match)
            return matches

        return [matches or [] for matches in self.batches.map(images, judge, batch_size)]

    def match(
        self,
        images: Sequence[bytes],
        texts: Sequence[Sequence[str]],
        batch_size: int | None = None,
    ) -> list[Tensor]:
        """The ITM logits (k, 2) of the k texts of each image; see `score` and `Matches`.

        Raises:
            ImageError: An image cannot be decoded.
        """
        check_one_each(images, texts, "list of texts")

        def judge(positions: list[int], squares: Tensor) -> list[Tensor]:
            features = self.see(squares)
            memory, embedded = ImageMemory(self.model.text_encoder, features), self._embed(features)
            logits_of = [torch.zeros(len(texts[position]), 2) for position in positions]
            for grid in self._grids([texts[position] for position in positions]):
                logits, _ = self._match(memory, embedded, grid)
                for row, slot, pair in zip(grid.rows, grid.slots, logits.cpu(), strict=True):
                    logits_of[row][slot] = pair
            return logits_of

        return self.batches.map_all(images, judge, batch_size)

    def embed_images(self, images: Sequence[bytes], batch_size: int | None = None) -> Tensor:
        """Unit embeddings (n, d) of images for ITC; see `Ranks`.

        Raises:
            ImageError: An image cannot be decoded.
        """

        def embed(positions: list[int], squares: Tensor) -> list[Tensor]:
            return list(self._embed(self.see(squares)))

        return torch.stack(self.batches.map_all(images, embed, batch_size))

    def embed_each(
        self, images: Sequence[bytes], batch_size: int | None = None
    ) -> list[Tensor | None]:
        """See `EmbedsImages.embed_each`; the embeddings are those for ITC."""

        def embed(positions: list[int], squares: Tensor) -> list[Tensor]:
            return list(self._embed(self.see(squares)).cpu())

        return self.batches.map(images, embed, batch_size)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings (m, d) of texts for ITC; see `Ranks`."""
        width = self.model.config.image_text_hidden_size
        embedded = torch.empty(len(texts), width, device=self.device)
        for grid in self._grids([texts]):
            mask = torch.arange(grid.ids.shape[1], device=self.device) < grid.lengths[:, None]
            read = encode_texts(self.model.text_encoder, grid.ids, mask, first_only=True)
            words = self.model.text_proj(read[:, 0]).float()
            embedded[grid.slots] = functional.normalize(words, dim=-1)
        return embedded

    def _embed(self, features: Tensor) -> Tensor:
        """Unit embeddings (n, d) of the features (n, P, D) of images."""
        return functional.normalize(self.model.vision_proj(features[:, 0]).float(), dim=-1)

    def _grids(self, texts: list[Sequence[str]]) -> Iterator[_Grid]:
        """Group the texts of a batch of images by similar length."""
        places = [(row, slot) for row, some in enumerate(texts) for slot in range(len(some))]
        if not places:
            return
        whole = self._tokenize([texts[row][slot] for row, slot in places])
        tokens = [self._cut(ids) for ids in whole]
        buckets: defaultdict[int, list[int]] = defaultdict(list)
        for index, ids in enumerate(tokens):
            length = -(-len(ids) // self._bucket) * self._bucket
            buckets[min(length, self._positions)].append(index)
        for length, indices in sorted(buckets.items()):
            for start in range(0, len(indices), self._texts_at_once):
                some = indices[start : start + self._texts_at_once]
                padded = torch.full((len(some), length), self.tokenizer.pad_token_id)
                for line, index in enumerate(some):
                    padded[line, : len(tokens[index])] = torch.tensor(tokens[index])
                yield _Grid(
                    ids=padded.to(self.device),
                    lengths=torch.tensor([len(tokens[i]) for i in some], device=self.device),
                    rows=[places[i][0] for i in some],
                    slots=[places[i][1] for i in some],
                    unread=[len(whole[i]) - len(tokens[i]) for i in some],
                )

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """All tokens of each text."""
        prepared = [pre_caption(text) for text in texts]
        ids: list[list[int]] = self.tokenizer(prepared, verbose=False)["input_ids"]
        return ids

    def _cut(self, ids: list[int]) -> list[int]:
        """The first tokens of a text, and its [SEP]."""
        return ids if len(ids) <= self.max_text else [*ids[: self.max_text - 1], ids[-1]]

    def _match(self, images: ImageMemory, embedded: Tensor, grid: _Grid) -> tuple[Tensor, Tensor]:
        """ITM logits (texts, 2) and ITC cosines (texts,), from one pass with and without images."""
        encoder = self.model.text_encoder
        fused = first_fused(encoder.config)
        ids, count = grid.ids, len(grid.ids)
        fused_ids = ids.clone()
        fused_ids[:, 0] = self.encode
        rows = torch.tensor(grid.rows, device=self.device)
        column = torch.tensor(_position_in_row(grid.rows), device=self.device)
        width = int(column.max()) + 1

        # The last `count` rows attend to images. ALBEF's first layers are the same for both.
        x = encoder.embeddings(input_ids=ids if fused else torch.cat([ids, fused_ids]))
        is_text = torch.arange(ids.shape[1], device=self.device) < grid.lengths[:, None]
        mask = is_text.repeat(len(x) // count, 1)[:, None, None]
        layers = encoder.encoder.layer
        words = x
        for index, layer in enumerate(layers):
            own = layer.attention
            heads = own.self.num_attention_heads
            key, value = split_heads(own.self.key(x), heads), split_heads(own.self.value(x), heads)
            if layer is layers[-1]:
                x = x[:, :1]  # the heads read only the first token
            query = split_heads(own.self.query(x), heads)
            x = own.output(attend(query, key, value, mask), x)
            if index < fused:
                x = words = layer.feed_forward_chunk(layer.crossattention.output.LayerNorm(x))
                continue
            queries = x.new_zeros(images.num_images, width, *x.shape[1:])
            queries[rows, column] = x[-count:]
            seen = images.attend(index, queries.flatten(0, 1))
            seen = seen.view(queries.shape)[rows, column]
            x = layer.feed_forward_chunk(torch.cat([x[:-count], seen]))
        words = (words if fused else x)[:count, 0]
        words = functional.normalize(self.model.text_proj(words).float(), dim=-1)
        logits: Tensor = self.model.itm_head(x[-count:, 0]).float()
        return logits, (embedded[rows] * words).sum(-1)


class _Grid(NamedTuple):
    """Texts of similar length: ids (texts, t), and the image (row) and slot of each text."""

    ids: Tensor
    lengths: Tensor
    rows: list[int]
    slots: list[int]
    unread: list[int]


def _position_in_row(rows: list[int]) -> list[int]:
    """For each text, the number of earlier texts of the same image."""
    seen: defaultdict[int, int] = defaultdict(int)
    places = []
    for row in rows:
        places.append(seen[row])
        seen[row] += 1
    return places
