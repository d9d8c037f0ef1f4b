"""What is trained on: files, images that do not open, epochs."""

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.trainings import config_of, metrics

from models.inference.matcher import Matcher
from pipeline.manifest.train_config import as_sources
from pipeline.training.data import Pairs, Position
from pipeline.training.loader import make_batches
from pipeline.training.loop import train


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
    with pytest.raises(
        ValueError, match="needs 4 images of stream 0 of 1, but an epoch has fewer readable ones"
    ):
        train(config_of(tokenizer), [str(tmp_path / "pairs.parquet")], tmp_path / "model")


def test_a_filter_reads_the_tokens_that_its_training_read(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    said = ["A Red Square.", '"red" (square): here!', "a  red\tsquare;", "a red " * 40, "~ * ~"]
    rows = [
        {"uid": f"{i:032x}", "image": row["image"], "caption": caption}
        for i, (row, caption) in enumerate(
            zip(pq.read_table(pairs).to_pylist()[::2], said, strict=False)
        )
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    config = config_of(
        tokenizer, objective="filter", batch_size=5, queue_size=5, max_text_tokens=20
    )
    med = config.objective.build()
    stream = Pairs(as_sources([str(tmp_path / "pairs.parquet")]))
    loaded = next(make_batches(config, [stream], med, [Position()]))
    med.write(tmp_path / "filter")
    matcher = Matcher.from_pretrained(str(tmp_path / "filter"))
    assert config.objective.max_text_tokens == matcher.max_text
    read = {}
    for grid in matcher._grids([said]):
        for slot, ids, length in zip(grid.slots, grid.ids, grid.lengths, strict=True):
            read[slot] = ids[:length].tolist()
    trained = [[i for i in ids.tolist() if i != med.pad] for ids in loaded.batches[0].tokens]
    assert sorted(trained) == sorted(read.values())
    assert max(map(len, trained)) == config.objective.max_text_tokens


def test_globs_are_read(tokenizer: str, pairs: str, tmp_path: Path) -> None:
    pattern = str(Path(pairs).parent / "*.parquet")
    assert train(config_of(tokenizer, steps=1), [pattern], tmp_path / "model").steps == 1


def test_a_batch_larger_than_the_data_is_refused(
    tokenizer: str, pairs: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="batch_size is 32, but an epoch has only 20 images"):
        train(config_of(tokenizer, batch_size=32, queue_size=64), [pairs], tmp_path / "model")
