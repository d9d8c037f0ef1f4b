"""Draws a small web with known truth: photographs, noisy alt-text, and the faults of the web."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import multiprocessing
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.demo.world import SMALL, Scene, World, describe, draw, sample_scene

__all__ = ["KINDS", "TRUTH", "Drawing", "Kind", "build", "mapped"]

CAPTIONS_A_PHOTO = 5
SIDES = (96, 160)
CHUNK = 100
"""Images that a process draws at a time."""
FIELDS: list[pa.Field[Any]] = [
    pa.field("url", pa.string(), nullable=False),
    pa.field("caption", pa.string(), nullable=False),
    pa.field("kind", pa.string(), nullable=False),
    pa.field("photo", pa.string(), nullable=False),
    pa.field("drop_at", pa.string(), nullable=False),
    pa.field("matches", pa.bool_(), nullable=False),
    pa.field("scene", pa.string()),
]
TRUTH = pa.schema(FIELDS)
"""The truth on each distinct pair, used for evaluation only.

`kind` is a key of `KINDS`. `photo` is equal for all URLs that show one photograph. `drop_at` is the
first stage that should reject the pair (download, clean, dedup, filter), or "keep". `matches` is
whether the image can be downloaded and the caption is true. `scene` is the scene that the image
shows, written by `Scene.to_json`, or null.
"""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Settings with which a web is drawn.

    Attributes:
        world: What there is to be seen: small has six kinds of things, all as common; longtail has
            sixty, whose kinds, colours, sizes, numbers and relations follow Zipf's law in the web
            and in the human-annotated set. In its held-out set all are as common.
        pages: Distinct pairs in the list.
        human: Images in the human-annotated set.
        test: Images in the held-out set.
        false_texts: The share of false texts among the pages whose image can be downloaded; unset
            is about 0.46.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}

    world: Literal["small", "longtail"] = "small"
    pages: int = 3000
    human: int = 360
    test: int = 250
    false_texts: float | None = None

    def __post_init__(self) -> None:
        try:
            count_kinds(self.pages, self.false_texts)
        except ValueError as error:
            raise ValueError(str(error).replace("num_pages", "pages")) from None
        for name in ("human", "test"):
            if getattr(self, name) < 2:
                raise ValueError(f"webs.{name} must be at least 2, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of page, with or without a certain fault.

    Attributes:
        share: Share of all pages.
        drop_at: The first stage that should reject such a page, or "keep".
        text: A key of `TEXTS`.
        image: A key of `IMAGES`.
        answer: First part of the path, which selects the response of the server.
        num_least: Minimum number of pages.
        num_most: Maximum number of pages.
    """

    share: float
    drop_at: str
    text: str = "true"
    image: str = "photo"
    answer: str = "ok"
    num_least: int = 1
    num_most: int | None = None

    @property
    def matches(self) -> bool:
        """Whether the image can be downloaded and the caption is true."""
        return (
            self.drop_at != "download"
            and self.text in ("true", "decorated")
            and self.image != "flat"
        )


