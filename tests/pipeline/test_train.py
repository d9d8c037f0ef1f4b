import dataclasses
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from blips import tokenizer_of
from PIL import Image
from pydantic import TypeAdapter
from safetensors.torch import load_file
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, CLIPModel

from models import contrastive, med
from models.med import MED, Size
from pipeline.objective import TrainConfig
from pipeline.pairs import Source
from pipeline.train import TrainResult, learning_rate, make_optimizer, train
from pipeline.workers import train_together
from stages.base import Resources

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
    monkeypatch.setitem(contrastive.CLIP_SIZES, "nano", NANO)


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
        "sample_every": 0,
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


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "pretrain"},
        {"objective": "captioner", "sample_every": 1},
        {"objective": "filter", "mask_patches": 0.5},
        {"albef": True},
        {"objective": "clip"},
        {"accumulate": 2, "streams": 2, "gradient_checkpointing": True},
    ],
)
def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(
    tokenizer: str, pairs: str, tmp_path: Path, settings: dict[str, Any]
) -> None:
    config = config_of(tokenizer, augment="paper", checkpoint_every=2, **settings)
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
    logs = [path for path in out.glob("*.jsonl") if path.name != "metrics.jsonl"]
    assert [path.name for path in logs] == ["samples.jsonl"] * ("sample_every" in settings)
    for log in logs:
        assert log.read_text() == (tmp_path / "whole/model" / log.name).read_text()
    assert_same(
        {k.replace("parts", ""): v for k, v in weights(out).items()},
        {k.replace("whole", ""): v for k, v in weights(tmp_path / "whole/model").items()},
    )


ALONE = """
import json, sys
from models import med
from pipeline.objective import TrainConfig
from pipeline.train import train
settings, nano, pairs, out = json.loads(sys.argv[1])
med.SIZES["nano"] = med.Size(**nano)
train(TrainConfig(**settings), [pairs], out)
"""


