"""The rules of clean, and the thresholds that published data sets chose for them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from stages.base import StageConfig, threshold

__all__ = ["PRESETS", "Rules"]


@dataclass(frozen=True, kw_only=True)
class Rules(StageConfig):
    """The thresholds of all rules; each may be off, which is YAML's own word for false.

    What equals a bound stays. A rule that a preset does not name is off in it.

    Attributes:
        min_side: The least width and height of the image as downloaded, in pixels.
        max_aspect: The most that one side may be of the other.
        min_bytes: The least size of the encoded image as downloaded.
        max_single_colour: The largest share of an image that may have one colour.
        min_entropy: The least entropy of the image's brightness, in bits, 0 to 8.
        filename: Whether a caption that is the name of a file is rejected.
        url: Whether a caption with a URL is rejected.
        contact: Whether a caption with an e-mail address or a telephone number is rejected.
        entity: Whether a caption with an HTML entity that stands for no character is rejected.
        boilerplate: Whether placeholders and captions with a phrase of the site are rejected.
        counts: What words and characters are counted in: the normalised text, where words hold
            a letter or digit; or the caption as found, where whitespace parts words and a run of
            it is one character.
        min_words: The least number of words. Scripts that put no blank between words (Chinese,
            Japanese, Thai, Lao, Khmer, Burmese, Tibetan and others) have a word for each character
            with its marks.
        max_words: The largest number of words.
        min_characters: The least number of characters.
        max_characters: The largest number of characters.
        max_repeat_share: The largest share of all words that one word may make up which is no
            function word and occurs three times or more.
        min_unique_share: The least share of distinct words among all words.
        min_letters: The least share of letters among the characters.
        max_digits: The largest share of digits among the characters.
        max_symbols: The largest share of characters that are neither letter nor digit.
        max_capitals: The largest share of upper-case letters among the letters.
        capitalised: Whether a caption must begin with a capital.
        noun: Whether a caption must have a noun.
        determiner: Whether a caption must have a determiner.
        preposition: Whether a caption must have a preposition.
        min_language_score: A text whose most probable language is unwanted is rejected when the
            probability of the wanted ones is lower; at 1, always. Captions are short, and
            products have foreign names: a high limit loses English.
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
        """Every threshold by name: one's own, else the preset's, else False for off."""
        found: dict[str, Any] = {"counts": "text"}
        for field in dataclasses.fields(Rules):
            for rules in (preset, self):
                value = getattr(rules, field.name)
                if value is not None:
                    found[field.name] = value
            found.setdefault(field.name, False)
        return found


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
"""M3W of Flamingo (arXiv:2204.14198), and the default.

The paper gives the sides, the aspect, English, and images of a single colour as an example of
low quality. It gives no test of one colour or of language, and for texts it refers to the
heuristics of MassiveText (arXiv:2112.11446) for whole documents: words are counted as in
Conceptual 12M (arXiv:2102.08981), characters as in DataComp (arXiv:2304.14108), and the other
limits were set on LAION alt-text and photographs. Filters of explicit content need a model and
are left out.
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

The paper gives no numbers for its limits of nouns, token repetition, capitals and polarity:
`max_repeat_share`, `min_unique_share` and `max_capitals` are left to the user. English stands for
its vocabulary of words seen five times in the English Wikipedia. Left out: JPEG only (the pool
has one format), pornography and profanity, the match of words with image labels, hypernyms for
names, and dropping dates, places and numbers, which need Google's models and knowledge graph.
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
"""Conceptual 12M (arXiv:2102.08981), which loosens CC3M: no preposition, no rule of capitals.

Its "fraction of word repetition" is not defined; here it is the share of one word. English stands
for its vocabulary, which drops words seen fewer than 20 times. Left out as in CC3M, and the
<PERSON> that stands for names.
"""

ALIGN = Rules(
    min_side=201,
    max_aspect=2.999999,
    counts="caption",
    min_words=3,
    max_words=20,
    min_language_score=0.05,
)
"""ALIGN (arXiv:2102.05918): the shorter side over 200 pixels, the aspect smaller than 3, 3 to 20
unigrams, English.

Images of more than 1000 alt-texts and alt-texts of more than 10 images are the part of dedup.
Left out: pornography, and rare words, those outside Google's 100 million most frequent unigrams
and bigrams of raw alt-text.
"""

LAION400M = Rules(min_bytes=5000, counts="caption", min_characters=5, min_language_score=1.0)
"""LAION-400M (arXiv:2111.02114): images of 5 KB, alt-texts of 5 characters. English by its release
notes; the paper names no test.

CLIP's similarity of 0.3 and its tags of illegal content need CLIP; the filter stage stands for the
first. Equal pairs of URL and text are one row of the pool.
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
"""COYO-700M (github.com/kakaobrain/coyo-dataset), whose README calls the 1000 words, its statistics
characters.

English is told by fastText instead of cld3. Texts seen more than 10 times and equal pairs of pHash
and text are the part of dedup. Left out: NSFW scores over 0.5 and lists of profane words.
"""

DATACOMP_BASIC = Rules(
    min_side=200,
    max_aspect=3.0,
    counts="caption",
    min_words=3,
    min_characters=6,
    min_language_score=1.0,
)
"""The basic filter of DataComp (arXiv:2304.14108) as its code has it.

The other filter of captions in that code, for its image-based baseline, takes two words. English
is told by the small model of fastText, lid.176.ftz, on the normalised text.
"""

BLIP_LAION = Rules(min_side=257)
"""The part of LAION that BLIP takes (arXiv:2201.12086): the shorter side over 256 pixels; texts are
left to the filter."""

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
