import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from blips import WORDS, tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import (
    AutoProcessor,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipProcessor,
)

from models.contrast import contrast_loss, contrast_targets, hard_negatives
from models.med import IGNORED, MED, lm_labels, lm_loss
from models.pairs import Batch
from models.queue import check_queue
from models.sizes import BLIP_SIZES, Size
from models.towers import read_texts, remember, see

NANO = Size(
    vision_width=32,
    vision_layers=2,
    vision_heads=2,
    text_width=16,
    text_layers=2,
    text_heads=2,
    image_size=32,
    embedding=8,
    positions=24,
    dropout=0.0,
)
CAPTIONS = ["a red dog", "two blue birds on the house", "small cat in a green tree", "the dog"]


@pytest.fixture(autouse=True)
def nano(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BLIP_SIZES, "nano", NANO)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer_of(WORDS.split()).save_pretrained(folder)
    return str(folder)


def make(tokenizer: str, *parts: str, seed: int = 0, **settings: Any) -> MED:
    """A nano MED whose weights are large enough to matter."""
    torch.manual_seed(seed)
    parts = parts or ("captioner", "matcher")
    med = MED.from_pretrained("nano", parts=parts, tokenizer=tokenizer, **settings)
    with torch.no_grad():
        for parameter in med.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return med


def batch_of(med: MED, captions: list[str] = CAPTIONS, seed: int = 0, side: int = 32) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        pixels=torch.randn(len(captions), 3, side, side, generator=generator),
        tokens=med.tokenize(captions, 24),
        image_ids=torch.arange(len(captions)),
    )


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in one.keys() & other.keys() if not torch.equal(one[name], other[name])}


# --- sharing and files


def step(med: MED) -> None:
    med.start_momentum(queue_size=8)
    optimizer = torch.optim.SGD(med.parameters(), lr=0.1)
    sum(med.train()(batch_of(med)).values()).backward()
    optimizer.step()
    med.eval()


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
    before, after = (
        model(batch_of(model), generator=torch.Generator().manual_seed(0))
        for model in (med, loaded)
    )
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
    images = see(med.vision, batch.pixels)
    memory = remember(med.matcher.text_encoder, images)

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
    torch.testing.assert_close(alone(batch)["lm"], stock.loss, rtol=1e-4, atol=1e-5)


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
        stock.vision_model(pixels).last_hidden_state, see(wide.vision, pixels)
    )


def test_a_save_replaces_a_folder_and_leaves_nothing_beside_it(
    tokenizer: str, tmp_path: Path
) -> None:
    (tmp_path / "med").mkdir()
    (tmp_path / "med/old").touch()
    make(tokenizer, "matcher").save(tmp_path / "med")
    assert [path.name for path in tmp_path.iterdir()] == ["med"]
    assert not (tmp_path / "med/old").exists()


def test_a_size_without_a_tokenizer_and_a_foreign_folder_are_refused(tmp_path: Path) -> None:
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


# --- towers


def test_the_towers_read_as_the_stock_modules_do(tokenizer: str) -> None:
    med = make(tokenizer).eval()
    batch = batch_of(med)
    mask = batch.tokens != med.pad
    stock = med.vision(batch.pixels).last_hidden_state
    images = see(med.vision, batch.pixels)
    torch.testing.assert_close(images, stock, rtol=1e-4, atol=1e-5)
    first = see(med.vision, batch.pixels, first_only=True)
    torch.testing.assert_close(first, stock[:, :1], rtol=1e-4, atol=1e-5)
    text = med.matcher.text_encoder
    memory = remember(text, images)
    for looked_at, hidden in ((None, None), (memory, images)):
        stock = text(
            batch.tokens, attention_mask=mask.long(), encoder_hidden_states=hidden
        ).last_hidden_state
        ours = read_texts(text, batch.tokens, mask, looked_at)
        torch.testing.assert_close(ours[mask], stock[mask], rtol=1e-4, atol=1e-5)
        first = read_texts(text, batch.tokens, mask, looked_at, first_only=True)
        torch.testing.assert_close(first, stock[:, :1], rtol=1e-4, atol=1e-5)


def test_a_causal_reader_does_not_see_what_comes(tokenizer: str) -> None:
    med = make(tokenizer).eval()
    tokens = med.tokenize(["a red dog on the house"], 24)
    other = tokens.clone()
    other[0, 4] = 7
    text = med.captioner.text_decoder.bert
    one, two = read_texts(text, tokens, causal=True), read_texts(text, other, causal=True)
    torch.testing.assert_close(one[:, :4], two[:, :4])
    assert not torch.allclose(one[:, 4:], two[:, 4:])


