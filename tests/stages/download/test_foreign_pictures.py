"""No row has a picture that its own URL did not send, whatever servers get wrong."""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import time

import pytest
from helpers.hosts import Server, fetcher, ok, outcomes

ANSWERS = 10_000
BATCH = 250


def mark(number: int) -> bytes:
    """What stands in picture `number` and in no other, however a byte of it is changed."""
    return hashlib.sha256(str(number).encode()).hexdigest().encode()


def picture(number: int) -> bytes:
    return mark(number) * (1 + number % 40)


def answer(random: random.Random, number: int) -> bytes:
    """A right answer: with its length, in chunks, or after an early hint."""
    body = picture(number)
    kind = random.randrange(4)
    if kind == 0:
        size = random.randint(1, len(body))
        parts = [body[start : start + size] for start in range(0, len(body), size)]
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
    return early * (kind == 1) + ok(body, "Connection: keep-alive")


def mutated(random: random.Random, content: bytes) -> bytes:
    """An answer with up to three faults, mostly in its head."""
    content = bytes(content)
    end = content.find(b"\r\n\r\n") + 4
    for _ in range(random.choice([0, 1, 1, 1, 2, 3])):
        place = random.randrange(end if random.random() < 0.8 else len(content))
        fault = random.randrange(5)
        if fault == 0:
            content = content[:place] + bytes([random.randrange(256)]) + content[place + 1 :]
        elif fault == 1:
            content = content[:place] + content[place + 1 :]
        elif fault == 2:
            content = content[:place] + bytes([random.randrange(256)]) + content[place:]
        elif fault == 3:
            content = (
                content[:place] + random.choice([b"0", b"-1", b"1", b"\r\n"]) + content[place:]
            )
        else:
            content = content[:place] + content[place : place + 9] + content[place:]
    return content


def faulty(random: random.Random, number: int) -> list[bytes | float]:
    """What a server sends for picture `number`: bytes, and seconds between them."""
    right = answer(random, number)
    sent: list[bytes | float] = [mutated(random, right)]
    match random.randrange(6):
        case 0:  # the same answer again, at once or when another may be waited for
            sent += [random.choice([0.0, 0.001, 0.01]), right]
        case 1:
            timeout = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"
            sent += [random.choice([0.0, 0.005]), timeout]
        case 2:
            cut = random.randrange(len(right))
            sent = [right[:cut], 0.001, right[cut:], right[cut:]]
    return sent


@pytest.mark.parametrize("seed", [0, 1])
def test_no_url_has_what_another_was_sent(seed: int) -> None:
    choose = random.Random(seed)
    server = Server()
    marks = {mark(number): number for number in range(BATCH)}

    def send(sock: socket.socket, path: str) -> None:
        for part in parts[path]:
            if isinstance(part, float):
                time.sleep(part)
            else:
                sock.sendall(part)

    good = bad = 0
    with contextlib.closing(fetcher(timeout=0.5, max_bytes=100_000)) as one:
        for _ in range(ANSWERS // 2 // BATCH):
            parts = {f"/{number}": faulty(choose, number) for number in range(BATCH)}
            server.keep_alive = dict.fromkeys(parts, send)
            found = outcomes(one, {n: server.url(f"/{n}") for n in range(BATCH)})
            for number, content in found.items():
                if isinstance(content, str):
                    bad += 1
                    continue
                good += 1
                foreign = {marks[m] for m in marks if m in content} - {number}
                assert not foreign, f"picture {number} came with {foreign}"
    server.close()
    assert min(good, bad) > ANSWERS // 20
