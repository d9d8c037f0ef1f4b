"""How good a model is on held-out images: retrieval, captioning, matching, classification."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor
from transformers.utils.logging import disable_progress_bar

from models.attention import cross_attention_kv, encode_images
from models.image.decode import ImageError, Preprocess, open_rgb
from models.inference.captioner import Captioner
from models.inference.decoding import Settings
from models.metrics import (
    bleu_counts,
    bleu_of,
    bootstrap,
    cider_scores,
    retrieval_hits,
    roc_auc,
)
from models.objectives.blip import MED
from models.objectives.clip import Contrastive
from models.random import seed_of
from models.text.pre_caption import pre_caption
from models.weights import folder_of
from pipeline.training.data import is_folder, read_folder, read_json

__all__ = ["TEMPLATES", "evaluate"]

logger = logging.getLogger(__name__)

Part = Literal["captioner", "matcher", "clip"]

Weights = npt.NDArray[np.float64]
"""How often each image counts, (images,)."""

Statistic = Callable[[Weights], dict[str, float]]

TEMPLATES = ("a photo of a {}.",)
"""What CLIP's authors say of a label where they say one thing (arXiv 2103.00020)."""

PROMPT = "a picture of "
"""BLIP's, where a captioner does not say what it was trained with."""

NOT_RANKED = -100.0
"""BLIP's score of a pair that contrast did not put among the first k."""

CLIP_TOKENS = 77

KINDS: dict[str, Part] = {
    "BlipForConditionalGeneration": "captioner",
    "BlipForImageTextRetrieval": "matcher",
    "CLIPModel": "clip",
}


