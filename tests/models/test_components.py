import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.components import connected_components


@given(
    st.integers(1, 20).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))
    )
)
def test_two_nodes_have_one_number_if_a_path_joins_them(graph):
    n, edges = graph
    reached = np.eye(n, dtype=bool)
    for a, b in edges:
        reached[a, b] = reached[b, a] = True
    for middle in range(n):
        reached |= np.outer(reached[:, middle], reached[middle])
    i, j = np.array(edges, np.int64).reshape(-1, 2).T
    labels = connected_components(n, i, j)
    assert labels.dtype == np.int64
    assert np.array_equal(labels[:, None] == labels, reached)