def test_a_training_that_was_killed_goes_on_as_if_it_had_not_been(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    config = config_of(tokenizer, steps=80, checkpoint_every=3, loaders=1)
    out = tmp_path / "killed"
    told = [dataclasses.asdict(config), dataclasses.asdict(NANO), pairs, str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", ALONE, json.dumps(told)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    log = tmp_path / "killed.partial/metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") > 7):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    result = train(config, [pairs], out)
    assert result.resumed_from > 0 and result.resumed_from % 3 == 0
    train(config, [pairs], tmp_path / "whole")
    assert metrics(out) == metrics(tmp_path / "whole")
    assert_same(
        load_file(out / "captioner/model.safetensors"),
        load_file(tmp_path / "whole/captioner/model.safetensors"),
    )


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


def test_a_training_killed_as_it_ends_is_not_done_again(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    config, out = config_of(tokenizer, checkpoint_every=2), tmp_path / "model"
    first = train(config, [pairs], out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = train(config, [pairs], out)
    assert again.steps == again.resumed_from == first.steps
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    other = train(dataclasses.replace(config, seed=1), [pairs], out)
    assert other.resumed_from == 0 and (out / "README.md").stat().st_mtime_ns != before[out]


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


def test_a_training_does_not_depend_on_where_its_files_lie(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    rows = pq.read_table(pairs).to_pylist()
    losses = []
    # By their whole paths the two folders order the files differently.
    for parquet, human in (("a", "b"), ("z", "y")):
        folder = tmp_path / human
        folder.mkdir()
        (tmp_path / parquet).mkdir()
        pq.write_table(pa.Table.from_pylist(rows[:20]), tmp_path / parquet / "web.parquet")
        for i, row in enumerate(rows[20:]):
            (folder / f"{i // 2}.png").write_bytes(row["image"])
        lines = [
            {"image": f"{i // 2}.png", "caption": r["caption"]} for i, r in enumerate(rows[20:])
        ]
        (folder / "human.jsonl").write_text("\n".join(map(json.dumps, lines)))
        data = [str(tmp_path / parquet / "web.parquet"), str(folder / "human.jsonl")]
        train(config_of(tokenizer, augment="paper"), data, folder / "model")
        losses.append(metrics(folder / "model"))
    assert losses[0] == losses[1]


def test_a_checkpoint_is_taken_up_in_another_folder(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    train(config_of(tokenizer), [pairs], tmp_path / "one/model", stop_at=3)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    shutil.copytree(Path(pairs).parent, tmp_path / "pairs")
    moved = str(tmp_path / "pairs" / Path(pairs).name)
    assert train(config_of(tokenizer), [moved], tmp_path / "two/model").resumed_from == 3


def test_parts_of_a_batch_of_captions_are_the_whole(
    tokenizer: str, tmp_path: Path, pairs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(med.SIZES, "nano", dataclasses.replace(NANO, dropout=0.0))
    rows = pq.read_table(pairs).to_pylist()
    for row in rows:  # texts of one length, so that the mean of means is the mean
        row["caption"] = f"a {row['caption'].split()[-2]} square"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    for name, parts in (("whole", 1), ("parts", 2)):
        config = config_of(tokenizer, objective="captioner", accumulate=parts, prompt="")
        train(config, [str(tmp_path / "pairs.parquet")], tmp_path / name / "model")
    whole, parts = (metrics(tmp_path / name / "model") for name in ("whole", "parts"))
    assert [row["lm"] for row in parts] == pytest.approx([row["lm"] for row in whole], abs=1e-5)


# --- several ranks

RANK = """
import json, sys
import torch
from models import contrastive, med
from pipeline.objective import TrainConfig
from pipeline.train import train
runs, nano, pairs, meeting, rank = json.loads(sys.argv[1])
med.SIZES["nano"] = contrastive.CLIP_SIZES["nano"] = med.Size(**nano)
torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
for settings, out in runs:
    config = TrainConfig(**settings)
    train(config, [pairs], out, stop_at=2)
    result = train(config, [pairs], out)
    print(json.dumps([result.steps, result.images, result.resumed_from]))
torch.distributed.destroy_process_group()
"""

TOGETHER: dict[str, dict[str, Any]] = {
    "pretrain": {"negatives": "global"},
    "filter": {"objective": "filter", "mask_patches": 0.5},
    "albef": {"albef": True, "negatives": "global"},
    "clip": {"objective": "clip", "queue_size": 0},
    "local": {"negatives": "local"},
    "parts": {"objective": "joint", "accumulate": 2},
}


def config_together(tokenizer: str, name: str) -> TrainConfig:
    plain = {"batch_size": 8, "queue_size": 16, "streams": 2, "steps": 4, "prompt": ""}
    # A warm-up from next to nothing would hide a difference.
    return config_of(tokenizer, **{**plain, "warmup_steps": 0, "lr": 1e-4, **TOGETHER[name]})


@pytest.fixture(scope="module")
def two(tokenizer: str, pairs: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks make of each of `TOGETHER`, stopped once on the way."""
    folder = tmp_path_factory.mktemp("two")
    nano = dataclasses.asdict(dataclasses.replace(NANO, dropout=0.0))
    runs = [
        [{**dataclasses.asdict(config_together(tokenizer, name)), "workers": 2}, f"{folder}/{name}"]
        for name in TOGETHER
    ]
    command = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen(
            [*command, json.dumps([runs, nano, pairs, f"file://{folder}/meeting", rank])],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    for rank in ranks:
        results = [json.loads(line) for line in rank.communicate(timeout=120)[0].splitlines()]
        assert results == [[4, 32, 2]] * len(TOGETHER)
    return folder


@pytest.mark.parametrize("name", TOGETHER)
def test_two_workers_train_as_one_with_twice_the_batch_would(
    tokenizer: str,
    pairs: str,
    two: Path,
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for sizes in (med.SIZES, contrastive.CLIP_SIZES):
        monkeypatch.setitem(sizes, "nano", dataclasses.replace(NANO, dropout=0.0))
    train(config_together(tokenizer, name), [pairs], tmp_path / name)
    for alone, together in zip(metrics(tmp_path / name), metrics(two / name), strict=True):
        assert together == pytest.approx(alone, rel=1e-4, abs=1e-5)
    expected, found = (
        {str(path.relative_to(folder)): load_file(path) for path in folder.rglob("*.safetensors")}
        for folder in (tmp_path / name, two / name)
    )
    assert expected.keys() == found.keys()
    for file, tensors in expected.items():
        for key, weight in tensors.items():
            # Attention does not change with a bias of its keys: its gradient is rounding, which
            # AdamW makes a whole step of.
            if not key.endswith(("k_proj.bias", "key.bias")):
                torch.testing.assert_close(
                    found[file][key], weight, atol=1e-4, rtol=1e-3, msg=f"{file} {key}"
                )


def test_ray_starts_the_workers(tokenizer: str, pairs: str, tmp_path: Path, ray_here: Any) -> None:
    config = config_of(
        tokenizer,
        objective="captioner",
        model="tiny",
        prompt="",
        batch_size=8,
        streams=2,
        steps=3,
        max_text_tokens=8,
    )
    train(config, [pairs], tmp_path / "one/model")
    together = dataclasses.replace(config, workers=2)
    sources = [Source(path=pairs)]
    result = train_together(together, sources, str(tmp_path / "two/model"), Resources(cpus=1))
    assert (result.steps, result.images) == (3, 24)
    one, two = (metrics(tmp_path / name / "model") for name in ("one", "two"))
    assert [row["lm"] for row in two] == pytest.approx([row["lm"] for row in one], rel=1e-4)
    # The error of a worker is that of the training, and no other worker waits for it.
    with pytest.raises(ValueError, match="batches of 64, more than the 20 images"):
        large = dataclasses.replace(together, batch_size=64)
        train_together(large, sources, str(tmp_path / "three/model"), Resources(cpus=1))
    with pytest.raises(ValueError, match=r"train\.workers 2 take 200 CPU"):
        train_together(together, sources, str(tmp_path / "four/model"), Resources(cpus=100))


def test_another_number_of_ranks_than_workers_is_refused(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"train\.workers is 2, and 1 train together"):
        train(config_of(tokenizer, workers=2), [pairs], tmp_path / "model")


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
    train(config_of(tokenizer, albef=True, steps=1), [pairs], tmp_path / "albef")
    BlipForImageTextRetrieval.from_pretrained(tmp_path / "albef")
    train(config_of(tokenizer, objective="clip", steps=1), [pairs], tmp_path / "clip")
    assert isinstance(CLIPModel.from_pretrained(tmp_path / "clip"), CLIPModel)
    assert metrics(tmp_path / "clip")[0].keys() >= {"clip", "loss", "temperature"}


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
    with pytest.raises(ValueError, match="takes 4 of stream 0 of 1, and fewer images can be read"):
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
    assert [c.negatives for c in (pretrain, captioner, matcher)] == ["local", "global", "global"]
    albef, clip = TrainConfig(albef=True), TrainConfig(objective="clip")
    assert (albef.queue_size, albef.lr, albef.weight_decay) == (65536, 1e-4, 0.02)
    assert (clip.batch_size, clip.weight_decay, clip.beta2) == (32768, 0.2, 0.98)


def test_albef_goes_with_pretraining_alone() -> None:
    with pytest.raises(ValueError, match="albef goes with objective pretrain, not filter"):
        TrainConfig(albef=True, objective="filter")


def test_data_have_weights_in_a_manifest() -> None:
    adapter = TypeAdapter(TrainConfig)
    data = ["curated", {"path": "coco.json", "weight": 2, "images": "train2017"}]
    config = adapter.validate_python({"data": data})
    assert config.data == ("curated", Source(path="coco.json", weight=2.0, images="train2017"))
    with pytest.raises(ValueError, match="weight must be positive"):
        adapter.validate_python({"data": [{"path": "a", "weight": 0}]})
    with pytest.raises(ValueError, match="wait"):
        adapter.validate_python({"data": [{"path": "a", "wait": 2}]})


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
    [
        {"alpha": 1.5},
        {"lr": 0.0},
        {"batch_size": 0},
        {"crop_scale": -0.1},
        {"image_size": 0},
        {"mask_patches": 1.0},
        {"workers": 0},
        {"accumulate": 0},
        {"streams": 3, "workers": 2},
        {"batch_size": 6, "accumulate": 4},
        {"batch_size": 6, "streams": 4},
    ],
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
