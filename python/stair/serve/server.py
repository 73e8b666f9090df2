"""Runs the application under uvicorn until SIGTERM or Ctrl-C, and ends when every request is answered."""

from __future__ import annotations

import logging
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

GRACE_S = 2.0  # beyond a request's time-out, for its answer to be sent


class Server(uvicorn.Server):
    """Says when it listens, and that it stops as soon as it is told to."""

    def __init__(self, config: uvicorn.Config, listens: Callable[[str, int], None], stops: Callable[[], None]) -> None:
        super().__init__(config)
        self._listens, self._stops = listens, stops
        self.interrupted = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._listens(host, port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.interrupted = self.interrupted or sig == signal.SIGINT
        self._stops()
        super().handle_exit(sig, frame)


def serve(app: FastAPI, host: str, port: int, listens: Callable[[str, int], None], access_log: bool = False) -> None:
    """Serves `app` until it is told to stop.

    SIGTERM and Ctrl-C: no new connections, requests in flight get their answers. SIGTERM then returns, Ctrl-C raises
    KeyboardInterrupt.

    Args:
        port: 0 for any that is free.
        listens: told the address as soon as requests are taken.

    Raises:
        OSError: when it cannot listen there.
    """
    service = app.state.service
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=access_log,
        server_header=False,
        lifespan="on",
        ws="none",
        timeout_graceful_shutdown=round(service.settings.timeout_s + GRACE_S),
    )

    def stops() -> None:
        service.draining = True

    with bound(host, port) as listener:
        before = signal.signal(signal.SIGTERM, lambda number, frame: None)  # uvicorn raises it again when all is done
        try:
            server = Server(config, listens, stops)
            server.run([listener])
            if server.interrupted:  # uvicorn sends the signal again, which a shell's job in the background ignores
                raise KeyboardInterrupt
        finally:
            signal.signal(signal.SIGTERM, before)


def bound(host: str, port: int) -> socket.socket:
    """A socket that will listen there; OSError that names the address. uvicorn would log it and exit."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise OSError(error.errno, f"cannot listen there ({error.strerror or error})", f"{host}:{port}") from error
    listener.set_inheritable(True)
    return listener
