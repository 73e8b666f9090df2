"""What the service allows and how it batches."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Settings:
    """Limits are refused with a 4xx or 5xx that names the field; none is passed over in silence.

    Args:
        batch: queries answered together, at most.
        wait_ms: how long the first of a batch waits for others while a thread is free.
        queue: queries that wait for a thread; one more is refused (503).
        timeout_s: from the request's headers to its answer; later than that it is a 504.
        max_body: bytes of a request's body (413).
        max_text: characters of a text (422).
        max_pixels: of a picture, width x height as its header gives them, before it is decoded (422).
        max_k: hits a query (422).
        threads: batches answered at a time, each of which uses torch's threads, and pictures decoded at a time.
        watch_s: how often to look for a new index; 0 for never.
        hosts: names by which the service may be called; empty for any. What listens on loopback only should know its
            names: a page of another site may point a name of its own at 127.0.0.1 (DNS rebinding).
    """

    batch: int = 32
    wait_ms: float = 0.0
    queue: int = 256
    timeout_s: float = 10.0
    max_body: int = 16_000_000
    max_text: int = 2_000
    max_pixels: int = 50_000_000
    max_k: int = 1_000
    threads: int = 1
    watch_s: float = 0.0
    hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            least = 0 if entry.name in ("wait_ms", "watch_s") else 1
            if entry.name == "timeout_s":
                if not value > 0:
                    raise ValueError(f"timeout_s: expected a number > 0, got {value!r}")
            elif entry.name != "hosts" and not value >= least:
                raise ValueError(f"{entry.name}: expected a number >= {least}, got {value!r}")
