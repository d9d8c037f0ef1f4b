"""The second stage of LLaVA and of MiniGPT-4: answers to instructions about an image.

LLaVA: Liu et al., arXiv 2304.08485; MiniGPT-4: Zhu et al., arXiv 2304.10592.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.objectives.generate import Generate
from models.objectives.image_prefix import ImagePrefix
from models.objectives.language_tokenizer import IMAGE
from models.objectives.masking import IGNORED
from models.objectives.project import Project
from models.random import hash_of
from models.text.conversation import Turn, turns_of
from models.text.instructions import BRIEF

__all__ = ["Around", "InstructBlip2", "InstructLlava"]

PLACE = "{instruction}"


class Around(NamedTuple):
    """The text around an instruction.

    Attributes:
        before: Text before the image.
        behind: Text behind the image, up to the answer, with `{instruction}` for the instruction.
    """

    before: str
    behind: str


class _Instruct(ImagePrefix):
    """Training on turns of instruction and answer; the loss is that of the answers alone.

    Tokens that the loss leaves out are kept as their complement, `~token`, which is negative.
    """

    @abstractmethod
    def turn(self) -> Around:
        """The text around an instruction."""

    @abstractmethod
    def later_turn(self) -> str:
        """The text of a later turn, up to the answer, with `{instruction}` for the instruction."""

    def prepare(self, caption: str) -> str:
        """A conversation as it is, or the caption with single spaces."""
        return caption if turns_of(caption) else super().prepare(caption)

    def tokenize(self, texts: Sequence[str], max_tokens: int) -> Tensor:
        """int64 (n, L): conversations, padded; `max_tokens` counts from the first answer on."""
        rows = [self._row(text, max_tokens) for text in texts]
        length = max(map(len, rows))
        return torch.tensor([row + [~self.pad] * (length - len(row)) for row in rows])

    def _row(self, text: str, max_tokens: int) -> list[int]:
        """The tokens of a conversation; those that the loss leaves out are complemented."""
        turns = turns_of(text) or [Turn(BRIEF[hash_of(text) % len(BRIEF)], text)]
        first, *later = (Turn(_spoken(turn.question), _spoken(turn.answer)) for turn in turns)
        said = self._answer(first.answer, max_tokens)
        for turn in later:
            said += [~token for token in self._ids(self.later_turn().replace(PLACE, turn.question))]
            said += self._answer(turn.answer, max_tokens)
        return [*(~token for token in self.question(first.question)), *said[:max_tokens]]

    def _answer(self, text: str, max_tokens: int) -> list[int]:
        return [*self._ids(text)[: max_tokens - 1], self.end]

    def question(self, instruction: str) -> list[int]:
        """The tokens before an answer: the beginning, the image and the instruction."""
        turn, begin = self.turn(), self.tokenizer("")["input_ids"]
        image, before = [self.image] * self.image_tokens, self._ids(turn.before)
        first = [*image, *begin, *before] if self.image_first else [*begin, *before, *image]
        return [*first, *self._ids(turn.behind.replace(PLACE, instruction))]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def labels(self, tokens: Tensor) -> Tensor:
        """int64 (n, L - 1): the next token of answers; IGNORED elsewhere."""
        return tokens.masked_fill(tokens < 0, IGNORED)[:, 1:]

    def read(self, features: Tensor, tokens: Tensor) -> Tensor:
        """See `ImagePrefix.read`; tokens may be complemented."""
        return super().read(features, torch.where(tokens < 0, ~tokens, tokens))

    def usage(self, max_text_tokens: int) -> str:
        """Markdown for the model card: the form of a turn."""
        turn = self.turn()
        form = f"{turn.before}{IMAGE}{turn.behind}".replace("\n", " ")
        return (
            f"It answers one turn of the form `{form}`, which the "
            "chat template of the processor makes, or `caption_prompt` of config.json where it has "
            f"none. Answers were cut to {max_text_tokens} tokens."
        )


def _spoken(text: str) -> str:
    """A text of a later turn, without `<image>`, which the first turn has already."""
    return " ".join(text.replace(f"{IMAGE}\n", "").replace(IMAGE, "").split())


def _quoted(text: str) -> str:
    """Write a text as an expression of Jinja, whatever is in it."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return "{{ '" + escaped + "' }}"


class InstructLlava(_Instruct, Project):
    """A `LlavaForConditionalGeneration` with the loss of LLaVA's second stage.

    Args:
        model: The stock model.
        tokenizer: Tokenizer of its language model.

    Attributes:
        system: Text before the first turn.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        self.system = ""
        self.end = int(tokenizer.eos_token_id)
        self.thaw(model.model.language_model, model.lm_head)

    def turn(self) -> Around:
        """LLaVA's form, that of Vicuna."""
        system = f"{self.system} " if self.system else ""
        return Around(f"{system}USER: ", f"\n{PLACE} ASSISTANT:")

    def later_turn(self) -> str:
        """LLaVA's form without the image."""
        return f"USER: {PLACE} ASSISTANT:"

    def template(self) -> str:
        """The chat template of the processor: one turn, as in training."""
        turn = self.turn()
        start, end = turn.behind.split(PLACE)
        shown = f"{turn.before}{IMAGE}"
        return (
            "{% for message in messages %}{% if message['role'] == 'user' %}"
            f"{_quoted(shown + start)}"
            "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
            "{% for part in message['content'] %}"
            "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
            "{% endfor %}{% endif %}"
            f"{_quoted(end)}"
            "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
        )

    def write(self, folder: Path) -> None:
        """Write the model and its processor, with the chat template."""
        super().write(folder)
        (folder / "chat_template.jinja").write_text(self.template(), encoding="utf-8")


class InstructBlip2(_Instruct, Generate):
    """A `Blip2ForConditionalGeneration` with the loss of MiniGPT-4's second stage."""

    def turn(self) -> Around:
        """MiniGPT-4's form; the image stands first, where the stock class reads it."""
        return Around("", f"###Human: {PLACE} ###Assistant:")

    def later_turn(self) -> str:
        """MiniGPT-4's form, which is the same without the image."""
        return self.turn().behind

    def write(self, folder: Path) -> None:
        """Write the model and its processor; a turn is the prompt of captions in config.json."""
        super().write(folder)
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["caption_prompt"] = self.turn().behind.replace(PLACE, BRIEF[1])
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
