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
import spacy
import yaml
from helpers.runs import with_nulls
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps
from pydantic import TypeAdapter, ValidationError

from stages.clean import CUTOFFS, CleanConfig, CleanStage, single_colour
from stages.clean_presets import PRESETS

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
        "original_bytes": pa.array([9000] * n, pa.int64()),
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
        ("", "empty_caption"),
        ("   ", "empty_caption"),
        ("<br>\u200b", "empty_caption"),
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
    asked = ("text_noun", "text_determiner", "text_preposition")
    for name in stage.writes.names:
        if name.startswith(("text", "caption", "language")):
            assert annotations[name][0].as_py() is None
            assert (annotations[name][1].as_py() is None) == (name in asked)


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
    assert loose.config.measurement() == CleanConfig().measurement()


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


def test_hostile_captions_are_rows_like_any_other(stage: CleanStage, tmp_path: Path) -> None:
    captions = [
        "a\x00b",
        "\u202egod nworb a",
        "x" * 1_000_000,
        "dog " * 250_000,
        "\ufeff",
        "\r\n\x85",
    ]
    rows = pool(*captions)
    pq.write_table(stage.annotate(rows), tmp_path / "annotations.parquet")
    read = pq.read_table(tmp_path / "annotations.parquet")
    assert read["text"].to_pylist()[:2] == ["ab", "god nworb a"]
    assert stage.judge(read).to_pylist()[4:] == ["empty_caption", "empty_caption"]
    assert read["caption_words"].to_pylist()[3] == 250_000