# --- contrast


def test_targets_mix_the_truth_of_all_texts_of_an_image_with_the_momentum_model() -> None:
    similarity = torch.tensor([[0.0, math.log(2), 0.0], [math.log(2), 0.0, 0.0]])
    targets = contrast_targets(torch.tensor([5, 6]), torch.tensor([5, 6, 5]), similarity, 0.4)
    # Image 5 owns candidates 0 and 2; the momentum model believes 1/4, 1/2, 1/4 and 1/2, 1/4, 1/4.
    expected = torch.tensor([[0.4, 0.2, 0.4], [0.2, 0.7, 0.1]])
    torch.testing.assert_close(targets, expected)


def test_without_repeats_and_alpha_targets_are_one_hot() -> None:
    ids = torch.tensor([3, 1, 2])
    assert torch.equal(contrast_targets(ids, ids, torch.randn(3, 3), 0.0), torch.eye(3))


def test_contrast_loss_is_the_cross_entropy_with_soft_targets() -> None:
    similarity = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    targets = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    rows = [-0.5 * math.log(3 / 4) - 0.5 * math.log(1 / 4), math.log(2)]
    assert contrast_loss(similarity, targets).item() == pytest.approx(sum(rows) / 2)


def test_the_queue_holds_the_last_batches_in_a_ring(tokenizer: str) -> None:
    med = make(tokenizer, "matcher")
    med.start_momentum(queue_size=4)
    queue = med.momentum
    assert [len(part) for part in queue.candidates()] == [0, 0, 0]
    for first in (0, 2, 4):
        ids = torch.tensor([first, first + 1])
        queue.enqueue(ids[:, None].float().expand(2, 8), -ids[:, None].float().expand(2, 8), ids)
        images, texts, stored = queue.candidates()
        assert torch.equal(images[:, 0], stored.float())
        assert torch.equal(texts[:, 0], -stored.float())
    assert stored.tolist() == [4, 5, 2, 3]


def test_the_contrastive_loss_of_a_step_is_the_formula_over_batch_and_queue(
    tokenizer: str,
) -> None:
    med = make(tokenizer, "matcher").train()
    med.start_momentum(queue_size=4, decay=0.9)
    first, second = batch_of(med, seed=1), batch_of(med, seed=2)
    second = Batch(pixels=second.pixels, tokens=second.tokens, image_ids=torch.tensor([0, 7, 8, 9]))
    with torch.no_grad():
        old = [
            med.embed_images(see(med.vision, first.pixels)),
            med.embed_texts(first.tokens),
        ]
        med(first)
        now = [med.embed_images(see(med.vision, second.pixels)), med.embed_texts(second.tokens)]
        loss = med(second, alpha=0.4)["itc"]
        # The model was not changed, so its momentum copy is the model itself.
        ids = torch.tensor([0, 7, 8, 9, 0, 1, 2, 3])
        parts = []
        for this, other in ((0, 1), (1, 0)):
            logits = now[this] @ torch.cat([now[other], old[other]]).T / 0.07
            truth = torch.eye(4, 8)
            truth[0] = torch.tensor([0.5, 0, 0, 0, 0.5, 0, 0, 0])
            assert ids[4] == ids[0]
            targets = 0.4 * logits.softmax(1) + 0.6 * truth
            parts.append(-(logits.log_softmax(1) * targets).sum(1).mean())
    assert loss.item() == pytest.approx((sum(parts) / 2).item(), rel=1e-4)


def test_momentum_encoders_follow_slowly_and_are_not_trained(tokenizer: str) -> None:
    med = make(tokenizer, "matcher").train()
    med.start_momentum(queue_size=0, decay=0.9)
    before = {name: p.clone() for name, p in med.momentum.named_parameters()}
    with torch.no_grad():
        for parameter in med.matcher.parameters():
            parameter += 1.0
    med(batch_of(med))
    for name, parameter in med.momentum.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 0.1)
        assert not parameter.requires_grad
    assert not any("crossattention" in name for name in before)


def test_the_temperature_is_clamped(tokenizer: str) -> None:
    med = make(tokenizer, "matcher").train()
    med.start_momentum(queue_size=0)
    for wild, tame in ((-1.0, 0.001), (9.0, 0.5)):
        with torch.no_grad():
            med.temperature.fill_(wild)
        med(batch_of(med))
        assert med.temperature.item() == pytest.approx(tame)


def test_evaluation_moves_neither_momentum_nor_queue(tokenizer: str) -> None:
    med = make(tokenizer, "matcher").eval()
    med.start_momentum(queue_size=4)
    before = {name: value.clone() for name, value in med.momentum.state_dict().items()}
    with torch.no_grad():
        for parameter in med.matcher.parameters():
            parameter += 1.0
    med(batch_of(med))
    assert not differing(before, med.momentum.state_dict())


