from __future__ import annotations

import pytest
import torch
from helpers.nano import batch_of, make
from torch.nn import functional

from models import attention
from models.attention import attend, cross_attention_kv, encode_images, encode_texts


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("images_at_once", [1, 2, 9])
def test_attention_in_parts_is_the_fused_attention(
    causal: bool, images_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_CACHED", images_at_once * 4 * 5 * 5)
    generator = torch.Generator().manual_seed(0)
    heads = torch.randn(3, 3, 4, 5, 16, generator=generator).unbind(0)
    mask = None if causal else torch.rand(3, 1, 1, 5, generator=generator) < 0.7
    if mask is not None:
        mask[..., 0] = True
    stock = functional.scaled_dot_product_attention(*heads, mask, is_causal=causal)
    stock = stock.transpose(1, 2).flatten(2)
    with_gradients = attend(*heads, mask, causal=causal)
    with torch.inference_mode():
        fused = attend(*heads, mask, causal=causal)
        parts = attend(*(part.double() for part in heads), mask, causal=causal)
    for ours in (with_gradients, fused, parts.float()):
        torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-5)


def test_the_towers_read_as_the_stock_modules_do(tokenizer: str) -> None:
    med = make(tokenizer).eval()
    batch = batch_of(med)
    mask = batch.tokens != med.pad
    stock = med.vision(batch.pixels).last_hidden_state
    images = encode_images(med.vision, batch.pixels)
    torch.testing.assert_close(images, stock, rtol=1e-4, atol=1e-5)
    first = encode_images(med.vision, batch.pixels, first_only=True)
    torch.testing.assert_close(first, stock[:, :1], rtol=1e-4, atol=1e-5)
    text = med.matcher.text_encoder
    memory = cross_attention_kv(text, images)
    for looked_at, hidden in ((None, None), (memory, images)):
        stock = text(
            batch.tokens, attention_mask=mask.long(), encoder_hidden_states=hidden
        ).last_hidden_state
        ours = encode_texts(text, batch.tokens, mask, looked_at)
        torch.testing.assert_close(ours[mask], stock[mask], rtol=1e-4, atol=1e-5)
        first = encode_texts(text, batch.tokens, mask, looked_at, first_only=True)
        torch.testing.assert_close(first, stock[:, :1], rtol=1e-4, atol=1e-5)


def test_a_causal_reader_does_not_see_what_comes(tokenizer: str) -> None:
    med = make(tokenizer).eval()
    tokens = med.tokenize(["a red dog on the house"], 24)
    other = tokens.clone()
    other[0, 4] = 7
    text = med.captioner.text_decoder.bert
    one, two = encode_texts(text, tokens, causal=True), encode_texts(text, other, causal=True)
    torch.testing.assert_close(one[:, :4], two[:, :4])
    assert not torch.allclose(one[:, 4:], two[:, 4:])


def test_a_subset_of_all_patches_is_the_whole_image(tokenizer: str) -> None:
    med = make(tokenizer).eval()
    pixels = batch_of(med).pixels
    everything = torch.arange(4).expand(4, -1)
    torch.testing.assert_close(
        encode_images(med.vision, pixels, kept=everything), encode_images(med.vision, pixels)
    )
    first = encode_images(med.vision, pixels, kept=everything[:, :1])
    changed = pixels.clone()
    changed[:, :, 16:, 16:] = 9.0  # the last patch, which is hidden
    torch.testing.assert_close(encode_images(med.vision, changed, kept=everything[:, :1]), first)


def test_an_image_passes_by_the_layers_that_are_left_out(tokenizer: str) -> None:
    med = make(tokenizer).eval()
    pixels = batch_of(med).pixels
    paths = torch.ones(4, 2, 2)
    paths[1] = 0.0
    paths[2, 1] = 2.0
    found, whole = encode_images(med.vision, pixels, paths=paths), encode_images(med.vision, pixels)
    torch.testing.assert_close(found[[0, 3]], whole[[0, 3]])
    passed = med.vision.post_layernorm(med.vision.embeddings(pixels))
    torch.testing.assert_close(found[1], passed[1])
    assert not torch.allclose(found[2], whole[2])
    first = encode_images(med.vision, pixels, paths=paths, first_only=True)
    torch.testing.assert_close(first, found[:, :1])