KINDS: dict[str, Kind] = {
    "decorated": Kind(share=0.14, drop_at="keep", text="decorated"),
    "swap": Kind(share=0.29, drop_at="filter", text="other"),
    "spam": Kind(share=0.02, drop_at="filter", text="spam"),
    "boilerplate": Kind(share=0.015, drop_at="dedup", text="boilerplate", num_least=12),
    "copy": Kind(share=0.04, drop_at="dedup", image="copy"),
    "resized": Kind(share=0.04, drop_at="dedup", image="resized"),
    "shouting": Kind(share=0.015, drop_at="clean", text="shouting"),
    "file_name": Kind(share=0.025, drop_at="clean", text="file_name"),
    "foreign": Kind(share=0.03, drop_at="clean", text="foreign"),
    "short": Kind(share=0.02, drop_at="clean", text="short"),
    "thumbnail": Kind(share=0.02, drop_at="clean", image="thumbnail"),
    "panorama": Kind(share=0.015, drop_at="clean", image="panorama"),
    "flat": Kind(share=0.015, drop_at="clean", image="flat"),
    "gone": Kind(share=0.025, drop_at="download", image="none", answer="404"),
    "forbidden": Kind(share=0.007, drop_at="download", image="none", answer="403"),
    "broken": Kind(share=0.007, drop_at="download", image="none", answer="500"),
    "page": Kind(share=0.01, drop_at="download", image="none", answer="html"),
    "truncated": Kind(share=0.006, drop_at="download", image="truncated"),
    "cut": Kind(share=0.004, drop_at="download", answer="cut"),
    "opted_out": Kind(share=0.012, drop_at="download", answer="noai"),
    "slow": Kind(share=0.001, drop_at="download", answer="slow", num_most=2),
    "hanging": Kind(share=0.001, drop_at="download", image="none", answer="hang", num_most=2),
}
"""All kinds except "match", a plain true caption of a new photograph, which is the remainder.

About half of the pages match. Most others have fluent captions of other photographs, which is what
BLIP (arXiv 2201.12086) assumes of the web.
"""
MATCH = Kind(share=0.0, drop_at="keep")

DECORATIONS = (
    "{c} | Stock Photo",
    "{c} - Stock Image",
    "Photo: {c}",
    "{c}.",
    "  {c}  ",
    "&quot;{c}&quot;",
    "{c}&nbsp;",
    "{c} &lt;br&gt;",
    "{c}\n",
    "{c} (click to enlarge)",
    "{c} | Free Download",
)
SPAM = (
    "Buy {0} {1} online with free shipping on all orders over ${n}",
    "{1} deals: save up to {n}% on {0} brands this weekend only",
    "Compare prices of {0} {1} from {n} shops near you",
    "The best {0} {1} for the money, reviewed by our experts in {n} steps",
    "Order your {0} {1} today and get {n} euros off the next one",
    "How to choose {0} {1}: a guide for beginners in {n} minutes",
)
SPAM_ADJECTIVES = ("cheap", "wireless", "leather", "organic", "portable", "vintage", "waterproof")
SPAM_NOUNS = ("shoes", "headphones", "laptops", "watches", "curtains", "vitamins", "backpacks")
BOILERPLATE = "Find the best deals on home decor and more in our store"
SHOUTING = (
    "SALE SALE SALE SALE SALE SALE {n}",
    "cheap cheap cheap cheap cheap cheap shoes {n}",
    "!!!! $$$ >>> {n} <<< $$$ !!!!",
    "{n} {n} {n} {n}",
    "buy buy buy buy now now now now {n}",
)
FILE_NAMES = (
    "IMG_{n}.JPG",
    "DSC0{n}",
    "DSC_{n}.jpg",
    "{n}.jpg",
    "wp-content/uploads/{n}.png",
    "https://cdn.example.com/p/{n}.png",
    "Screenshot_{n}.png",
    "slide_{n}_of_12",
)
SHORT = (
    "photo",
    "image",
    "a",
    "untitled",
    "...",
    "null",
    "picture",
    "pic",
    "thumbnail",
    "{n}",
    "logo",
)
FOREIGN = (
    "Un chien noir court dans l'herbe avec une balle rouge",
    "Une grande maison blanche au bord de la mer",
    "Zwei Kinder spielen am Strand mit einem gelben Eimer",
    "Ein kleiner roter Ball liegt auf der gr\u00fcnen Wiese",
    "Una mujer sonr\u00ede mientras sostiene un paraguas amarillo",
    "Tres peces azules nadan en el mar por la noche",
    "Um homem de camisa azul est\u00e1 andando de bicicleta na rua",
    "Um pequeno peixe vermelho debaixo de uma estrela branca",
    "Ragazzo che salta con lo skateboard nel parco della citt\u00e0",
    "Due case arancioni sulla spiaggia sotto un cielo scuro",
    "Twee honden rennen achter een bal aan in het water",
    "K\u0131rm\u0131z\u0131 elbiseli bir k\u0131z parkta tek ba\u015f\u0131na oynuyor",
    "Pies skacze przez p\u0142ot na podw\u00f3rku pe\u0142nym \u015bniegu",
    "Flicka med bl\u00e5 m\u00f6ssa \u00e5ker skidor nedf\u00f6r backen",
    "\u041c\u0443\u0436\u0447\u0438\u043d\u0430 \u0432 \u0448\u043b\u044f\u043f\u0435 "
    "\u0441\u0438\u0434\u0438\u0442 \u043d\u0430 \u0441\u043a\u0430\u043c\u0435\u0439\u043a\u0435",
    "\u96ea\u306e\u4e2d\u3092\u8d70\u308b\u8336\u8272\u306e\u72ac\u3068\u5b50\u4f9b",
    "\u4e00\u4e2a\u7a7f\u7ea2\u8863\u670d\u7684\u5973\u5b69\u5728\u516c\u56ed\u91cc\u73a9\u800d",
    "\u0631\u062c\u0644 \u064a\u0631\u0643\u0628 \u062f\u0631\u0627\u062c\u0629 "
    "\u0641\u064a \u0627\u0644\u0634\u0627\u0631\u0639",
)


