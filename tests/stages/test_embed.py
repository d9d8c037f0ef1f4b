from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.blips import WORDS, drawn, random_model, save, save_clip, tokenizer_of
from pydantic import TypeAdapter, ValidationError
from safetensors.numpy import save_file
from transformers import BlipForImageTextRetrieval, Dinov2Config, Dinov2Model
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from models.embedding.head import Head
from models.inference.dual_encoder import DualEncoder
from models.inference.matcher import Matcher
from pipeline.execution.worker import Worker
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.plan import Plan
from pipeline.storage.run import Run
from stages.embed import EmbedConfig, EmbedStage, HeadConfig, vectors
from stages.filter import FilterConfig, FilterStage
from stages.schema import POOL

CAPTIONS = ["a red dog", None, "  ", "two birds", "a cat", "a red dog"]
ROWS = pa.table(
    {
        "uid": [f"{i:032x}" for i in range(6)],
        "image": pa.array([*(drawn(i) for i in range(4)), b"junk", drawn(5)], pa.binary()),
        "caption": CAPTIONS,
    }
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_clip(tmp_path_factory.mktemp("embed"))


def embedded(model: str, rows: pa.Table = ROWS, **settings: Any) -> tuple[EmbedStage, pa.Table]:
    config = EmbedConfig(model=model, device="cpu", dtype="float32", **settings)
    stage = EmbedStage(config)
    stage.load()
    found = stage.annotate(rows)
    assert found.schema.equals(stage.writes) and len(found) == len(rows)
    return stage, found


def judged(stage: EmbedStage, found: pa.Table) -> list[str | None]:
    return stage.judge(found.drop_columns(list(stage.bulky))).to_pylist()


def tower(folder: Path) -> str:
    """A tiny DINOv2."""
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Dinov2Config(**small, image_size=28, patch_size=14)
    random_model(Dinov2Model, config).save_pretrained(folder)
    size = {"shortest_edge": 28}, {"height": 28, "width": 28}
    BitImageProcessorPil(size=size[0], crop_size=size[1]).save_pretrained(folder)
    return str(folder)


def test_images_and_web_captions_are_embedded_as_the_model_embeds_them(model: str) -> None:
    stage, found = embedded(model)
    assert found["embedded"].to_pylist() == [True] * 4 + [False, True]
    images, has = vectors(found["image_embedding"])
    assert has.tolist() == found["embedded"].to_pylist() and images.dtype == np.float16
    clip = DualEncoder.from_pretrained(model, device="cpu", dtype="float32")
    whole = [drawn(i) for i in (0, 1, 2, 3, 5)]
    np.testing.assert_allclose(images, clip.embed_images(whole).numpy(), atol=1e-3)
    texts, has = vectors(found["text_embedding"])
    assert has.tolist() == [True, False, False, True, True, True]
    said = ["a red dog", "two birds", "a cat", "a red dog"]
    np.testing.assert_allclose(texts, clip.embed_texts(said).numpy(), atol=1e-3)
    assert judged(stage, found) == [None] * 4 + ["undecodable", None]


def test_embeddings_do_not_depend_on_how_rows_are_split(model: str) -> None:
    stage, whole = embedded(model)
    parts = pa.concat_tables([stage.annotate(ROWS.slice(i, 1)) for i in range(6)])
    for name in stage.bulky:
        ours, has = vectors(whole[name])
        theirs, there = vectors(parts[name])
        assert has.tolist() == there.tolist()
        np.testing.assert_allclose(ours.astype(float), theirs.astype(float), atol=2e-3)


def test_the_normalised_caption_is_embedded_where_clean_ran(model: str) -> None:
    _, plain = embedded(model)
    _, cleaned = embedded(model, ROWS.append_column("text", pa.array(["two birds"] * 6)))
    texts, _ = vectors(cleaned["text_embedding"])
    assert (texts == vectors(plain["text_embedding"])[0][1]).all() and len(texts) == 6


def test_a_vision_tower_embeds_images_alone(tmp_path: Path) -> None:
    stage, found = embedded(tower(tmp_path))
    images, has = vectors(found["image_embedding"])
    assert images.shape == (5, 32) and has.tolist() == found["embedded"].to_pylist()
    np.testing.assert_allclose(np.linalg.norm(images.astype(float), axis=1), 1, atol=1e-3)
    assert found["text_embedding"].null_count == 6
    assert judged(stage, found)[4] == "undecodable"


def test_a_filter_embeds_by_its_itc_part(tmp_path: Path) -> None:
    model = save(tmp_path, BlipForImageTextRetrieval, tokenizer_of(WORDS.split()))
    stage, found = embedded(model)
    matcher = Matcher.from_pretrained(model, device="cpu", dtype="float32")
    images, has = vectors(found["image_embedding"])
    whole = [drawn(i) for i in (0, 1, 2, 3, 5)]
    np.testing.assert_allclose(images, matcher.embed_images(whole).numpy(), atol=1e-3)
    texts, _ = vectors(found["text_embedding"])
    said = ["a red dog", "two birds", "a cat", "a red dog"]
    np.testing.assert_allclose(texts, matcher.embed_texts(said).numpy(), atol=1e-3)
    assert judged(stage, found)[4] == "undecodable" and not has[4]


def test_what_is_no_image_model_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "model.safetensors").touch()
    stage = EmbedStage(EmbedConfig(model=str(tmp_path)))
    with pytest.raises(ValueError, match=r"is a bert, which cannot embed images.*clip, .*dinov2"):
        stage.load()


