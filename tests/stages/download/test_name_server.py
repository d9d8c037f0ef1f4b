"""Names by a real name server on loopback, in a mount namespace with a resolv.conf of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]

CHILD = """
import json, socket, struct, sys, threading
from helpers.hosts import Server, fetcher, ok, outcomes

INSIDE = {"good.test": "127.0.0.1", "inside.test": "10.1.2.3", "cloud.test": "169.254.169.254"}

def serve(listener):
    while True:
        query, client = listener.recvfrom(4096)
        position, labels = 12, []
        while length := query[position]:
            labels.append(query[position + 1 : position + 1 + length].decode())
            position += 1 + length
        question = query[12 : position + 5]
        name, kind = ".".join(labels).lower(), struct.unpack("!H", question[-4:-2])[0]
        if name == "silent.test":
            continue
        address, answer = INSIDE.get(name), b""
        if address is not None and kind == 1:
            answer = b"\\xc0\\x0c" + struct.pack("!HHIH", 1, 1, 0, 4) + socket.inet_aton(address)
        counts = struct.pack("!HHHH", 1, bool(answer), 0, 0)
        flags = struct.pack("!H", 0x8180 if address else 0x8183)
        listener.sendto(query[:2] + flags + counts + question + answer, client)

listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
listener.bind(("127.0.0.1", 53))
threading.Thread(target=serve, args=(listener,), daemon=True).start()
server = Server()
server.answers["/a"] = ok(b"a")
found = {}
for allow, timeout, names in (
    (True, 60.0, ["good", "nowhere"]),
    (True, 1.0, ["silent"]),
    (False, 60.0, ["good", "inside", "cloud"]),
):
    one = fetcher(timeout=timeout, allow_private_addresses=allow)
    urls = {name: f"http://{name}.test:{server.port}/a" for name in names}
    for name, content in outcomes(one, urls).items():
        found[f"{name} {allow}"] = content if isinstance(content, str) else content.decode()
print(json.dumps({**found, "connections": server.connections}))
"""


def _result(tmp_path: Path) -> dict[str, Any]:
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.1\noptions timeout:3 attempts:1\n")
    script = tmp_path / "child.py"
    script.write_text(textwrap.dedent(CHILD))
    command = f"mount --bind {resolv} /etc/resolv.conf && exec {sys.executable} {script}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode and "child.py" not in done.stderr:
        pytest.skip(f"no mount namespace: {done.stderr.strip()}")
    if "Address already in use" in done.stderr:
        pytest.skip("port 53 of loopback is taken")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare"
)
def test_what_a_name_server_says_decides_and_its_silence_ends_by_the_deadline(
    tmp_path: Path,
) -> None:
    assert _result(tmp_path) == {
        "good True": "a",
        "nowhere True": "dns",
        "silent True": "timeout",
        "good False": "blocked_address",
        "inside False": "blocked_address",
        "cloud False": "blocked_address",
        "connections": 1,
    }
