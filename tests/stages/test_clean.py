from __future__ import annotations

import ast
import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pydantic import TypeAdapter, ValidationError

from stages.clean import CleanConfig, CleanStage, single_colour

SHARED = Path(__file__).resolve().parents[2] / "../shared"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is absent")


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return file.getvalue()


def photo(seed: int = 0) -> bytes:
    cells = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return encoded(Image.fromarray(cells).resize((160, 120), Image.Resampling.BICUBIC))


PHOTO = photo()
GOOD = "a brown dog runs along the beach"


def pool(*captions: str | None, **columns: Any) -> pa.Table:
    """Rows of good images; a column that is given replaces theirs."""
    n = len(captions)
    rows = {
        "uid": [f"{i:032x}" for i in range(n)],
        "caption": pa.array(captions, pa.string()),
        "image": pa.array([PHOTO] * n, pa.binary()),
        "width": [160] * n,
        "height": [120] * n,
        "original_width": pa.array([640] * n, pa.int32()),
        "original_height": pa.array([480] * n, pa.int32()),
    }
    rows.update({name: pa.array(v) if isinstance(v, list) else v for name, v in columns.items()})
    for name in ("width", "height", "original_width", "original_height"):
        rows[name] = pa.array(rows[name], pa.int32())
    return pa.table(rows)


@pytest.fixture(scope="module")
def stage() -> CleanStage:
    return stage_of()


def stage_of(**settings: Any) -> CleanStage:
    stage = CleanStage(CleanConfig(**settings))
    stage.load()
    return stage


def reasons(stage: CleanStage, rows: pa.Table) -> list[str | None]:
    annotations = stage.annotate(rows)
    assert annotations.schema.equals(stage.writes)
    assert len(annotations) == len(rows)
    return stage.judge(annotations).to_pylist()


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        (GOOD, None),
        ("Photo: two red circles on a green field | Stock Photo", None),
        (None, None),
        ("IMG_2034.JPG", "filename"),
        ("https://cdn.example.com/p/1.png", "filename"),
        ("a red car, see https://example.com", "url"),
        ("untitled", "boilerplate"),
        ("click to enlarge picture", "boilerplate"),
        ("", "too_few_words"),
        ("   ", "too_few_words"),
        ("...", "too_few_words"),
        ("red dog", "too_few_words"),
        ("word and " * 200, "too_many_words"),
        ("a b c", "too_few_characters"),
        ("SALE SALE SALE SALE SALE", "repetitive"),
        ("1234 1234 1234", "repetitive"),
        ("$$ 12 % 34 # 567 >> ok !!", "low_quality"),
        ("Zwei Kinder spielen am Strand mit einem Eimer", "not_english"),
    ],
)
def test_a_caption_is_kept_or_rejected_for_the_reason_that_says_most(
    stage: CleanStage, caption: str | None, reason: str | None
) -> None:
    assert reasons(stage, pool(caption)) == [reason]


def test_images_are_rejected_by_size_shape_and_colour(stage: CleanStage) -> None:
    flat = encoded(Image.new("RGB", (100, 80), (90, 120, 30)))
    small = Image.new("RGB", (100, 80), (90, 120, 30))
    ImageDraw.Draw(small).rectangle((20, 20, 45, 45), (200, 30, 30))
    rows = pool(
        *[GOOD] * 9,
        image=pa.array(
            [PHOTO, PHOTO, PHOTO, PHOTO, PHOTO, flat, encoded(small), b"junk", None], pa.binary()
        ),
        original_width=[64, 63, 600, 601, 200, 640, 640, 640, 640],
        original_height=[64, 64, 200, 200, 601, 480, 480, 480, 480],
    )
    assert reasons(stage, rows) == [
        None,
        "image_too_small",
        None,
        "aspect_ratio",
        "aspect_ratio",
        "single_colour",
        None,
        "undecodable",
        "undecodable",
    ]


def test_the_size_of_the_stored_image_stands_in_for_an_unknown_one(stage: CleanStage) -> None:
    none = pa.array([None, None], pa.int32())
    rows = pool(GOOD, GOOD, original_width=none, original_height=none, width=[160, 40])
    assert reasons(stage, rows) == [None, "image_too_small"]


def test_the_first_of_all_rules_that_fire_is_the_verdict(stage: CleanStage) -> None:
    annotations = stage.annotate(pool("untitled", GOOD, original_width=[20, 640]))
    fired = stage.fired(annotations)
    names = list(stage.reasons)
    assert fired.dtype == np.int64
    assert [name for bit, name in enumerate(names) if fired[0] >> bit & 1] == [
        "image_too_small",
        "aspect_ratio",
        "boilerplate",
        "too_few_words",
    ]
    assert fired[1] == 0
    assert stage.judge(annotations).to_pylist() == ["image_too_small", None]


def test_a_pair_without_a_caption_is_rejected_only_when_captions_are_required() -> None:
    assert reasons(stage_of(require_caption=True), pool(None, GOOD)) == ["no_caption", None]