def test_single_colour_is_the_share_of_the_most_frequent_colour() -> None:
    pixels = np.zeros((10, 10, 3), np.uint8)
    assert single_colour(pixels) == 1
    pixels[:3] = (200, 0, 0)
    assert single_colour(pixels) == pytest.approx(0.7)
    noise = np.random.default_rng(0).integers(12, 20, (10, 10, 3), np.uint8)
    assert single_colour(noise) == 1  # although it lies on both sides of a cell's edge


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_aspect": 0.5}, r"clean\.max_aspect must be at least 1, got 0\.5"),
        ({"min_words": 10, "max_words": 5}, r"clean\.max_words must be at least clean\.min_words"),
        ({"preset": "align", "min_words": 30}, r"clean\.max_words must be at least .*, 30, got 20"),
        ({"min_side": -1}, r"clean\.min_side must be from 0 to"),
        ({"max_characters": 2**40}, r"clean\.max_characters must be from 0 to"),
        ({"min_side": True}, r"clean\.min_side must be a number or off, got on"),
        ({"min_letters": 2}, r"clean\.min_letters must be from 0 to 1"),
        ({"languages": ("English",)}, r"clean\.languages"),
        ({"preset": "laion"}, r"clean\.preset must be one of flamingo, cc3m, .*, got 'laion'"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CleanConfig(**settings)


def manifest(text: str) -> CleanConfig:
    config: CleanConfig = TypeAdapter(CleanConfig).validate_python(yaml.safe_load(text))
    return config


def test_a_manifest_overrides_a_preset_threshold_by_threshold() -> None:
    config = manifest("{preset: coyo, min_side: 100, max_words: off, noun: off, languages: [en]}")
    assert config == CleanConfig(preset="coyo", min_side=100, max_words=False, noun=False)
    shown = config.settings()
    assert shown["preset"] == "coyo" and shown["languages"] == ("en",)
    assert (shown["min_side"], shown["max_words"], shown["noun"]) == (100, False, False)
    assert (shown["max_aspect"], shown["min_characters"], shown["counts"]) == (3.0, 6, "caption")
    assert shown["max_single_colour"] is False
    assert manifest("{}") == CleanConfig(preset="flamingo")
    assert manifest("{min_side: 0}").settings()["min_side"] == 0
    with pytest.raises(ValidationError):
        manifest("{min_size: 3}")


def test_settings_read_back_mean_the_same() -> None:
    for preset in PRESETS:
        shown = CleanConfig(preset=preset).settings()
        again = manifest(yaml.safe_dump({**shown, "languages": list(shown["languages"])}))
        assert again.settings() == shown


# One pair just inside and one just outside each rule that can be seen in the measures alone.
BOUNDS: list[tuple[str, Any, str, Any, Any]] = [
    ("min_side", 64, "image_width", 64, 63),
    ("min_side", 64, "image_height", 64, 63),
    ("max_aspect", 2.5, "image_aspect", 2.5, 1001 / 400),
    ("min_bytes", 5000, "image_bytes", 5000, 4999),
    ("max_single_colour", 0.99, "image_single_colour", 0.99, 0.9901),
    ("min_entropy", 2.0, "image_entropy", 2.0, 1.999),
    ("filename", True, "text_filename", False, True),
    ("url", True, "text_url", False, True),
    ("contact", True, "text_contact", False, True),
    ("entity", True, "text_entity", False, True),
    ("boilerplate", True, "text_boilerplate", False, True),
    ("min_words", 3, "text_words", 3, 2),
    ("max_words", 20, "text_words", 20, 21),
    ("min_characters", 5, "text_characters", 5, 4),
    ("max_characters", 1000, "text_characters", 1000, 1001),
    ("max_repeat_share", 0.2, "text_repeat_share", 3 / 15, 3 / 14),
    ("min_unique_share", 0.5, "text_unique_share", 0.5, 0.49),
    ("min_letters", 0.5, "text_letters", 0.5, 0.49),
    ("max_digits", 0.3, "text_digits", 0.3, 0.31),
    ("max_symbols", 0.3, "text_symbols", 0.3, 0.31),
    ("max_capitals", 0.7, "text_capitals", 0.7, 0.71),
    ("capitalised", True, "text_capitalised", True, False),
    ("noun", True, "text_noun", True, False),
    ("determiner", True, "text_determiner", True, False),
    ("preposition", True, "text_preposition", True, False),
    ("min_language_score", 0.05, "language_score", 0.05, 0.049),
]
PLAIN = {"preset": "blip_laion", "min_side": False}


@pytest.mark.parametrize(("rule", "limit", "column", "inside", "outside"), BOUNDS)
def test_each_rule_fires_just_beyond_its_bound_and_only_where_it_is_on(
    stage: CleanStage, rule: str, limit: Any, column: str, inside: Any, outside: Any
) -> None:
    row = {**stage.annotate(pool(GOOD)).to_pylist()[0], "text_repeats": 3, "language": "de"}
    rows = [{**row, column: value} for value in (inside, outside, None)]
    table = pa.Table.from_pylist(rows, schema=stage.writes)
    if column != "image_single_colour":
        table = table.set_column(
            stage.writes.names.index("image_single_colour"),
            stage.writes.field("image_single_colour"),
            pa.array([0.2] * 3, pa.float32()),
        )
    on = CleanStage(CleanConfig(**{**PLAIN, rule: limit}))
    off = CleanStage(CleanConfig(**{**PLAIN, rule: False}))
    fired = on.fired(table)
    assert fired[0] == 0 and bin(fired[1]).count("1") == 1
    undecodable = 1 if column == "image_single_colour" else 0
    assert fired[2] == undecodable
    assert off.fired(table).tolist() == [0, 0, undecodable]


def test_a_rule_that_is_not_measured_never_fires_and_every_rule_has_a_bound() -> None:
    thresholds = {name for name in CleanConfig().limits if name != "counts"}
    assert {rule for rule, *_ in BOUNDS} == thresholds
    everywhere = {"undecodable", "no_caption", "empty_caption"}
    assert len(CleanStage.reasons) == len(thresholds) + len(everywhere)


def side(preset: str, *sizes: tuple[int, int]) -> list[bool]:
    """Whether a preset keeps images of these sizes."""
    stage = stage_of(preset=preset, noun=False, determiner=False, preposition=False)
    rows = pool(
        *["The dog runs along a beach"] * len(sizes),
        original_width=[width for width, _ in sizes],
        original_height=[height for _, height in sizes],
    )
    return [reason is None for reason in reasons(stage, rows)]


@pytest.mark.parametrize(
    ("preset", "keeps", "drops"),
    [
        ("flamingo", [(64, 64), (192, 64), (64, 192)], [(63, 64), (64, 63), (193, 64), (64, 193)]),
        ("cc3m", [(401, 401), (802, 401)], [(400, 401), (401, 400), (803, 401)]),
        ("cc12m", [(401, 401), (1005, 402)], [(400, 500), (1006, 402)]),
        ("align", [(201, 201), (602, 201)], [(200, 201), (603, 201), (201, 603)]),
        ("laion400m", [(8, 8), (900, 9)], []),
        ("coyo", [(200, 200), (600, 200)], [(199, 200), (601, 200)]),
        ("datacomp_basic", [(200, 200), (600, 200)], [(199, 200), (601, 200)]),
        ("blip_laion", [(257, 257), (9000, 257)], [(256, 257), (257, 256)]),
    ],
)
def test_a_preset_takes_the_sizes_that_its_paper_takes(
    preset: str, keeps: list[tuple[int, int]], drops: list[tuple[int, int]]
) -> None:
    assert side(preset, *keeps, *drops) == [True] * len(keeps) + [False] * len(drops)


@pytest.mark.parametrize(
    ("preset", "caption", "reason"),
    [
        ("cc3m", "A dog runs along the beach", None),
        ("cc3m", "a dog runs along the beach", "not_capitalised"),
        ("cc3m", "A dog runs | Stock Photo", None),
        ("cc3m", "Embedded image permalink of a dog", "boilerplate"),
        ("cc12m", "a dog runs", None),
        ("cc12m", "a dog", "too_few_words"),
        ("cc12m", "dog on dog on dog on a big green old lawn today", "repetitive"),
        ("align", "dog on the", None),
        ("align", "the dog", "too_few_words"),
        ("align", "one " + "and the dog " * 6 + "runs", None),
        ("align", "one " + "and the dog " * 6 + "runs off", "too_many_words"),
        ("laion400m", "hello", None),
        ("laion400m", "dogs", "too_few_characters"),
        ("laion400m", "  dogs  ", "too_few_characters"),
        ("coyo", "An old dog", None),
        ("coyo", "An dog", "too_few_words"),
        ("coyo", "A b c", "too_few_characters"),
        ("coyo", "The dog " * 125 + "     ", None),
        ("coyo", "The dog " * 125 + "is", "too_many_characters"),
        ("datacomp_basic", "a big dog", None),
        ("datacomp_basic", "red & dog", None),
        ("datacomp_basic", "big dog", "too_few_words"),
        ("datacomp_basic", "I a I", "too_few_characters"),
        ("datacomp_basic", "Zwei Kinder spielen am Strand mit einem Eimer", "not_english"),
        ("blip_laion", "x", None),
        ("blip_laion", "IMG_2034.JPG", None),
    ],
)
def test_a_preset_takes_the_captions_that_its_paper_takes(
    preset: str, caption: str, reason: str | None
) -> None:
    stage = stage_of(preset=preset, noun=False, determiner=False, preposition=False)
    rows = pool(caption, original_width=[641], original_height=[480])
    assert reasons(stage, rows) == [reason]


def test_laion_and_coyo_want_five_kilobytes_of_what_the_pool_keeps() -> None:
    rows = pool(*["a big brown dog"] * 2, original_bytes=pa.array([5000, 4999], pa.int64()))
    for preset in ("laion400m", "coyo"):
        assert reasons(stage_of(preset=preset, noun=False), rows) == [None, "too_few_bytes"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A spaCy pipeline that tells a few words by rule."""
    folder = tmp_path_factory.mktemp("pipeline")
    nlp = spacy.blank("en")
    ruler: Any = nlp.add_pipe("attribute_ruler")
    for tag, words in (("NOUN", "dog beach"), ("DET", "a the"), ("ADP", "on along")):
        for word in words.split():
            ruler.add([[{"LOWER": word}]], {"POS": tag})
    ruler.add([[{"LOWER": "rex"}]], {"POS": "PROPN"})
    nlp.to_disk(folder)
    return str(folder)


def test_parts_of_speech_are_measured_where_a_rule_asks(pipeline: str) -> None:
    captions = ("The dog runs on grass", "The running on", "Dog runs on grass", "Rex is a good one")
    rows = pool(*captions, original_width=[500] * 4, original_height=[480] * 4)
    stage = stage_of(preset="cc3m", model=pipeline)
    assert reasons(stage, rows) == [None, "no_noun", "no_determiner", "no_preposition"]
    assert reasons(stage_of(preset="cc12m", model=pipeline), rows)[3] is None
    coyo = stage_of(preset="coyo", model=pipeline, min_bytes=0)
    assert reasons(coyo, rows) == [None, "no_noun", None, None]


def test_the_pipeline_is_part_of_the_measurement_only_where_it_is_loaded(pipeline: str) -> None:
    asked = CleanConfig(preset="coyo", model=pipeline)
    assert asked.measurement()["parts_of_speech"]
    assert CleanConfig(preset="coyo", model=pipeline, min_side=1).measurement() == (
        asked.measurement()
    )
    assert CleanConfig(model=pipeline).measurement()["parts_of_speech"] is None
    assert CleanConfig(preset="coyo", noun=False).measurement()["parts_of_speech"] is None
    with pytest.raises(FileNotFoundError, match=r"clean\.model: no spaCy pipeline 'nowhere_sm'"):
        CleanConfig(preset="cc3m", model="nowhere_sm").measurement()


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


def realweb(name: str) -> list[str]:
    """A list of texts that the real web is made of."""
    script = ast.parse((SHARED / "realweb/make.py").read_text("utf8"))
    (texts,) = (
        ast.literal_eval(node.value)
        for node in script.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
    )
    assert len(texts) > 5
    return [str(text) for text in texts]


@needs_shared
@pytest.mark.parametrize("name", ["FOREIGN", "LOW"])
def test_foreign_and_junk_texts_of_a_real_web_are_rejected(stage: CleanStage, name: str) -> None:
    texts = [text.format(n=n) for text in realweb(name) for n in (1000, 4321, 9999)]
    assert kept(stage, texts) == 0


@needs_shared
def test_captions_of_a_real_web_come_out_as_people_wrote_them(stage: CleanStage) -> None:
    lines = (SHARED / "data/flickr8k/captions.tsv").read_text("utf8").splitlines()
    captions = [" ".join(line.split("\t")[1].strip('"').split()) for line in lines[:500]]
    for style in realweb("DECORATE"):
        rows = pool(*(style.format(c=caption) for caption in captions))
        annotations = stage.annotate(rows)
        texts = annotations["text"].to_pylist()
        expected = [c + " & more" if "more" in style else c for c in captions]
        assert sum(a == b for a, b in zip(texts, expected, strict=True)) >= 498
        assert np.mean(stage.fired(annotations) == 0) > 0.98


@needs_shared
def test_faulty_images_of_a_real_web_are_rejected_and_photographs_kept(stage: CleanStage) -> None:
    files = sorted((SHARED / "data/flickr8k/images").iterdir())[:40]
    photos = [Image.open(file).convert("RGB") for file in files]
    faults = {
        "image_too_small": [ImageOps.fit(photo, (63, 200)) for photo in photos],
        "aspect_ratio": [ImageOps.fit(photo, (480, 150)) for photo in photos],
        "single_colour": [
            Image.new("RGB", (300, 240), (7 * i % 256, 31 * i % 256, 99)) for i in range(40)
        ],
        None: photos,
    }
    for reason, images in faults.items():
        rows = pool(
            *[GOOD] * 40,
            image=[encoded(image) for image in images],
            original_width=[image.width for image in images],
            original_height=[image.height for image in images],
        )
        assert reasons(stage, rows) == [reason] * 40


@needs_shared
def test_a_real_pipeline_tells_the_parts_of_real_captions() -> None:
    model = str(SHARED / "data/en_core_web_sm_port")
    lines = (SHARED / "data/flickr8k/captions.tsv").read_text("utf8").splitlines()
    captions = [line.split("\t")[1].capitalize() for line in lines[:300]]
    stage = stage_of(preset="coyo", model=model, min_bytes=0)
    assert np.mean(stage.fired(stage.annotate(pool(*captions))) == 0) > 0.97
    texts = pool("Running and jumping quickly", "A", "x" * 2_000_000)
    assert stage.annotate(texts)["text_determiner"].to_pylist()[:2] == [False, True]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 900)), min_size=1, max_size=30))
def test_a_cutoff_lies_between_what_its_rule_rejects_and_what_it_keeps(
    measures: list[tuple[int, int]],
) -> None:
    stage = CleanStage(CleanConfig(preset="flamingo", languages=()))
    words, sides = zip(*measures, strict=True)
    table = with_nulls(
        stage.writes,
        len(words),
        text=["a text"] * len(words),
        text_words=list(words),
        image_width=list(sides),
        image_height=[1000] * len(words),
        image_aspect=[1.0] * len(words),
    )
    bits = stage.fired(table)
    cutoffs = list(stage.cutoffs(table))
    assert {cutoff.reason for cutoff in cutoffs} <= set(stage.reasons)
    for cutoff in cutoffs:
        values = cutoff.values[bits >> list(stage.reasons).index(cutoff.reason) & 1 == 1]
        is_least = cutoff.name.startswith("min")
        assert ((values < cutoff.limit) if is_least else (values > cutoff.limit)).all()


def test_every_cutoff_names_a_reason_a_threshold_and_columns() -> None:
    for reason, (name, *columns) in CUTOFFS.items():
        assert reason in CleanStage.reasons and name in CleanConfig().limits
        for column in columns:
            assert column.format(counts="text") in CleanStage.writes.names