def evaluate(
    model: str,
    test: str,
    *,
    top_k: int | None = None,
    templates: Sequence[str] = TEMPLATES,
    max_text_tokens: int = 35,
    batch_size: int = 64,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Measure a model on held-out images with true captions, labels or both.

    Args:
        model: A folder of `pipeline.training.loop`, or one plain BLIP captioner or matcher or
            CLIP, local or on the hub.
        test: JSON lines {"image": path relative to the file, "captions": [text, ...]}, with
            "label" beside or in their place; a JSON list of them; COCO's JSON; or a folder of
            images in folders that are named as their label.
        top_k: Candidates that matching ranks again. By default an eighth of the images, from 16 to
            BLIP's 128 for the thousand of Flickr30K.
        templates: What is said of a label, `{}` in its place; embeddings of several are averaged.
        max_text_tokens: Longer captions are cut, for BLIP.
        batch_size: Images at a time.
        seed: Of the wrong partners and of the intervals.
        resamples: Of the bootstrap; 0 gives no intervals.

    Returns:
        JSON-able: `images` and `captions`, and what the model has the parts for: `retrieval`, with
        TR@k and IR@k by contrast (`itc`) and re-ranked by matching (`itm`), and the scores that
        ranked; `matching`, the ROC-AUC and the accuracy at one half of ITM on true captions
        against captions of other images; `captioning`, BLEU@4 and CIDEr of beam search (arXiv
        2201.12086: 3 beams, 5 to 20 tokens), tokenized by `models.metrics.words_of`, without
        METEOR, which needs Java or WordNet; `classification`, top-1 and top-5 accuracy of the
        labels' embeddings. `intervals` holds 95 % of each, bootstrapped over images.

    Raises:
        ValueError: There are fewer than two images, one cannot be opened, a template has no place
            for the label, or the model is none of these.
    """
    disable_progress_bar()  # type: ignore[no-untyped-call]
    if without := [template for template in templates if "{}" not in template]:
        raise ValueError(f"template {without[0]!r} has no {{}} for the label")
    samples = read_folder(test) if is_folder(test) else read_json(test)
    if len(samples) < 2:
        raise ValueError(f"{test} holds {len(samples)} images with captions; two are the least")
    folders = parts_of(model)
    told = [sample for sample in samples if sample.captions]
    labelled = [sample for sample in samples if sample.label is not None]
    captions = [list(sample.captions) for sample in told]
    result: dict[str, Any] = {"images": len(samples), "captions": sum(map(len, captions))}
    found: dict[tuple[str, ...], tuple[Statistic, int]] = {}
    reader: _Matcher | _Clip | None = None
    if "matcher" in folders:
        reader = _Matcher(folders["matcher"], max_text_tokens, batch_size)
    elif "clip" in folders:
        reader = _Clip(folders["clip"], batch_size)
    if reader is not None and len(told) > 1:
        scorer = _Scorer(reader, [sample.read() for sample in told], captions, top_k)
        result["retrieval"] = {"scores": scorer.scores}
        for name, statistic in scorer.retrieval().items():
            found["retrieval", name] = statistic, len(told)
        if isinstance(reader, _Matcher):
            found["matching",] = scorer.matching(seed), len(told)
    if "captioner" in folders and told:
        images = [sample.read() for sample in told]
        statistic = captioning(folders["captioner"], images, captions, batch_size)
        found["captioning",] = statistic, len(told)
    if reader is not None and labelled:
        images = [sample.read() for sample in labelled]
        labels = [str(sample.label) for sample in labelled]
        statistic = classification(reader, images, labels, templates)
        found["classification",] = statistic, len(labelled)
    intervals: dict[str, Any] = {}
    for path, (statistic, number) in found.items():
        _put(result, path, _rounded(statistic(np.ones(number))))
        if resamples:
            bounds = bootstrap(
                statistic, number, seed=seed_of(seed, "bootstrap"), resamples=resamples
            )
            _put(intervals, path, {k: [round(b, 6) for b in both] for k, both in bounds.items()})
    if intervals:
        result["intervals"] = intervals
    return result


def parts_of(model: str) -> dict[Part, str]:
    """The folder or hub name of each part a model has."""
    model = folder_of(model)
    pair: dict[Part, str] = {
        "captioner": os.path.join(model, "captioner"),
        "matcher": os.path.join(model, "matcher"),
    }
    found = {part: path for part, path in pair.items() if os.path.isdir(path)}
    if found:
        return found
    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    architecture = (config.architectures or ("",))[0]
    if architecture not in KINDS:
        raise ValueError(f"{model} is neither a BLIP captioner nor a BLIP matcher nor a CLIP")
    return {KINDS[architecture]: model}


def captioning(
    folder: str, images: list[bytes], references: list[list[str]], batch_size: int
) -> Statistic:
    """BLEU@4 and CIDEr of a captioner's beam search."""
    captioner = Captioner.from_pretrained(folder)
    prompt = getattr(captioner.model.config, "caption_prompt", PROMPT)
    written = captioner.caption(
        images, [0] * len(images), Settings(decoding="beam"), prompt=prompt, batch_size=batch_size
    )
    candidates = [captions[0].text if captions else "" for captions in written]
    counts = bleu_counts(candidates, references)
    scores = cider_scores(candidates, references)

    def statistic(weights: Weights) -> dict[str, float]:
        return {
            "BLEU@4": bleu_of(weights @ counts),
            "CIDEr": float(weights @ scores / weights.sum()),
        }

    return statistic


def classification(
    reader: _Matcher | _Clip, images: list[bytes], labels: list[str], templates: Sequence[str]
) -> Statistic:
    """Top-1 and top-5 accuracy of images against the mean embedding of each label's prompts."""
    classes = sorted(set(labels))
    prompts = [template.replace("{}", name) for name in classes for template in templates]
    embedded = reader.embed_texts(prompts).view(len(classes), len(templates), -1).mean(1)
    cosine = (reader.embed_images(images) @ F.normalize(embedded, dim=-1).T).cpu().numpy()
    own = np.array([classes.index(label) for label in labels])
    rank = (cosine >= cosine[np.arange(len(own)), own][:, None]).sum(1) - 1

    def statistic(weights: Weights) -> dict[str, float]:
        return {f"accuracy@{k}": float(weights @ (rank < k) / weights.sum()) for k in (1, 5)}

    return statistic


class _Clip:
    """A CLIP reads images and texts."""

    scores: dict[str, str]

    def __init__(self, model: str, batch_size: int) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.clip = Contrastive.from_pretrained(model).to(self.device).eval()
        load: Any = AutoImageProcessor.from_pretrained
        self.processor = load(model)
        self.batch_size = batch_size

    @torch.inference_mode()
    def embed_images(self, images: list[bytes]) -> Tensor:
        """Unit embeddings (n, d)."""
        found = []
        for start in range(0, len(images), self.batch_size):
            opened = [_opened(images, i) for i in _next(images, start, self.batch_size)]
            pixels = self.processor(images=opened, return_tensors="pt")["pixel_values"]
            found.append(self.clip.embed_images(pixels.to(self.device)))
        return torch.cat(found)

    @torch.inference_mode()
    def embed_texts(self, texts: list[str]) -> Tensor:
        """Unit embeddings (n, d)."""
        tokens = self.clip.tokenize(texts, CLIP_TOKENS).to(self.device)
        return torch.cat([self.clip.embed_texts(t) for t in torch.split(tokens, self.batch_size)])


class _Matcher:
    """A BLIP matcher reads images and texts, and keeps what its ITM needs of the images."""

    def __init__(self, folder: str, max_text_tokens: int, batch_size: int) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.med = MED.from_pretrained(folder, parts=("matcher",)).to(self.device).eval()
        self.preprocess = Preprocess.from_pretrained(folder)
        self.max_text_tokens = max_text_tokens
        self.batch_size = batch_size
        self.features = torch.empty(0)

    @torch.inference_mode()
    def embed_images(self, images: list[bytes]) -> Tensor:
        """Unit embeddings (n, d); `features` are then of these images."""
        features = []
        for start in range(0, len(images), self.batch_size):
            try:
                pixels = self.preprocess(images[start : start + self.batch_size])
            except ImageError:
                for i in _next(images, start, self.batch_size):
                    _opened(images, i)
                raise
            features.append(encode_images(self.med.vision, pixels.to(self.device)))
        self.features = torch.cat(features)
        return self.med.embed_images(self.features)

    def tokenize(self, texts: list[str]) -> Tensor:
        """int64 (n, L) of texts as BLIP prepares them."""
        prepared = [pre_caption(text) for text in texts]
        return self.med.tokenize(prepared, self.max_text_tokens).to(self.device)

    @torch.inference_mode()
    def embed_texts(self, texts: list[str]) -> Tensor:
        """Unit embeddings (n, d)."""
        tokens = self.tokenize(texts)
        return torch.cat([self.med.embed_texts(t) for t in torch.split(tokens, self.batch_size)])

    @torch.inference_mode()
    def match(self, image: int, texts: Tensor) -> npt.NDArray[np.float32]:
        """ITM logits (n, 2) of image number `image` and n tokenized texts."""
        assert self.med.matcher is not None
        memory = cross_attention_kv(self.med.matcher.text_encoder, self.features[image : image + 1])
        logits = []
        for tokens in torch.split(texts, 512):
            shared = [
                (key.expand(len(tokens), -1, -1, -1), value.expand(len(tokens), -1, -1, -1))
                for key, value in memory
            ]
            longest = int((tokens != self.med.pad).sum(dim=1).max())
            logits.append(self.med.match(tokens[:, :longest], shared))
        whole: npt.NDArray[np.float32] = torch.cat(logits).cpu().numpy()
        return whole


class _Scorer:
    """The images and captions of a test, read once."""

    def __init__(
        self,
        reader: _Matcher | _Clip,
        images: list[bytes],
        captions: list[list[str]],
        top_k: int | None,
    ) -> None:
        self.reader = reader
        self.owners = [i for i, texts in enumerate(captions) for _ in texts]
        texts = [text for texts in captions for text in texts]
        cosine = reader.embed_images(images) @ reader.embed_texts(texts).T
        self.cosine: npt.NDArray[np.float32] = cosine.cpu().numpy()
        self.k = top_k if top_k is not None else min(128, max(16, len(images) // 8))
        self.scores = {"itc": "cosine"}
        if isinstance(reader, _Matcher):
            self.tokens = reader.tokenize(texts)
            best = f"of the {self.k} best by itc"
            # The released code adds the cosine, the paper ranks by the matching score alone.
            self.scores["itm"] = f"ITM's logit of a match plus cosine, {best}"

    def retrieval(self) -> dict[str, Statistic]:
        """Recalls by contrast alone and, of a matcher, with the best ranked again by matching."""
        found = {"itc": self.recalls(self.cosine, self.cosine)}
        if isinstance(self.reader, _Matcher):
            found["itm"] = self.recalls(*self.ranked_again(self.reader))
        return found

    def recalls(self, by_image: npt.NDArray[Any], by_text: npt.NDArray[Any]) -> Statistic:
        """TR of one matrix of scores (images, texts), IR of another."""
        own = np.asarray(self.owners)
        text_hits = retrieval_hits(by_image, self.owners)[0]
        image_hits = retrieval_hits(by_text, self.owners)[1]

        def statistic(weights: Weights) -> dict[str, float]:
            each = weights[own]
            return {
                **{f"TR@{k}": float(weights @ hit / weights.sum()) for k, hit in text_hits.items()},
                **{f"IR@{k}": float(each @ hit / each.sum()) for k, hit in image_hits.items()},
            }

        return statistic

    def ranked_again(self, reader: _Matcher) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Scores (images, texts) of each image's best k texts and of each text's best k images."""
        num_images, num_texts = self.cosine.shape
        wanted = np.zeros_like(self.cosine, dtype=bool)
        texts = np.argsort(-self.cosine, axis=1, kind="stable")[:, : min(self.k, num_texts)]
        images = np.argsort(-self.cosine, axis=0, kind="stable")[: min(self.k, num_images)]
        np.put_along_axis(wanted, texts, True, axis=1)
        np.put_along_axis(wanted, images, True, axis=0)
        ranked = np.full_like(self.cosine, NOT_RANKED)
        for image in range(num_images):
            chosen = np.flatnonzero(wanted[image])
            logits = reader.match(image, self.tokens[torch.from_numpy(chosen)])
            ranked[image, chosen] = logits[:, 1] + self.cosine[image, chosen]
        # A text of the image's best k need not have the image among its own best k.
        by_text = np.full_like(ranked, NOT_RANKED)
        np.put_along_axis(by_text, images, np.take_along_axis(ranked, images, axis=0), axis=0)
        by_image = np.full_like(ranked, NOT_RANKED)
        np.put_along_axis(by_image, texts, np.take_along_axis(ranked, texts, axis=1), axis=1)
        return by_image, by_text

    def matching(self, seed: int) -> Statistic:
        """ITM on every caption with its image, and with the image of another."""
        num_images = len(self.cosine)
        others = list(range(num_images))
        random.Random(seed_of(seed, "partners")).shuffle(others)
        following = dict(zip(others, others[1:] + others[:1], strict=True))
        owners = np.asarray(self.owners)
        true = [self.probability(i, np.flatnonzero(owners == i)) for i in range(num_images)]
        false = [
            self.probability(i, np.flatnonzero(owners == following[i])) for i in range(num_images)
        ]
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

    def probability(self, image: int, texts: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        """The probability that an image and each of some texts match."""
        assert isinstance(self.reader, _Matcher)
        logits = self.reader.match(image, self.tokens[torch.from_numpy(texts)]).astype(np.float64)
        return 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))


def _next(images: Sequence[bytes], start: int, number: int) -> range:
    return range(start, min(start + number, len(images)))


def _opened(images: Sequence[bytes], number: int) -> Any:
    """An image opened.

    Raises:
        ValueError: It cannot be; the message has its number.
    """
    try:
        return open_rgb(images[number])
    except ImageError as error:
        raise ValueError(f"image {number + 1} of the test cannot be opened: {error}") from None


def _put(nested: dict[str, Any], path: tuple[str, ...], value: dict[str, Any]) -> None:
    for name in path:
        nested = nested.setdefault(name, {})
    nested.update(value)


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in values.items()}
