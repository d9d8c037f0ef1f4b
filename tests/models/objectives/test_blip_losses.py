"""The losses that a MED is trained by."""

import math

import pytest
import torch
from helpers.nano import CAPTIONS, batch_of, differing, make, step_of

from models.attention import cross_attention_kv, encode_images, encode_texts
from models.objectives.batch import Batch
from models.objectives.blip import MED
from models.objectives.lm import lm_labels, lm_loss
from models.objectives.masking import IGNORED


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
            med.embed_images(encode_images(med.vision, first.pixels)),
            med.embed_texts(first.tokens),
        ]
        med(first, step_of())
        now = [
            med.embed_images(encode_images(med.vision, second.pixels)),
            med.embed_texts(second.tokens),
        ]
        loss = med(second, step_of())["itc"]
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
    med(batch_of(med), step_of())
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
        med(batch_of(med), step_of())
        assert med.temperature.item() == pytest.approx(tame)


def test_evaluation_moves_neither_momentum_nor_queue(tokenizer: str) -> None:
    med = make(tokenizer, "matcher").eval()
    med.start_momentum(queue_size=4)
    before = {name: value.clone() for name, value in med.momentum.state_dict().items()}
    with torch.no_grad():
        for parameter in med.matcher.parameters():
            parameter += 1.0
    med(batch_of(med), step_of())
    assert not differing(before, med.momentum.state_dict())


def test_matching_asks_for_one_right_and_two_wrong_partners_of_each_pair(
    tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    med = make(tokenizer, "matcher").eval()
    med.start_momentum(queue_size=0)
    asked: list[torch.Tensor] = []
    monkeypatch.setattr(
        med, "match", lambda tokens, memory: asked.append(tokens) or torch.zeros(len(tokens), 2)
    )
    loss = med(batch_of(med), step_of())["itm"]
    assert len(asked[0]) == 3 * len(CAPTIONS)
    assert loss.item() == pytest.approx(math.log(2))


def test_a_batch_of_one_image_has_no_wrong_partners(tokenizer: str) -> None:
    med = make(tokenizer, "matcher").eval()
    med.start_momentum(queue_size=0)
    batch = batch_of(med)
    batch = Batch(pixels=batch.pixels, tokens=batch.tokens, image_ids=torch.zeros(4).long())
    memory = cross_attention_kv(med.matcher.text_encoder, encode_images(med.vision, batch.pixels))
    right = med.match(batch.tokens, memory).log_softmax(1)[:, 1]
    assert med(batch, step_of())["itm"].item() == pytest.approx(-right.mean().item(), rel=1e-5)


def test_matching_reads_with_enc_and_generation_with_dec(tokenizer: str) -> None:
    med = make(tokenizer).eval()
    med.start_momentum(queue_size=0)
    batch = batch_of(med)
    seen: set[int] = set()
    embeddings = med.matcher.text_encoder.embeddings
    embeddings.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(kwargs["input_ids"][:, 0].tolist()), with_kwargs=True
    )
    med(batch, step_of())
    assert seen == {med.tokenizer.cls_token_id, med.enc, med.dec}
    assert batch.tokens[:, 0].eq(med.tokenizer.cls_token_id).all()


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
    med.start_prompt("a picture of ")
    assert (med.prompt, med.prompt_tokens) == ("a picture of ", 4)
    # The tokens of the prompt are read, and not asked for.
    hidden = encode_texts(
        med.captioner.text_decoder.bert,
        torch.cat([torch.tensor([[med.dec]]), one.tokens[:, 1:-1]], 1),
        memory=cross_attention_kv(
            med.captioner.text_decoder.bert, encode_images(med.vision, one.pixels)
        ),
        causal=True,
    )
    logits = med.captioner.text_decoder.cls(hidden)
    expected = lm_loss(logits[:, 3:], one.tokens[:, 4:], 0.1)
    assert med(one, step_of())["lm"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_gradient_of_the_smoothed_loss_is_probability_less_target() -> None:
    logits = torch.tensor([[[math.log(2), 0.0, 0.0]]], requires_grad=True)
    lm_loss(logits, torch.tensor([[0]]), 0.3).backward()
    expected = torch.tensor([[[0.5 - 0.8, 0.25 - 0.1, 0.25 - 0.1]]])
    torch.testing.assert_close(logits.grad, expected)


def test_a_shared_weight_has_the_gradients_of_encoder_and_decoder(tokenizer: str) -> None:
    med = make(tokenizer).train()
    med.start_momentum(queue_size=0)
    word = med.matcher.text_encoder.embeddings.word_embeddings.weight
    gradients = {}
    for name in ("itc", "itm", "lm", "all"):
        losses = med(batch_of(med), step_of(0))
        med.zero_grad()
        (sum(losses.values()) if name == "all" else losses[name]).backward()
        gradients[name] = word.grad.clone()
    parts = gradients["itc"] + gradients["itm"] + gradients["lm"]
    torch.testing.assert_close(gradients["all"], parts, rtol=1e-3, atol=1e-5)
    assert all(gradients[name].abs().sum() > 0 for name in gradients)


@pytest.mark.parametrize("parts", [("captioner",), ("captioner", "matcher")])
def test_hidden_patches_are_not_seen_in_training_and_all_are_in_evaluation(
    tokenizer: str, parts: tuple[str, ...]
) -> None:
    med = make(tokenizer, *parts)
    if "matcher" in parts:
        med.start_momentum(queue_size=0)
    whole = med.eval()(batch_of(med), step_of(0))
    med.mask_patches = 0.5
    again = med(batch_of(med), step_of(0))
    assert {k: v.item() for k, v in whole.items()} == {k: v.item() for k, v in again.items()}
    med.train()
    med.alpha = 0.0
    name = "lm" if parts == ("captioner",) else "itc"
    draws = [med(batch_of(med), step_of(seed))[name].item() for seed in (0, 1)]
    assert len({whole[name].item(), *draws}) == 3


def test_layers_are_left_out_in_training_alone(tokenizer: str) -> None:
    def loss(med: MED, seed: int) -> float:
        return float(med(batch_of(med), step_of(seed))["lm"].item())

    med = make(tokenizer, "captioner").eval()
    whole = loss(med, 0)
    med.drop_path = 0.5
    assert loss(med, 0) == whole
    med.train()
    assert len({loss(med, seed) for seed in range(8)}) > 4


def test_layers_computed_again_give_the_same_gradients(tokenizer: str) -> None:
    gradients = []
    for recompute in (False, True):
        med = make(tokenizer).train()
        med.start_momentum(queue_size=8)
        med.recompute = recompute
        med.drop_path = 0.5
        losses = med(batch_of(med), step_of(0))
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
        assert med(batch_of(med), step_of()).keys() == losses
