import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.blips import WORDS, config_of, drawn, random_model, tokenizer_of
from helpers.dual_encoders import SAVED
from helpers.scenes import write_scenes
from PIL import Image
from rich.console import Console
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    CLIPModel,
    ViltConfig,
    ViltForMaskedLM,
)

from models.attention import encode_images
from models.image.decode import Preprocess
from models.metrics import retrieval_hits, roc_auc
from models.objectives.blip import MED
from models.objectives.clip import Contrastive
from models.objectives.vilt import Vilt
from pipeline.cli.main import main
from pipeline.execution.progress import Progress
from pipeline.execution.session import Session
from pipeline.manifest.manifest import Manifest
from pipeline.storage.records import EvaluationRecord
from pipeline.storage.run import Run
from pipeline.training.evaluate import evaluate
from pipeline.training.job import TrainingJob

MATCHER = Path(__file__).resolve().parents[3] / "pipeline/demo/miniature/matcher"
IMAGES = 6
TEXTS = [
    ["a red dog", "the dog in the house"],
    ["two blue birds", "birds on a tree"],
    ["a small green cat", "the cat"],
    ["a big red house", "a picture of a house"],
    ["a tree in green", "big trees and a bird"],
    ["two dogs and two cats", "small dogs on the red tree"],
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two parts of one random BLIP, as training leaves them."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = tokenizer_of(WORDS.split())
    config = config_of(tokenizer)
    captioner = random_model(BlipForConditionalGeneration, config)
    captioner.config.caption_prompt = ""
    matcher = random_model(BlipForImageTextRetrieval, config)
    MED(captioner=captioner, matcher=matcher, tokenizer=tokenizer).save(folder / "med")
    return folder / "med"


@pytest.fixture(scope="module")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("test")
    rows = []
    for i, captions in enumerate(TEXTS):
        (folder / f"{i}.png").write_bytes(drawn(i))
        rows.append({"image": f"{i}.png", "captions": captions})
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "test.jsonl")


