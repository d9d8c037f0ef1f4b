from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import spacy
from spacy.language import Language
from spacy.tokens import Doc

from models.text.noun_phrases import NounPhrases, revision

PORT = Path(__file__).resolve().parents[3] / "../shared/data/en_core_web_sm_port"
KINDS = {"a": "DET", "the": "DET", "red": "ADJ", "old": "ADJ", "on": "ADP", "with": "ADP"}


@Language.component("parser_by_rule")
def parser_by_rule(doc: Doc) -> Doc:
    """Words outside `KINDS` are nouns: what stands before one hangs on it, and all on the first."""
    nouns = [token for token in doc if token.lower_ not in KINDS]
    for token in doc:
        token.pos_ = KINDS.get(token.lower_, "NOUN")
        token.head = nouns[0]
        if token.pos_ in ("DET", "ADJ"):
            token.dep_ = "det" if token.pos_ == "DET" else "amod"
            token.head = next(noun for noun in nouns if noun.i > token.i)
        else:
            token.dep_ = "ROOT" if token == nouns[0] else "prep" if token.pos_ == "ADP" else "pobj"
    return doc


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    nlp = spacy.blank("en")
    nlp.add_pipe("parser_by_rule")
    path = tmp_path_factory.mktemp("pipeline")
    nlp.to_disk(path)
    yield str(path)


def test_noun_phrases_are_the_chunks_of_the_parse(folder: str) -> None:
    (found,) = NounPhrases(folder, "raw")(["The old bridge on a Red river"])
    assert found == ["The old bridge", "a Red river"]


def test_phrases_are_written_as_asked_for(folder: str) -> None:
    captions = ["The old bridge on the Bridge", ""]
    assert NounPhrases(folder, "raw")(captions) == [["The old bridge", "the Bridge"], []]
    assert NounPhrases(folder, "lower")(captions) == [["the old bridge", "the bridge"], []]
    assert NounPhrases(folder, "no_determiner")(captions) == [["old bridge", "bridge"], []]


def test_lemmas_need_a_pipeline_that_gives_them(folder: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"select\.phrase: .* has no lemmatizer"):
        NounPhrases(folder, "lemma")
    nlp = spacy.load(folder)
    lemmatizer = nlp.add_pipe("lemmatizer", config={"mode": "lookup"})
    lemmatizer.lookups.add_table("lemma_lookup", {"bridges": "bridge", "Rivers": "River"})
    nlp.to_disk(tmp_path / "pipeline")
    extract = NounPhrases(str(tmp_path / "pipeline"), "lemma")
    assert extract(["The old bridges on Rivers", "a bridge"]) == [
        ["old bridge", "river"],
        ["bridge"],
    ]
    assert "lemmatizer" not in NounPhrases(str(tmp_path / "pipeline"), "lower").nlp.pipe_names


def test_the_words_of_captions_are_forgotten_with_them(folder: str) -> None:
    extract = NounPhrases(folder)
    extract(["a dog"])
    before = len(extract.nlp.vocab.strings)
    extract([f"a thing{n}" for n in range(500)])
    assert len(extract.nlp.vocab.strings) < before + 10


def test_the_beginning_of_an_endless_caption_is_read(folder: str) -> None:
    found = NounPhrases(folder)(["the dog" + " on" * 500_000, "a cat"])
    assert found == [["the dog"], ["a cat"]]


def test_a_phrase_that_a_caption_repeats_counts_once(folder: str) -> None:
    assert NounPhrases(folder)(["a dog with a dog"]) == [["a dog"]]


def test_equal_captions_are_parsed_once(folder: str) -> None:
    extract = NounPhrases(folder)
    parsed: list[str] = []

    def count(doc: Doc) -> Doc:
        parsed.append(doc.text)
        return doc

    Language.component("count", func=count)
    extract.nlp.add_pipe("count")
    assert extract(["a dog", "a cat", "a dog", "a dog"]) == [
        ["a dog"],
        ["a cat"],
        ["a dog"],
        ["a dog"],
    ]
    assert parsed == ["a dog", "a cat"]


def test_a_missing_pipeline_says_how_to_install_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m spacy download en_core_web_nowhere"):
        NounPhrases("en_core_web_nowhere")
    with pytest.raises(FileNotFoundError, match=r"select\.model: no spaCy pipeline"):
        NounPhrases(str(tmp_path))


def test_the_revision_of_a_folder_follows_its_files(tmp_path: Path) -> None:
    revision.cache_clear()
    (tmp_path / "weights").write_bytes(b"one")
    before = revision(str(tmp_path))
    revision.cache_clear()
    assert revision(str(tmp_path)) == before
    (tmp_path / "weights").write_bytes(b"two")
    revision.cache_clear()
    assert revision(str(tmp_path)) != before
    with pytest.raises(FileNotFoundError, match=r"no spaCy pipeline 'en_core_web_nowhere'"):
        revision("en_core_web_nowhere")
    assert revision("spacy") == spacy.__version__


@pytest.mark.skipif(not PORT.is_dir(), reason="../shared/data/en_core_web_sm_port is absent")
def test_a_trained_pipeline_finds_the_phrases_of_captions_in_any_batch() -> None:
    extract = NounPhrases(str(PORT))
    captions = [
        "A black dog runs through the green grass with a tennis ball",
        "Two young boys are playing on a sandy beach",
        "Man",
    ] + [f"{n} red kites over a small house" for n in range(40)]
    found = extract(captions)
    assert found[0] == ["a black dog", "the green grass", "a tennis ball"]
    assert found[1] == ["two young boys", "a sandy beach"]
    extract.batch_size = 3
    assert extract(captions[::-1]) == found[::-1]
    docs = spacy.load(PORT).pipe(captions)
    assert found == [
        list(dict.fromkeys(chunk.text.lower() for chunk in doc.noun_chunks)) for doc in docs
    ]