def decorate(caption: str, rng: random.Random) -> str:
    """Decorate a caption as web pages do."""
    styles: tuple[Callable[[str], str], ...] = (str, str.capitalize, str.title, str.upper)
    caption = rng.choices(styles, (4, 4, 2, 1))[0](caption)
    return rng.choice(DECORATIONS).format(c=caption)


def caption_another(scene: Scene, others: Sequence[Scene], rng: random.Random) -> str:
    """Return a fluent caption of another scene, which names an object that this scene lacks."""
    seen = {(group.kind, group.color) for group in scene.groups}
    while True:
        other = rng.choice(others)
        if any((group.kind, group.color) not in seen for group in other.groups):
            caption = describe(other, rng)
            return decorate(caption, rng) if rng.random() < 0.3 else caption


def spam(rng: random.Random) -> str:
    """Return a fluent advertisement."""
    words = rng.choice(SPAM_ADJECTIVES), rng.choice(SPAM_NOUNS)
    return rng.choice(SPAM).format(*words, n=rng.randint(5, 95))


def one_of(texts: Sequence[str], rng: random.Random) -> str:
    """Choose one of the texts, and fill in a random number."""
    return rng.choice(texts).format(n=rng.randint(1000, 9999))


TEXTS: dict[str, Callable[[Scene, Sequence[Scene], random.Random], str]] = {
    "true": lambda scene, others, rng: describe(scene, rng),
    "decorated": lambda scene, others, rng: decorate(describe(scene, rng), rng),
    "other": caption_another,
    "spam": lambda scene, others, rng: spam(rng),
    "boilerplate": lambda scene, others, rng: BOILERPLATE,
    "shouting": lambda scene, others, rng: one_of(SHOUTING, rng),
    "file_name": lambda scene, others, rng: one_of(FILE_NAMES, rng),
    "foreign": lambda scene, others, rng: one_of(FOREIGN, rng),
    "short": lambda scene, others, rng: one_of(SHORT, rng),
}


