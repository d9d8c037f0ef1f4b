"""What a MED shares, and the folders it is saved to."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.blips import WORDS, tokenizer_of
from helpers.contract import check_contract, small
from helpers.nano import batch_of, differing, make, step_of
from safetensors.torch import load_file
from transformers import (
    AutoProcessor,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipProcessor,
)

from models.attention import cross_attention_kv, encode_images
from models.objectives.blip import MED
from models.objectives.blip_config import (
    BlipConfig,
    CaptionerConfig,
    FilterConfig,
    JointConfig,
    MatcherConfig,
    PretrainConfig,
)
from models.objectives.masking import IGNORED


def step(med: MED) -> None:
    med.start_momentum(queue_size=8)
    optimizer = torch.optim.SGD(med.parameters(), lr=0.1)
    sum(med.train()(batch_of(med), step_of()).values()).backward()
    optimizer.step()
    med.eval()


@pytest.mark.parametrize(
    "kind", [PretrainConfig, CaptionerConfig, FilterConfig, JointConfig], ids=lambda k: k.name
)
def test_the_contract_of_an_objective_is_kept(
    tokenizer: str, tmp_path: Path, kind: type[BlipConfig]
) -> None:
    fields = {"queue_size": 16} if issubclass(kind, MatcherConfig) else {}
    check_contract(small(kind, tokenizer, **fields), tmp_path)


def test_encoder_and_decoder_share_all_but_self_attention(tokenizer: str) -> None:
    med = make(tokenizer)
    encoder, decoder = med.matcher.text_encoder, med.captioner.text_decoder.bert
    assert med.captioner.vision_model is med.matcher.vision_model
    own = dict(encoder.named_parameters())
    for name, parameter in decoder.named_parameters():
        assert (parameter is own[name]) == (".attention." not in name), name
    head = med.captioner.text_decoder.cls.predictions.decoder
    assert head.weight is encoder.embeddings.word_embeddings.weight


def test_what_is_shared_stays_shared_after_training_saving_and_loading(
    tokenizer: str, tmp_path: Path
) -> None:
    med = make(tokenizer)
    step(med)
    med.save(tmp_path / "med")
    loaded = MED.from_pretrained(tmp_path / "med")
    step(loaded)
    loaded.save(tmp_path / "again")
    captioner = load_file(tmp_path / "again/captioner/model.safetensors")
    matcher = load_file(tmp_path / "again/matcher/model.safetensors")
    names = {name.replace("text_decoder.bert", "text_encoder"): name for name in captioner}
    assert len(names.keys() & matcher.keys()) > 60
    for name in names.keys() & matcher.keys():
        same = torch.equal(captioner[names[name]], matcher[name])
        assert same == (".attention.self" not in name and ".attention.output" not in name), name


def test_loading_gives_the_losses_that_were_saved(tokenizer: str, tmp_path: Path) -> None:
    med = make(tokenizer)
    step(med)
    med.save(tmp_path / "med")
    loaded = MED.from_pretrained(tmp_path / "med").eval()
    med.start_momentum(queue_size=0)
    loaded.start_momentum(queue_size=0)
    before, after = (model(batch_of(model), step_of(0)) for model in (med, loaded))
    # The temperature is written with six decimals.
    assert {k: v.item() for k, v in after.items()} == pytest.approx(
        {k: v.item() for k, v in before.items()}, rel=1e-3
    )
    assert loaded.temperature.item() == pytest.approx(med.temperature.item(), abs=1e-6)


def test_stock_transformers_loads_both_folders_and_gives_the_same_logits(
    tokenizer: str, tmp_path: Path
) -> None:
    med = make(tokenizer).eval()
    med.save(tmp_path)
    captioner = BlipForConditionalGeneration.from_pretrained(tmp_path / "captioner").eval()
    matcher = BlipForImageTextRetrieval.from_pretrained(tmp_path / "matcher").eval()
    batch = batch_of(med)
    mask = (batch.tokens != med.pad).long()
    images = encode_images(med.vision, batch.pixels)
    memory = cross_attention_kv(med.matcher.text_encoder, images)

    tokens = batch.tokens.clone()
    tokens[:, 0] = med.enc
    stock = matcher(tokens, batch.pixels, attention_mask=mask).itm_score
    torch.testing.assert_close(med.match(batch.tokens, memory), stock, rtol=1e-4, atol=1e-5)
    stock = matcher(batch.tokens, batch.pixels, attention_mask=mask, use_itm_head=False).itm_score
    ours = med.embed_images(images) @ med.embed_texts(batch.tokens).T
    torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-5)

    tokens[:, 0] = med.dec
    labels = tokens.masked_fill(mask == 0, IGNORED)
    stock = captioner(batch.pixels, tokens, attention_mask=mask, labels=labels)
    # Stock takes its label smoothing from the config, where `save` has put BLIP's.
    alone = MED(captioner=captioner, tokenizer=med.tokenizer)
    torch.testing.assert_close(alone(batch, step_of())["lm"], stock.loss, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("part", ["captioner", "matcher"])
def test_a_saved_folder_has_the_files_of_a_blip_processor(
    tokenizer: str, tmp_path: Path, part: str
) -> None:
    make(tokenizer).save(tmp_path)
    for loader in (AutoProcessor, BlipProcessor):
        processor = loader.from_pretrained(tmp_path / part)
        assert isinstance(processor, BlipProcessor)
        assert processor.image_processor.size["height"] == 32
        assert processor.tokenizer.bos_token == "[DEC]"


def test_the_special_tokens_are_the_last_two(tokenizer: str) -> None:
    med = make(tokenizer)
    vocabulary = med.tokenizer.get_vocab()
    assert (med.dec, med.enc) == (vocabulary["[DEC]"], vocabulary["[ENC]"])
    assert (med.dec, med.enc) == (len(vocabulary) - 2, len(vocabulary) - 1)


@pytest.mark.parametrize(
    ("part", "stock"),
    [("captioner", BlipForConditionalGeneration), ("matcher", BlipForImageTextRetrieval)],
)
def test_one_part_is_saved_as_one_plain_folder_and_starts_both(
    tokenizer: str, tmp_path: Path, part: str, stock: Any
) -> None:
    med = make(tokenizer, part)
    med.save(tmp_path / "one")
    assert json.loads((tmp_path / "one/config.json").read_text())["architectures"] == [
        stock.__name__
    ]
    both = MED.from_pretrained(tmp_path / "one")
    assert both.captioner is not None and both.matcher is not None
    assert not differing(dict(med.named_parameters()), dict(both.named_parameters()))
    # The other part's self-attention starts as this one's.
    encoder, decoder = both.matcher.text_encoder, both.captioner.text_decoder.bert
    assert not differing(encoder.state_dict(), decoder.state_dict())


def test_a_pair_gives_the_one_part_that_is_asked_for(tokenizer: str, tmp_path: Path) -> None:
    med = make(tokenizer)
    med.save(tmp_path / "med")
    captioner = MED.from_pretrained(tmp_path / "med", parts=("captioner",))
    assert captioner.matcher is None
    assert not differing(med.captioner.state_dict(), captioner.captioner.state_dict())


def test_a_model_saved_in_half_precision_is_half_as_large_and_loads_in_full(
    tokenizer: str, tmp_path: Path
) -> None:
    med = make(tokenizer)
    med.save(tmp_path / "full")
    med.save(tmp_path / "half", dtype=torch.float16)
    sizes = [
        (tmp_path / kind / "captioner/model.safetensors").stat().st_size
        for kind in ("full", "half")
    ]
    assert sizes[1] < 0.6 * sizes[0]
    assert next(med.parameters()).dtype == torch.float32
    assert next(MED.from_pretrained(tmp_path / "half").parameters()).dtype == torch.float32


def test_another_image_size_interpolates_the_positions(tokenizer: str, tmp_path: Path) -> None:
    med = make(tokenizer)
    med.save(tmp_path / "small")
    wide = MED.from_pretrained(tmp_path / "small", image_size=64).eval()
    old, new = (m.vision.embeddings.position_embedding for m in (med, wide))
    assert new.shape == (1, 1 + 16, 32)
    assert torch.equal(old[:, 0], new[:, 0])
    torch.testing.assert_close(old[:, 1:].mean(1), new[:, 1:].mean(1), atol=0.05, rtol=0.0)
    wide.save(tmp_path / "wide")
    stock = BlipForImageTextRetrieval.from_pretrained(tmp_path / "wide/matcher").eval()
    pixels = batch_of(wide, side=64).pixels
    torch.testing.assert_close(
        stock.vision_model(pixels).last_hidden_state, encode_images(wide.vision, pixels)
    )


def test_a_save_replaces_a_folder_and_leaves_nothing_beside_it(
    tokenizer: str, tmp_path: Path
) -> None:
    (tmp_path / "med").mkdir()
    (tmp_path / "med/old").touch()
    make(tokenizer, "matcher").save(tmp_path / "med")
    assert [path.name for path in tmp_path.iterdir()] == ["med"]
    assert not (tmp_path / "med/old").exists()


def test_a_size_without_a_tokenizer_and_a_foreign_folder_are_refused(
    nano: None, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="needs a tokenizer"):
        MED.from_pretrained("nano")
    (tmp_path / "config.json").write_text('{"model_type": "blip", "architectures": ["Other"]}')
    with pytest.raises(ValueError, match="not a BLIP captioner or matcher"):
        MED.from_pretrained(tmp_path)


def test_a_tokenizer_of_another_vocabulary_is_refused(tokenizer: str, tmp_path: Path) -> None:
    make(tokenizer, "matcher").save(tmp_path / "med")
    tokenizer_of([*WORDS.split(), "more"]).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="leave the tokenizer to the model"):
        MED.from_pretrained(tmp_path / "med", tokenizer=str(tmp_path / "other"))
