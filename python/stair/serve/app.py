"""The ASGI application: routes over a Service."""

# No `from __future__ import annotations`: FastAPI reads the annotations of functions that are made inside others.

import asyncio
import base64
import hashlib
import re
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Body, FastAPI, File, Form, Query, UploadFile
from fastapi.responses import HTMLResponse, JSONResponse, Response

from stair.serve import schemas
from stair.serve.answers import Query as IndexQuery
from stair.serve.errors import RefusedError, documented, handle_errors
from stair.serve.guard import Guard
from stair.serve.service import Service, require_encoder, row_of_terms, row_of_vector
from stair.serve.settings import Settings
from stair.serve.source import Source
from stair.templates import rendered
from stair_kernels.version import __version__

LOST_OR_LATE = documented(400, 413, 422, 503, 504)


def create_app(source: Source, settings: Settings | None = None) -> FastAPI:
    """The service over what `source` opens, which it does at once.

    Raises:
        ValueError, OSError: when that cannot be served.
    """
    settings = settings or Settings()
    service = Service(source, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        tasks = [asyncio.create_task(service.watch())] if settings.watch_s else []
        unhook = _reload_on_hangup(service)
        yield
        unhook()
        for task in tasks:
            task.cancel()
        await service.stop()

    app = FastAPI(
        title="stair serve",
        version=__version__,
        description="Text and picture search over a sparse index, with the terms that matched.",
        lifespan=lifespan,
        docs_url=None,  # they load their scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    handle_errors(app)
    app.add_middleware(Guard, settings=settings, metrics=service.metrics)
    for router in (_search(service), _look_up(service), _operate(service), _page()):
        app.include_router(router)
    return app


def _reload_on_hangup(service: Service) -> Callable[[], Any]:
    """SIGHUP reloads, where signals can be handled; gives what undoes it."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    loop, running = asyncio.get_running_loop(), set()

    def hangup() -> None:
        task = loop.create_task(service.reload_quietly())
        running.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(running.discard)

    loop.add_signal_handler(signal.SIGHUP, hangup)
    return lambda: loop.remove_signal_handler(signal.SIGHUP)


def _search(service: Service) -> APIRouter:
    settings, router = service.settings, APIRouter(prefix="/v1/search", tags=["search"])
    request = schemas.search_request(settings)

    async def answered(query: IndexQuery, generation: int, start: float) -> Response:
        found = await service.ask(query)
        took = round(1e3 * (time.perf_counter() - start), 3)
        return JSONResponse({**found, "generation": generation, "took_ms": took})

    @router.post("", response_model=schemas.Answer, responses=LOST_OR_LATE)
    async def search(query: Annotated[request, Body()]) -> Response:  # type: ignore[valid-type]
        """Search by a text, by weighted terms, or by a sparse vector."""
        start = time.perf_counter()
        asked: dict[str, Any] = dict(query)
        served, generation = service.holder.state()
        made = IndexQuery(served, asked["k"], asked["matches"])
        if "text" in asked:
            require_encoder(served, "text")
            made.text = asked["text"]
        elif "terms" in asked:
            made.row = row_of_terms(require_encoder(served, "terms"), asked["terms"])
        else:
            made.row = row_of_vector(served, asked["indices"], asked["values"])
        return await answered(made, generation, start)

    @router.post("/image", response_model=schemas.Answer, responses=LOST_OR_LATE)
    async def search_image(
        image: Annotated[UploadFile, File(description="PNG, JPEG, WebP, GIF, BMP or TIFF")],
        k: Annotated[int, Form(ge=1, le=settings.max_k)] = min(schemas.HITS, settings.max_k),
        matches: Annotated[int, Form(ge=0, le=schemas.MOST_MATCHES)] = schemas.MATCHES,
    ) -> Response:
        """Search by a picture."""
        start = time.perf_counter()
        served, generation = service.holder.state()
        pixels = await service.fitted(require_encoder(served, "image"), await image.read())
        return await answered(IndexQuery(served, k, matches, pixels=pixels), generation, start)

    return router


def _look_up(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["look up"])

    @router.get("/index", response_model=schemas.About)
    async def index() -> Response:
        """What is served."""
        served, generation = service.holder.state()
        about = {
            "documents": len(served.index),
            "vocab_size": served.index.vocab_size,
            "queries": served.queries,
            "generation": generation,
            "loaded_at": service.holder.loaded_at,
            "max_k": service.settings.max_k,
        }
        return JSONResponse(about)

    @router.get(
        "/picture",
        response_class=Response,
        responses={200: {"content": {"image/webp": {}}}, **documented(404, 422, 503, 504)},
    )
    async def picture(
        id: Annotated[str, Query(description="of a hit")],
        side: Annotated[int, Query(ge=16, le=512, description="pixels")] = 256,
    ) -> Response:
        """A thumbnail of an item's picture. Only what the index names is ever read."""
        served, _ = service.holder.state()
        path = await anyio.to_thread.run_sync(served.picture, id)
        if path is None:
            raise RefusedError(404, "id: expected an item of the index with a picture", "id")
        made = await service.thumbnail(path, side)
        return Response(made, media_type="image/webp", headers={"Cache-Control": "private, max-age=300"})

    return router


def _operate(service: Service) -> APIRouter:
    router = APIRouter(tags=["operate"])

    @router.post("/v1/reload", response_model=schemas.Reloaded, responses=documented(409, 503, 504))
    async def reload() -> Response:
        """Open the index anew. Requests in flight keep the old one; so do all when the new one cannot be used (409)
        or the workers of a cluster cannot open it now (503).
        """
        try:
            generation = await service.reload()
        except (ValueError, OSError) as error:
            message = f"{error}; generation {service.holder.generation} is still served"
            raise RefusedError(409, message) from error
        return JSONResponse({"generation": generation, "documents": len(service.holder.current.index)})

    @router.get("/healthz", response_model=schemas.Status)
    async def healthz() -> Response:
        """The process answers."""
        return JSONResponse({"status": "ok"})

    @router.get("/readyz", response_model=schemas.Status, responses=documented(503))
    async def readyz() -> Response:
        """Queries are taken: not while too many wait, nor while the service stops."""
        waiting = len(service.batcher or ())
        if service.draining or waiting >= service.settings.queue:
            raise RefusedError(503, "stopping" if service.draining else f"{waiting} queries wait")
        return JSONResponse({"status": "ready"})

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(), headers={"Content-Type": service.metrics.content_type})

    return router


def _page() -> APIRouter:
    router = APIRouter(include_in_schema=False)
    html = rendered("serve.html", {"version": __version__})
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    allowed = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

    @router.get("/")
    async def page() -> Response:
        return HTMLResponse(html, headers={"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"})

    return router
