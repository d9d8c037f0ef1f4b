"""What a new model starts from: encoders of other models, numbers of its own, frozen parts."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.contract import CAPTIONS, batch_of, check_contract, loss_of, small
from helpers.trainings import assert_same
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DeiTConfig,
    DeiTModel,
    ViTConfig,
    ViTModel,
)

from models.attention import encode_images, encode_texts
from models.objectives.albef_config import AlbefConfig
from models.objectives.blip_config import CaptionerConfig, FilterConfig, PretrainConfig
from models.objectives.clip_config import ClipConfig
from models.objectives.features import Features
from models.objectives.start import Shape, Start

pytestmark = pytest.mark.usefixtures("nano")

VISION = {
    "hidden_size": 48,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture(scope="module")
def bert(saved_tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A BERT of four layers in half precision, its tokenizer beside it."""
    folder = tmp_path_factory.mktemp("bert")
    reader = AutoTokenizer.from_pretrained(saved_tokenizer)
    reader.save_pretrained(folder)
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=len(reader) - 2,  # [DEC] and [ENC] are behind it
        hidden_size=40,
        intermediate_size=160,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=24,
        pad_token_id=reader.pad_token_id,
        initializer_range=0.2,
    )
    BertForMaskedLM(config).half().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(6)
    ViTModel(ViTConfig(**VISION, initializer_range=0.2)).save_pretrained(folder)
    return str(folder)


def spread_out(model: torch.nn.Module) -> None:
    """Make weights that begin as zeros or ones differ, so that each has to be copied."""
    torch.manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.05)


def test_the_image_encoder_sees_as_the_vit_that_it_starts_from(
    tokenizer: str, tmp_path: Path
) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    for kind, config_kind in ((ViTModel, ViTConfig), (DeiTModel, DeiTConfig)):
        stock: Any = kind(config_kind(**VISION), add_pooling_layer=False).eval()
        spread_out(stock)
        if kind is DeiTModel:  # BLIP has no token of distillation; DeiT without it is a ViT
            twin: Any = ViTModel(ViTConfig(**VISION), add_pooling_layer=False).eval()
            own = dict(stock.state_dict())
            del own["embeddings.distillation_token"]
            places = own["embeddings.position_embeddings"]
            own["embeddings.position_embeddings"] = torch.cat([places[:, :1], places[:, 2:]], 1)
            twin.load_state_dict(own)
        folder = str(tmp_path / kind.__name__)
        stock.save_pretrained(folder)
        config = small(CaptionerConfig, tokenizer, start=Start(vision=folder))
        model: Any = config.build().eval()
        expected = (twin if kind is DeiTModel else stock)(pixels).last_hidden_state
        torch.testing.assert_close(encode_images(model.vision, pixels), expected)


def test_a_start_at_another_image_size_interpolates_the_positions(tokenizer: str, vit: str) -> None:
    config = small(CaptionerConfig, tokenizer, start=Start(vision=vit), image_size=64)
    model: Any = config.build()
    assert model.vision.embeddings.position_embedding.shape == (1, 65, 48)
    assert model.config.vision_config.image_size == 64


@pytest.mark.parametrize("kind", [CaptionerConfig, FilterConfig, PretrainConfig])
def test_texts_are_read_as_bert_reads_them_in_encoder_and_decoder(bert: str, kind: Any) -> None:
    config = small(kind, "", start=Start(text=bert), **_queue(kind))
    model: Any = kind.of(**{**vars_of(config), "tokenizer": None}).build().eval()
    stock = BertModel.from_pretrained(bert, dtype=torch.float32, add_pooling_layer=False).eval()
    tokens = model.tokenize(CAPTIONS[:3], 12)
    mask = tokens != model.pad
    expected = stock(tokens, attention_mask=mask.long()).last_hidden_state
    if model.matcher is not None:
        found = encode_texts(model.matcher.text_encoder, tokens, mask)
        torch.testing.assert_close(found[mask], expected[mask], atol=1e-4, rtol=1e-4)
    if model.captioner is not None:
        decoder = model.captioner.text_decoder
        masked = BertForMaskedLM.from_pretrained(bert, dtype=torch.float32).eval()
        found = encode_texts(decoder.bert, tokens, mask)
        torch.testing.assert_close(found[mask], expected[mask], atol=1e-4, rtol=1e-4)
        # The head too; [DEC] and [ENC] are behind BERT's vocabulary.
        logits = decoder.cls(expected)[..., : masked.config.vocab_size]
        torch.testing.assert_close(logits, masked.cls(expected), atol=1e-4, rtol=1e-4)
    if kind is PretrainConfig:
        encoder, decoder = model.matcher.text_encoder, model.captioner.text_decoder.bert
        for i, layer in enumerate(encoder.encoder.layer):
            query = decoder.encoder.layer[i].attention.self.query.weight
            assert torch.equal(query, layer.attention.self.query.weight)
            assert query is not layer.attention.self.query.weight


