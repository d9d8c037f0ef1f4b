"""The language model of captions, and tokenizers for language models."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.contract import HEART, check_contract, learnt_by_heart, small
from helpers.nano import batch_of, step_of
from transformers import AutoTokenizer, LlamaForCausalLM

from models.objectives.language_config import LanguageConfig
from models.objectives.language_tokenizer import IMAGE, language_tokenizer


def config(tokenizer: str) -> Any:
    return small(LanguageConfig, tokenizer)


def test_the_contract_of_an_objective_is_kept(tokenizer: str, tmp_path: Path) -> None:
    check_contract(config(tokenizer), tmp_path)


def test_a_berts_tokenizer_becomes_one_that_only_begins_a_text(
    tokenizer: str, tmp_path: Path
) -> None:
    reader = language_tokenizer(tokenizer)
    ids = reader("a red dog")["input_ids"]
    assert reader.convert_ids_to_tokens(ids) == ["[CLS]", "a", "red", "dog"]
    assert reader.eos_token == "[SEP]" and IMAGE in reader.get_vocab()
    reader.save_pretrained(tmp_path)
    again = language_tokenizer(str(tmp_path))
    assert len(again) == len(reader) and again("a red dog")["input_ids"] == ids
    bare = AutoTokenizer.from_pretrained(tmp_path)
    bare.backend_tokenizer.post_processor = None
    bare.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="must begin each text with one token"):
        language_tokenizer(str(tmp_path / "bare"))


def test_the_first_loss_is_that_of_a_guess_and_images_do_not_count(tokenizer: str) -> None:
    torch.manual_seed(0)
    model = config(tokenizer).build()
    batch, other = batch_of(model), batch_of(model, seed=1)
    assert model(batch, step_of())["lm"].item() == model(other, step_of())["lm"].item()
    with torch.no_grad():
        model.model.lm_head.weight.zero_()
    loss = model(batch, step_of())["lm"].item()
    assert loss == pytest.approx(math.log(len(model.tokenizer)), rel=1e-5)


def test_sixteen_captions_are_learnt_and_stock_transformers_writes_them(
    tokenizer: str, tmp_path: Path
) -> None:
    model, _ = learnt_by_heart(config(tokenizer), 150)
    model.write(tmp_path)
    stock: Any = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    reader = AutoTokenizer.from_pretrained(tmp_path)
    begun = reader("", return_tensors="pt")["input_ids"]
    torch.manual_seed(0)
    ids = stock.generate(begun.expand(32, -1), do_sample=True, max_new_tokens=8)
    written = reader.batch_decode(ids, skip_special_tokens=True)
    assert sum(text in HEART for text in written) > 28
