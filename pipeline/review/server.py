"""Serves the review page to this machine only.

    GET  /TOKEN/             the page, which requests only the following paths
    GET  /TOKEN/pairs        the sample with its decisions, and the agreement with the filter
    GET  /TOKEN/images/N     the image of the Nth pair, encoded as a new JPEG
    POST /TOKEN/decide       {"pair": N, "verdict": accept, reject, fix or null, "fixed": text}
    POST /TOKEN/done         stops the server

`pipeline.review.local_server` says who may ask.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from pipeline.results.verdicts import Results
from pipeline.review.agreement import agreement, as_json
from pipeline.review.ledger import Ledger
from pipeline.review.local_server import LocalServer, RequestError, as_jpeg, shown
from pipeline.review.sample import Pair
from stages.filter import FilterStage
from stages.redaction import redacted
from stages.review import VERDICTS, Decision

__all__ = ["ReviewServer"]

MAX_CAPTION = 2000


class ReviewServer(LocalServer):
    """Serves a sample of pairs and stores decisions; `serve_forever` ends after `/done`.

    Args:
        results: The results of the run; images are read when they are requested.
        pairs: The sample, in the order to show.
        ledger: Stores the decisions.
        port: Port to listen on; 0 chooses a free one.

    Raises:
        OSError: The port is taken.
    """

    folder = Path(__file__).parent

    def __init__(
        self,
        results: Results,
        pairs: Sequence[Pair],
        ledger: Ledger,
        port: int = 0,
    ) -> None:
        super().__init__(results.plan.manifest.name, port)
        self.pairs = pairs
        self.ledger = ledger
        self._run = results.run
        self._is_filtered = FilterStage.name in results.plan.names
        self._images: dict[int, bytes | None] = {}
        self._reading = threading.Lock()

    def get(self, path: str, query: str) -> Any:
        """See `LocalServer.get`."""
        if path == "pairs":
            return self.sample()
        if path.startswith("images/") and path[7:].isdecimal() and len(path) < 20:
            return self.image(int(path[7:]))
        raise RequestError(HTTPStatus.NOT_FOUND, "no such page")

    def post(self, path: str, request: Any) -> Any:
        """See `LocalServer.post`."""
        if path == "decide":
            return self.decide(request)
        return super().post(path, request)

    def sample(self) -> dict[str, Any]:
        """Return the pairs with their decisions, and the agreement."""
        decisions = self.ledger.decisions
        return {
            "pairs": [
                {
                    "caption": pair.caption,
                    "shown": shown(pair.caption),
                    "source": pair.source,
                    "url": shown(redacted(pair.url)),
                    "uid": pair.uid,
                    "score": pair.score,
                    "is_kept": pair.is_kept if self._is_filtered else None,
                    "sentences": [
                        {**sentence._asdict(), "text": shown(sentence.text)}
                        for sentence in pair.sentences
                    ],
                    "decision": _decision_json(decisions.get(pair.key)),
                }
                for pair in self.pairs
            ],
            **self.state(),
        }

    def state(self) -> dict[str, Any]:
        """Return the agreement so far; None without a filter."""
        if not self._is_filtered:
            return {"agreement": None}
        return {"agreement": as_json(agreement(self.pairs, self.ledger.decisions))}

    def decide(self, request: Any) -> dict[str, Any]:
        """Store a decision.

        Raises:
            RequestError: The request is not a decision.
        """
        if not isinstance(request, dict):
            raise RequestError(HTTPStatus.BAD_REQUEST, "a decision must be an object")
        index, verdict, fixed = (request.get(key) for key in ("pair", "verdict", "fixed"))
        pair = self._pair(index)
        decision = None
        if verdict == "fix":
            decision = _fix(pair, fixed)
        elif verdict in VERDICTS:
            decision = Decision(verdict)
        elif verdict is not None:
            raise RequestError(
                HTTPStatus.BAD_REQUEST, f"verdict must be null or one of {', '.join(VERDICTS)}"
            )
        self.ledger.decide(pair.key, decision)
        return {"decision": _decision_json(decision), **self.state()}

    def image(self, index: int) -> bytes:
        """Return the image of a pair as JPEG; all images of a shard are read at once.

        Raises:
            RequestError: There is no such pair, or its image cannot be decoded.
        """
        pair = self._pair(index)
        with self._reading:
            if index not in self._images:
                column = self._run.read_table("pool", f"{pair.shard}.parquet", columns=["image"])
                for position, other in enumerate(self.pairs):
                    if other.shard == pair.shard:
                        self._images[position] = column["image"][other.row].as_py()
        return as_jpeg(self._images[index])

    def _pair(self, index: Any) -> Pair:
        if (
            not isinstance(index, int)
            or isinstance(index, bool)
            or not (0 <= index < len(self.pairs))
        ):
            raise RequestError(HTTPStatus.NOT_FOUND, "no such pair")
        return self.pairs[index]


def _fix(pair: Pair, fixed: Any) -> Decision:
    """Return the decision to replace a caption by another text."""
    text = " ".join(fixed.split()) if isinstance(fixed, str) else ""
    if not text or len(text) > MAX_CAPTION or shown(text) != text or not _is_unicode(text):
        raise RequestError(
            HTTPStatus.BAD_REQUEST,
            f"a fixed caption must be text of 1 to {MAX_CAPTION} characters without control "
            "characters",
        )
    return Decision("accept") if text == pair.caption else Decision("fix", text)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def _decision_json(decision: Decision | None) -> dict[str, Any] | None:
    return None if decision is None else decision._asdict()
