import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from blips import tokenizer_of
from PIL import Image
from pydantic import TypeAdapter
from safetensors.torch import load_file
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

from models import med
from models.med import MED, Size
from pipeline.objective import TrainConfig
from pipeline.train import TrainResult, learning_rate, make_optimizer, train

ROOT = Path(__file__).resolve().parents[2]
COLORS = {"red": (220, 30, 30), "green": (30, 160, 50), "blue": (40, 60, 230), "grey": (128,) * 3}
NANO = Size(
    vision_width=32,
    vision_layers=1,
    vision_heads=2,
    text_width=32,
    text_layers=1,
    text_heads=2,
    image_size=32,
    embedding=8,
    positions=24,
    dropout=0.1,
)


@pytest.fixture(autouse=True)
def nano(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(med.SIZES, "nano", NANO)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer_of(["a", "picture", "of", "square", "here", *COLORS]).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twenty squares of four colours, two texts each."""
    rows = []
    for i in range(20):
        color = list(COLORS)[i % 4]
        buffer = io.BytesIO()
        Image.new("RGB", (40 + i, 40), COLORS[color]).save(buffer, "PNG")
        for caption in (f"a {color} square", f"{color} square here"):
            rows.append({"uid": f"{i:032x}", "image": buffer.getvalue(), "caption": caption})
    path = tmp_path_factory.mktemp("pairs") / "00000.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=8)
    return str(path)


def config_of(tokenizer: str | None, **settings: Any) -> TrainConfig:
    plain: dict[str, Any] = {
        "model": "nano",
        "tokenizer": tokenizer,
        "image_size": 32,
        "batch_size": 4,
        "steps": 6,
        "lr": 1e-3,
        "warmup_steps": 2,
        "queue_size": 8,
        "augment": "crop",
        "precision": "fp32",
        "threads": 1,
        "checkpoint_every": 0,
    }
    return TrainConfig(**{**plain, **settings})


def metrics(out: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.name}/{name}": tensor
        for file in sorted(out.rglob("model.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


# --- the loop


@pytest.mark.parametrize("objective", ["pretrain", "captioner", "filter"])
def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(
    tokenizer: str, pairs: str, tmp_path: Path, objective: Any
) -> None:
    config = config_of(tokenizer, objective=objective, augment="paper", checkpoint_every=2)
    train(config, [pairs], tmp_path / "whole/model")
    out = tmp_path / "parts/model"
    train(config, [pairs], out, stop_at=3)
    assert not out.exists()
    # Steps behind the last checkpoint are lost with a killed call, and their rows with them.
    with open(tmp_path / "parts/model.partial/metrics.jsonl", "a") as log:
        log.write('{"step": 4, "loss": 99.0}\n{"step": 5, "lo')
    result = train(config, [pairs], out)
    assert (result.resumed_from, result.steps) == (3, 6)
    assert metrics(out) == metrics(tmp_path / "whole/model")
    assert [row["step"] for row in metrics(out)] == [1, 2, 3, 4, 5, 6]
    assert_same(
        {k.replace("parts", ""): v for k, v in weights(out).items()},
        {k.replace("whole", ""): v for k, v in weights(tmp_path / "whole/model").items()},
    )


def test_a_finished_training_leaves_a_model_and_its_metrics_and_nothing_else(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    train(config_of(tokenizer, checkpoint_every=2), [pairs], out)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert {path.name for path in out.iterdir()} == {"captioner", "matcher", "metrics.jsonl"}
    suffixes = {path.suffix for path in out.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".jsonl", ".safetensors"}


def test_the_seed_decides_the_weights(tokenizer: str, pairs: str, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        train(config_of(tokenizer, seed=seed, steps=2), [pairs], tmp_path / name / "model")
    one, same, other = (weights(tmp_path / name / "model") for name in ("one", "same", "other"))
    assert_same(one, same)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_of_another_config_is_not_taken_up(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    train(config_of(tokenizer), [pairs], tmp_path / "model", stop_at=3)
    result = train(config_of(tokenizer, lr=2e-3), [pairs], tmp_path / "model")
    assert result.resumed_from == 0
    assert [row["step"] for row in metrics(tmp_path / "model")] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_of_other_starting_weights_is_not_taken_up(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    config = config_of(None, objective="filter", model=str(tmp_path / "start"))
    for seed, resumed_from in ((0, 0), (0, 3), (1, 0)):
        train(config_of(tokenizer, steps=1, seed=seed), [pairs], tmp_path / "start")
        assert train(config, [pairs], tmp_path / "model", stop_at=3).resumed_from == resumed_from


def test_loaders_change_nothing_but_the_time(tokenizer: str, pairs: str, tmp_path: Path) -> None:
    for name, loaders in (("none", 0), ("two", 2)):
        config = config_of(tokenizer, loaders=loaders, augment="paper", steps=4)
        train(config, [pairs], tmp_path / name / "model")
    assert metrics(tmp_path / "none/model") == metrics(tmp_path / "two/model")


def test_training_learns_to_name_colours(tokenizer: str, pairs: str, tmp_path: Path) -> None:
    out = tmp_path / "model"
    config = config_of(tokenizer, objective="captioner", steps=60, lr=1e-2, prompt="")
    train(config, [pairs], out)
    rows = metrics(out)
    # Two forms and four colours of equal chance; what is left is the form and the smoothing.
    assert rows[0]["lm"] > 2.0
    assert rows[-1]["lm"] < 1.0


def test_bf16_trains(tokenizer: str, pairs: str, tmp_path: Path) -> None:
    result = train(config_of(tokenizer, precision="bf16"), [pairs], tmp_path / "model")
    assert all(0 < loss < 10 for loss in result.losses.values())


RANK = """
import json, sys
from pathlib import Path
import torch
from models import med
from pipeline.objective import TrainConfig
from pipeline.train import _Training
settings, pairs, out, meeting, rank = json.loads(sys.argv[1])
med.SIZES["nano"] = med.Size(**settings.pop("nano"))
torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
config = TrainConfig(**settings)
_Training(config, [pairs], Path(out), config.tokenizer).run(stop_at=1)
training = _Training(config, [pairs], Path(out), config.tokenizer)
result = training.run(None)
momentum = training.med.momentum
digest = sum(p.double().abs().sum().item() for p in training.med.parameters())
print(json.dumps([digest, momentum.ids.tolist(), result.images, result.resumed_from]))
torch.distributed.destroy_process_group()
"""


def test_two_ranks_train_one_model_on_disjoint_images(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    settings = dataclasses.asdict(config_of(tokenizer, objective="filter", steps=2, queue_size=16))
    settings["nano"] = dataclasses.asdict(dataclasses.replace(NANO, dropout=0.0))
    meeting = f"file://{tmp_path}/meeting"
    command = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen(
            [*command, json.dumps([settings, pairs, str(tmp_path / "model"), meeting, rank])],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    first, second = (
        json.loads(rank.communicate(timeout=120)[0].splitlines()[-1]) for rank in ranks
    )
    # The same weights and the same queue, of the images of both.
    assert first == second
    _, ids, images, resumed_from = first
    assert (images, resumed_from) == (16, 1)
    assert len(set(ids)) == 16
    assert [row["step"] for row in metrics(tmp_path / "model")] == [1, 2]


# --- what is saved


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
            tokenizer, objective=objective, model=str(tmp_path / "med"), steps=1, lr=1e-12
        )
        out = tmp_path / objective
        result = train(dataclasses.replace(config, tokenizer=None), [pairs], out)
        assert isinstance(result, TrainResult)
        model = stock.from_pretrained(out)
        part = "captioner" if objective == "captioner" else "matcher"
        start = getattr(MED.from_pretrained(tmp_path / "med"), part)
        for name, weight in start.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], weight, msg=name)


def test_the_captioner_remembers_its_prompt(tokenizer: str, pairs: str, tmp_path: Path) -> None:
    config = config_of(tokenizer, objective="captioner", steps=1)
    train(config, [pairs], tmp_path / "captioner")
    saved = json.loads((tmp_path / "captioner/config.json").read_text())
    assert saved["caption_prompt"] == "a picture of "


def test_the_result_counts_what_was_seen(tokenizer: str, pairs: str, tmp_path: Path) -> None:
    result = train(config_of(tokenizer, steps=0, epochs=2), [pairs], tmp_path / "model")
    # Twenty images, four a batch.
    assert (result.steps, result.images, result.unreadable) == (10, 40, 0)
    assert set(result.losses) == {"itc", "itm", "lm", "loss"}
    json.dumps(dataclasses.asdict(result))


def test_images_that_do_not_open_are_counted_and_left_out(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    rows = pq.read_table(pairs).to_pylist()
    for row in rows[:8]:
        row["image"] = b"not an image"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    result = train(
        config_of(tokenizer, steps=4), [str(tmp_path / "pairs.parquet")], tmp_path / "model"
    )
    # Four of the twenty images are broken; an epoch of sixteen is four batches.
    assert result.steps == 4
    assert 0 < result.unreadable <= 4


def test_an_epoch_without_a_full_batch_of_readable_images_is_refused(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    rows = pq.read_table(pairs).to_pylist()
    for row in rows[6:]:
        row["image"] = b"not an image"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    with pytest.raises(ValueError, match="batch_size is 4, and fewer images can be read"):
        train(config_of(tokenizer), [str(tmp_path / "pairs.parquet")], tmp_path / "model")


def test_globs_are_read(tokenizer: str, pairs: str, tmp_path: Path) -> None:
    pattern = str(Path(pairs).parent / "*.parquet")
    assert train(config_of(tokenizer, steps=1), [pattern], tmp_path / "model").steps == 1


# --- the config


def test_defaults_are_the_papers_for_each_objective() -> None:
    pretrain, captioner, matcher = (
        TrainConfig(objective=objective) for objective in ("pretrain", "captioner", "filter")
    )
    assert (pretrain.lr, pretrain.epochs, pretrain.schedule) == (3e-4, 20, "exponential")
    assert (captioner.lr, captioner.epochs, captioner.schedule) == (1e-5, 5, "cosine")
    assert (matcher.lr, matcher.epochs, matcher.image_size) == (1e-5, 6, 384)
    lengths = [config.max_text_tokens for config in (pretrain, captioner, matcher)]
    assert lengths == [30, 40, 35]
    assert (pretrain.prompt, captioner.prompt) == ("", "a picture of ")
    assert (pretrain.queue_size, pretrain.momentum, pretrain.alpha) == (57600, 0.995, 0.4)


def test_a_config_is_made_from_a_manifest() -> None:
    adapter = TypeAdapter(TrainConfig)
    config = adapter.validate_python({"objective": "filter", "lr": "2e-5", "data": ["a.jsonl"]})
    assert (config.lr, config.batch_size, config.data) == (2e-5, 256, ("a.jsonl",))
    with pytest.raises(ValueError, match="use 57344 or 57856"):
        adapter.validate_python({"batch_size": 512})
    with pytest.raises(ValueError, match="learning_rate"):
        adapter.validate_python({"learning_rate": 1e-5})


@pytest.mark.parametrize(
    "settings",
    [{"alpha": 1.5}, {"lr": 0.0}, {"batch_size": 0}, {"crop_scale": -0.1}, {"image_size": 0}],
)
def test_impossible_values_are_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"train.{next(iter(settings))} must be"):
        TrainConfig(**settings)


def test_a_batch_larger_than_the_data_is_refused(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="batches of 32, more than the 20 images"):
        train(config_of(tokenizer, batch_size=32, queue_size=64), [pairs], tmp_path / "model")


def test_a_size_needs_a_tokenizer(pairs: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a tokenizer"):
        train(config_of(None), [pairs], tmp_path / "model")


def test_the_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    config = TrainConfig(objective="filter", lr=1.0, min_lr=0.2, warmup_steps=10)
    rates = [learning_rate(config, step, 110, 10) for step in range(111)]
    assert rates[0] == pytest.approx(1e-6)
    assert rates[5] == pytest.approx(0.5, abs=1e-5)
    assert rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.6)
    assert rates[110] == pytest.approx(0.2)


def test_the_learning_rate_of_pretraining_falls_by_the_epoch() -> None:
    config = TrainConfig(lr=1.0, min_lr=0.5, warmup_steps=0, decay_rate=0.9)
    rates = [learning_rate(config, step, 0, 10) for step in (0, 9, 10, 20, 1000)]
    assert rates == pytest.approx([1.0, 1.0, 0.9, 0.81, 0.5])


def test_weight_decay_is_on_matrices_only(tokenizer: str) -> None:
    model = MED.from_pretrained("nano", tokenizer=tokenizer)
    model.start_momentum(queue_size=0)
    optimizer = make_optimizer(model, TrainConfig(weight_decay=0.05))
    decayed, free = (group["params"] for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    assert all(p.ndim > 1 for p in decayed) and all(p.ndim <= 1 for p in free)
    assert any(p is model.temperature for p in free)
    # Shared weights once, momentum encoders not at all.
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert len(decayed) + len(free) == len(trained) == len({id(p) for p in [*decayed, *free]})