def image_set(path: Path, images: list[bytes]) -> str:
    pq.write_table(pa.table({"image": pa.array(images, pa.binary())}), path)
    return str(path)


def test_images_near_those_of_an_evaluation_set_are_rejected(model: str, tmp_path: Path) -> None:
    sets = (image_set(tmp_path / "a.parquet", [drawn(9), b"junk", drawn(2)]),)
    stage, found = embedded(model, against=sets, max_evaluation_cosine=0.9999)
    images, _ = vectors(found["image_embedding"])
    clip = DualEncoder.from_pretrained(model, device="cpu", dtype="float32")
    theirs = clip.embed_images([drawn(9), drawn(2)]).numpy()
    cosines = images.astype(np.float32) @ theirs.T
    given = found["evaluation_cosine"].to_pylist()
    assert [one for one in given if one is not None] == pytest.approx(cosines.max(1), abs=1e-3)
    assert found["evaluation_nearest"][2].as_py() != found["evaluation_nearest"][4].as_py() is None
    assert judged(stage, found) == [None, None, "in_evaluation_set", None, "undecodable", None]
    nearest = next(stage.cutoffs(found)).values
    assert nearest[2] == pytest.approx(1, abs=1e-3) and np.isnan(nearest[4])


def test_the_similarity_to_a_target_is_measured(model: str, tmp_path: Path) -> None:
    target = (image_set(tmp_path / "a.parquet", [drawn(20), drawn(21), drawn(3)]),)
    _, found = embedded(model, target=target)
    images, _ = vectors(found["image_embedding"])
    clip = DualEncoder.from_pretrained(model, device="cpu", dtype="float32")
    theirs = clip.embed_images([drawn(20), drawn(21), drawn(3)]).numpy()
    cosines = images.astype(np.float32) @ theirs.T
    for name, expected in (
        ("target_cosine", cosines.max(axis=1)),
        ("target_norm", np.linalg.norm(cosines, axis=1)),
    ):
        given = [one for one in found[name].to_pylist() if one is not None]
        assert given == pytest.approx(expected, abs=2e-3)


def test_a_set_without_images_is_refused_with_its_field(model: str, tmp_path: Path) -> None:
    empty = image_set(tmp_path / "a.parquet", [b"junk"])
    stage = EmbedStage(EmbedConfig(model=model, device="cpu", target=(empty,)))
    with pytest.raises(ValueError, match=r"embed.target: .*a.parquet holds no image"):
        stage.load()
    config = EmbedConfig(model=model, against=(str(tmp_path / "none"),))
    with pytest.raises(ValueError, match=r"embed.against"):
        config.measurement()


def test_a_changed_set_or_head_changes_the_measurement_and_a_limit_does_not(
    model: str, tmp_path: Path
) -> None:
    head = str(tmp_path / "head.safetensors")
    save_file({"weight": np.ones((1, 16), np.float32)}, head)
    sets = (image_set(tmp_path / "a.parquet", [drawn(0)]),)
    config = EmbedConfig(model=model, target=sets, measure={"bright": head})
    before = config.measurement()
    with_limit = EmbedConfig(
        model=model, target=sets, measure={"bright": HeadConfig(head=head, min=3)}
    )
    assert with_limit.measurement() == before
    save_file({"weight": np.zeros((1, 16), np.float32)}, head)
    changed = config.measurement()
    assert changed["measure"] != before["measure"] and changed["target"] == before["target"]
    image_set(tmp_path / "a.parquet", [drawn(1), drawn(2)])
    assert config.measurement()["target"] != before["target"]