def test_albef_starts_from_bert_with_its_masked_head(bert: str, vit: str) -> None:
    start = Start(text=bert, vision=vit)
    model: Any = small(AlbefConfig, None, start=start, queue_size=8).build()  # type: ignore[arg-type]
    masked = BertForMaskedLM.from_pretrained(bert, dtype=torch.float32).eval()
    hidden = torch.randn(3, 40)
    words = model.matcher.text_encoder.embeddings.word_embeddings.weight
    found = model.mlm(hidden, words)[:, :-2]
    torch.testing.assert_close(found, masked.cls(hidden), atol=1e-4, rtol=1e-4)


def test_a_model_that_starts_from_encoders_keeps_the_contract(
    bert: str, vit: str, tmp_path: Path
) -> None:
    start = Start(text=bert, vision=vit)
    config = small(FilterConfig, None, start=start, queue_size=8)  # type: ignore[arg-type]
    model: Any = config.build()
    assert model.config.vision_config.patch_size == 8
    assert model.config.text_config.num_hidden_layers == 4
    loss_of(model, batch_of(model, config)).backward()


def test_a_blip_and_a_clip_start_new_models(tokenizer: str, tmp_path: Path) -> None:
    for kind, name in ((CaptionerConfig, "blip"), (ClipConfig, "clip")):
        folder = tmp_path / name
        folder.mkdir()
        torch.manual_seed(1)
        small(kind, tokenizer).build().write(folder)
        torch.manual_seed(2)
        again: Any = small(kind, tokenizer, start=Start(vision=str(folder))).build()
        first: Any = small(kind, None, model=str(folder)).build()  # type: ignore[arg-type]
        vision, other = (
            (one.vision if name == "blip" else one.model.vision_model) for one in (again, first)
        )
        assert_same(vision.state_dict(), other.state_dict())
        text, other = (
            (one.captioner.text_decoder if name == "blip" else one.model.text_model)
            for one in (again, first)
        )
        assert any(
            not torch.equal(weight, other.state_dict()[key])
            for key, weight in text.state_dict().items()
        )


def test_a_manifest_gives_numbers_of_its_own(tokenizer: str) -> None:
    shape = Shape(vision_layers=3, patch=8, text_width=24, text_heads=3)
    for kind in (CaptionerConfig, ClipConfig):
        model: Any = small(kind, tokenizer, shape=shape).build()
        config = model.config if kind is CaptionerConfig else model.model.config
        assert config.vision_config.num_hidden_layers == 3
        assert (config.vision_config.patch_size, config.text_config.hidden_size) == (8, 24)
    with pytest.raises(ValueError, match="text_heads must divide text_width, got 5 and 16"):
        small(ClipConfig, tokenizer, shape=Shape(text_heads=5)).build()
    with pytest.raises(ValueError, match=r"train\.shape\.patch must be at least 1"):
        small(ClipConfig, tokenizer, shape=Shape(patch=0))


def test_small_is_between_tiny_and_base(tokenizer: str) -> None:
    sizes = []
    for name in ("tiny", "small", "base"):
        with torch.device("meta"):
            model = CaptionerConfig(model=name, tokenizer=tokenizer, image_size=64).build()
        sizes.append(sum(weight.numel() for weight in model.parameters()))
    assert sizes == sorted(sizes)


def test_what_was_not_set_is_not_in_a_fingerprint(tokenizer: str) -> None:
    plain = small(ClipConfig, tokenizer).measurement()
    assert not {"start", "shape", "freeze"} & plain.keys()
    other = small(ClipConfig, tokenizer, start=Start(vision="clip"), freeze=("vision",))
    assert other.measurement()["start"]["vision"] == "clip"
    assert other.measurement()["freeze"] == ("vision",)
    assert other.models() == {"model": "nano", "start.vision": "clip"}


