"""BLIP-2's first stage (Li et al., arXiv 2301.12597): a Q-Former on a frozen image encoder.

The modules are those of stock `Blip2ForImageTextRetrieval`. Language modelling needs a head that
this class lacks: it is saved beside it, in itg.safetensors.

Shapes: n images, q queries, L tokens of a text, P patches, D width.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BertForMaskedLM,
    Blip2Config,
    Blip2ForImageTextRetrieval,
)
from transformers.utils.hub import cached_file

from models.image.decode import Preprocess
from models.objectives.base import Objective, Step
from models.objectives.batch import Batch
from models.objectives.distributed import (
    balance,
    gather,
    gather_texts,
    gather_with_gradient,
)
from models.objectives.frozen import Encoder, freeze, load_image_encoder
from models.objectives.itc import contrast_loss, hard_negatives
from models.objectives.lm import lm_labels, lm_loss
from models.objectives.masking import IGNORED, MaskedHead
from models.objectives.model_folder import load_tokenizer
from models.objectives.sizes import BLIP_SIZES, Size
from models.text.pre_caption import pre_caption

__all__ = ["QFormer", "generation_mask", "qformer_config"]

HEAD = "itg.safetensors"
"""The file of the head of language modelling."""


def qformer_config(size: Size, vocabulary: int, pad: int, width: int) -> dict[str, Any]:
    """The Q-Former at a size, for an image encoder of a width."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": size.text_width,
        "num_hidden_layers": size.text_layers,
        "num_attention_heads": size.text_heads,
        "intermediate_size": 4 * size.text_width,
        "hidden_dropout_prob": size.dropout,
        "attention_probs_dropout_prob": size.dropout,
        "max_position_embeddings": size.positions,
        "initializer_range": size.spread,
        "pad_token_id": pad,
        "encoder_hidden_size": width,
        "use_qformer_text_input": True,
    }


def additive(may_look: Tensor) -> Tensor:
    """Float (n, 1, L, L) to add to attention scores, of bool (n, L, L): 0 or the least number.

    A bool mask of four axes is read wrongly by transformers' eager attention.
    """
    least = torch.finfo(torch.float32).min
    return torch.zeros(may_look.shape, device=may_look.device).masked_fill(~may_look, least)[
        :, None
    ]


def generation_mask(n: int, queries: int, length: int, device: torch.device) -> Tensor:
    """The multimodal causal mask (n, 1, q + L, q + L) of BLIP-2, additive.

    Queries see queries alone; a token sees all queries, itself and the tokens before it.
    """
    whole = queries + length
    may_look = torch.ones(whole, whole, dtype=torch.bool, device=device).tril()
    may_look[:queries, :queries] = True
    return additive(may_look.expand(n, -1, -1))


