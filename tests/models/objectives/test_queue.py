import pytest

from models.objectives.queue import check_queue


@pytest.mark.parametrize(("batch", "near"), [(512, "57344 or 57856"), (100_000, "100000")])
def test_a_queue_that_batches_do_not_fill_names_those_near_it(batch: int, near: str) -> None:
    with pytest.raises(ValueError, match=f"use {near}$"):
        check_queue(57600, batch)


@pytest.mark.parametrize("batch", [256, 600, 2400, 2880])
def test_blips_queue_takes_blips_batches(batch: int) -> None:
    check_queue(57600, batch)
