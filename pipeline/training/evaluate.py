"""Measures a model on held-out images: retrieval, captioning, matching, classification."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor
from transformers import PretrainedConfig
from transformers.utils.logging import disable_progress_bar

from models.image.decode import ImageError, open_rgb
from models.inference.decoding import Settings
from models.inference.protocols import Matches, Ranks, Writes
from models.metrics import (
    bleu_counts,
    bleu_of,
    bootstrap,
    cider_scores,
    retrieval_hits,
    roc_auc,
)
from models.objectives.registry import reader_of
from models.random import seed_of
from models.text.near_misses import NearMisses, Vocabulary
from models.weights import Dtype, folder_of, parts_of
from pipeline.training.data import is_folder, read_folder, read_json
from pipeline.training.near_misses import score_near_misses

__all__ = ["TEMPLATES", "evaluate"]

logger = logging.getLogger(__name__)

Weights = npt.NDArray[np.float64]
"""(images,) how often each image counts."""

Statistic = Callable[[Weights], dict[str, float]]

TEMPLATES = ("a photo of a {}.",)
"""The prompt that CLIP's authors use if they use only one (arXiv 2103.00020)."""

TAGGER = "en_core_web_sm"

NOT_RANKED = -100.0
"""BLIP's score of a pair that is not among the k best by contrast."""

TEXTS_AT_ONCE = 512
"""Texts that are matched at a time, approximately."""


