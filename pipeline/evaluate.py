"""How good a model is on held-out images: retrieval, captioning and matching."""

from __future__ import annotations

import logging
import os
import random
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import BlipConfig
from transformers.utils.logging import disable_progress_bar

from models.captioner import Captioner
from models.decoding import Settings
from models.images import Preprocess
from models.med import MED, Part
from models.metrics import bleu, cider, retrieval_recall, roc_auc
from models.towers import remember, see
from pipeline.pairs import pre_caption, read_lines, seed_of

__all__ = ["evaluate"]

logger = logging.getLogger(__name__)

PROMPT = "a picture of "
"""BLIP's, where a captioner does not say what it was trained with."""

NOT_RANKED = -100.0
"""BLIP's score of a pair that contrast did not put among the first k."""


def evaluate(
    model: str,
    test: str,
    *,
    top_k: int | None = None,
    max_text_tokens: int = 35,
    batch_size: int = 64,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a model on held-out images with true captions.

    Args:
        model: A folder of `pipeline.train`, or one plain captioner or matcher, local or on the hub.
        test: JSON lines {"image": path relative to the file, "captions": [text, ...]}.
        top_k: Candidates that matching ranks again. By default an eighth of the images, from 16 to
            BLIP's 128 for the thousand of Flickr30K.
        max_text_tokens: Longer captions are cut.
        batch_size: Images at a time.
        seed: Of the wrong partners.

    Returns:
        JSON-able: `images` and `captions`, and what the model has the parts for: `retrieval`, with
        TR@k and IR@k by contrast (`itc`) and re-ranked by matching (`itm`); `matching`, the
        ROC-AUC and the accuracy at one half of ITM on true captions against captions of other
        images; `captioning`, BLEU@4 and CIDEr of beam search (arXiv 2201.12086: 3 beams, 5 to 20
        tokens).

    Raises:
        ValueError: The file holds no images, or the model is neither.
    """
    disable_progress_bar()  # type: ignore[no-untyped-call]
    samples = read_lines(test)
    if len(samples) < 2:
        raise ValueError(f"{test} holds {len(samples)} images with captions; two are the least")
    images = [sample.read() for sample in samples]
    captions = [list(sample.captions) for sample in samples]
    result: dict[str, Any] = {"images": len(images), "captions": sum(map(len, captions))}
    folders = parts_of(model)
    if "matcher" in folders:
        scorer = _Scorer(folders["matcher"], images, captions, max_text_tokens, batch_size)
        result["retrieval"] = scorer.retrieval(top_k)
        result["matching"] = scorer.matching(seed)
    if "captioner" in folders:
        result["captioning"] = captioning(folders["captioner"], images, captions, batch_size)
    return result


def parts_of(model: str) -> dict[Part, str]:
    """The folder or hub name of each part a model has."""
    parts: tuple[Part, ...] = ("captioner", "matcher")
    pair = {part: os.path.join(model, part) for part in parts}
    found = {part: path for part, path in pair.items() if os.path.isdir(path)}
    if found:
        return found
    architecture = (BlipConfig.from_pretrained(model).architectures or ("",))[0]
    kinds: dict[str, Part] = {
        "BlipForConditionalGeneration": "captioner",
        "BlipForImageTextRetrieval": "matcher",
    }
    if architecture not in kinds:
        raise ValueError(f"{model} is neither a BLIP captioner nor a BLIP matcher")
    return {kinds[architecture]: model}


def captioning(
    folder: str, images: list[bytes], references: list[list[str]], batch_size: int
) -> dict[str, float]:
    """BLEU@4 and CIDEr of a captioner's beam search."""
    captioner = Captioner.from_pretrained(folder)
    prompt = getattr(captioner.model.config, "caption_prompt", PROMPT)
    written = captioner.caption(
        images, [0] * len(images), Settings(decoding="beam"), prompt=prompt, batch_size=batch_size
    )
    candidates = [captions[0].text if captions else "" for captions in written]
    return {
        "BLEU@4": round(bleu(candidates, references), 6),
        "CIDEr": round(cider(candidates, references), 6),
    }


class _Scorer:
    """A matcher with the images and captions of a test read once."""

    def __init__(
        self,
        folder: str,
        images: list[bytes],
        captions: list[list[str]],
        max_text_tokens: int,
        batch_size: int,
    ) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.med = MED.from_pretrained(folder, parts=("matcher",)).to(self.device).eval()
        preprocess = Preprocess.from_pretrained(folder)
        self.owners = [i for i, texts in enumerate(captions) for _ in texts]
        texts = [pre_caption(text) for texts in captions for text in texts]
        self.tokens = self.med.tokenize(texts, max_text_tokens).to(self.device)
        features, image_embeddings = [], []
        with torch.inference_mode():
            for start in range(0, len(images), batch_size):
                pixels = preprocess(images[start : start + batch_size]).to(self.device)
                features.append(see(self.med.vision, pixels))
                image_embeddings.append(self.med.embed_images(features[-1]))
            self.features = torch.cat(features)
            text_embeddings = torch.cat(
                [self.med.embed_texts(part) for part in torch.split(self.tokens, batch_size)]
            )
            cosine = torch.cat(image_embeddings) @ text_embeddings.T
        self.cosine: npt.NDArray[np.float32] = cosine.cpu().numpy()

    def retrieval(self, top_k: int | None) -> dict[str, dict[str, float]]:
        """Recalls by contrast alone and with the best re-ranked by matching."""
        num_images, num_texts = self.cosine.shape
        k = top_k if top_k is not None else min(128, max(16, num_images // 8))
        wanted = np.zeros_like(self.cosine, dtype=bool)
        texts = np.argsort(-self.cosine, axis=1, kind="stable")[:, : min(k, num_texts)]
        images = np.argsort(-self.cosine, axis=0, kind="stable")[: min(k, num_images)]
        np.put_along_axis(wanted, texts, True, axis=1)
        np.put_along_axis(wanted, images, True, axis=0)
        ranked = np.full_like(self.cosine, NOT_RANKED)
        for image in range(num_images):
            chosen = np.flatnonzero(wanted[image])
            # The released code adds the cosine, the paper ranks by the matching score alone.
            ranked[image, chosen] = self.match(image, chosen)[:, 1] + self.cosine[image, chosen]
        # A text of the image's best k need not have the image among its own best k.
        by_text = np.full_like(ranked, NOT_RANKED)
        np.put_along_axis(by_text, images, np.take_along_axis(ranked, images, axis=0), axis=0)
        by_image = np.full_like(ranked, NOT_RANKED)
        np.put_along_axis(by_image, texts, np.take_along_axis(ranked, texts, axis=1), axis=1)
        both = retrieval_recall(by_image, self.owners), retrieval_recall(by_text, self.owners)
        reranked = {name: both[name.startswith("IR")][name] for name in both[0]}
        return {
            "itc": _rounded(retrieval_recall(self.cosine, self.owners)),
            "itm": _rounded(reranked),
        }

    def matching(self, seed: int) -> dict[str, float]:
        """ITM on every caption with its image, and with the image of another."""
        num_images = len(self.features)
        others = list(range(num_images))
        random.Random(seed_of(seed, "partners")).shuffle(others)
        following = dict(zip(others, others[1:] + others[:1], strict=True))
        owners = np.asarray(self.owners)
        true, false = [], []
        for image in range(num_images):
            true.append(self.probability(image, np.flatnonzero(owners == image)))
            false.append(self.probability(image, np.flatnonzero(owners == following[image])))
        positive, negative = np.concatenate(true), np.concatenate(false)
        right = (positive >= 0.5).sum() + (negative < 0.5).sum()
        return _rounded(
            {
                "roc_auc": roc_auc(positive, negative),
                "accuracy": float(right / (len(positive) + len(negative))),
                "accepted_true": float((positive >= 0.5).mean()),
                "accepted_false": float((negative >= 0.5).mean()),
            }
        )

    def probability(self, image: int, texts: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        """The probability that an image and each of some texts match."""
        logits = self.match(image, texts).astype(np.float64)
        return 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))

    @torch.inference_mode()
    def match(self, image: int, texts: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        """ITM logits (n, 2) of one image and n texts."""
        assert self.med.matcher is not None
        memory = remember(self.med.matcher.text_encoder, self.features[image : image + 1])
        logits = []
        for tokens in torch.split(self.tokens[torch.from_numpy(texts)], 512):
            shared = [
                (key.expand(len(tokens), -1, -1, -1), value.expand(len(tokens), -1, -1, -1))
                for key, value in memory
            ]
            longest = int((tokens != self.med.pad).sum(dim=1).max())
            logits.append(self.med.match(tokens[:, :longest], shared))
        whole: npt.NDArray[np.float32] = torch.cat(logits).cpu().numpy()
        return whole


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in values.items()}