def jpeg(image: Image.Image, rng: random.Random) -> bytes:
    """Encode an image as JPEG with a random quality."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=rng.randint(75, 95))
    return file.getvalue()


def photograph(scene: Scene, rng: random.Random) -> bytes:
    """Draw a new photograph of a scene."""
    return jpeg(draw(scene, rng.randint(*SIDES), rng), rng)


def resize(encoded: bytes, rng: random.Random) -> bytes:
    """Encode a photograph again in another size and quality."""
    image = Image.open(io.BytesIO(encoded))
    side = rng.choice([side for side in (80, 100, 120, 144) if abs(side - image.width) > 3])
    return jpeg(image.resize((side, side), Image.Resampling.LANCZOS), rng)


def shrink(scene: Scene, rng: random.Random) -> bytes:
    """Draw a thumbnail, less than 64 pixels wide."""
    return jpeg(draw(scene, rng.randint(24, 60), rng), rng)


def stretch(scene: Scene, rng: random.Random) -> bytes:
    """Draw a panorama, more than three times as wide as high."""
    side = rng.randint(70, 90)
    wide = draw(scene, side, rng).resize((round(side * rng.uniform(3.2, 4.0)), side))
    return jpeg(wide, rng)


def blank(rng: random.Random) -> bytes:
    """Draw an image of a single colour."""
    color = rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255)
    return jpeg(Image.new("RGB", (rng.randint(*SIDES), rng.randint(*SIDES)), color), rng)


def truncate(encoded: bytes) -> bytes:
    """Return the first two fifths of a file."""
    return encoded[: len(encoded) * 2 // 5]


IMAGES: dict[str, Callable[[Scene, random.Random], bytes | None]] = {
    "photo": photograph,
    "thumbnail": shrink,
    "panorama": stretch,
    "flat": lambda scene, rng: blank(rng),
    "truncated": lambda scene, rng: truncate(photograph(scene, rng)),
    "none": lambda scene, rng: None,
}
"""Functions that make the image file of a page with a new photograph; None for no file."""

COPIES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "copy": lambda encoded, rng: encoded,
    "resized": resize,
}
"""Functions that make the image file of a page with a copy of another page's photograph."""


def usual_false_texts() -> float:
    """The share of false texts among the pages of `KINDS` whose image can be downloaded."""
    reached = [kind for kind in KINDS.values() if kind.drop_at != "download"]
    unreached = sum(kind.share for kind in KINDS.values()) - sum(kind.share for kind in reached)
    return sum(kind.share for kind in reached if not kind.matches) / (1 - unreached)


def count_kinds(num_pages: int, false_texts: float | None = None) -> list[tuple[str, Kind, int]]:
    """Return the number of pages of each kind; the plain matches come first.

    Args:
        num_pages: Number of pages.
        false_texts: The share of false texts among the pages whose image can be downloaded. Kinds
            with false texts, and those with true ones, keep their shares among themselves.

    Raises:
        ValueError: There are too few pages for one of each kind, or the share is not between 0 and
            1.
    """
    if false_texts is not None and not 0 < false_texts < 1:
        raise ValueError(f"webs.false_texts must be a share between 0 and 1, got {false_texts}")
    usual = usual_false_texts()
    more = 1.0 if false_texts is None else false_texts / usual
    fewer = 1.0 if false_texts is None else (1 - false_texts) / (1 - usual)
    counts = []
    for name, kind in KINDS.items():
        scale = 1.0 if kind.drop_at == "download" else fewer if kind.matches else more
        count = max(kind.num_least, round(kind.share * scale * num_pages))
        counts.append((name, kind, min(count, kind.num_most or count)))
    rest = num_pages - sum(count for _, _, count in counts)
    if rest < 1:
        raise ValueError(f"num_pages must be at least {num_pages - rest + 1}, got {num_pages}")
    return [("match", MATCH, rest), *counts]


def sample_scenes(rng: random.Random, world: World, seen: set[Scene]) -> Iterator[Scene]:
    """Yield endless scenes of a world that are distinct from those seen, and add them."""
    while True:
        scene = sample_scene(rng, world)
        if scene not in seen:
            seen.add(scene)
            yield scene


