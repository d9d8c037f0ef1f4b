"""Tokenizers of language models: a token before each text, none behind it, a place for images."""

from __future__ import annotations

import copy
from typing import Any

from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

__all__ = ["IMAGE", "language_tokenizer"]

IMAGE = "<image>"
"""The token that is replaced by the features of an image."""


def language_tokenizer(name: str, revision: str | None = None) -> Any:
    """Load a tokenizer for a language model.

    A tokenizer that begins and ends each text with a token, such as BERT's, is changed to only
    begin it: [CLS] begins a text, and [SEP] ends a generated one. `<image>` is added where it is
    missing.

    Raises:
        ValueError: The tokenizer begins no text with a token, or knows no end.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    ids = tokenizer("")["input_ids"]
    if len(ids) == 2:
        first, last = (tokenizer.convert_ids_to_tokens(one) for one in ids)
        backend = copy.deepcopy(tokenizer.backend_tokenizer)
        backend.post_processor = TemplateProcessing(
            single=f"{first} $A", special_tokens=[(first, ids[0])]
        )
        kind: Any = PreTrainedTokenizerFast
        tokenizer = kind(
            tokenizer_object=backend,
            bos_token=first,
            eos_token=last,
            pad_token=tokenizer.pad_token,
            unk_token=tokenizer.unk_token,
        )
        ids = ids[:1]
    if len(ids) != 1 or tokenizer.eos_token_id is None:
        raise ValueError(
            f"train.tokenizer: {name} must begin each text with one token and know a token that "
            "ends one, as Llama's, OPT's and BERT's do"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if IMAGE not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    return tokenizer
