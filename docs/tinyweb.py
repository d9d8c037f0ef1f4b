"""A tiny web for docs/list.md: draws pictures, writes a list of them, serves them on loopback.

python docs/tinyweb.py pairs.csv
"""

import csv
import http.server
import io
import os
import random
import sys

from PIL import Image, ImageDraw

THINGS = ("dog", "house", "river", "train", "garden", "window", "bridge", "boat")
PLACES = ("in the snow", "by the sea", "at night", "under a tree", "behind the church")


def picture(seed: int, size: tuple[int, int] = (320, 240)) -> bytes:
    """A picture unlike that of any other seed, as JPEG."""
    rng = random.Random(seed)
    image = Image.new("RGB", size, tuple(rng.randrange(256) for _ in "rgb"))
    pen = ImageDraw.Draw(image)
    for _ in range(14):
        x, y = rng.randrange(size[0]), rng.randrange(size[1])
        w, h = (rng.randrange(4, side // 2) for side in size)
        fill = tuple(rng.randrange(256) for _ in "rgb")
        rng.choice((pen.rectangle, pen.ellipse))((x, y, x + w, y + h), fill=fill)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


SITE = {f"/{number}.jpg": picture(number) for number in range(20)}
SITE["/copy.jpg"] = SITE["/3.jpg"]  # the same bytes at another URL
SITE["/thumb.jpg"] = picture(21, (48, 36))
SITE["/page.jpg"] = b"<html>This picture has moved.</html>"
SITE["/private/22.jpg"] = picture(22)
SITE["/robots.txt"] = b"User-agent: *\nDisallow: /private/\n"

CAPTIONS = {
    f"/{number}.jpg": f"A {THINGS[number % 8]} and a {THINGS[(number // 8 + 3) % 8]} "
    f"{PLACES[number % 5]}"
    for number in range(20)
}
CAPTIONS["/7.jpg"] = "IMG_2034.JPG"
CAPTIONS["/copy.jpg"] = "A train seen for a second time"
CAPTIONS["/thumb.jpg"] = "A small picture of a boat in the harbour"
CAPTIONS["/page.jpg"] = "A picture that is a page"
CAPTIONS["/gone.jpg"] = "A picture that is not there"
CAPTIONS["/private/22.jpg"] = "A picture that robots may not have"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with what the site has."""

    def do_GET(self) -> None:
        """One page or picture, or 404."""
        content = SITE.get(self.path)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    out = sys.argv[1]
    with open(f"{out}.partial", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image link", "description"])
        for path, caption in CAPTIONS.items():
            writer.writerow([f"http://127.0.0.1:{server.server_port}{path}", caption])
    os.replace(f"{out}.partial", out)
    server.serve_forever()
