"""Training on interleaved documents: their order, what cannot be read, and both losses."""

import dataclasses
import hashlib
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from helpers.contract import NANO_FIELDS, STARTS
from helpers.documents import IMAGE_OF, PAGES, write_documents
from helpers.trainings import assert_same, config_of, metrics, weights
from hypothesis import given
from hypothesis import strategies as st

from pipeline.manifest.train_config import as_sources
from pipeline.training.data import Position, files_of, fingerprints_of
from pipeline.training.interleaved import Interleaved, Page
from pipeline.training.loop import train
from pipeline.training.streams import all_positions, own_positions
from stages.documents import EOC, IMAGE


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_documents(tmp_path_factory.mktemp("export") / "documents")


def flamingo(tokenizer: str, **fields: Any) -> Any:
    starts = {field: start(tokenizer) for field, start in STARTS["flamingo"].items()}
    plain = {"document_batch_size": 4, "max_document_tokens": 16, "steps": 6}
    return config_of(
        None, objective="flamingo", **{**NANO_FIELDS["flamingo"], **starts, **plain, **fields}
    )


def take(stream: Interleaved, number: int) -> list[Page]:
    return [page for page, _ in islice(stream.examples(), number)]


def test_an_epoch_has_each_document_once_with_its_images(documents: str) -> None:
    stream = Interleaved(as_sources([documents]), seed=3)
    assert stream.images_an_epoch == len(PAGES)
    told = {text: [IMAGE_OF[uid] for uid in uids] for text, uids in PAGES}
    pages = take(stream, 2 * len(PAGES))
    for epoch in range(2):
        met = pages[epoch * len(PAGES) :][: len(PAGES)]
        assert {page.text: [image for image, _ in page.images] for page in met} == told
        assert {page.epoch for page in met} == {epoch}
    assert [page.text for page in pages[: len(PAGES)]] != [text for text, _ in PAGES]
    assert pages[0].images[1][1] == hashlib.sha256(pages[0].images[1][0]).hexdigest()


def test_streams_share_the_documents_and_go_on_where_they_stopped(documents: str) -> None:
    whole = Interleaved(as_sources([documents]), num_streams=3, shuffle_buffer=4)
    met = []
    for number in range(3):
        stream = whole.like(stream=number)
        share = sum(int(mask.sum()) for block in stream.blocks(0) for _, mask in block)
        told = list(islice(stream.examples(), share + 2))
        met += [page.text for page, _ in told[:share]]
        rest = [page for page, _ in islice(stream.examples(told[1][1]), share)]
        assert rest == [page for page, _ in told[2:]]
    assert sorted(met) == sorted(text for text, _ in PAGES)


@given(st.lists(st.tuples(st.text("ab ", max_size=4), st.booleans()), min_size=1, max_size=6))
def test_an_image_that_cannot_be_opened_leaves_with_its_tags(parts: list[tuple[str, bool]]) -> None:
    text = "here" + "".join(f"{EOC}{IMAGE}{words}" for words, _ in parts) + EOC
    images = tuple((str(number).encode(), "") for number in range(len(parts)))
    kept = Page(text=text, images=images).with_readable([is_there for _, is_there in parts])
    if not any(is_there for _, is_there in parts):
        assert kept is None
        return
    assert kept is not None
    expected = "".join(f"{EOC}{IMAGE}{words}" if there else words for words, there in parts)
    assert kept.text == f"here{expected}{EOC}"
    assert [int(image) for image, _ in kept.images] == [
        number for number, (_, is_there) in enumerate(parts) if is_there
    ]


def test_images_that_do_not_open_are_counted_and_documents_without_any_left_out(
    tokenizer: str, tmp_path: Path
) -> None:
    images = dict(IMAGE_OF)
    broken, missing, alone = PAGES[0][1][0], PAGES[1][1][1], PAGES[2][1]
    images[broken] = b"not an image"
    del images[missing]
    images |= dict.fromkeys(alone, b"nor these")
    folder = write_documents(tmp_path / "documents", images=images)
    config = flamingo(tokenizer, document_batch_size=11, steps=2)
    result = train(config, [folder], tmp_path / "model")
    # Eleven documents of the twelve are an epoch, in which four images do not open.
    assert (result.steps, result.images, result.unreadable) == (2, 22, 8)
    with pytest.raises(ValueError, match="document_batch_size needs 12 documents of stream 0 of 1"):
        train(flamingo(tokenizer, document_batch_size=12), [folder], tmp_path / "other")


def test_pairs_and_documents_have_a_loss_each_in_every_step(
    tokenizer: str, pairs: str, documents: str, tmp_path: Path
) -> None:
    config = flamingo(tokenizer, pair_weight=0.5, document_weight=2.0)
    result = train(config, [pairs, documents], tmp_path / "both")
    assert (result.steps, result.images) == (6, 6 * (4 + 4))
    assert result.losses.keys() == {"lm", "documents", "loss"}
    first = metrics(tmp_path / "both")[0]
    assert first["loss"] == pytest.approx(first["lm"] + first["documents"], abs=1e-5)
    card = (tmp_path / "both/README.md").read_text()
    assert "6 steps of 4 pairs and 4 documents" in card
    assert f"| `{documents}` | 12 documents | 1 |" in card
    # The weights are those of the config, and pairs alone have none.
    plain = metrics_of_first(config, [pairs], tmp_path / "pairs")
    assert "documents" not in plain and first["lm"] == pytest.approx(0.5 * plain["lm"], abs=1e-5)
    alone = metrics_of_first(config, [documents], tmp_path / "documents")
    assert "lm" not in alone and alone["loss"] == alone["documents"] == first["documents"]


