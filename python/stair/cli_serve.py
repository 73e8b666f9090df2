"""The `stair serve` command."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from stair.console import err
from stair.options import CpusOption, RayOption, WorkersOption, workers_of

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def serve(
    index_dir: Annotated[Path, typer.Argument(metavar="INDEX", help="An index directory.", show_default=False)],
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8000,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Checkpoint.  [default: the one that built the index]", show_default=False),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Queries answered together, at most.")] = 32,
    wait_ms: Annotated[
        float, typer.Option("--wait-ms", min=0, help="How long the first of a batch waits for others.")
    ] = 0.0,
    queue: Annotated[int, typer.Option(min=1, help="Queries that may wait; more are refused with 503.")] = 256,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds until a request is answered with 504.")] = 10.0,
    max_body: Annotated[int, typer.Option("--max-body", min=1, help="Bytes of a request, at most.")] = 16_000_000,
    max_k: Annotated[int, typer.Option("--max-k", min=1, help="Hits a query, at most.")] = 1_000,
    threads: Annotated[int, typer.Option(min=1, help="Batches answered at a time.")] = 1,
    watch: Annotated[
        float, typer.Option(min=0, help="Look for a new index every so many seconds; 0: on SIGHUP and /v1/reload only.")
    ] = 0.0,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", help="A name by which it may be called, such as a proxy's.", show_default=False),
    ] = None,
    ray: RayOption = None,
    workers: WorkersOption = None,
    cpus: CpusOption = None,
    access_log: Annotated[bool, typer.Option("--access-log", help="A line on stderr for each request.")] = False,
) -> None:
    """Serve an index over HTTP: a search page at /, JSON below /v1, /metrics for Prometheus.

    Example: `stair serve out/photos --port 8000`, then open http://127.0.0.1:8000

    A sharded index on a Ray cluster: `stair serve /shared/photos --ray head:6379`
    """
    try:
        from stair.cluster import commands
        from stair.serve import Folder, Settings, create_app
        from stair.serve.server import serve as run
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed; stair serve needs it: pip install 'stair-kernels[model,serve]'",
            name=error.name,
        ) from error

    known = LOOPBACK if host in ("127.0.0.1", "localhost", "::1") else ()
    settings = Settings(
        batch=batch,
        wait_ms=wait_ms,
        queue=queue,
        timeout_s=timeout,
        max_body=max_body,
        max_k=max_k,
        threads=threads,
        watch_s=watch,
        hosts=(*known, *(name.lower() for name in allow_host or ())),
    )
    with workers_of(ray, workers, cpus=cpus) as pool:
        with err.status("opening the index and its model"):
            app = create_app(Folder(index_dir, model, partial(commands.open_index, pool, timeout_s=timeout)), settings)
        documents = len(app.state.service.holder.current.index)

        def listens(host: str, port: int) -> None:
            address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            err.print(f"{documents} documents at {address} (Ctrl-C stops)", markup=False)

        run(app, host, port, listens, access_log)