def test_heads_add_a_column_each_and_reject_what_is_out_of_range(
    model: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(8, 16)), rng.normal(size=(1, 8))
    bias = rng.normal(size=8)
    linear, mlp = str(tmp_path / "linear.safetensors"), str(tmp_path / "mlp.safetensors")
    save_file({"weight": first[:1].astype("f4"), "bias": np.ones(1, "f4")}, linear)
    layers = {"layers.0.weight": first, "layers.0.bias": bias, "layers.2.weight": second}
    metadata = {"activation": "relu", "output": "sigmoid"}
    save_file({k: v.astype("f4") for k, v in layers.items()}, mlp, metadata=metadata)
    measure: dict[str, str | HeadConfig] = {"one": linear, "two": mlp}
    _, found = embedded(model, measure=measure)
    images = vectors(found["image_embedding"])[0].astype(np.float64)
    ones = [one for one in found["one"].to_pylist() if one is not None]
    assert ones == pytest.approx(images @ first[0] + 1, abs=1e-5)
    hidden = np.maximum(images @ first.T + bias, 0) @ second[0]
    twos = [one for one in found["two"].to_pylist() if one is not None]
    assert twos == pytest.approx(1 / (1 + np.exp(-hidden)), abs=1e-5)
    middle = float(np.median(twos))
    limited: dict[str, str | HeadConfig] = {"two": HeadConfig(head=mlp, min=middle, max=1)}
    stage = EmbedStage(EmbedConfig(model=model, measure=limited))
    given = found.drop_columns("one")
    expected: list[str | None] = [
        None if two >= np.float32(middle) else "measure_out_of_range" for two in twos
    ]
    expected.insert(4, "undecodable")
    assert judged(stage, given) == expected
    assert [cut.name for cut in stage.cutoffs(given)][1:] == ["measure.two.min", "measure.two.max"]


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"scale": np.ones(1)}, None, "the tensor scale; a head has layers.0.weight"),
        ({"bias": np.ones(1)}, None, "no weight"),
        ({"weight": np.ones((2, 4))}, None, "gives 2 numbers; the last layer must give one"),
        ({"weight": np.ones(4)}, None, r"of shape \(4,\); it must be"),
        ({"a.0.weight": np.ones((3, 4)), "a.1.weight": np.ones((1, 2))}, None, "a.1.weight is of"),
        ({"weight": np.ones((1, 4)), "bias": np.ones(3)}, None, "has not its 1 numbers"),
        ({"weight": np.ones((1, 4))}, {"output": "softmax"}, "output is 'softmax'; known are none"),
    ],
)
def test_what_is_no_head_is_refused_with_the_reason(
    tmp_path: Path, tensors: dict[str, Any], metadata: dict[str, str] | None, message: str
) -> None:
    path = str(tmp_path / "head.safetensors")
    save_file({k: v.astype("f4") for k, v in tensors.items()}, path, metadata=metadata)
    with pytest.raises(ValueError, match=message):
        Head.load(path)
    (tmp_path / "junk").write_bytes(b"\x80\x04junk")
    with pytest.raises(ValueError, match="junk: cannot be read as safetensors"):
        Head.load(str(tmp_path / "junk"))


def test_a_head_of_another_model_is_refused(model: str, tmp_path: Path) -> None:
    path = str(tmp_path / "head.safetensors")
    save_file({"weight": np.ones((1, 4), np.float32)}, path)
    with pytest.raises(ValueError, match=r"measure.nsfw: the head takes embeddings of 4 .* 16"):
        embedded(model, measure={"nsfw": path})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_evaluation_cosine": 2}, "must be a cosine from -1 to 1, got 2"),
        ({"measure": {"a b": "x"}}, "'a b' cannot be the name of a column"),
        ({"measure": {"target_norm": "x"}}, "'target_norm' cannot be the name"),
        ({"measure": {"a": {"head": "x", "min": 2, "max": 1}}}, "min 2.0 is above max 1.0"),
        ({"measure": {"a": {"head": "x", "least": 2}}}, "least"),
    ],
)
def test_wrong_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(EmbedConfig).validate_python(fields)


# With the filter, and in a run


