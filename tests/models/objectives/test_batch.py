import torch
from helpers.nano import batch_of, make


def test_a_batch_is_split_into_equal_parts(tokenizer: str) -> None:
    batch = batch_of(make(tokenizer))
    parts = batch.split(2)
    assert [len(part.tokens) for part in parts] == [2, 2]
    assert torch.equal(torch.cat([part.pixels for part in parts]), batch.pixels)
    assert torch.equal(torch.cat([part.image_ids for part in parts]), batch.image_ids)
    # Of two streams in turn each part has a share of both.
    assert [part.image_ids.tolist() for part in batch.split(2, 2)] == [[0, 2], [1, 3]]
