"""The section of a BLIP's model card on texts: how stock transformers reads them as in training."""

from __future__ import annotations

from models.text.pre_caption import UNREAD

__all__ = ["usage"]

PREPARED = (
    "Training read each text as `pre_caption` of capfilt prepares it: in lower case, "
    '`.!"()*#:;~` and runs of whitespace as one space.'
)

CAPTIONING = (
    "In the first place it read [DEC], where the tokenizer puts [CLS]; `generate` of stock "
    "transformers puts [DEC] there."
)

ENC = (
    "For matching, it read [ENC] in the first place; for contrast (`use_itm_head=False`) [CLS], "
    "as the tokenizer makes it. Stock transformers leaves [CLS] there in both, so that [ENC] has "
    "to be put there for matching, as below; capfilt's filter and `capfilt evaluate` do."
)

CLS = (
    "It begins with [CLS], as the tokenizer makes it. The lower half of the text layers read the "
    "text alone, and the text of contrast is read by these: stock transformers matches as below, "
    "but reads all layers for contrast (`use_itm_head=False`) and gives another cosine; capfilt's "
    "filter and `capfilt evaluate` give the one that was trained."
)

MATCHING = f"""```python
import re

from PIL import Image
from transformers import BlipForImageTextRetrieval, BlipProcessor

folder = "FOLDER"  # where its config.json lies
image, text = Image.open("image.jpg").convert("RGB"), "A caption."
model = BlipForImageTextRetrieval.from_pretrained(folder).eval()
processor = BlipProcessor.from_pretrained(folder)
text = re.sub(r'{UNREAD.pattern}', " ", text.lower()).strip()
inputs = processor(
    images=image, text=text, truncation=True, max_length=TOKENS, return_tensors="pt"
)
FIRSTmatch = model(**inputs).itm_score.softmax(-1)[0, 1]  # the probability that they match
```
"""

PUT_ENC = 'inputs["input_ids"][:, 0] = processor.tokenizer.convert_tokens_to_ids("[ENC]")\n'


def usage(
    *, has_captioner: bool, has_matcher: bool, prompt: str, max_text_tokens: int, is_fused: bool
) -> str:
    """Markdown on how each part must be given a text.

    Args:
        has_captioner: Whether the model has a captioner.
        has_matcher: Whether it has a matcher.
        prompt: What stood before the captions.
        max_text_tokens: Tokens that texts were cut to.
        is_fused: Whether only the upper text layers look at images, as in ALBEF.
    """
    cut = f"Texts are cut to {max_text_tokens} tokens, the first and the last included."
    parts = [f"{PREPARED} {cut}"]
    if has_captioner:
        before = "No prompt stood before the captions."
        if prompt.strip():
            shown = prompt.replace("`", "'").replace("\n", " ")
            before = f"Captions go on from the prompt `{shown}`."
        parts.append(f"**The captioner.** {CAPTIONING} {before}")
    if has_matcher:
        parts.append(f"**The matcher.** {CLS if is_fused else ENC}")
        program = MATCHING.replace("FOLDER", "matcher" if has_captioner else ".")
        program = program.replace("TOKENS", str(max_text_tokens))
        parts.append(program.replace("FIRST", "" if is_fused else PUT_ENC))
    return "\n\n".join(parts)