@pytest.mark.parametrize(("batch", "near"), [(512, "57344 or 57856"), (100_000, "100000")])
def test_a_queue_that_batches_do_not_fill_names_those_near_it(batch: int, near: str) -> None:
    with pytest.raises(ValueError, match=f"use {near}$"):
        check_queue(57600, batch)


@pytest.mark.parametrize("batch", [256, 600, 2400, 2880])
def test_blips_queue_takes_blips_batches(batch: int) -> None:
    check_queue(57600, batch)


# --- matching


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(0, 2**31), st.booleans())
@settings(deadline=None, max_examples=60)
def test_a_hard_negative_is_never_of_the_same_image(
    ids: list[int], seed: int, underflow: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    image_ids = torch.tensor(ids)
    similarity = torch.randn(len(ids), len(ids), generator=generator)
    if underflow:
        similarity = 1e4 * torch.eye(len(ids))
    drawn = hard_negatives(
        similarity, image_ids, image_ids, torch.rand(len(ids), generator=generator)
    )
    for row, column in enumerate(drawn.tolist()):
        if set(ids) == {ids[row]}:
            assert column == -1
        else:
            assert ids[column] != ids[row]


def test_hard_negatives_are_drawn_in_proportion_to_the_softmax() -> None:
    similarity = torch.tensor([[9.0, math.log(3), 0.0]]).repeat(4000, 1)
    ids = torch.zeros(4000).long()  # every row is the image of column 0
    chances = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    drawn = hard_negatives(similarity, ids, torch.arange(3), chances)
    assert set(drawn.tolist()) == {1, 2}
    weights = torch.tensor([3.0, 1.0]) / (math.exp(9) + 4) + 1e-4
    share = (drawn == 1).float().mean()
    assert share.item() == pytest.approx((weights[0] / weights.sum()).item(), abs=0.03)


def test_the_least_and_the_greatest_chance_draw_the_first_and_the_last() -> None:
    similarity, ids = torch.zeros(2, 4), torch.tensor([5, 6])
    chances = torch.tensor([0.0, 1 - 2**-24])
    drawn = hard_negatives(similarity, ids, torch.tensor([5, 7, 8, 6]), chances)
    assert drawn.tolist() == [1, 2]


def test_matching_asks_for_one_right_and_two_wrong_partners_of_each_pair(
    tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    med = make(tokenizer, "matcher").eval()
    med.start_momentum(queue_size=0)
    asked: list[torch.Tensor] = []
    monkeypatch.setattr(
        med, "match", lambda tokens, memory: asked.append(tokens) or torch.zeros(len(tokens), 2)
    )
    loss = med(batch_of(med))["itm"]
    assert len(asked[0]) == 3 * len(CAPTIONS)
    assert loss.item() == pytest.approx(math.log(2))


def test_a_batch_of_one_image_has_no_wrong_partners(tokenizer: str) -> None:
    med = make(tokenizer, "matcher").eval()
    med.start_momentum(queue_size=0)
    batch = batch_of(med)
    batch = Batch(pixels=batch.pixels, tokens=batch.tokens, image_ids=torch.zeros(4).long())
    memory = remember(med.matcher.text_encoder, see(med.vision, batch.pixels))
    right = med.match(batch.tokens, memory).log_softmax(1)[:, 1]
    assert med(batch)["itm"].item() == pytest.approx(-right.mean().item(), rel=1e-5)


def test_matching_reads_with_enc_and_generation_with_dec(tokenizer: str) -> None:
    med = make(tokenizer).eval()
    med.start_momentum(queue_size=0)
    batch = batch_of(med)
    seen: set[int] = set()
    embeddings = med.matcher.text_encoder.embeddings
    embeddings.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(kwargs["input_ids"][:, 0].tolist()), with_kwargs=True
    )
    med(batch)
    assert seen == {med.tokenizer.cls_token_id, med.enc, med.dec}
    assert batch.tokens[:, 0].eq(med.tokenizer.cls_token_id).all()


# --- language modelling


def test_labels_are_the_next_tokens_without_padding_and_prompt() -> None:
    tokens = torch.tensor([[9, 4, 5, 6, 3], [9, 4, 7, 3, 0]])
    assert lm_labels(tokens, pad=0).tolist() == [[4, 5, 6, 3], [4, 7, 3, IGNORED]]
    # The prompt is [DEC] and token 4: both positions are given, not asked for.
    assert lm_labels(tokens, pad=0, prompt=2).tolist() == [
        [IGNORED, 5, 6, 3],
        [IGNORED, 7, 3, IGNORED],
    ]


def test_the_smoothed_loss_of_a_token_worked_by_hand() -> None:
    logits = torch.tensor([[[math.log(2), 0.0, 0.0]], [[0.0, 5.0, 0.0]]])
    labels = torch.tensor([[0], [IGNORED]])
    # 0.9 on the label, 0.1 spread over three tokens of probability 1/2, 1/4 and 1/4.
    expected = 0.9 * math.log(2) + 0.1 * (math.log(2) + 2 * math.log(4)) / 3
    assert lm_loss(logits, labels, 0.1).item() == pytest.approx(expected)


def test_the_prompt_carries_no_loss(tokenizer: str) -> None:
    med = make(tokenizer, "captioner").eval()
    one = batch_of(med, ["a picture of a dog"])
    # Another token before the last of the prompt changes what is read, not what is asked for.
    with_prompt = Batch(pixels=one.pixels, tokens=one.tokens, image_ids=one.image_ids, prompt=4)
    hidden = read_texts(
        med.captioner.text_decoder.bert,
        torch.cat([torch.tensor([[med.dec]]), one.tokens[:, 1:-1]], 1),
        memory=remember(med.captioner.text_decoder.bert, see(med.vision, one.pixels)),
        causal=True,
    )
    logits = med.captioner.text_decoder.cls(hidden)
    expected = lm_loss(logits[:, 3:], one.tokens[:, 4:], 0.1)
    assert med(with_prompt)["lm"].item() == pytest.approx(expected.item(), rel=1e-5)


# --- gradients worked by hand


def test_the_gradient_of_the_smoothed_loss_is_probability_less_target() -> None:
    logits = torch.tensor([[[math.log(2), 0.0, 0.0]]], requires_grad=True)
    lm_loss(logits, torch.tensor([[0]]), 0.3).backward()
    expected = torch.tensor([[[0.5 - 0.8, 0.25 - 0.1, 0.25 - 0.1]]])
    torch.testing.assert_close(logits.grad, expected)


def test_the_gradient_of_contrast_is_probability_less_target_over_the_rows() -> None:
    similarity = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]], requires_grad=True)
    contrast_loss(similarity, torch.tensor([[0.6, 0.4], [1.0, 0.0]])).backward()
    expected = torch.tensor([[0.75 - 0.6, 0.25 - 0.4], [0.5 - 1.0, 0.5]]) / 2
    torch.testing.assert_close(similarity.grad, expected)