def test_the_filter_compares_embeddings_that_are_there_with_equal_scores(model: str) -> None:
    _, found = embedded(model)
    filtering = FilterConfig(recipe="clip", clip=model, min_clip=0.1, device="cpu", dtype="float32")
    rows = ROWS.append_column("synthetic", pa.array([["a dog", "two cats"]] * 6))
    anew = FilterStage(filtering).annotate(rows)
    given = rows.drop_columns("image").append_column("image_embedding", found["image_embedding"])
    taken = FilterStage(filtering).annotate(given)
    assert taken.schema == anew.schema
    assert taken["itm_decoded"].to_pylist() == anew["itm_decoded"].to_pylist()
    for name in ("clip_web", "unread_web"):
        ours, theirs = taken[name].to_pylist(), anew[name].to_pylist()
        assert [one is None for one in ours] == [one is None for one in theirs]
        np.testing.assert_allclose(
            [one for one in ours if one is not None],
            [one for one in theirs if one is not None],
            atol=5e-4,
        )
    for ours, theirs in zip(
        taken["clip_synthetic"].to_pylist(), anew["clip_synthetic"].to_pylist(), strict=True
    ):
        assert ours == (pytest.approx(theirs, abs=5e-4) if None not in theirs else theirs)
    assert FilterStage(filtering).judge(taken).to_pylist() == (
        FilterStage(filtering).judge(anew).to_pylist()
    )


def manifest(run: str, clip: str, **filtering: Any) -> Manifest:
    fields = {"recipe": "clip", "min_clip": -1, "dtype": "float32", "clip": clip, **filtering}
    stages = {
        "download": {"source": "list.parquet"},
        "embed": {"model": clip, "dtype": "float32", "device": "cpu"},
        "filter": {**fields, "device": "cpu"},
    }
    return Manifest.parse({"name": "small", "run": run, "stages": stages})


def test_the_filter_takes_embeddings_of_its_own_model_alone(model: str, tmp_path: Path) -> None:
    inputs = Plan(manifest(str(tmp_path), model)).inputs("filter")
    assert inputs["image_embedding"] == "embed" and "image" not in inputs
    for other in ({"model": "some/other"}, {"dtype": "bfloat16"}, {"revision": "a" * 40}):
        made = manifest(str(tmp_path), model)
        stages = made.source["stages"] | {"embed": made.source["stages"]["embed"] | other}
        inputs = Plan(Manifest.parse({**made.source, "stages": stages})).inputs("filter")
        assert "image_embedding" not in inputs and inputs["image"] == "download"
    both = Plan(manifest(str(tmp_path), model, recipe="blip", model="some/itm", min_clip=None))
    assert {"image_embedding", "image"} <= both.inputs("filter").keys()


def pool_of(run: Run) -> None:
    rows = [
        {
            **dict.fromkeys(POOL.names),
            **row,
            "source": "web",
            "url": f"web/{row['uid']}",
            "repeats": 0,
            "status": "success",
        }
        for row in ROWS.to_pylist()
    ]
    run.write_table(pa.Table.from_pylist(rows, schema=POOL), "pool", "00000.parquet")


def test_a_run_keeps_embeddings_row_for_row_and_judges_without_reading_them(
    model: str, tmp_path: Path
) -> None:
    made = manifest(str(tmp_path / "run"), model)
    run = Run(made.run)
    pool_of(run)
    worker = Worker(made, threads=None)
    assert worker.work("embed", "00000")["reasons"] == {"undecodable": 1}
    assert worker.work("embed", "00000")["rows"] == 0  # nothing is left to do
    worker.work("filter", "00000")
    results = worker.results
    table = results.measured_table("embed", "00000")
    assert table["image_embedding"].null_count == 1 and table.num_rows == 6
    judgement = results.judge("00000")
    assert judgement.is_complete
    assert judgement.live.tolist() == [True, False, False, True, False, True]
    assert not set(EmbedStage.bulky) & set(judgement.tables["embed"].column_names)
    scores = judgement.tables["filter"]["clip_web"].to_pylist()
    images, _ = vectors(table["image_embedding"])
    texts, _ = vectors(table["text_embedding"])
    first = float(images[0].astype(np.float32) @ texts[0].astype(np.float32))
    assert scores[0] == pytest.approx(first, abs=2e-3)
    path = run.url(*worker.plan.folder("embed"), "00000.parquet")
    assert pq.read_schema(io.BytesIO(Path(path).read_bytes())).field("image_embedding").type == (
        pa.list_(pa.float16())
    )