def build(
    folder: str | Path,
    *,
    base_url: str,
    seed: int = 0,
    num_pages: int = 3000,
    num_human: int = 360,
    num_test: int = 250,
    false_texts: float | None = None,
    world: World = SMALL,
    each: Callable[..., Iterable[Any]] = map,
) -> None:
    """Write a web, a human-annotated set and a held-out set, all with distinct scenes.

    The same arguments give the same bytes. Written to `folder`:

    - `site/`: the files to serve;
    - `pairs.parquet`: url, caption; the noisy list in random order, with a few repeated rows;
    - `true.jsonl`: image, caption; the pairs of the list that are true;
    - `told.jsonl`: image, caption; every photograph of the list with a caption that is true;
    - `human.jsonl`: image, caption; five lines per image, with paths relative to `folder`;
    - `dense.jsonl`: the same images, each with one text of three sentences;
    - `test.jsonl`: image, captions; five captions per image;
    - `truth.parquet`: `TRUTH`, one row per distinct pair.

    Args:
        folder: Folder to write to; created if necessary.
        base_url: URL that `site/` is served at, without a trailing slash.
        seed: Seed of all random choices.
        num_pages: Number of distinct pairs in the list.
        num_human: Number of images in the human-annotated set.
        num_test: Number of images in the held-out set.
        false_texts: See `Drawing`.
        world: The world that the scenes are of.
        each: `map`, or one of `mapped` to draw in several processes; the bytes are the same.

    Raises:
        ValueError: `num_pages` is too small for a page of each kind.
    """
    folder = Path(folder)
    pages = [
        (name, kind)
        for name, kind, count in count_kinds(num_pages, false_texts)
        for _ in range(count)
    ]
    rng = random.Random(f"{seed} scenes")
    seen: set[Scene] = set()
    number = num_pages + num_human + num_test
    scenes = list(islice(sample_scenes(rng, world, seen), number))
    rng.shuffle(scenes)  # single groups are few, and more of them are sampled early
    web_scenes = scenes[:num_pages]
    human_scenes, test_scenes = scenes[num_pages:][:num_human], scenes[num_pages + num_human :]
    if world.skew:
        test_scenes = list(islice(sample_scenes(rng, world.even(), seen), num_test))
    site = Site(folder / "site", base_url, seed, web_scenes, pages)
    originals = [page for page, (_, kind) in enumerate(pages) if kind.image not in COPIES]
    copies = [page for page, (_, kind) in enumerate(pages) if kind.image in COPIES]
    found = dict(zip(originals, each(site.draw, originals), strict=True))
    draw_set = functools.partial(annotate, folder, seed)
    human = list(each(draw_set, [("human", *one) for one in enumerate(human_scenes)]))
    test = list(each(draw_set, [("test", *one) for one in enumerate(test_scenes)]))
    photos = [page for page in originals if pages[page][0] == "match"]
    for page in copies:
        found[page] = site.copy(page, photos, found)
    rows = [found[page] for page in range(num_pages)]
    rng = random.Random(f"{seed} order")
    rng.shuffle(rows)
    table = pa.Table.from_pylist(rows, schema=TRUTH)
    pq.write_table(table, folder / "truth.parquet")
    repeated = rng.sample(range(num_pages), max(1, num_pages // 200))
    pairs = table.select(["url", "caption"])
    pq.write_table(pa.concat_tables([pairs, pairs.take(repeated)]), folder / "pairs.parquet")

    lines = [{"image": image, "caption": c} for image, captions in human for c in captions]
    write(folder / "human.jsonl", encode_lines(lines))
    dense = [{"image": image, "caption": f"{'. '.join(some[:3])}."} for image, some in human]
    write(folder / "dense.jsonl", encode_lines(dense))
    write(folder / "true.jsonl", encode_lines(list(_true(rows, base_url))))
    write(folder / "told.jsonl", encode_lines(list(_told(rows, base_url, seed))))
    lines_test = [{"image": image, "captions": captions} for image, captions in test]
    write(folder / "test.jsonl", encode_lines(lines_test))


def _true(rows: Sequence[Mapping[str, Any]], base_url: str) -> Iterator[dict[str, str]]:
    """The pairs of the truth that match, with paths of their images."""
    for row in rows:
        if row["matches"]:
            path = row["url"].replace(base_url, "site", 1)
            yield {"image": path, "caption": " ".join(row["caption"].split())}


def _told(rows: Sequence[Mapping[str, Any]], base_url: str, seed: int) -> Iterator[dict[str, str]]:
    """Every downloadable image of a scene with a caption that is true of it."""
    for row in rows:
        if row["drop_at"] != "download" and row["scene"] is not None:
            rng = random.Random(f"{seed} told {row['url']}")
            caption = describe(Scene.from_json(row["scene"]), rng)
            yield {"image": row["url"].replace(base_url, "site", 1), "caption": caption}


@dataclass(frozen=True)
class Site:
    """The pages of a web.

    Attributes:
        folder: Folder of the files to serve.
        base_url: URL of the folder, without a trailing slash.
        seed: Seed of all random choices; each page draws from it and its number alone.
        scenes: The scene of each page; a copy shows that of its original.
        pages: Name and kind of each page.
    """

    folder: Path
    base_url: str
    seed: int
    scenes: Sequence[Scene]
    pages: Sequence[tuple[str, Kind]]

    def draw(self, page: int) -> dict[str, object]:
        """Write the image file of a page with a new photograph; returns its row of the truth."""
        rng = self._rng(page)
        file = IMAGES[self.pages[page][1].image](self.scenes[page], rng)
        return self._row(page, page, file, rng)

    def copy(
        self, page: int, photos: Sequence[int], rows: Mapping[int, Mapping[str, object]]
    ) -> dict[str, object]:
        """Write the image file of a page with a copy of one of `photos`; returns its row.

        Args:
            page: The page.
            photos: Pages to copy from.
            rows: Their rows.
        """
        rng = self._rng(page)
        photo = rng.choice(photos)
        path = str(rows[photo]["url"]).removeprefix(f"{self.base_url}/")
        file = COPIES[self.pages[page][1].image]((self.folder / path).read_bytes(), rng)
        return self._row(page, photo, file, rng)

    def _rng(self, page: int) -> random.Random:
        return random.Random(f"{self.seed} page {page}")

    def _row(
        self, page: int, photo: int, file: bytes | None, rng: random.Random
    ) -> dict[str, object]:
        name, kind = self.pages[page]
        scene = self.scenes[photo]
        path = f"{kind.answer}/{rng.getrandbits(48):012x}.jpg"
        if file is not None:
            write(self.folder / path, file)
        return {
            "url": f"{self.base_url}/{path}",
            "caption": TEXTS[kind.text](scene, self.scenes, rng),
            "kind": name,
            "photo": f"p{photo:05d}",
            "drop_at": kind.drop_at,
            "matches": kind.matches,
            "scene": scene.to_json() if kind.image not in ("none", "flat") else None,
        }


@contextlib.contextmanager
def mapped(processes: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """Yield a `map` over several processes, or the built-in one if there is one process."""
    if processes < 2:
        yield map
        return
    # Forking a process that has threads, such as one that uses Ray, can leave locks held for ever.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield functools.partial(pool.map, chunksize=CHUNK)


def annotate(folder: Path, seed: int, scene: tuple[str, int, Scene]) -> tuple[str, list[str]]:
    """Write a photograph of a scene; returns its path in the folder, and five captions.

    Args:
        folder: Folder of the web.
        seed: Seed of all random choices.
        scene: The group (human or test), the number in the group, and the scene.
    """
    group, index, shown = scene
    rng = random.Random(f"{seed} {group} {index}")
    path = f"images/{group}/{index:05d}.jpg"
    write(folder / path, photograph(shown, rng))
    return path, [describe(shown, rng) for _ in range(CAPTIONS_A_PHOTO)]


def encode_lines(records: Sequence[object]) -> bytes:
    """Encode records as JSON Lines."""
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def write(path: Path, content: bytes) -> None:
    """Write a file, and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