def test_a_shared_weight_has_the_gradients_of_encoder_and_decoder(tokenizer: str) -> None:
    med = make(tokenizer).train()
    med.start_momentum(queue_size=0)
    word = med.matcher.text_encoder.embeddings.word_embeddings.weight
    gradients = {}
    for name in ("itc", "itm", "lm", "all"):
        losses = med(batch_of(med), generator=torch.Generator().manual_seed(0))
        med.zero_grad()
        (sum(losses.values()) if name == "all" else losses[name]).backward()
        gradients[name] = word.grad.clone()
    parts = gradients["itc"] + gradients["itm"] + gradients["lm"]
    torch.testing.assert_close(gradients["all"], parts, rtol=1e-3, atol=1e-5)
    assert all(gradients[name].abs().sum() > 0 for name in gradients)


# --- ALBEF, FLIP, recomputation


def test_a_batch_is_split_into_equal_parts(tokenizer: str) -> None:
    batch = batch_of(make(tokenizer))
    parts = batch.split(2)
    assert [len(part.tokens) for part in parts] == [2, 2]
    assert torch.equal(torch.cat([part.pixels for part in parts]), batch.pixels)
    assert torch.equal(torch.cat([part.image_ids for part in parts]), batch.image_ids)
    # Of two streams in turn each part has a share of both.
    assert [part.image_ids.tolist() for part in batch.split(2, 2)] == [[0, 2], [1, 3]]