def stock_scores(folder: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Cosines (images, texts) and ITM logits (images, texts, 2) by stock transformers."""
    model = BlipForImageTextRetrieval.from_pretrained(folder / "matcher").eval()
    med = MED.from_pretrained(folder, parts=("matcher",))
    pixels = Preprocess.from_pretrained(folder / "matcher")([drawn(i) for i in range(IMAGES)])
    tokens = med.tokenize([text for texts in TEXTS for text in texts], 35)
    mask = (tokens != med.pad).long()
    asked = tokens.clone()
    asked[:, 0] = med.enc
    with torch.no_grad():
        cosine = model(tokens, pixels, attention_mask=mask, use_itm_head=False).itm_score
        logits = [
            model(asked, p.expand(len(tokens), -1, -1, -1), attention_mask=mask).itm_score
            for p in pixels[:, None]
        ]
    return cosine.numpy(), torch.stack(logits).numpy()


OWNERS = [i for i, texts in enumerate(TEXTS) for _ in texts]


def recall(similarity: np.ndarray[Any, Any], owners: list[int]) -> dict[str, float]:
    by_image, by_text = retrieval_hits(similarity, owners)
    return {
        **{f"TR@{k}": float(hits.mean()) for k, hits in by_image.items()},
        **{f"IR@{k}": float(hits.mean()) for k, hits in by_text.items()},
    }


def test_retrieval_is_that_of_the_stock_model(models: Path, test_set: str) -> None:
    cosine, logits = stock_scores(models)
    found = evaluate(str(models), test_set, top_k=12)["retrieval"]
    assert found["scores"]["itc"] == "cosine" and "12 best" in found["scores"]["itm"]
    assert found["itc"] == pytest.approx(recall(cosine, OWNERS), abs=1e-6)
    # With every candidate ranked again the score is logit plus cosine, as in BLIP's code.
    expected = recall(logits[..., 1] + cosine, OWNERS)
    assert found["itm"] == pytest.approx(expected, abs=1e-6)


def test_a_pair_outside_the_first_k_of_contrast_is_not_found_by_matching(
    models: Path, test_set: str
) -> None:
    found = evaluate(str(models), test_set, top_k=1)["retrieval"]
    # Only the first candidate has a score, so matching cannot change who is first.
    for name in ("TR@1", "IR@1"):
        assert found["itm"][name] == found["itc"][name] == found["itm"][name.replace("1", "5")]


def test_matching_is_that_of_the_stock_model(models: Path, test_set: str) -> None:
    _, logits = stock_scores(models)
    probability = np.exp(logits[..., 1]) / np.exp(logits).sum(-1)
    found = evaluate(str(models), test_set, seed=3)["matching"]
    own = np.asarray(OWNERS)
    positive = probability[own, np.arange(len(own))]
    assert found["accepted_true"] == pytest.approx((positive >= 0.5).mean(), abs=1e-6)
    # The partners go round all images once, so one of the 120 orders explains the rest.
    assert 0 <= found["roc_auc"] <= 1
    others = [probability[i, own == j] for i in range(IMAGES) for j in range(IMAGES) if i != j]
    bounds = [roc_auc(positive, other) for other in others]
    assert min(bounds) <= found["roc_auc"] <= max(bounds)
    accuracy = (found["accepted_true"] + 1 - found["accepted_false"]) / 2
    assert found["accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_an_evaluation_is_json_and_the_same_twice(models: Path, test_set: str) -> None:
    found = evaluate(str(models), test_set)
    parts = {"retrieval", "matching", "captioning"}
    assert found.keys() == {"images", "captions", "intervals", "near_misses"} | parts
    assert found["intervals"].keys() == parts
    assert (found["images"], found["captions"]) == (6, 12)
    assert json.loads(json.dumps(found)) == found == evaluate(str(models), test_set)


@pytest.mark.parametrize(
    ("part", "measured"),
    [("captioner", {"captioning"}), ("matcher", {"retrieval", "matching"})],
)
def test_one_part_is_measured_at_what_it_does(
    models: Path, test_set: str, part: str, measured: set[str]
) -> None:
    whole = evaluate(str(models), test_set)
    found = evaluate(str(models / part), test_set)
    ranked = {"near_misses"} & whole.keys() if part == "matcher" else set()
    assert found.keys() == {"images", "captions", "intervals"} | measured | ranked
    assert all(found[name] == whole[name] for name in measured)


def test_intervals_hold_the_value_and_are_drawn_by_seed(models: Path, test_set: str) -> None:
    found = evaluate(str(models / "matcher"), test_set)
    for name, value in found["matching"].items():
        low, high = found["intervals"]["matching"][name]
        assert 0 <= low <= value <= high <= 1
    assert "intervals" not in evaluate(str(models / "matcher"), test_set, resamples=0)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP, as training leaves it."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer_of(WORDS.split()).save_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    model = Contrastive.from_pretrained("tiny", tokenizer=str(folder / "tokenizer"))
    with torch.no_grad():
        for parameter in model.model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    model.write(folder / "model")
    return folder / "model"


def test_a_clip_is_measured_as_the_stock_model_would_be(clip: Path, test_set: str) -> None:
    found = evaluate(str(clip), test_set)
    assert found.keys() == {"images", "captions", "intervals", "retrieval", "near_misses"}
    model = CLIPModel.from_pretrained(clip).eval()
    processor = AutoImageProcessor.from_pretrained(clip)
    tokenizer = AutoTokenizer.from_pretrained(clip)
    images = [Image.open(io.BytesIO(drawn(i))) for i in range(IMAGES)]
    texts = [text for texts in TEXTS for text in texts]
    with torch.no_grad():
        stock = model(
            **processor(images, return_tensors="pt"),
            **tokenizer(texts, padding=True, return_tensors="pt"),
        )
    cosine = (stock.image_embeds @ stock.text_embeds.T).numpy()
    expected = recall(cosine, OWNERS)
    assert found["retrieval"]["itc"] == pytest.approx(expected, abs=1e-6)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of three labels, as a folder of folders."""
    folder = tmp_path_factory.mktemp("labelled")
    for i in range(IMAGES):
        (folder / ("cat", "dog", "bird")[i % 3]).mkdir(exist_ok=True)
        (folder / ("cat", "dog", "bird")[i % 3] / f"{i}.png").write_bytes(drawn(i))
    (folder / "cat" / "notes.txt").write_text("no image")
    return folder


@pytest.mark.parametrize("templates", [("a {}.",), ("a {}.", "a big {} on a tree")])
def test_classification_takes_the_nearest_label(
    models: Path, labelled: Path, templates: tuple[str, ...]
) -> None:
    found = evaluate(str(models), str(labelled), templates=templates)
    assert found.keys() == {"images", "captions", "intervals", "classification"}
    med = MED.from_pretrained(models, parts=("matcher",)).eval()
    pixels = Preprocess.from_pretrained(models / "matcher")([drawn(i) for i in range(IMAGES)])
    names = ["bird", "cat", "dog"]
    with torch.no_grad():
        images = med.embed_images(encode_images(med.vision, pixels))
        said = [[t.replace("{}", name).replace(".", "") for t in templates] for name in names]
        texts = torch.stack([med.embed_texts(med.tokenize(some, 35)).mean(0) for some in said])
    nearest = (images @ (texts / texts.norm(dim=1, keepdim=True)).T).argmax(1).tolist()
    own = [names.index(("cat", "dog", "bird")[i % 3]) for i in range(IMAGES)]
    expected = sum(a == b for a, b in zip(nearest, own, strict=True)) / IMAGES
    accuracy = found["classification"]
    assert accuracy == {"accuracy@1": pytest.approx(expected, abs=1e-6), "accuracy@5": 1.0}


def test_labels_in_json_are_classified_beside_captions(clip: Path, test_set: str) -> None:
    rows = [json.loads(line) for line in Path(test_set).read_text().splitlines()]
    lines = [json.dumps({**row, "label": "cat" if i % 2 else "dog"}) for i, row in enumerate(rows)]
    path = Path(test_set).with_name("labels.jsonl")
    path.write_text("\n".join(lines))
    found = evaluate(str(clip), str(path))
    assert {"retrieval", "classification"} <= found.keys()


@pytest.fixture(scope="module")
def drawn_test(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Scenes of the drawn world, as a held-out set."""
    folder = tmp_path_factory.mktemp("drawn")
    lines = [
        json.dumps({"image": image, "captions": captions})
        for image, captions in write_scenes(folder, 60, seed=2)
    ]
    (folder / "test.jsonl").write_text("\n".join(lines))
    return str(folder / "test.jsonl")


def test_near_misses_are_measured_by_kind_of_change(drawn_test: str, language: str) -> None:
    """The miniature sees colours and sizes, and hardly which of two things is on the left."""
    found = evaluate(str(MATCHER), drawn_test, tagger=language, resamples=20)
    near = found["near_misses"]
    assert list(near) == ["noun", "number", "colour", "size", "relation", "order"]
    for kind in ("colour", "size"):
        assert near[kind]["roc_auc"] > 0.9 and near[kind]["accepted_false"] < 0.2
    assert all(0 <= value <= 1 for kind in near.values() for value in kind.values())
    low, high = found["intervals"]["near_misses"]["noun"]["accuracy"]
    assert low <= near["noun"]["accuracy"] <= high


def test_a_ranker_is_measured_on_near_misses_by_its_cosines(
    clip: Path, drawn_test: str, language: str
) -> None:
    near = evaluate(str(clip), drawn_test, tagger=language, resamples=0)["near_misses"]
    assert near["colour"].keys() == {"accuracy", "roc_auc"}
    assert 0.1 < near["colour"]["accuracy"] < 0.9  # random weights


@pytest.mark.parametrize("family", ["siglip", "siglip2", "metaclip_2"])
def test_dual_encoders_of_every_family_are_measured(
    family: str, test_set: str, tmp_path: Path
) -> None:
    found = evaluate(SAVED[family](tmp_path / family), test_set, resamples=0)
    assert set(found["retrieval"]["itc"]) == {
        f"{way}@{k}" for way in ("TR", "IR") for k in (1, 5, 10)
    }


def test_without_a_tagger_near_misses_are_left_out_and_said_so(clip: Path, test_set: str) -> None:
    found = evaluate(str(clip), test_set, tagger="no_such_pipeline", resamples=0)
    assert "python -m spacy download no_such_pipeline" in found["near_misses"]["left_out"]


def test_a_template_without_a_place_for_the_label_is_refused(clip: Path, labelled: Path) -> None:
    with pytest.raises(ValueError, match=r"no \{\} for the label"):
        evaluate(str(clip), str(labelled), templates=("a photo",))


@pytest.mark.parametrize("kind", ["clip", "matcher"])
def test_an_image_that_cannot_be_opened_is_named(
    models: Path, clip: Path, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "0.png").write_bytes(drawn(0))
    (tmp_path / "1.png").write_bytes(b"no image")
    rows = [{"image": f"{i}.png", "caption": "a dog"} for i in range(2)]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = clip if kind == "clip" else models / "matcher"
    with pytest.raises(ValueError, match="image 2 of the test cannot be opened: not_an_image"):
        evaluate(str(model), str(tmp_path / "test.jsonl"))


def test_the_table_has_the_interval_beside_the_value(
    clip: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", str(clip), "--data", str(labelled), "--template", "a {}"]
    assert main(arguments) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if "classification.acc" in x)
    _, value, interval = re.split(r" {2,}", line.strip())
    low, high = map(float, interval.split(" to "))
    assert low <= float(value) <= high
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == evaluate(str(clip), str(labelled), templates=("a {}",))


def test_a_set_of_one_image_is_refused(models: Path, tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"image": "a.png", "captions": ["a dog"]}\n')
    with pytest.raises(ValueError, match="at least 2 are needed"):
        evaluate(str(models), str(tmp_path / "test.jsonl"))


def test_a_folder_that_is_no_blip_is_refused(test_set: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "blip", "architectures": ["Other"]}')
    with pytest.raises(ValueError, match="Other cannot be measured; known are BlipFor"):
        evaluate(str(tmp_path), test_set)


def test_a_run_measures_anew_what_was_trained_anew_and_on_other_images(
    models: Path, test_set: str, tmp_path: Path
) -> None:
    data = tmp_path / "set" / "test.jsonl"
    shutil.copytree(Path(test_set).parent, data.parent)
    lines = data.read_text().splitlines(keepends=True)

    def evaluated(lr: float, number: int) -> set[str]:
        """What a run measures of models trained at `lr` on so many images."""
        data.write_text("".join(lines[:number]))
        content = {
            "name": "e",
            "run": str(tmp_path / "run"),
            "train": {name: {"model": "tiny", "data": [test_set], "lr": lr} for name in "ab"},
            "evaluate": {
                "data": str(data),
                "models": ["train:a/matcher", "train:b/matcher", str(tmp_path / "other")],
            },
        }
        manifest = Manifest.parse(content)
        run = Run(manifest.run)
        for name in "ab":
            mark = {"fingerprint": TrainingJob(manifest, name).fingerprint, "files": {}}
            run.write_json(mark, "models", f"{name}.json")
        if record := run.find_record(EvaluationRecord, "evaluation.json"):
            for entry in record.root.values():
                entry.metrics["old"] = True
            run.write_record(record, "evaluation.json")
        with Session(manifest, progress=Progress(Console(quiet=True), True)) as session:
            session.run()
        found = run.read_json("evaluation.json")
        assert set(found) == {"a/matcher", "b/matcher", "other"}
        return {name for name, entry in found.items() if "old" not in entry["metrics"]}

    for folder in ("run/models/a", "run/models/b"):
        shutil.copytree(models, tmp_path / folder)
    shutil.copytree(models / "matcher", tmp_path / "other")
    assert evaluated(1e-4, 4) == {"a/matcher", "b/matcher", "other"}
    assert evaluated(1e-4, 4) == set()
    assert evaluated(2e-4, 4) == {"a/matcher", "b/matcher"}
    assert evaluated(2e-4, 5) == {"a/matcher", "b/matcher", "other"}
    (tmp_path / "other" / "extra.json").write_text("{}")
    assert evaluated(2e-4, 5) == {"other"}


def test_a_model_that_matches_and_embeds_nothing_is_measured_at_matching(
    tmp_path: Path, test_set: str
) -> None:
    reader = tokenizer_of(WORDS.split())
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    config = ViltConfig(**shape, vocab_size=len(reader), initializer_range=0.3)
    (tmp_path / "vilt").mkdir()
    Vilt(ViltForMaskedLM(config), reader).write(tmp_path / "vilt")
    found = evaluate(str(tmp_path / "vilt"), test_set)
    assert found["matching"].keys() >= {"roc_auc", "accuracy"}
    assert "retrieval" not in found and "near_misses" not in found
