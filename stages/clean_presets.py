"""The rules of clean, and presets with the thresholds of published data sets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from stages.base import StageConfig, threshold

__all__ = ["PRESETS", "Rules"]


@dataclass(frozen=True, kw_only=True)
class Rules(StageConfig):
    """The thresholds of all rules; `off` (YAML's false) turns a rule off.

    A value equal to a threshold passes. Rules that a preset does not set are off.

    Attributes:
        min_side: Minimum width and height of the downloaded image, in pixels.
        max_aspect: Maximum ratio of the longer side to the shorter.
        min_bytes: Minimum size of the downloaded file, in bytes.
        max_single_colour: Maximum share of the image that has one colour.
        min_entropy: Minimum entropy of the image's brightness, in bits, from 0 to 8.
        filename: Whether to reject a caption that is a file name.
        url: Whether to reject a caption with a URL.
        contact: Whether to reject a caption with an e-mail address or a telephone number.
        entity: Whether to reject a caption with an invalid HTML entity.
        boilerplate: Whether to reject placeholders and captions with a phrase of the website.
        counts: Where words and characters are counted. text: in the normalised text, where a word
            must have a letter or digit. caption: in the unchanged caption, where words are
            separated by whitespace and a run of whitespace is one character.
        min_words: Minimum number of words. In scripts without spaces between words (Chinese,
            Japanese, Thai, Lao, Khmer, Burmese, Tibetan and others), each character with its marks
            is a word.
        max_words: Maximum number of words.
        min_characters: Minimum number of characters.
        max_characters: Maximum number of characters.
        max_repeat_share: Maximum share of one word among all words. Function words, and words that
            occur once or twice, do not count.
        min_unique_share: Minimum share of distinct words among all words.
        min_letters: Minimum share of letters among the characters.
        max_digits: Maximum share of digits among the characters.
        max_symbols: Maximum share of characters that are neither letter nor digit.
        max_capitals: Maximum share of upper-case letters among the letters.
        capitalised: Whether a caption must begin with a capital letter.
        noun: Whether a caption must have a noun.
        determiner: Whether a caption must have a determiner.
        preposition: Whether a caption must have a preposition.
        min_language_score: Minimum total probability of the allowed languages, for a caption whose
            most probable language is not one of them; 1 always rejects such captions. High values
            lose English captions, since captions are short and product names are often foreign.
    """

    min_side: int | bool | None = threshold(None)
    max_aspect: float | bool | None = threshold(None)
    min_bytes: int | bool | None = threshold(None)
    max_single_colour: float | bool | None = threshold(None)
    min_entropy: float | bool | None = threshold(None)
    filename: bool | None = threshold(None)
    url: bool | None = threshold(None)
    contact: bool | None = threshold(None)
    entity: bool | None = threshold(None)
    boilerplate: bool | None = threshold(None)
    counts: Literal["text", "caption"] | None = threshold(None)
    min_words: int | bool | None = threshold(None)
    max_words: int | bool | None = threshold(None)
    min_characters: int | bool | None = threshold(None)
    max_characters: int | bool | None = threshold(None)
    max_repeat_share: float | bool | None = threshold(None)
    min_unique_share: float | bool | None = threshold(None)
    min_letters: float | bool | None = threshold(None)
    max_digits: float | bool | None = threshold(None)
    max_symbols: float | bool | None = threshold(None)
    max_capitals: float | bool | None = threshold(None)
    capitalised: bool | None = threshold(None)
    noun: bool | None = threshold(None)
    determiner: bool | None = threshold(None)
    preposition: bool | None = threshold(None)
    min_language_score: float | bool | None = threshold(None)

    def over(self, preset: Rules) -> dict[str, Any]:
        """Return every threshold by name: this object's, else the preset's, else False for off."""
        thresholds: dict[str, Any] = {"counts": "text"}
        for field in dataclasses.fields(Rules):
            for rules in (preset, self):
                value = getattr(rules, field.name)
                if value is not None:
                    thresholds[field.name] = value
            thresholds.setdefault(field.name, False)
        return thresholds


FLAMINGO = Rules(
    min_side=64,
    max_aspect=3.0,
    max_single_colour=0.99,
    filename=True,
    url=True,
    boilerplate=True,
    min_words=3,
    max_words=256,
    min_characters=6,
    max_repeat_share=0.3,
    min_letters=0.5,
    min_language_score=0.05,
)
"""M3W of Flamingo (arXiv:2204.14198), the default preset.

The paper gives the minimum side, the aspect ratio and English, and names single-colour images as
an example of low quality. It does not say how to detect a single colour or a language, and for
texts it refers to MassiveText's heuristics for whole documents (arXiv:2112.11446). So the limits on
words are those of Conceptual 12M (arXiv:2102.08981), those on characters are DataComp's
(arXiv:2304.14108), and the others were set on LAION alt-text and photographs. Filters of explicit
content need a model and are left out.
"""

CC3M = Rules(
    min_side=401,
    max_aspect=2.0,
    boilerplate=True,
    capitalised=True,
    noun=True,
    determiner=True,
    preposition=True,
    min_language_score=0.05,
)
"""Conceptual Captions (Sharma et al., ACL 2018, P18-1238): both sides over 400 pixels.

The paper gives no numbers for its limits on nouns, token repetition, capitals and polarity, so
`max_repeat_share`, `min_unique_share` and `max_capitals` are left to the user. English replaces its
vocabulary of words seen five times in the English Wikipedia. Left out: JPEG only (the pool has one
format), and the steps that need Google's models and knowledge graph: pornography and profanity, the
match of words with image labels, hypernyms for names, and dropping dates, places and numbers.
"""

CC12M = Rules(
    min_side=401,
    max_aspect=2.5,
    boilerplate=True,
    min_words=3,
    max_words=256,
    max_repeat_share=0.2,
    noun=True,
    determiner=True,
    min_language_score=0.05,
)
"""Conceptual 12M (arXiv:2102.08981), which relaxes CC3M: no rules on prepositions and capitals.

The paper does not define its "fraction of word repetition"; here it is the share of one word.
English replaces its vocabulary, which drops words seen fewer than 20 times. The same steps as in
CC3M are left out, and the replacement of names by <PERSON>.
"""

ALIGN = Rules(
    min_side=201,
    max_aspect=2.999999,
    counts="caption",
    min_words=3,
    max_words=20,
    min_language_score=0.05,
)
"""ALIGN (arXiv:2102.05918): the shorter side over 200 pixels, an aspect ratio below 3, 3 to 20
unigrams, English.

Dedup rejects images with more than 1000 alt-texts, and alt-texts with more than 10 images. Left
out: pornography, and rare words, which are those outside the 100 million most frequent unigrams and
bigrams of Google's raw alt-text.
"""

LAION400M = Rules(min_bytes=5000, counts="caption", min_characters=5, min_language_score=1.0)
"""LAION-400M (arXiv:2111.02114): images of at least 5 KB, alt-texts of at least 5 characters, and
English according to its release notes; the paper names no test.

CLIP similarity of 0.3 and tags of illegal content need CLIP; the filter stage replaces the first.
Equal pairs of URL and text are already one row of the pool.
"""

COYO = Rules(
    min_side=200,
    max_aspect=3.0,
    min_bytes=5000,
    counts="caption",
    min_words=3,
    max_words=256,
    min_characters=6,
    max_characters=1000,
    noun=True,
    min_language_score=1.0,
)
"""COYO-700M (github.com/kakaobrain/coyo-dataset). Its README says 1000 words where its statistics
say characters.

fastText detects English instead of cld3. Dedup rejects texts seen more than 10 times and equal
pairs of pHash and text. Left out: NSFW scores over 0.5 and lists of profane words.
"""

DATACOMP_BASIC = Rules(
    min_side=200,
    max_aspect=3.0,
    counts="caption",
    min_words=3,
    min_characters=6,
    min_language_score=1.0,
)
"""The basic filter of DataComp (arXiv:2304.14108), as in its code.

The caption filter of the image-based baseline in that code requires only two words. English is
detected with fastText's small model, lid.176.ftz, on the normalised text.
"""

BLIP_LAION = Rules(min_side=257)
"""BLIP's subset of LAION (arXiv:2201.12086): the shorter side over 256 pixels; captions are judged
by the filter only."""

PRESETS: dict[str, Rules] = {
    "flamingo": FLAMINGO,
    "cc3m": CC3M,
    "cc12m": CC12M,
    "align": ALIGN,
    "laion400m": LAION400M,
    "coyo": COYO,
    "datacomp_basic": DATACOMP_BASIC,
    "blip_laion": BLIP_LAION,
}
