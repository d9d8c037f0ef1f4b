"""Seeds and hashes keep their bits: recorded runs, splits and samples depend on them."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from models.random import hash_of, hashes, seed_of, splitmix, uid_hashes


def test_seeds_and_hashes_keep_the_bits_that_runs_were_made_with() -> None:
    assert seed_of(0, "order", 1, 0, 2) == 4638075487718859692
    assert seed_of(3, "ab", bits=64) == 7926978612153724066
    assert hash_of("3 ab") == 355002942801943669
    assert uid_hashes(pa.chunked_array([[f"{9:032x}"]])).tolist() == [12506679581855488847]
    assert splitmix(0).tolist() == [16294208416658607535]  # the first output of splitmix64, seed 0


@given(st.lists(st.text()), st.integers(1, 64))
def test_a_seed_has_its_bits_and_the_fewer_are_the_first_of_the_more(parts, bits):
    assert 0 <= seed_of(*parts, bits=bits) < 2**bits
    assert seed_of(*parts, bits=bits) == seed_of(*parts, bits=64) >> (64 - bits)


@given(st.lists(st.text()))
def test_the_hashes_of_texts_are_the_hash_of_each(texts):
    assert hashes(texts).tolist() == [hash_of(text) for text in texts]


@given(st.integers(-(2**63), 2**64 - 1))
def test_a_whole_number_is_hashed_as_an_array_of_one(value):
    assert splitmix(value).tolist() == splitmix(np.array([value % 2**64], np.uint64)).tolist()


def test_uids_are_hashed_alike_in_every_slice_and_chunk() -> None:
    uids = [f"{i:032x}" for i in range(7)]
    whole = uid_hashes(pa.chunked_array([uids]))
    parted = pa.chunked_array([pa.array(uids[:3]), pa.array(["0" * 32, *uids[3:]])[1:]])
    assert uid_hashes(parted).tolist() == whole.tolist()
    assert len(set(whole.tolist())) == 7