def test_what_an_objective_does_not_take_is_refused(
    tokenizer: str, vit: str, bert: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="objective clip takes vision, text for start"):
        small(ClipConfig, tokenizer, start=Start(language="lm"))
    with pytest.raises(ValueError, match="objective captioner takes vision for freeze"):
        small(CaptionerConfig, tokenizer, freeze=("text",))
    with pytest.raises(ValueError, match="is a vit, and the objective takes clip"):
        small(ClipConfig, tokenizer, start=Start(vision=vit)).build()
    with pytest.raises(ValueError, match="is a bert, and the objective takes vit or deit or blip"):
        small(CaptionerConfig, tokenizer, start=Start(vision=bert)).build()
    small(CaptionerConfig, tokenizer).build().write(tmp_path)
    config = small(CaptionerConfig, None, model=str(tmp_path), start=Start(vision=vit))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="start and shape are for a size"):
        config.build()


@pytest.mark.parametrize("kind", [PretrainConfig, AlbefConfig, ClipConfig])
def test_a_frozen_part_is_not_trained_and_not_followed(tokenizer: str, kind: Any) -> None:
    config = small(kind, tokenizer, freeze=("vision",), **_queue(kind))
    model: Any = config.build().train()
    model.freeze_parts(config.freeze, torch.bfloat16)
    vision = model.model.vision_model if kind is ClipConfig else model.vision
    assert not vision.training and model.training
    assert {weight.dtype for weight in vision.parameters()} == {torch.bfloat16}
    names = {*model.trained(), *model.memory()}
    assert names and not [name for name in names if "vision_model" in name]
    before = {name: weight.clone() for name, weight in vision.state_dict().items()}
    model.train()
    loss_of(model, batch_of(model, config)).backward()
    assert not vision.training
    assert_same(before, vision.state_dict())
    assert all(weight.grad is None for weight in vision.parameters())


def test_the_contract_is_kept_with_a_frozen_part(tokenizer: str, tmp_path: Path) -> None:
    class Frozen(FilterConfig):
        def build(self) -> Any:
            model = super().build()
            model.freeze_parts(self.freeze, torch.float32)
            return model

    config = Frozen(**vars_of(small(FilterConfig, tokenizer, queue_size=8, freeze=("vision",))))
    check_contract(config, tmp_path)


def _queue(kind: Any) -> dict[str, int]:
    return {"queue_size": 8} if "queue_size" in kind.__dataclass_fields__ else {}


def vars_of(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


@pytest.mark.parametrize("kind", [PretrainConfig, ClipConfig])
def test_features_of_a_frozen_encoder_are_computed_once_and_change_no_loss(
    tokenizer: str, kind: Any
) -> None:
    losses = {}
    for augment in ("none", "crop"):
        fields = {"freeze": ("vision",), "augment": augment, "drop_path": 0.5}
        fields = {name: v for name, v in fields.items() if name in kind.__dataclass_fields__}
        config = small(kind, tokenizer, **fields, **_queue(kind))
        torch.manual_seed(0)
        model: Any = config.build().train()
        model.freeze_parts(config.freeze, torch.float32)
        assert (model.features is not None) == (augment == "none")
        calls: list[int] = []
        vision = model.model.vision_model if kind is ClipConfig else model.vision
        vision.post_layernorm.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        batch = batch_of(model, config)
        losses[augment] = [float(loss_of(model, batch).detach()) for _ in range(3)]
        assert len(calls) == (1 if augment == "none" else 3)
    assert losses["none"] == losses["crop"]


def test_features_do_not_depend_on_what_was_known_before() -> None:
    pixels = torch.randn(4, 3, 2, 2)
    ids = torch.arange(4)

    def encode(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).cumsum(1)

    whole = Features()(ids, pixels, encode)
    features = Features()
    features(ids[[0, 0, 1, 1]], pixels[[0, 0, 1, 1]], encode)
    assert torch.equal(features(ids, pixels, encode), whole)
    assert torch.equal(features(ids.flip(0), pixels, lambda x: x), whole.flip(0))
    small_room = Features(room=2 * 12 * 4)
    small_room(ids, pixels, encode)
    assert len(small_room.known) == 2 and torch.equal(small_room(ids, pixels, encode), whole)
