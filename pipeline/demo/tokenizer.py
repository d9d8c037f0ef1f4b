"""Writes a BERT WordPiece tokenizer for the drawn world, extended as in BLIP."""

from __future__ import annotations

import string
from pathlib import Path

from transformers import BertTokenizer

from pipeline.demo.world import SMALL, World, vocabulary

__all__ = ["write_tokenizer"]

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_tokenizer(folder: str | Path, world: World = SMALL) -> int:
    """Write a tokenizer that `BertTokenizer.from_pretrained(folder)` loads without the hub.

    The vocabulary has BERT's five special tokens with ids 0 to 4, every word that captions of the
    world use, and the printable ASCII characters, alone and as continuations. Other ASCII text is
    spelt by characters; other scripts become [UNK]. As in BLIP (arXiv 2201.12086, its released
    code), [DEC] begins a caption to generate (`bos_token`), and [ENC] begins a caption to match (an
    extra special token); they have the last two ids.

    Args:
        folder: Folder to write to; created if necessary.
        world: The world whose captions it is for.

    Returns:
        The number of tokens n; [DEC] is n - 2 and [ENC] is n - 1.
    """
    characters = sorted(string.ascii_lowercase + string.digits + string.punctuation)
    tokens = [*SPECIAL, *vocabulary(world), *characters, *(f"##{c}" for c in characters)]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = BertTokenizer(vocab=vocab)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"extra_special_tokens": ["[ENC]"]})
    tokenizer.save_pretrained(str(folder))
    return len(tokenizer)
