from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.blips import WORDS, drawn, save_blip2
from helpers.vlms import save_llava
from PIL import Image
from scipy import stats

from models.inference.decoding import Caption, Settings
from models.inference.vlm import GenericCaptioner, architecture_of
from models.weights import has_chat_template

IMAGES = [drawn(seed) for seed in range(12)]
PROMPT = "a picture of"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_blip2(tmp_path_factory.mktemp("blip2"))


@pytest.fixture(scope="module")
def captioner(folder: str) -> GenericCaptioner:
    return GenericCaptioner.from_pretrained(folder, dtype="float32")


def stock(captioner: GenericCaptioner, images: list[bytes], **options: Any) -> list[str]:
    opened = [Image.open(io.BytesIO(image)).convert("RGB") for image in images]
    inputs = captioner.processor(opened, [PROMPT] * len(images), return_tensors="pt")
    ids = captioner.model.generate(**inputs, **options)
    texts = captioner.processor.batch_decode(ids, skip_special_tokens=True)
    return [text.strip().removeprefix(PROMPT).strip() for text in texts]


def test_the_architecture_is_read_from_the_config(folder: str) -> None:
    assert architecture_of(folder) == "blip-2"


@pytest.mark.parametrize("decoding", ["greedy", "beam"])
def test_captions_equal_stock_generate(captioner: GenericCaptioner, decoding: Any) -> None:
    ours = captioner.caption(
        IMAGES, [0] * 12, Settings(decoding=decoding, num_beams=3), prompt=PROMPT, batch_size=12
    )
    beams = 3 if decoding == "beam" else 1
    expected = stock(
        captioner, IMAGES, do_sample=False, num_beams=beams, max_new_tokens=17, min_new_tokens=2
    )
    assert [some[0].text for some in ours] == expected
    assert len(set(expected)) > 2


def test_sampled_captions_depend_on_their_seed_alone(captioner: GenericCaptioner) -> None:
    settings = Settings(num_captions=2)
    whole = captioner.caption(IMAGES, range(12), settings, prompt=PROMPT, batch_size=12)
    assert captioner.caption(IMAGES, range(12), settings, prompt=PROMPT, batch_size=5) == whole
    assert (
        captioner.caption(IMAGES[::-1], range(11, -1, -1), settings, prompt=PROMPT) == whole[::-1]
    )
    more = captioner.caption(IMAGES, range(12), Settings(num_captions=3), prompt=PROMPT)
    assert [some[:2] for some in more] == whole
    assert captioner.caption(IMAGES, range(20, 32), settings, prompt=PROMPT) != whole


def test_samples_follow_the_models_distribution(captioner: GenericCaptioner) -> None:
    opened = [Image.open(io.BytesIO(IMAGES[0])).convert("RGB")]
    inputs = captioner.processor(opened, [PROMPT], return_tensors="pt")
    with torch.inference_mode():
        shares = captioner.model(**inputs).logits[0, -1].softmax(0).double()
    settings = Settings(num_captions=3000, top_p=1.0, max_length=4, min_length=0)
    [captions] = captioner.caption(IMAGES[:1], [5], settings, prompt=PROMPT)
    likely = [i for i in range(4, len(shares)) if shares[i] * 3000 > 8]
    counts = [sum(c.text == WORDS.split()[i - 4] for c in captions) for i in likely]
    counts.append(3000 - sum(counts))
    expected = [*(shares[likely] * 3000).tolist(), float((1 - shares[likely].sum()) * 3000)]
    assert stats.chisquare(counts, expected, sum_check=False).pvalue > 1e-4
    assert len(likely) > 1


def test_short_captions_are_continued_once(captioner: GenericCaptioner) -> None:
    settings = Settings(max_length=8, decoding="greedy")
    plain = captioner.caption(IMAGES, range(12), settings, prompt=PROMPT)
    longer = captioner.caption(IMAGES, range(12), settings, prompt=PROMPT, continue_from=80)
    some = captioner.caption(IMAGES, range(12), settings, prompt=PROMPT, continue_from=2)
    for [short], [long], [either] in zip(plain, longer, some, strict=True):
        assert long.text.startswith(short.text)
        tokens = len(captioner.tokenizer(short.text)["input_ids"])
        assert either == (long if tokens <= 2 else short)
        assert len(long.text.split()) <= len(short.text.split()) + 8
    assert longer != plain


