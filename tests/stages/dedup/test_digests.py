from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.dedup import digests

values = st.one_of(
    st.none(),
    st.integers(0, 5).map(lambda i: hashlib.md5(bytes([i])).digest()),
    st.binary(min_size=16, max_size=16).filter(any),
    # Equal in one half alone.
    st.tuples(st.sampled_from("ab"), st.sampled_from("ab")).map(
        lambda pair: (pair[0] * 8 + pair[1] * 8).encode()
    ),
)


@given(st.lists(values, max_size=30), st.integers(0, 3))
def test_codes_number_the_distinct_values_in_order(drawn: list[bytes | None], cut: int) -> None:
    column = pa.array(drawn, pa.binary(16))[cut:]
    drawn = drawn[cut:]
    found = digests.from_binary(column)
    ordered = sorted({one for one in drawn if one is not None})
    expected = [-1 if one is None else ordered.index(one) for one in drawn]
    assert digests.codes(found).tolist() == expected
    texts = digests.to_hex(found).to_pylist()
    assert texts == [None if one is None else one.hex() for one in drawn]


@given(st.lists(values, max_size=30), st.lists(values, max_size=10))
def test_links_and_matches_join_equal_values(
    drawn: list[bytes | None], others: list[bytes | None]
) -> None:
    ours, theirs = (digests.from_binary(pa.array(one, pa.binary(16))) for one in (drawn, others))
    a, b = digests.links(ours)
    assert all(drawn[i] == drawn[j] is not None for i, j in zip(a, b, strict=True))
    some = [one for one in drawn if one is not None]
    assert len(a) == len(some) - len(set(some))
    found = dict(zip(*(ends.tolist() for ends in digests.matches(ours, theirs)), strict=True))
    assert found == {
        i: others.index(one) for i, one in enumerate(drawn) if one is not None and one in others
    }


def test_a_uid_is_its_own_digest() -> None:
    uids = pa.array([hashlib.md5(bytes([i])).hexdigest() for i in range(9)])
    found = digests.from_hex(uids[3:])
    assert digests.to_hex(found).combine_chunks().equals(uids[3:])
    order = np.lexsort((found[:, 1], found[:, 0]))
    assert uids[3:].take(pa.array(order)).to_pylist() == sorted(uids[3:].to_pylist())
    with pytest.raises(ValueError, match="32 hex characters"):
        digests.from_hex(pa.array(["ab"]))