def test_no_text_is_measured_without_a_caption(stage: CleanStage) -> None:
    annotations = stage.annotate(pool(None, "  Red &amp; blue  balls "))
    assert annotations["text"].to_pylist() == [None, "Red & blue balls"]
    for name in (*(n for n in stage.writes.names if n.startswith("text_")), "language"):
        assert annotations[name][0].as_py() is None
        assert annotations[name][1].as_py() is not None


def test_other_languages_can_be_wanted() -> None:
    german = "Zwei Kinder spielen am Strand mit einem Eimer"
    french = "Une grande maison blanche au bord de la mer"
    rows = pool(german, french, GOOD)
    assert reasons(stage_of(languages=("de",)), rows) == [None, "not_english", "not_english"]
    assert reasons(stage_of(languages=("de", "en")), rows) == [None, "not_english", None]
    assert reasons(stage_of(languages=()), rows) == [None, None, None]


def test_thresholds_need_no_new_measurement(stage: CleanStage) -> None:
    annotations = stage.annotate(pool("two words", GOOD, original_width=[640, 100]))
    loose = CleanStage(CleanConfig(min_words=1, max_aspect=10))
    assert stage.judge(annotations).to_pylist() == ["too_few_words", "aspect_ratio"]
    assert loose.judge(annotations).to_pylist() == [None, None]
    assert loose.config.measurement() == CleanConfig().measurement() == {"languages": ("en",)}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.none() | st.text(max_size=30), max_size=12), st.integers(0, 12))
def test_a_row_is_measured_alike_in_any_company(
    stage: CleanStage, captions: list[str | None], cut: int
) -> None:
    rows = pool(
        *captions, image=pa.array([photo(i % 3) for i in range(len(captions))], pa.binary())
    )
    whole = stage.annotate(rows)
    parts = pa.concat_tables([stage.annotate(rows[:cut]), stage.annotate(rows[cut:])])
    assert whole.equals(parts)
    verdicts = stage.judge(whole).to_pylist()
    assert set(verdicts) <= {None, *stage.reasons}
    assert [one is None for one in verdicts] == (stage.fired(whole) == 0).tolist()


def test_single_colour_is_the_share_of_the_most_frequent_colour() -> None:
    pixels = np.zeros((10, 10, 3), np.uint8)
    assert single_colour(pixels) == 1
    pixels[:3] = (200, 0, 0)
    assert single_colour(pixels) == pytest.approx(0.7)
    noise = np.random.default_rng(0).integers(12, 20, (10, 10, 3), np.uint8)
    assert single_colour(noise) == 1  # although it lies on both sides of a cell's edge


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"clean\.max_aspect must be at least 1, got 0\.5"):
        CleanConfig(max_aspect=0.5)
    with pytest.raises(ValueError, match=r"clean\.max_words must be at least clean\.min_words"):
        CleanConfig(min_words=10, max_words=5)
    with pytest.raises(ValueError, match=r"clean\.min_side"):
        CleanConfig(min_side=-1)
    with pytest.raises(ValueError, match=r"clean\.min_letters must be from 0 to 1"):
        CleanConfig(min_letters=2)
    with pytest.raises(ValueError, match=r"clean\.languages"):
        CleanConfig(languages=("English",))
    with pytest.raises(ValidationError):
        TypeAdapter(CleanConfig).validate_python({"min_size": 3})
    assert TypeAdapter(CleanConfig).validate_python({"languages": ["en"]}) == CleanConfig()


def kept(stage: CleanStage, captions: list[str]) -> float:
    """The share of captions that no rule of texts rejects."""
    rows = pool(*captions, image=pa.array([None] * len(captions), pa.binary()))
    fired = stage.fired(stage.annotate(rows))
    undecodable = 1 << list(stage.reasons).index("undecodable")
    return float((fired == undecodable).mean())


@needs_shared
def test_human_captions_are_kept_plain_and_decorated(stage: CleanStage) -> None:
    lines = (SHARED / "data/flickr8k/captions.tsv").read_text("utf8").splitlines()
    captions = [line.split("\t")[1] for line in lines]
    with gzip.open(SHARED / "data/multi30k/train.1.en.gz", "rt", encoding="utf8") as file:
        captions += file.read().splitlines()[:4000]
    assert kept(stage, captions) > 0.995
    styles = ("{} | Stock Photo", "Photo: {}", "{} &amp; more", "  {}  ")
    dressed = [styles[i % 4].format(caption) for i, caption in enumerate(captions)]
    assert kept(stage, dressed) > 0.995


@needs_shared
def test_most_alt_text_is_kept(stage: CleanStage) -> None:
    table = pq.read_table(SHARED / "data/alttext/laion_10k.parquet")
    captions = [text for text in table["TEXT"].to_pylist()[:3000] if text]
    assert 0.8 < kept(stage, captions) < 0.95


@needs_shared
@pytest.mark.parametrize("name", ["FOREIGN", "LOW"])
def test_foreign_and_junk_texts_of_a_real_web_are_rejected(stage: CleanStage, name: str) -> None:
    script = ast.parse((SHARED / "realweb/make.py").read_text("utf8"))
    (texts,) = (
        ast.literal_eval(node.value)
        for node in script.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
    )
    assert len(texts) > 10
    assert kept(stage, [text.format(n=4321) for text in texts]) == 0