class QFormer(Objective):
    """A `Blip2ForImageTextRetrieval` with the losses of BLIP-2's first stage.

    Args:
        model: The stock model; its image encoder is frozen but for the last layer norm.
        tokenizer: BERT's, with [DEC].
        temperature: Temperature of contrast, trained; saved as `itc_temperature` in config.json.

    Attributes:
        head: Head of language modelling; its output weights are the word embeddings.
        label_smoothing: Label smoothing of contrast and language modelling.
    """

    def __init__(self, model: Any, tokenizer: Any, temperature: float = 0.07) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.label_smoothing = 0.1
        text = model.config.qformer_config
        self.head = MaskedHead(text.hidden_size, text.vocab_size, text.initializer_range)
        self.temperature = nn.Parameter(torch.tensor(temperature))
        self.begin: int = tokenizer.bos_token_id
        self.end: int = tokenizer.sep_token_id
        self.pad: int = tokenizer.pad_token_id
        self.max_text: int = getattr(model.config, "max_text_tokens", text.max_position_embeddings)
        self.longest: int = text.max_position_embeddings
        self.preprocess = Preprocess(size=model.config.vision_config.image_size)
        freeze(model.vision_model)
        model.vision_model.post_layernorm.requires_grad_(True)

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        revision: str | None = None,
        *,
        tokenizer: str | None = None,
        image_size: int | None = None,
        vision: str | None = None,
        bert: str | None = None,
        queries: int = 32,
        skip_layers: int = 1,
    ) -> Self:
        """Build from a size, a folder of `write`, or a released BLIP-2 of this class.

        Args:
            model: A name in `BLIP_SIZES`, a folder, or a name on the Hugging Face hub. A released
                model has no head of language modelling; a new one starts at random.
            revision: Revision of a name on the hub.
            tokenizer: A folder or name; required for a size.
            image_size: Side in pixels, that of the image encoder.
            vision: The model of the image encoder; required for a size.
            bert: A BERT of the size, which the Q-Former starts from; random weights otherwise.
            queries: Image tokens, for a size.
            skip_layers: Layers at the end of the image encoder of a BLIP that are left out.

        Raises:
            ValueError: The settings do not fit the model; the message names the field.
        """
        name = os.fspath(model)
        if name in BLIP_SIZES:
            if vision is None:
                raise ValueError(
                    "train.vision: a Q-Former looks through a trained image encoder; name a BLIP "
                    "or BLIP-2"
                )
            reader = _with_dec(load_tokenizer(tokenizer, name))
            encoder = load_image_encoder(vision)
            made = _made(BLIP_SIZES[name], reader, encoder, queries, skip_layers)
            built = cls(made, reader)
            _copy_bert(built, bert)
        else:
            loaded: Any = Blip2ForImageTextRetrieval.from_pretrained(
                name, revision=revision or "main", dtype=torch.float32, use_safetensors=True
            )
            reader = AutoTokenizer.from_pretrained(
                tokenizer or name, revision=None if tokenizer else revision, trust_remote_code=False
            )
            temperature = float(getattr(loaded.config, "itc_temperature", 0.07))
            built = cls(loaded, _with_dec(reader), temperature)
            head = cached_file(
                name, HEAD, revision=revision, _raise_exceptions_for_missing_entries=False
            )
            if head is not None:
                built.head.load_state_dict(load_file(head))
        side = built.model.config.vision_config.image_size
        if image_size not in (None, side):
            raise ValueError(
                f"train.image_size must be {side}, that of the frozen image encoder, got "
                f"{image_size}"
            )
        if len(reader) != (words := built.model.config.qformer_config.vocab_size):
            raise ValueError(
                f"train.tokenizer has {len(reader)} tokens and {name} has {words}: leave the "
                f"tokenizer to the model"
            )
        return built

    @property
    def queries(self) -> int:
        """The number of queries."""
        return int(self.model.config.num_query_tokens)

    @property
    def logit_scale(self) -> Tensor:
        """Logarithm of the factor on the cosines."""
        return -self.temperature.detach().log()

    def train(self, mode: bool = True) -> Self:
        """Set the mode; the frozen image encoder stays in evaluation mode."""
        super().train(mode)
        self.model.vision_model.eval()
        return self

    def prepare(self, caption: str) -> str:
        """The caption as BLIP's code prepares it."""
        return pre_caption(caption)

    def remember(self, pixels: Tensor) -> Tensor:
        """Patch features (n, P, width) of the frozen encoder, behind the trained layer norm."""
        vision = self.model.vision_model
        with torch.no_grad():
            x = vision.encoder(inputs_embeds=vision.embeddings(pixels)).last_hidden_state
        features: Tensor = vision.post_layernorm(x)
        return features

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Unit embeddings (n, q, d), one of each query."""
        return self._embed_queries(self.remember(pixels))

    def _embed_queries(self, features: Tensor) -> Tensor:
        seen = self._read(features)
        return F.normalize(self.model.vision_projection(seen).float(), dim=-1)

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """Unit embeddings (n, d) of texts that are read alone, at [CLS]."""
        read = self.model.qformer(
            query_embeds=self.model.embeddings(input_ids=tokens),
            query_length=0,
            attention_mask=(tokens != self.pad).long(),
        ).last_hidden_state
        return F.normalize(self.model.text_projection(read[:, 0]).float(), dim=-1)

    def _read(
        self, features: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Hidden states (n, q + L, D) of queries and the texts behind them, beside the patches."""
        query = self.model.query_tokens.expand(len(features), -1, -1)
        if tokens is not None:
            query = self.model.embeddings(input_ids=tokens, query_embeds=query)
        hidden: Tensor = self.model.qformer(
            query_embeds=query,
            query_length=self.queries,
            attention_mask=mask,
            encoder_hidden_states=features,
        ).last_hidden_state
        return hidden

    def match(self, tokens: Tensor, memory: Tensor) -> Tensor:
        """ITM logits (n, 2), column 1 = matched: queries and text all see each other."""
        is_there = F.pad((tokens != self.pad).long(), (self.queries, 0), value=1)
        hidden = self._read(memory, tokens, is_there)[:, : self.queries]
        return self.model.itm_head(hidden).float().mean(1)  # type: ignore[no-any-return]

    def next_logits(self, memory: Tensor, tokens: Tensor) -> Tensor:
        """Logits (n, V), float32, of the token after texts (n, L) that begin with [DEC]."""
        return self._logits(self._generate(memory, tokens)[:, -1]).float()

    def _generate(self, memory: Tensor, tokens: Tensor) -> Tensor:
        """Hidden states (n, L, D) of texts under the multimodal causal mask."""
        mask = generation_mask(len(tokens), self.queries, tokens.shape[1], tokens.device)
        return self._read(memory, tokens, mask)[:, self.queries :]

    def _logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.head(hidden, self.model.embeddings.word_embeddings.weight)
        return logits

    def logged(self) -> dict[str, float]:
        """The temperature of contrast."""
        return {"temperature": self.temperature.item()}

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        """The losses `itc`, `itm` and `itg`, in equal parts.

        Args:
            batch: n pairs on the device of the model.
            step: Where the training is.
        """
        features = self.remember(batch.pixels)
        ids = gather(batch.image_ids)
        itc, image_to_text, text_to_image = self._itc(batch, ids, features)
        similarity = (image_to_text.detach(), text_to_image.detach())
        return {
            "itc": itc,
            "itm": self._itm(batch, ids, features, similarity, step),
            "itg": self._itg(batch, features),
        }

    def _itc(self, batch: Batch, ids: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Contrast with the pairs of all ranks, and both similarities (n, m)."""
        images, texts = self._embed_queries(features), self.embed_texts(batch.texts)
        with torch.autocast(images.device.type, enabled=False):
            all_images, all_texts = gather_with_gradient(images), gather_with_gradient(texts)
            by_image = (images @ all_texts.T).amax(1) / self.temperature
            by_text = torch.einsum("nd,mqd->nmq", texts, all_images).amax(2) / self.temperature
            same = (batch.image_ids[:, None] == ids).float()
            targets = same / same.sum(1, keepdim=True) * (1 - self.label_smoothing)
            targets = targets + self.label_smoothing / len(ids)
            loss = (contrast_loss(by_image, targets) + contrast_loss(by_text, targets)) / 2
        return loss, by_image, by_text

    def _itm(
        self,
        batch: Batch,
        ids: Tensor,
        features: Tensor,
        similarity: tuple[Tensor, Tensor],
        step: Step,
    ) -> Tensor:
        """Matching of each pair, of its text with a wrong image and its image with a wrong text."""
        chances = batch.chances((2,), step.generator)
        texts = gather_texts(batch.texts, self.pad)
        wrong_texts, wrong_images = (
            hard_negatives(similarity[i], batch.image_ids, ids, chances[:, i]) for i in (0, 1)
        )
        has_image, has_text = wrong_images >= 0, wrong_texts >= 0
        own = F.pad(batch.texts, (0, texts.shape[1] - batch.texts.shape[1]), value=self.pad)
        asked = torch.cat([own, own[has_image], texts[wrong_texts[has_text]]])
        seen = gather_with_gradient(features)[wrong_images[has_image]]
        logits = self.match(asked, torch.cat([features, seen, features[has_text]]))
        labels = (torch.arange(len(asked), device=asked.device) < len(own)).long()
        return F.cross_entropy(logits, labels) * balance(len(labels), labels.device)

    def _itg(self, batch: Batch, features: Tensor) -> Tensor:
        """Language modelling of the texts behind [DEC], beside all queries."""
        tokens = batch.texts.clone()
        tokens[:, 0] = self.begin
        labels = lm_labels(tokens, self.pad)
        asked = labels != IGNORED
        hidden = self._generate(features, tokens[:, :-1])[asked]
        loss = lm_loss(self._logits(hidden), labels[asked], self.label_smoothing)
        return loss * balance(int(asked.sum()), tokens.device)

    def usage(self, max_text_tokens: int) -> str:
        """Markdown for the model card: what stock transformers does with the folder."""
        return (
            "Training read each text as `pre_caption` of capfilt prepares it: in lower case, "
            '`.!"()*#:;~` and runs of whitespace as one space, cut to '
            f"{max_text_tokens} tokens. Stock `Blip2ForImageTextRetrieval` gives contrast and, "
            "with `use_image_text_matching_head=True`, matching; feed it the tokens without image "
            f"placeholders. The head of language modelling is in {HEAD}, which capfilt reads; "
            "`objective: generate` goes on from this folder."
        )

    def write(self, folder: Path) -> None:
        """Write the stock model, the head beside it, the tokenizer and the preprocessing."""
        self.model.config.max_text_tokens = self.max_text
        self.model.config.itc_temperature = round(self.temperature.item(), 6)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.preprocess.save(folder)
        head = {name: value.detach().cpu() for name, value in self.head.state_dict().items()}
        save_file(head, folder / HEAD, metadata={"format": "pt"})


def _with_dec(tokenizer: Any) -> Any:
    """A BERT tokenizer with [DEC], which begins a text that is written."""
    if tokenizer.bos_token_id is None:
        tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer


def _made(size: Size, tokenizer: Any, encoder: Encoder, queries: int, skip_layers: int) -> Any:
    """A stock model of new weights around a trained image encoder."""
    vision = dict(encoder.config)
    kept = vision["num_hidden_layers"] - (0 if encoder.is_cut else skip_layers)
    if kept < 1:
        raise ValueError(
            f"train.skip_layers must leave a layer of the {vision['num_hidden_layers']} of the "
            f"image encoder, got {skip_layers}"
        )
    fields = ("hidden_size", "intermediate_size", "num_attention_heads", "image_size")
    more = ("patch_size", "hidden_act", "layer_norm_eps")
    config = Blip2Config(
        vision_config={
            **{name: vision[name] for name in (*fields, *more)},
            "num_hidden_layers": kept,
            "initializer_range": size.spread,
        },
        qformer_config=qformer_config(
            size, len(tokenizer), tokenizer.pad_token_id, vision["hidden_size"]
        ),
        num_query_tokens=queries,
        image_text_hidden_size=size.embedding,
        initializer_range=size.spread,
    )
    model: Any = Blip2ForImageTextRetrieval(config)
    own = model.vision_model.state_dict()
    fresh = () if encoder.is_cut else ("post_layernorm.",)
    model.vision_model.load_state_dict(
        {k: own[k] if k.startswith(fresh) else encoder.state[k] for k in own}
        if fresh
        else {k: encoder.state[k] for k in own}
    )
    with torch.no_grad():
        model.query_tokens.normal_(0, 0.02)
    _copy_feed_forward(model)
    return model


def _copy_feed_forward(model: Any) -> None:
    """Let the feed-forward layers of queries start as those of texts."""
    for layer in model.qformer.encoder.layer:
        layer.intermediate_query.load_state_dict(layer.intermediate.state_dict())
        layer.output_query.load_state_dict(layer.output.state_dict())


def _copy_bert(objective: QFormer, bert: str | None) -> None:
    """Copy a BERT's weights: embeddings, layers, and its head of masked language modelling.

    Raises:
        ValueError: It is of another size, or reads other tokens.
    """
    if bert is None:
        return
    loaded: Any = BertForMaskedLM.from_pretrained(bert, dtype=torch.float32, use_safetensors=True)
    model, source = objective.model, loaded.bert
    words = loaded.config.vocab_size
    own = model.config.qformer_config
    if loaded.config.hidden_size != own.hidden_size or words > own.vocab_size:
        raise ValueError(
            f"train.bert: {bert} has {words} tokens of width {loaded.config.hidden_size}, the "
            f"Q-Former {own.vocab_size} of {own.hidden_size}"
        )
    with torch.no_grad():
        embeddings = model.embeddings
        embeddings.word_embeddings.weight[:words] = source.embeddings.word_embeddings.weight
        # BERT adds the embedding of the first segment to every token; queries have none.
        places = min(own.max_position_embeddings, loaded.config.max_position_embeddings)
        embeddings.position_embeddings.weight[:places] = (
            source.embeddings.position_embeddings.weight[:places]
        )
        objective.head.bias[:words] = loaded.cls.predictions.bias
    model.qformer.layernorm.load_state_dict(source.embeddings.LayerNorm.state_dict())
    for target, layer in zip(model.qformer.encoder.layer, source.encoder.layer, strict=True):
        target.attention.attention.load_state_dict(layer.attention.self.state_dict())
        target.attention.output.load_state_dict(layer.attention.output.state_dict())
        target.intermediate.load_state_dict(layer.intermediate.state_dict())
        target.output.load_state_dict(layer.output.state_dict())
    _copy_feed_forward(model)
    transform = loaded.cls.predictions.transform
    objective.head.dense.load_state_dict(transform.dense.state_dict())
    objective.head.norm.load_state_dict(transform.LayerNorm.state_dict())
