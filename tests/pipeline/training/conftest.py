import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.blips import save_tokenizer
from helpers.nano import stand_in
from helpers.trainings import COLORS, NANO
from PIL import Image


@pytest.fixture(autouse=True)
def nano(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, NANO)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    words = ["a", "picture", "of", "square", "here", *COLORS]
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"), words)


@pytest.fixture(scope="session")
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
