"""VLMo: which network reads which token, both contrasts, first losses, pairs learnt by heart."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.blips import drawn
from helpers.contract import check_contract, learnt_by_heart, small
from helpers.nano import NANO, batch_of, stand_in, step_of

from models.inference.trained import VLMo as Reader
from models.objectives.vlmo import Vlmo
from models.objectives.vlmo_config import VlmoConfig


def config(tokenizer: str, **fields: Any) -> Any:
    return small(VlmoConfig, tokenizer, **fields)


def make(tokenizer: str, **fields: Any) -> Any:
    """A nano VLMo whose weights are large enough to matter."""
    torch.manual_seed(0)
    model = config(tokenizer, **fields).build().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
            elif "gamma" in name:
                parameter.fill_(1.0)
    return model


def test_the_contract_of_an_objective_is_kept(tokenizer: str, tmp_path: Path) -> None:
    check_contract(config(tokenizer), tmp_path)


def test_the_first_losses_are_those_of_a_guess(tokenizer: str) -> None:
    model = make(tokenizer)
    with torch.no_grad():
        for head in (model.image_head, model.joint_image_head, model.itm, model.mlm.dense):
            head.weight.zero_()
        model.mlm.dense.bias.zero_()
        model.mlm.norm.bias.zero_()
    losses = model(batch_of(model), step_of(0))
    assert losses["itc"].item() == pytest.approx(math.log(4))
    assert losses["itm"].item() == pytest.approx(math.log(2))
    assert losses["mlm"].item() == pytest.approx(math.log(len(model.tokenizer)), rel=1e-5)


@pytest.mark.parametrize(
    ("expert", "moves"),
    [("image", {"image", "pair"}), ("text", {"text", "pair"}), ("both", {"joint", "pair"})],
)
def test_each_network_reads_its_own_tokens(tokenizer: str, expert: str, moves: set[str]) -> None:
    model = make(tokenizer)
    batch = batch_of(model)
    multiway = model.multiway
    assert [len(layer.experts) for layer in multiway.layers] == [2, 3]

    def read() -> dict[str, torch.Tensor]:
        words, patches = multiway.read(batch.texts), multiway.see(batch.pixels)
        mask = model._mask(batch.texts)
        with torch.no_grad():
            return {
                "image": multiway(None, patches),
                "text": multiway(words, None, mask),
                "joint": multiway(None, patches, is_joint=True),
                "pair": model._fuse(batch.texts, patches),
            }

    before = read()
    layer = 1 if expert == "both" else 0  # below, where there is no network of both
    with torch.no_grad():
        multiway.layers[layer].experts[expert].fc2.bias.add_(
            torch.randn(32, generator=torch.Generator().manual_seed(0))
        )
    moved = {name for name, value in read().items() if not torch.equal(value, before[name])}
    assert moved == moves | ({"joint"} if expert == "image" else set())


def test_text_and_image_see_each_other_and_no_padding(tokenizer: str) -> None:
    model = make(tokenizer)
    tokens = model.tokenize(["a red dog", "two big blue birds on the big house"], 12)
    patches = model.remember(batch_of(model, ["a"] * 2).pixels)
    with torch.no_grad():
        whole = model.match(tokens, patches)
        alone = model.match(model.tokenize(["a red dog"], 12), patches[:1])
        torch.testing.assert_close(whole[:1], alone)
        texts = model.embed_texts(tokens)
        torch.testing.assert_close(texts[:1], model.embed_texts(tokens[:1, :5]))
        changed = patches.clone()
        changed[0, 2] += torch.randn(32, generator=torch.Generator().manual_seed(0))
        moved = model._fuse(tokens, changed) - model._fuse(tokens, patches)
    assert (moved[0].abs().amax(1) > 1e-6).all() and torch.equal(moved[1], moved[1] * 0)


def test_the_text_stage_trains_the_text_alone_with_the_attention_frozen(tokenizer: str) -> None:
    model = make(tokenizer, stage="texts").train()
    batch, other = batch_of(model), batch_of(model, seed=1)
    losses = model(batch, step_of(0))
    assert losses.keys() == {"mlm"}
    assert losses["mlm"].item() == model(other, step_of(0))["mlm"].item()  # images do not count
    losses["mlm"].backward()
    trained = set(model.trained())
    assert not any(part in name for name in trained for part in ("qkv", "proj", "image", "patch"))
    assert {name for name in trained if "experts" in name} == {
        f"multiway.layers.{layer}.experts.text.{part}.{kind}"
        for layer in (0, 1)
        for part in ("norm", "fc1", "fc2")
        for kind in ("weight", "bias")
    }


def test_skipped_layers_change_the_loss_in_training_alone(tokenizer: str) -> None:
    model = make(tokenizer, drop_path=0.5)
    batch = batch_of(model)
    whole = model(batch, step_of(0))["itc"].item()
    model.train()
    draws = [model(batch, step_of(seed))["itc"].item() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2] != whole


def test_sixteen_pairs_are_learnt_by_heart(tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, dataclasses.replace(NANO, spread=0.1))
    model, batch = learnt_by_heart(config(tokenizer), 400, lr=2e-3)
    with torch.no_grad():
        cosines = model.embed_images(batch.pixels) @ model.embed_texts(batch.texts).T
        patches = model.remember(batch.pixels)
        rows = torch.arange(16).repeat_interleave(16)
        logits = model.match(batch.texts.repeat(16, 1), patches[rows]).view(16, 16, 2)
    own = torch.arange(16)
    assert torch.equal(cosines.argmax(0), own) and torch.equal(cosines.argmax(1), own)
    best = (logits[..., 1] - logits[..., 0]).argmax(1)
    assert (best == own).float().mean() > 0.6  # the wrong partners are the hardest there are
    scores = logits[..., 1] - logits[..., 0]
    assert (scores.diag()[:, None] > scores).sum() > 0.95 * 16 * 15


def test_the_filter_runs_what_is_trained(tokenizer: str, tmp_path: Path) -> None:
    model = make(tokenizer)
    model.write(tmp_path)
    reader = Reader.from_pretrained(str(tmp_path), dtype="float32")
    images, texts = [drawn(seed) for seed in range(2)], ["a red dog", "two cats"]
    pixels, tokens = model.preprocess(images), model.tokenize(texts, 12)
    cosines = model.embed_images(pixels) @ model.embed_texts(tokens).T
    patches = model.remember(pixels)
    for image, own in enumerate(reader.score(images, [texts] * 2)):
        expected = model.match(tokens, patches[[image, image]]).softmax(1)[:, 1]
        assert [match.itm for match in own] == pytest.approx(expected.tolist(), abs=1e-5)
        assert [match.itc for match in own] == pytest.approx(cosines[image].tolist(), abs=1e-5)


def test_what_does_not_fit_is_refused(tokenizer: str, tmp_path: Path) -> None:
    make(tokenizer).write(tmp_path)
    with pytest.raises(ValueError, match="image_size must be 32"):
        Vlmo.from_pretrained(tmp_path, image_size=64)
    with pytest.raises(ValueError, match="image_size must be a multiple of patch_size 16"):
        Vlmo.from_pretrained("nano", tokenizer=tokenizer, image_size=40)
    with pytest.raises(ValueError, match="joint_layers must be at most the 2 layers"):
        Vlmo.from_pretrained("nano", tokenizer=tokenizer, joint_layers=3)