def test_an_image_that_does_not_open_gets_no_caption(captioner: GenericCaptioner) -> None:
    found = captioner.caption([b"junk", IMAGES[0]], [0, 1], prompt=PROMPT)
    assert [len(some) for some in found] == [0, 1]


def test_a_caption_tells_whether_it_was_cut(captioner: GenericCaptioner) -> None:
    eos, word = captioner.tokenizer.eos_token_id, captioner.tokenizer.convert_tokens_to_ids("dog")
    assert captioner._caption([word, eos, 0]) == Caption("dog", False)
    assert captioner._caption([word, word]) == Caption("dog dog", True)


def test_a_prompt_that_leaves_no_room_is_refused(captioner: GenericCaptioner) -> None:
    with pytest.raises(ValueError, match="max_length"):
        captioner.caption(IMAGES[:1], [0], Settings(max_length=3), prompt=PROMPT)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> GenericCaptioner:
    folder = save_llava(tmp_path_factory.mktemp("llava"))
    return GenericCaptioner.from_pretrained(folder, dtype="float32")


def asked(chat: GenericCaptioner, image: bytes, *turns: tuple[str, str]) -> str:
    """The answer of stock `generate` to a conversation about an image, of at most 12 tokens."""
    opened = Image.open(io.BytesIO(image)).convert("RGB")
    text = "".join(
        f"{role} : {'<image> ' * (not i)}{said} " for i, (role, said) in enumerate(turns)
    )
    inputs = chat.processor(opened, text + "assistant :", return_tensors="pt")
    ids = chat.model.generate(**inputs, do_sample=False, max_new_tokens=12)
    found: str = chat.tokenizer.decode(
        ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True
    )
    return found


def test_a_chat_model_is_asked_by_its_template(chat: GenericCaptioner) -> None:
    settings = Settings(decoding="greedy", max_tokens=12, max_length=2)
    prompts = ["Describe this image", "a red dog", *["a picture of the house"] * 10]
    found = chat.caption(IMAGES, [0] * 12, settings, prompt=prompts, batch_size=5)
    expected = [
        asked(chat, image, ("user", prompt)) for image, prompt in zip(IMAGES, prompts, strict=True)
    ]
    assert [some[0].text for some in found] == expected and len(set(expected)) > 2
    assert chat.is_chat


def test_a_short_answer_of_a_chat_model_is_continued(chat: GenericCaptioner) -> None:
    settings = Settings(decoding="greedy", max_tokens=12)
    [[plain]] = chat.caption(IMAGES[:1], [0], settings, prompt="Describe this image")
    [[long]] = chat.caption(
        IMAGES[:1], [0], settings, prompt="Describe this image", continue_from=80
    )
    more = asked(
        chat,
        IMAGES[0],
        ("user", "Describe this image"),
        ("assistant", plain.text),
        ("user", "Continue"),
    )
    assert plain.text and long.text == f"{plain.text} {more}".strip()


def test_only_a_chat_model_takes_a_prompt_for_each_image(captioner: GenericCaptioner) -> None:
    assert not captioner.is_chat
    with pytest.raises(ValueError, match="one prompt"):
        captioner.caption(IMAGES[:2], [0, 0], prompt=["a picture of", "the dog"])


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json", None])
def test_a_chat_model_is_known_by_its_files(folder: str, tmp_path: Path, file: str | None) -> None:
    for source in Path(folder).iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    if file == "chat_template.jinja":
        (tmp_path / file).write_text("{{ messages }}")
    elif file is not None:
        config = json.loads((tmp_path / file).read_text())
        (tmp_path / file).write_text(json.dumps({**config, "chat_template": "{{ messages }}"}))
    assert has_chat_template(str(tmp_path)) == (file is not None)