def test_local_negatives_are_of_the_own_stream(tokenizer: str) -> None:
    med = make(tokenizer, "matcher")
    med.local_streams = 2
    ids, chances = torch.arange(8), torch.rand(8, generator=torch.Generator().manual_seed(0))
    drawn = med._negatives(torch.zeros(8, 8), ids, ids, chances)
    assert all(row // 4 == column // 4 and row != column for row, column in enumerate(drawn))
    same = torch.tensor([5] * 4 + [0, 1, 2, 3])
    assert med._negatives(torch.zeros(8, 8), same, same, chances)[:4].tolist() == [-1] * 4


def test_albef_guesses_masked_tokens_and_saves_one_matcher(tokenizer: str, tmp_path: Path) -> None:
    med = make(tokenizer, "matcher").train()
    med.start_masking()
    med.start_momentum(queue_size=0)
    captions = [" ".join(["red dog bird"] * 7)] * 4
    losses = med(batch_of(med, captions), generator=torch.Generator().manual_seed(0))
    assert losses.keys() == {"itc", "itm", "mlm"}
    losses["mlm"].backward()
    cross = med.matcher.text_encoder.encoder.layer[0].crossattention.self.query.weight
    assert cross.grad.abs().sum() > 0 and med.mlm.dense.weight.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in med.momentum.parameters())
    med.save(tmp_path / "albef")
    BlipForImageTextRetrieval.from_pretrained(tmp_path / "albef")


def test_the_masked_loss_is_worked_out_over_what_both_models_guess(tokenizer: str) -> None:
    med = make(tokenizer, "matcher").eval()
    med.start_masking()
    med.start_momentum(queue_size=0)
    batch = batch_of(med, ["a red dog on the house"] * 4)
    found = [
        med(batch, alpha=alpha, generator=torch.Generator().manual_seed(1))["mlm"].item()
        for alpha in (0.0, 1.0, 0.4)
    ]
    # The momentum model is the model itself: its belief is the entropy of the guess.
    assert found[2] == pytest.approx(0.6 * found[0] + 0.4 * found[1], rel=1e-4)
    assert found[1] <= math.log(len(med.tokenizer)) + 1e-3


def test_masking_a_captioner_is_refused(tokenizer: str) -> None:
    for parts in (("captioner",), ("captioner", "matcher")):
        with pytest.raises(ValueError, match="takes the place of the captioner"):
            make(tokenizer, *parts).start_masking()


def test_momentum_follows_the_masked_head_too(tokenizer: str) -> None:
    med = make(tokenizer, "matcher").train()
    med.start_masking()
    med.start_momentum(queue_size=0, decay=0.9)
    with torch.no_grad():
        med.mlm.bias += 1.0
    med(batch_of(med))
    torch.testing.assert_close(med.momentum.mlm.bias, torch.full_like(med.mlm.bias, 0.1))


@pytest.mark.parametrize("parts", [("captioner",), ("captioner", "matcher")])
def test_hidden_patches_are_not_seen_in_training_and_all_are_in_evaluation(
    tokenizer: str, parts: tuple[str, ...]
) -> None:
    med = make(tokenizer, *parts)
    if "matcher" in parts:
        med.start_momentum(queue_size=0)
    whole = med.eval()(batch_of(med), generator=torch.Generator().manual_seed(0))
    med.mask_patches = 0.5
    again = med(batch_of(med), generator=torch.Generator().manual_seed(0))
    assert {k: v.item() for k, v in whole.items()} == {k: v.item() for k, v in again.items()}
    med.train()
    name = "lm" if parts == ("captioner",) else "itc"
    draws = [
        med(batch_of(med), generator=torch.Generator().manual_seed(seed), alpha=0.0)[name].item()
        for seed in (0, 1)
    ]
    assert len({whole[name].item(), *draws}) == 3


def test_a_subset_of_all_patches_is_the_whole_image(tokenizer: str) -> None:
    med = make(tokenizer).eval()
    pixels = batch_of(med).pixels
    everything = torch.arange(4).expand(4, -1)
    torch.testing.assert_close(see(med.vision, pixels, kept=everything), see(med.vision, pixels))
    first = see(med.vision, pixels, kept=everything[:, :1])
    changed = pixels.clone()
    changed[:, :, 16:, 16:] = 9.0  # the last patch, which is hidden
    torch.testing.assert_close(see(med.vision, changed, kept=everything[:, :1]), first)


def test_layers_computed_again_give_the_same_gradients(tokenizer: str) -> None:
    gradients = []
    for recompute in (False, True):
        med = make(tokenizer).train()
        med.start_momentum(queue_size=8)
        med.recompute = recompute
        losses = med(batch_of(med), generator=torch.Generator().manual_seed(0))
        sum(losses.values()).backward()
        gradients.append({n: p.grad for n, p in med.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_the_parts_decide_the_losses(tokenizer: str) -> None:
    for parts, losses in (
        (("captioner", "matcher"), {"itc", "itm", "lm"}),
        (("captioner",), {"lm"}),
        (("matcher",), {"itc", "itm"}),
    ):
        med = make(tokenizer, *parts)
        if "matcher" in parts:
            med.start_momentum(queue_size=0)
        assert med(batch_of(med)).keys() == losses