def evaluate(
    model: str,
    test: str,
    *,
    top_k: int | None = None,
    templates: Sequence[str] = TEMPLATES,
    tagger: str | None = TAGGER,
    batch_size: int = 64,
    dtype: Dtype = "float32",
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Measure a model on held-out images with true captions, labels or both.

    The model runs in the same classes as in the stages. What is measured depends on the protocols
    of `models.inference.protocols` that these classes implement.

    Args:
        model: A folder that a training wrote, or a released model of an architecture that an
            objective names, local or on the hub.
        test: JSON lines {"image": path relative to the file, "captions": [text, ...]}, with
            "label" beside or instead of them; a JSON list of the same; COCO's JSON; or a folder
            with one folder of images for each label.
        top_k: Candidates that matching re-ranks. By default an eighth of the images, at least 16
            and at most 128, which is BLIP's number for the 1,000 images of Flickr30K.
        templates: The prompts of a label, with `{}` for the label; their embeddings are averaged.
        tagger: A spaCy pipeline that tags parts of speech: the name of an installed one, or a
            folder. Without it near misses are not measured, and the result says so. None does
            not ask for them.
        batch_size: Images at a time.
        dtype: The dtype of the weights. float32 gives the same numbers on every machine; the
            scores of bfloat16 are coarse, and many tie.
        seed: The seed of wrong partners and of intervals.
        resamples: Bootstrap resamples; 0 gives no intervals.

    Returns:
        Values that JSON can hold. `images` and `captions` are the numbers of each. The others
        depend on what the model can do. `retrieval` has TR@k and IR@k by contrast (`itc`) and
        re-ranked by matching (`itm`), and the names of these scores. `matching` has the ROC-AUC and
        the accuracy of ITM at 0.5, on true captions against captions of other images.
        `near_misses` has, for each kind of change in a true caption
        (`models.text.near_misses.KINDS`), how often the true caption scores higher, the ROC-AUC
        and, for a matcher, the shares accepted at 0.5. `captioning` has BLEU@4 and CIDEr of beam
        search (arXiv 2201.12086: 3 beams, 5 to 20 tokens), tokenized by `models.metrics.words_of`;
        METEOR is left out because it needs Java or WordNet. `classification` has the top-1 and
        top-5 accuracy by embeddings of labels. `intervals` has the 95% interval of each metric,
        bootstrapped over images.

    Raises:
        ValueError: There are fewer than two images, an image cannot be opened, a template has no
            `{}`, or no class here can run the model.
    """
    disable_progress_bar()  # type: ignore[no-untyped-call]
    if without := [template for template in templates if "{}" not in template]:
        raise ValueError(f"template {without[0]!r} has no {{}} for the label")
    samples = read_folder(test) if is_folder(test) else read_json(test)
    if len(samples) < 2:
        raise ValueError(f"{test} has {len(samples)} images with captions; at least 2 are needed")
    readers = readers_of(model)
    captioned = [sample for sample in samples if sample.captions]
    labelled = [sample for sample in samples if sample.label is not None]
    captions = [list(sample.captions) for sample in captioned]
    result: dict[str, Any] = {"images": len(samples), "captions": sum(map(len, captions))}
    statistics: dict[tuple[str, ...], tuple[Statistic, int]] = {}

    def load(ability: type[Any]) -> Any:
        """Load the first part of the model that implements a protocol; None if none does."""
        for folder, reader in readers.items():
            if issubclass(reader, ability):
                return reader.from_pretrained(folder, dtype=dtype)
        return None

    ranker: Ranks | None = load(Ranks)
    if ranker is not None and len(captioned) > 1:
        images = [sample.read() for sample in captioned]
        with _naming(images):
            scorer = _Scorer(ranker, images, captions, top_k, batch_size, seed)
        result["retrieval"] = {"scores": scorer.scores}
        for name, statistic in scorer.retrieval().items():
            statistics["retrieval", name] = statistic, len(captioned)
        if scorer.logits:
            statistics["matching",] = scorer.matching(), len(captioned)
        if tagger is not None:
            try:
                make = NearMisses(Vocabulary(captions, folder_of(tagger)))
            except OSError:
                result["near_misses"] = {
                    "left_out": f"no spaCy pipeline {tagger}; install it with "
                    f"`python -m spacy download {tagger}`, or set tagger to a folder that holds one"
                }
            else:
                near = score_near_misses(ranker, images, captions, make, batch_size, seed)
                for kind, scores in near.items():
                    statistics["near_misses", kind] = scores.statistic, len(captioned)
    if ranker is None and len(captioned) > 1 and (matcher := load(Matches)) is not None:
        images = [sample.read() for sample in captioned]
        with _naming(images):
            scorer = _Scorer(matcher, images, captions, top_k, batch_size, seed)
        statistics["matching",] = scorer.matching(), len(captioned)
    if captioned and (writer := load(Writes)) is not None:
        images = [sample.read() for sample in captioned]
        with _naming(images):
            statistic = captioning(writer, images, captions, batch_size)
        statistics["captioning",] = statistic, len(captioned)
    if ranker is not None and labelled:
        images = [sample.read() for sample in labelled]
        labels = [str(sample.label) for sample in labelled]
        with _naming(images):
            statistic = classification(ranker, images, labels, templates, batch_size)
        statistics["classification",] = statistic, len(labelled)
    intervals: dict[str, Any] = {}
    for path, (statistic, number) in statistics.items():
        _put(result, path, _rounded(statistic(np.ones(number))))
        if resamples:
            bounds = bootstrap(
                statistic, number, seed=seed_of(seed, "bootstrap"), resamples=resamples
            )
            _put(intervals, path, {k: [round(b, 6) for b in both] for k, both in bounds.items()})
    if intervals:
        result["intervals"] = intervals
    return result


def readers_of(model: str) -> dict[str, type[Any]]:
    """The class that runs each part of a model, by the part's folder or hub name.

    Raises:
        ValueError: No class here can run any of the parts.
    """
    model = folder_of(model)
    readers = {}
    for folder in parts_of(model) or [model]:
        config, _ = PretrainedConfig.get_config_dict(folder)
        try:
            readers[folder] = reader_of((config.get("architectures") or [""])[0])
        except ValueError as error:
            fault = f"{folder}: {error}"
    if not readers:
        raise ValueError(fault)
    return readers


def captioning(
    writer: Writes, images: list[bytes], references: list[list[str]], batch_size: int
) -> Statistic:
    """BLEU@4 and CIDEr of a captioner's beam search."""
    candidates = writer.write_captions(images, Settings(decoding="beam"), batch_size)
    counts = bleu_counts(candidates, references)
    scores = cider_scores(candidates, references)

    def statistic(weights: Weights) -> dict[str, float]:
        return {
            "BLEU@4": bleu_of(weights @ counts),
            "CIDEr": float(weights @ scores / weights.sum()),
        }

    return statistic


def classification(
    ranker: Ranks,
    images: list[bytes],
    labels: list[str],
    templates: Sequence[str],
    batch_size: int,
) -> Statistic:
    """Top-1 and top-5 accuracy of images against the mean embedding of each label's prompts."""
    classes = sorted(set(labels))
    prompts = [template.replace("{}", name) for name in classes for template in templates]
    embedded = ranker.embed_texts(prompts).view(len(classes), len(templates), -1).mean(1)
    embedded = F.normalize(embedded, dim=-1)
    cosine = similarity(ranker.embed_images(images, batch_size), embedded)
    own = np.array([classes.index(label) for label in labels])
    rank = (cosine >= cosine[np.arange(len(own)), own][:, None]).sum(1) - 1

    def statistic(weights: Weights) -> dict[str, float]:
        return {f"accuracy@{k}": float(weights @ (rank < k) / weights.sum()) for k in (1, 5)}

    return statistic


def similarity(images: Tensor, texts: Tensor) -> npt.NDArray[np.float32]:
    """(n, m) cosines of unit embeddings of images (n, d) and texts (m, d).

    For images (n, q, d), the cosine is the maximum over q.
    """
    cosine = images @ texts.T
    if cosine.ndim == 3:
        cosine = cosine.amax(1)
    whole: npt.NDArray[np.float32] = cosine.float().cpu().numpy()
    return whole


class _Scorer:
    """The scores of the images and captions of a test.

    Attributes:
        cosine: float32 (images, texts); 0 for a model that does not embed.
        owners: The image of each text.
        partners: For each image, another image, whose captions are false for it.
        scores: The score that each ranking uses, in words.
        chosen: For each image, the indices of the texts that were matched with it; empty if the
            model does not match.
        logits: For each image, float32 (texts, 2) for these texts; column 1 is a match.
    """

    def __init__(
        self,
        ranker: Ranks | Matches,
        images: list[bytes],
        captions: list[list[str]],
        top_k: int | None,
        batch_size: int,
        seed: int,
    ) -> None:
        texts = [text for own in captions for text in own]
        self.owners = np.array([i for i, own in enumerate(captions) for _ in own])
        self.cosine = np.zeros((len(images), len(texts)), np.float32)
        if isinstance(ranker, Ranks):
            self.cosine = similarity(
                ranker.embed_images(images, batch_size), ranker.embed_texts(texts)
            )
        self.k = top_k if top_k is not None else min(128, max(16, len(images) // 8))
        self.scores = {"itc": "cosine"}
        order = list(range(len(images)))
        random.Random(seed_of(seed, "partners")).shuffle(order)
        self.partners = dict(zip(order, order[1:] + order[:1], strict=True))
        self.chosen: list[npt.NDArray[np.intp]] = []
        self.logits: list[npt.NDArray[np.float32]] = []
        if isinstance(ranker, Matches):
            best = f"of the {self.k} best by itc"
            # BLIP's released code adds the cosine; the paper ranks only by the matching score.
            self.scores["itm"] = f"ITM's logit of a match plus cosine, {best}"
            is_candidate = np.zeros_like(self.cosine, dtype=bool)
            if isinstance(ranker, Ranks):
                is_candidate = np.logical_or(*self.candidates())
            for i in range(len(images)):
                is_wanted = is_candidate[i] | np.isin(self.owners, (i, self.partners[i]))
                self.chosen.append(np.flatnonzero(is_wanted))
            at_once = max(1, TEXTS_AT_ONCE // max(map(len, self.chosen)))
            asked = [[texts[text] for text in chosen] for chosen in self.chosen]
            matched = ranker.match(images, asked, min(at_once, batch_size))
            self.logits = [logits.cpu().numpy() for logits in matched]

    def candidates(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Masks (images, texts): the k best texts of each image, the k best images of each text."""
        num_images, num_texts = self.cosine.shape
        texts = np.argsort(-self.cosine, axis=1, kind="stable")[:, : min(self.k, num_texts)]
        images = np.argsort(-self.cosine, axis=0, kind="stable")[: min(self.k, num_images)]
        by_image, by_text = (np.zeros_like(self.cosine, dtype=bool) for _ in range(2))
        np.put_along_axis(by_image, texts, True, axis=1)
        np.put_along_axis(by_text, images, True, axis=0)
        return by_image, by_text

    def retrieval(self) -> dict[str, Statistic]:
        """Recalls by contrast and, for a matcher, with the candidates re-ranked by matching."""
        statistics = {"itc": self.recalls(self.cosine, self.cosine)}
        if self.logits:
            statistics["itm"] = self.recalls(*self.ranked_again())
        return statistics

    def recalls(self, by_image: npt.NDArray[Any], by_text: npt.NDArray[Any]) -> Statistic:
        """TR from scores (images, texts) of texts by image, and IR from those of images by text."""
        own, owners = self.owners, self.owners.tolist()
        text_hits = retrieval_hits(by_image, owners)[0]
        image_hits = retrieval_hits(by_text, owners)[1]

        def statistic(weights: Weights) -> dict[str, float]:
            each = weights[own]
            return {
                **{f"TR@{k}": float(weights @ hit / weights.sum()) for k, hit in text_hits.items()},
                **{f"IR@{k}": float(each @ hit / each.sum()) for k, hit in image_hits.items()},
            }

        return statistic

    def ranked_again(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Re-ranked scores (images, texts), by image and by text; others are `NOT_RANKED`."""
        ranked = np.full_like(self.cosine, NOT_RANKED)
        for image, (chosen, logits) in enumerate(zip(self.chosen, self.logits, strict=True)):
            ranked[image, chosen] = logits[:, 1] + self.cosine[image, chosen]
        by_image, by_text = self.candidates()
        # A text among the k best of an image may not have the image among its own k best.
        return np.where(by_image, ranked, NOT_RANKED), np.where(by_text, ranked, NOT_RANKED)

    def matching(self) -> Statistic:
        """ITM of every caption with its own image, and with another image."""
        num_images = len(self.cosine)
        true = [self.probability(i, i) for i in range(num_images)]
        false = [self.probability(i, self.partners[i]) for i in range(num_images)]
        positive, negative = np.concatenate(true), np.concatenate(false)
        of_true, of_false = (
            np.repeat(np.arange(num_images), [len(scores) for scores in parts])
            for parts in (true, false)
        )

        def statistic(weights: Weights) -> dict[str, float]:
            each_true, each_false = weights[of_true], weights[of_false]
            accepted_true, accepted_false = (
                each_true @ (positive >= 0.5),
                each_false @ (negative >= 0.5),
            )
            right = accepted_true + each_false.sum() - accepted_false
            return {
                "roc_auc": roc_auc(positive, negative, each_true, each_false),
                "accuracy": float(right / (each_true.sum() + each_false.sum())),
                "accepted_true": float(accepted_true / each_true.sum()),
                "accepted_false": float(accepted_false / each_false.sum()),
            }

        return statistic

    def probability(self, image: int, owner: int) -> npt.NDArray[np.float64]:
        """The probabilities that an image and each caption of an image match."""
        is_asked = self.owners[self.chosen[image]] == owner
        logits = self.logits[image][is_asked].astype(np.float64)
        probability: npt.NDArray[np.float64] = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
        return probability


@contextlib.contextmanager
def _naming(images: Sequence[bytes]) -> Iterator[None]:
    """Replace an ImageError by an error that has the number of the image.

    Raises:
        ValueError: An image cannot be decoded.
    """
    try:
        yield
    except ImageError:
        for number, image in enumerate(images, 1):
            try:
                open_rgb(image)
            except ImageError as error:
                raise ValueError(f"image {number} of the test cannot be opened: {error}") from None
        raise


def _put(nested: dict[str, Any], path: tuple[str, ...], value: dict[str, Any]) -> None:
    for name in path:
        nested = nested.setdefault(name, {})
    nested.update(value)


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in values.items()}
