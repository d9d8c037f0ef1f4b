"""Operations against those that torch counts in stock transformers."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BlipConfig, BlipForImageTextRetrieval

from benchmarks.operations import Shape


def counted(call):
    """Operations of products; those of cutting the image into patches are left out."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        call()
    return counter.get_total_flops() - counter.get_flop_counts()["Global"].get(
        torch.ops.aten.convolution, 0
    )


def test_a_match_is_what_torch_counts():
    small = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = BlipConfig(
        vision_config={**small, "intermediate_size": 512, "image_size": 160},
        text_config={**small, "intermediate_size": 512, "encoder_hidden_size": 128},
    )
    model = BlipForImageTextRetrieval(config).eval()
    tokens, pixels = torch.full((1, 16), 7), torch.zeros((1, 3, 160, 160))
    with_image = counted(lambda: model(tokens, pixels, attention_mask=torch.ones_like(tokens)))
    alone = counted(lambda: model.text_encoder(tokens, attention_mask=torch.ones_like(tokens)))
    shape = Shape(side=160, width=128, layers=3, text_width=128, text_layers=3)
    found = shape.matching([16])
    assert found == pytest.approx(with_image + alone, rel=0.03)


def test_a_caption_more_costs_less_than_the_image():
    shape = Shape()
    assert shape.captioning(1) < shape.captioning(5) < 1.2 * shape.captioning(1)
    assert shape.captioning(1) > shape.matching([])
