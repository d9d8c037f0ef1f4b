"""What a training leaves: models, cards, metrics and samples."""

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from helpers.trainings import config_of, metrics, weights
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, CLIPModel

from models.inference.matcher import Matcher
from models.objectives.blip import MED
from pipeline.manifest.train_config import Source
from pipeline.training.loop import TrainResult, train


def test_a_finished_training_leaves_a_model_and_its_metrics_and_nothing_else(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    train(config_of(tokenizer, checkpoint_every=2), [pairs], out)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert {path.name for path in out.iterdir()} == {
        "README.md",
        "captioner",
        "matcher",
        "metrics.jsonl",
    }
    suffixes = {path.suffix for path in out.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".jsonl", ".safetensors", ".md"}


def test_a_captioner_and_a_filter_are_one_stock_folder_each_of_the_pretrained_weights(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    train(config_of(tokenizer), [pairs], tmp_path / "med")
    stocks: dict[Any, Any] = {
        "captioner": BlipForConditionalGeneration,
        "filter": BlipForImageTextRetrieval,
    }
    for objective, stock in stocks.items():
        config = config_of(
            None, objective=objective, model=str(tmp_path / "med"), steps=1, lr=1e-12
        )
        out = tmp_path / objective
        result = train(config, [pairs], out)
        assert isinstance(result, TrainResult)
        model = stock.from_pretrained(out)
        part = "captioner" if objective == "captioner" else "matcher"
        start = getattr(MED.from_pretrained(tmp_path / "med"), part)
        for name, weight in start.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], weight, msg=name)


def test_every_folder_of_a_result_has_a_card_that_names_its_data(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    data = [Source(path=pairs, weight=2.0)]
    train(config_of(tokenizer, steps=1), data, tmp_path / "model")
    cards = {path.parent.name: path.read_text() for path in tmp_path.rglob("README.md")}
    assert cards.keys() == {"model", "captioner", "matcher"}
    front = yaml.safe_load(cards["model"].split("---")[1])
    assert front["library_name"] == "transformers"
    with open(pairs, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    assert f"| `{pairs}` | 20 | 2 | `{digest}` |" in cards["model"]
    assert "1 steps of 4 pairs" in cards["captioner"]
    assert "objective: pretrain" in cards["matcher"] and "torch 2" in cards["matcher"]


def test_albef_and_clip_are_saved_as_stock_folders(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    train(config_of(tokenizer, objective="albef", steps=1), [pairs], tmp_path / "albef")
    BlipForImageTextRetrieval.from_pretrained(tmp_path / "albef")
    train(config_of(tokenizer, objective="clip", steps=1), [pairs], tmp_path / "clip")
    assert isinstance(CLIPModel.from_pretrained(tmp_path / "clip"), CLIPModel)
    assert metrics(tmp_path / "clip")[0].keys() >= {"clip", "loss", "temperature"}


@pytest.mark.parametrize(
    ("settings", "folder"),
    [({}, "matcher"), ({"objective": "filter"}, "."), ({"objective": "albef"}, ".")],
)
def test_the_card_says_how_stock_transformers_reads_what_training_read(
    tokenizer: str,
    pairs: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    folder: str,
) -> None:
    config = config_of(tokenizer, lr=1e-2, warmup_steps=0, steps=4, **settings)
    train(config, [pairs], tmp_path / "model")
    image, caption = pq.read_table(pairs).to_pylist()[0]["image"], '"A Red (square)."'
    (tmp_path / "model/image.jpg").write_bytes(image)
    monkeypatch.chdir(tmp_path / "model")
    card = Path("README.md").read_text()
    said: dict[str, Any] = {}
    [program] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(program.replace('"A caption."', repr(caption)), said)
    matcher = Matcher.from_pretrained(folder, dtype="float32")
    [[match]] = matcher.score([image], [[caption]])
    assert said["match"].item() == pytest.approx(match.itm, abs=1e-5)
    is_albef = config.objective.name == "albef"
    assert ("[ENC]" in program) == (not is_albef)
    ids = said["inputs"]["input_ids"][0]
    assert ids[0] == (matcher.tokenizer.cls_token_id if is_albef else matcher.encode)


def test_the_card_of_a_filter_that_goes_on_from_albef_says_how_albef_reads(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    train(config_of(tokenizer, objective="albef", steps=1), [pairs], tmp_path / "albef")
    config = config_of(None, objective="filter", model=str(tmp_path / "albef"), steps=1)
    train(config, [pairs], tmp_path / "filter")
    card = (tmp_path / "filter/README.md").read_text()
    assert "begins with [CLS]" in card and "[ENC]" not in card


def test_joint_fine_tuning_saves_the_captioner_and_the_filter_that_share(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    config = config_of(tokenizer, objective="joint", steps=1)
    result = train(config, [pairs], tmp_path / "model")
    assert set(result.losses) == {"itc", "itm", "lm", "loss"}
    saved = weights(tmp_path / "model")
    name = "encoder.layer.0.crossattention.self.query.weight"
    assert torch.equal(
        saved[f"captioner/text_decoder.bert.{name}"], saved[f"matcher/text_encoder.{name}"]
    )


def test_captions_are_sampled_on_the_way_and_change_nothing(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    for name, every in (("with", 2), ("without", 0)):
        config = config_of(tokenizer, sample_every=every, steps=5)
        train(config, [pairs], tmp_path / name / "model")
    lines = (tmp_path / "with/model/samples.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == [2] * 4 + [4] * 4 + [5] * 4
    assert all(isinstance(row["written"], str) and "square" in row["caption"] for row in rows)
    assert metrics(tmp_path / "with/model") == metrics(tmp_path / "without/model")


def test_tensorboard_reads_the_metrics(tokenizer: str, pairs: str, tmp_path: Path) -> None:
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = config_of(tokenizer, tensorboard=True)
    train(config, [pairs], tmp_path / "model", stop_at=3)
    train(config, [pairs], tmp_path / "model")
    events = loading.EventAccumulator(str(tmp_path / "model/tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    expected = [(row["step"], row["loss"]) for row in metrics(tmp_path / "model")]
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert [v for _, v in found] == pytest.approx([v for _, v in expected], abs=1e-5)


def test_tensorboard_without_its_package_says_what_to_install(
    tokenizer: str, pairs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="pip install"):
        train(config_of(tokenizer, tensorboard=True), [pairs], tmp_path / "model")


def test_the_captioner_remembers_its_prompt(tokenizer: str, pairs: str, tmp_path: Path) -> None:
    config = config_of(tokenizer, objective="captioner", steps=1)
    train(config, [pairs], tmp_path / "captioner")
    saved = json.loads((tmp_path / "captioner/config.json").read_text())
    assert saved["caption_prompt"] == "a picture of "
