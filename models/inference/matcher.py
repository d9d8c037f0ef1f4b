"""BLIP's filter (arXiv:2201.12086), at speed.

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
    """How an image and a text agree.

    Attributes:
        itm: The ITM head's probability that they match, in [0, 1]; BLIP's filter keeps a text
            from 0.5.
        itc: The cosine of their unimodal embeddings, in [-1, 1].
        unread: How many tokens at the end of the text were cut off and not read.
    """

    itm: float
    itc: float
    unread: int = 0


class Matcher(Blip):
    """Scores texts against images with a BlipForImageTextRetrieval.

    BLIP's multimodal encoder reads [ENC] in the place of [CLS], as its ITM head was trained; stock
    transformers leaves [CLS] there. ALBEF's reads [CLS].
    """

    architecture = BlipForImageTextRetrieval

    paper_max_text: ClassVar[int] = 35
    """Tokens of a text in BLIP's retrieval, [CLS] and [SEP] counted."""

    _bucket: ClassVar[int] = 8
    _texts_at_once: ClassVar[int] = 512

    def __init__(self, model: Any, tokenizer: Any, preprocess: Preprocess) -> None:
        super().__init__(model, tokenizer, preprocess)
        last = model.config.text_config.vocab_size - 1
        self.encode: int = tokenizer.get_vocab().get("[ENC]", last)
        self._positions: int = model.config.text_config.max_position_embeddings
        trained = int(getattr(model.config, "max_text_tokens", self.paper_max_text))
        self.max_text: int = min(trained, self._positions)
        """Tokens of a text that are read, [CLS] and [SEP] counted; the rest is cut.

        As many as the model was trained on, where its config says so, and BLIP's 35 otherwise.
        """

    def unread(self, texts: Sequence[str]) -> list[int]:
        """How many tokens at the end of each text are cut off."""
        return [max(0, len(ids) - self.max_text) for ids in self._tokenize(texts)]

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
            texts: Of each image, any number, as they are found: read as `pre_caption` prepares
                them, as in training, and cut to `max_text` tokens.
            batch_size: Images at a time, halved where they do not fit. Unset is 256 on CUDA and
                16 on a CPU.

        Returns:
            For each image the scores of its texts; none at all, an empty list, for an image that
            cannot be decoded.
        """
        check_one_each(images, texts, "list of texts")

        def judge(positions: list[int], squares: Tensor) -> list[list[Match]]:
            features = self.see(squares)
            known = ImageMemory(self.model.text_encoder, features)
            looks = self._embed(features)
            found = [[Match(0, 0)] * len(texts[position]) for position in positions]
            for grid in self._grids([texts[position] for position in positions]):
                logits, cosines = self._match(known, looks, grid)
                matched = logits.softmax(-1)[:, 1]
                for row, slot, *match in zip(
                    grid.rows,
                    grid.slots,
                    matched.tolist(),
                    cosines.tolist(),
                    grid.unread,
                    strict=True,
                ):
                    found[row][slot] = Match(*match)
            return found

        return [found or [] for found in self.batches.map(images, judge, batch_size)]

    def match(
        self,
        images: Sequence[bytes],
        texts: Sequence[Sequence[str]],
        batch_size: int | None = None,
    ) -> list[Tensor]:
        """For each image, the ITM logits (k, 2) of its k texts; see `score` and `Matches`.

        Raises:
            ImageError: An image cannot be decoded.
        """
        check_one_each(images, texts, "list of texts")

        def judge(positions: list[int], squares: Tensor) -> list[Tensor]:
            features = self.see(squares)
            known, looks = ImageMemory(self.model.text_encoder, features), self._embed(features)
            found = [torch.zeros(len(texts[position]), 2) for position in positions]
            for grid in self._grids([texts[position] for position in positions]):
                logits, _ = self._match(known, looks, grid)
                for row, slot, pair in zip(grid.rows, grid.slots, logits.cpu(), strict=True):
                    found[row][slot] = pair
            return found

        return self.batches.map_all(images, judge, batch_size)

    def embed_images(self, images: Sequence[bytes], batch_size: int | None = None) -> Tensor:
        """Unit embeddings (n, d) of images, as ITC compares them; see `Ranks`.

        Raises:
            ImageError: An image cannot be decoded.
        """

        def embed(positions: list[int], squares: Tensor) -> list[Tensor]:
            return list(self._embed(self.see(squares)))

        return torch.stack(self.batches.map_all(images, embed, batch_size))

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings (m, d) of texts, as ITC compares them; see `Ranks`."""
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
        """The texts of a batch of images, those of about one length together."""
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
                for place, index in enumerate(some):
                    padded[place, : len(tokens[index])] = torch.tensor(tokens[index])
                yield _Grid(
                    ids=padded.to(self.device),
                    lengths=torch.tensor([len(tokens[i]) for i in some], device=self.device),
                    rows=[places[i][0] for i in some],
                    slots=[places[i][1] for i in some],
                    unread=[len(whole[i]) - len(tokens[i]) for i in some],
                )

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, none cut off."""
        prepared = [pre_caption(text) for text in texts]
        found: list[list[int]] = self.tokenizer(prepared, verbose=False)["input_ids"]
        return found

    def _cut(self, ids: list[int]) -> list[int]:
        """The first tokens of a text and its [SEP]."""
        return ids if len(ids) <= self.max_text else [*ids[: self.max_text - 1], ids[-1]]

    def _match(self, images: ImageMemory, looks: Tensor, grid: _Grid) -> tuple[Tensor, Tensor]:
        """ITM logits (texts, 2) and ITC cosines (texts,) of one pass over both readings."""
        encoder = self.model.text_encoder
        fused = first_fused(encoder.config)
        alone, count = grid.ids, len(grid.ids)
        seeing = alone.clone()
        seeing[:, 0] = self.encode
        rows = torch.tensor(grid.rows, device=self.device)
        place = torch.tensor(_place_in_row(grid.rows), device=self.device)
        width = int(place.max()) + 1

        # The last `count` texts look at images; ALBEF reads both alike as far as both go.
        x = encoder.embeddings(input_ids=alone if fused else torch.cat([alone, seeing]))
        is_text = torch.arange(alone.shape[1], device=self.device) < grid.lengths[:, None]
        mask = is_text.repeat(len(x) // count, 1)[:, None, None]
        layers = encoder.encoder.layer
        words = x
        for index, layer in enumerate(layers):
            own = layer.attention
            heads = own.self.num_attention_heads
            key, value = split_heads(own.self.key(x), heads), split_heads(own.self.value(x), heads)
            if layer is layers[-1]:
                x = x[:, :1]  # all that the heads read
            query = split_heads(own.self.query(x), heads)
            x = own.output(attend(query, key, value, mask), x)
            if index < fused:
                x = words = layer.feed_forward_chunk(layer.crossattention.output.LayerNorm(x))
                continue
            queries = x.new_zeros(images.num_images, width, *x.shape[1:])
            queries[rows, place] = x[-count:]
            seen = images.attend(index, queries.flatten(0, 1))
            seen = seen.view(queries.shape)[rows, place]
            x = layer.feed_forward_chunk(torch.cat([x[:-count], seen]))
        words = (words if fused else x)[:count, 0]
        words = functional.normalize(self.model.text_proj(words).float(), dim=-1)
        logits: Tensor = self.model.itm_head(x[-count:, 0]).float()
        return logits, (looks[rows] * words).sum(-1)


class _Grid(NamedTuple):
    """Texts of about one length: ids (texts, t), and the row and place of each."""

    ids: Tensor
    lengths: Tensor
    rows: list[int]
    slots: list[int]
    unread: list[int]


def _place_in_row(rows: list[int]) -> list[int]:
    """For each text, how many earlier ones belong to the same image."""
    seen: defaultdict[int, int] = defaultdict(int)
    places = []
    for row in rows:
        places.append(seen[row])
        seen[row] += 1
    return places