def metrics_of_first(config: Any, data: list[str], out: Path) -> dict[str, float]:
    train(dataclasses.replace(config, steps=1), data, out)
    return metrics(out)[0]


@pytest.mark.parametrize("loaders", [0, 2])
def test_a_killed_training_goes_on_bit_for_bit(
    tokenizer: str, pairs: str, documents: str, tmp_path: Path, loaders: int
) -> None:
    config = flamingo(
        tokenizer, streams=2, accumulate=2, shuffle_buffer=5, augment="crop", images=1
    )
    train(config, [pairs, documents], tmp_path / "whole")
    config = dataclasses.replace(config, loaders=loaders)
    train(config, [pairs, documents], tmp_path / "parts", stop_at=2)
    assert train(config, [pairs, documents], tmp_path / "parts").resumed_from == 2
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    one, two = (
        {name.partition("/")[2]: w for name, w in weights(tmp_path / folder).items()}
        for folder in ("whole", "parts")
    )
    assert_same(one, two)


def test_a_training_on_documents_goes_on_with_other_settings(
    tokenizer: str, pairs: str, documents: str, tmp_path: Path
) -> None:
    for name, data in (("both", [pairs, documents]), ("documents", [documents])):
        out, fields = tmp_path / name, {"steps": 0, "epochs": 2, "document_batch_size": 2}
        train(flamingo(tokenizer, **fields), data, out, stop_at=4)
        changed = flamingo(tokenizer, **{**fields, "streams": 2, "document_batch_size": 4})
        result = train(changed, data, out, go_on=True)
        assert result.resumed_from == 4
        assert metrics(out)[4]["changed"] == {"streams": [1, 2], "document_batch_size": [2, 4]}
        # Two epochs of five batches of pairs; or two of twelve documents, eight of which are done.
        assert result.steps == (10 if name == "both" else 4 + 4)


def test_the_same_documents_elsewhere_are_the_same_and_others_are_not(
    documents: str, tmp_path: Path
) -> None:
    def prints(folder: str) -> list[str]:
        return fingerprints_of(files_of(as_sources([folder])[0]))

    assert prints(write_documents(tmp_path / "same")) == prints(documents)
    images = {**IMAGE_OF, PAGES[0][1][0]: b"another"}
    other = prints(write_documents(tmp_path / "other", images=images))
    differing = [one != two for one, two in zip(other, prints(documents), strict=True)]
    assert differing == [False] * 3 + [True] + [False] * 2


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("not JSON", "Expecting value"),
        (json.dumps({"text": "a <image>"}), "it lacks 'images'"),
        (json.dumps({"text": 1, "images": ["a"]}), "`text` must be a text"),
        (json.dumps({"text": "a <image> <image>", "images": ["a"]}), "1 images for 2 <image>"),
        (json.dumps({"text": "a", "images": []}), "0 images for 0 <image>"),
        (json.dumps([1]), "not a document"),
    ],
)
def test_a_line_that_is_no_document_is_named(tmp_path: Path, line: str, why: str) -> None:
    folder = write_documents(tmp_path / "documents", PAGES[:3])
    path = tmp_path / "documents/00000.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line]) + "\n")
    with pytest.raises(ValueError, match=r"00000\.jsonl:3: not a document of an export") as caught:
        take(Interleaved(as_sources([folder])), 3)
    assert why in str(caught.value)


def test_what_does_not_fit_is_refused(
    tokenizer: str, pairs: str, documents: str, tmp_path: Path
) -> None:
    def refused(config: Any, why: str) -> None:
        with pytest.raises(ValueError, match=why):
            train(config, [pairs, documents], tmp_path / "model")

    captioner = config_of(tokenizer, objective="captioner", prompt="")
    refused(captioner, "holds interleaved documents, which objective captioner .* use flamingo")
    refused(flamingo(tokenizer, accumulate=2, document_batch_size=3), "must be a multiple of 2, 1")
    many = flamingo(tokenizer, document_batch_size=13)
    refused(many, "document_batch_size is 13, but an epoch has only 12 documents: use a smaller")


@given(st.integers(1, 2), st.integers(1, 4), st.integers(1, 3))
def test_positions_of_ranks_are_put_together_and_taken_apart(
    kinds: int, ranks: int, share: int
) -> None:
    whole = [Position(epoch=n) for n in range(kinds * ranks * share)]
    own = [own_positions(whole, kinds, rank, ranks) for rank in range(ranks)]
    assert all(len(one) == kinds * share for one in own)
    assert all_positions([position for one in own for position in one], kinds, ranks) == whole
