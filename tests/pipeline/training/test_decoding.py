"""Decoding in other processes, and ahead of the training."""

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.trainings import config_of
from PIL import Image

from models.image.augmentation import View
from models.objectives.base import Objective
from pipeline.manifest.train_config import as_sources
from pipeline.training.data import Pairs, Position
from pipeline.training.decoding import REQUEST, Decoder, Decoders, serve
from pipeline.training.loader import Loaded, make_batches

VIEW = View(size=24, augment="paper")


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (40, 30 + number, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


PICTURES = [picture(number) for number in range(6)]


def request(image: bytes, seed: int) -> bytes:
    return REQUEST.pack(seed, len(image)) + image


def test_a_process_answers_each_request_in_turn() -> None:
    asked = [(PICTURES[0], 5), (b"not an image", 6), (PICTURES[1], 2**64 - 1)]
    replies = io.BytesIO()
    # The last request is cut off: whoever asked is gone.
    stream = b"".join(itertools.starmap(request, asked)) + request(PICTURES[2], 7)[:-1]
    serve(VIEW, io.BytesIO(stream), replies)
    decode = Decoder(VIEW)
    views = [decode(image, seed) for image, seed in asked]
    expected = [b"\0" if view is None else b"\1" + view.tobytes() for view in views]
    assert replies.getvalue() == b"".join(expected) and views[1] is None


def test_decoded_images_are_cached_until_there_is_no_room() -> None:
    decode = Decoder(VIEW, cache_bytes=40 * 30 * 3)
    first = decode(PICTURES[0], 1, "a")
    assert decode(PICTURES[1], 1, "b") is not None and set(decode.kept) == {"a"}
    again = decode(b"not read again", 1, "a")
    assert first is not None and again is not None and np.array_equal(first, again)


@pytest.mark.slow
def test_processes_decode_as_this_one_and_survive_an_image_that_ends_one() -> None:
    decode = Decoder(VIEW)
    with Decoders(VIEW, 2) as decoders:
        coming = [decoders.submit(image, seed) for seed, image in enumerate(PICTURES)]
        for seed, (image, future) in enumerate(zip(PICTURES, coming, strict=True)):
            view, expected = future.result(), decode(image, seed)
            assert view is not None and expected is not None and np.array_equal(view, expected)
        assert decoders.submit(b"not an image", 0).result() is None
        for process in decoders._processes:
            process.kill()
            process.wait()
        lost = [decoders.submit(PICTURES[0], 0).result() for _ in range(8)]
        assert sum(view is None for view in lost) <= 2 and lost[-1] is not None
        processes = list(decoders._processes)
    assert all(process.poll() is not None for process in processes)


def batches_of(
    tokenizer: str, path: str, number: int, streams: int = 2, **settings: Any
) -> list[Loaded]:
    config = config_of(tokenizer, streams=streams, augment="paper", shuffle_buffer=5, **settings)
    whole = Pairs(as_sources([path]), num_streams=streams, shuffle_buffer=5)
    some = [whole.like(stream=stream) for stream in range(streams)]
    model = config.objective.build()
    batches = make_batches(config, some, model, [Position()] * streams)
    return list(itertools.islice(batches, number))


@pytest.mark.slow
def test_processes_change_no_batch(tokenizer: str, pairs: str, tmp_path: Path) -> None:
    rows = pq.read_table(pairs).to_pylist()
    for row in rows[8:14]:
        row["image"] = b"not an image"
    path = str(tmp_path / "pairs.parquet")
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=8)
    # Fifteen batches reach over several epochs.
    one = batches_of(tokenizer, path, 15)
    other = batches_of(tokenizer, path, 15, loaders=2)
    for mine, theirs in zip(one, other, strict=True):
        assert mine.positions == theirs.positions and mine.captions == theirs.captions
        assert mine.unreadable == theirs.unreadable
        assert torch.equal(mine.batches[0].pixels, theirs.batches[0].pixels)
        assert torch.equal(mine.batches[0].image_ids, theirs.batches[0].image_ids)
    assert sum(loaded.unreadable for loaded in one) > 0


@pytest.mark.slow
def test_what_cannot_be_read_ahead_is_told_in_its_turn(
    tokenizer: str, pairs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = Pairs.examples

    def broken(self: Pairs, *args: Any, **kwargs: Any) -> Any:
        yield from itertools.islice(examples(self, *args, **kwargs), 9)
        raise OSError("the disk is gone")

    monkeypatch.setattr(Pairs, "examples", broken)
    config = config_of(tokenizer, loaders=1)
    stream = Pairs(as_sources([pairs]))
    batches = make_batches(config, [stream], config.objective.build(), [Position()])
    assert [len(next(batches).captions) for _ in range(2)] == [4, 4]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


def test_blocks_that_are_read_ahead_are_the_same(pairs: str) -> None:
    stream = Pairs(as_sources([pairs]), shuffle_buffer=4)
    at = Position(epoch=1, block=1, offset=2)
    one = itertools.islice(stream.examples(at), 50)
    other = itertools.islice(stream.examples(at, read_ahead=True), 50)
    assert list(one) == list(other)


def test_images_travel_as_bytes_and_are_normalised_on_the_device(
    tokenizer: str, pairs: str
) -> None:
    (loaded,) = batches_of(tokenizer, pairs, 1)
    assert loaded.batches[0].pixels.dtype == torch.uint8
    model: Objective = config_of(tokenizer).objective.build()
    (batch,) = loaded.on(torch.device("cpu"), model)
    torch.testing.assert_close(batch.pixels, model.normalize(loaded.batches[0].pixels))
    assert batch.pixels.shape == (4, 3, 32, 32) and batch.tokens is loaded.batches[0].tokens
