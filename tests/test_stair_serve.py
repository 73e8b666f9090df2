"""`stair serve`: what it answers, what it refuses, batches, limits, reloads."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from serving import (
    Client,
    Fixed,
    N,
    V,
    random_rows,
    reload_under_load,
    running,
    save_shards,
    save_tiny_collection,
    vector,
)
from stair.checkpoint import load
from stair.cluster import commands
from stair.cluster.work import ClusterError, Here
from stair.encode import encode, read_inputs
from stair.search import Collection
from stair.serve import Folder, Served, Settings, pictures
from stair.serve.answers import Query, answer
from stair.serve.batching import Batcher, FullError
from tiny_stair import save_checkpoint

import stair_kernels as sk

JSON = {"Content-Type": "application/json"}


def wait_until(true: Callable[[], bool], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    save_tiny_collection(folder)
    return folder


@pytest.fixture(scope="module")
def client(place: Path) -> Iterator[Client]:
    with running(
        Folder(place / "index"), Settings(max_body=100_000, max_text=100, max_pixels=10_000, max_k=50)
    ) as made:
        yield made


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """An index without a model, ids 1000 and up."""
    folder = tmp_path_factory.mktemp("plain") / "index"
    sk.SparseIndex.build(random_rows(0), ids=range(1000, 1000 + N)).save(folder)
    with running(Folder(folder)) as made:
        yield made


@dataclass
class Slow:
    """An index that answers when it is let, and remembers its batches: what the service asks of one, and no more."""

    go: threading.Event = field(default_factory=threading.Event)
    began: threading.Event = field(default_factory=threading.Event)
    batches: list[int] = field(default_factory=list)
    vocab_size: int = V

    def __len__(self) -> int:
        return 1

    def search(self, queries: scipy.sparse.csr_matrix, k: int) -> tuple[Any, Any]:
        self.batches.append(queries.shape[0])
        self.began.set()
        assert self.go.wait(30)
        if any(queries.data > 5):
            raise RuntimeError("one of them is at fault")
        return np.full((queries.shape[0], k), -np.inf, np.float32), np.full((queries.shape[0], k), -1)

    def payloads(self, ids: Any) -> list[bytes]:
        raise ValueError("none")

    def rows(self, ids: Any) -> scipy.sparse.csr_matrix:
        raise ValueError("none")


@pytest.fixture
def slow() -> Iterator[Slow]:
    index = Slow()
    yield index
    index.go.set()


def test_a_text_finds_what_stair_search_finds(client: Client, place: Path) -> None:
    model, processor = load(place / "model")
    rows = encode(model, processor, read_inputs(["a red fruit"]))
    (expected,) = Collection.open(place / "index").search(rows, 4, processor.vocabulary())
    found = client.search(text="a red fruit", k=4, matches=100).json
    assert len(expected) == len(found["hits"]) == 4
    for hit, want in zip(found["hits"], expected):
        assert (hit["score"], hit["name"], hit["item"]) == (want.score, want.name, want.item)
        assert hit["matches"] == [vars(match) for match in want.matches]
        assert hit["rank"] == want.rank
    assert [term["weight"] for term in found["terms"]] == sorted((t["weight"] for t in found["terms"]), reverse=True)
    assert found["generation"] == 1


def test_a_picture_finds_itself_and_has_a_thumbnail(client: Client, place: Path) -> None:
    best = client.upload((place / "pictures" / "blue.png").read_bytes(), k=2, matches=3).json["hits"][0]
    assert best["name"] == "blue"
    assert best["score"] == pytest.approx(1, abs=1e-5)
    assert len(best["matches"]) == 3
    shown = client.ask("GET", "/" + best["picture"] + "&side=16")
    assert (shown.status, shown.headers["Content-Type"]) == (200, "image/webp")
    assert Image.open(io.BytesIO(shown.body)).size == (16, 12)


def test_terms_are_searched_with_their_weights(client: Client, place: Path) -> None:
    found = client.search(terms={"red": 3, "w20": 4.0}, k=50).json
    assert {term["term"]: term["weight"] for term in found["terms"]} == pytest.approx({"red": 0.6, "w20": 0.8})
    entries = [client.service.holder.current.encoder.entries[term] for term in ("red", "w20")]
    assert client.search(indices=entries, values=[3, 4], k=50).json["hits"] == found["hits"]
    assert client.search(terms={"w20": 1}, matches=0).json["terms"] == []
    assert (
        client.search(indices=[7.0], values=[1], k=2.0).json["hits"]
        == client.search(indices=[7], values=[1], k=2).json["hits"]
    )


def test_a_plain_index_takes_vectors_and_gives_its_own_ids(plain: Client) -> None:
    queries = random_rows(1, 5)
    scores, ids = plain.service.holder.current.index.search(queries, 7)
    for q in range(5):
        hits = plain.search(**vector(queries[q]), k=7, matches=2).json["hits"]
        assert [hit["id"] for hit in hits] == ids[q].tolist()
        assert np.float32([hit["score"] for hit in hits]).tolist() == scores[q].tolist()
        assert set(hits[0]) == {"rank", "score", "id", "matches"}
        assert int(hits[0]["matches"][0]["term"]) in queries[q].indices
    assert plain.search(indices=[], values=[]).json["hits"] == []
    for refused in (plain.search(text="a dog"), plain.search(terms={"a": 1}), plain.upload(b"x")):
        assert refused.status == 422
        assert "has no model" in refused.json["error"]["message"]
    assert plain.ask("GET", "/v1/picture?id=1000").error == (404, "not_found", "id")
    assert plain.ask("GET", "/v1/index").json["queries"] == ["vector"]


def test_a_model_for_a_plain_index_must_fit_it(place: Path, tmp_path: Path) -> None:
    sk.SparseIndex.build(random_rows(0)).save(tmp_path / "other")
    with pytest.raises(ValueError, match="its vocabulary has 80 entries, the index 50"):
        Folder(tmp_path / "other", place / "model").open()
    rows = encode(*load(place / "model"), read_inputs(["a dog", "the sky"]))
    sk.SparseIndex.build(rows, ids=["x", "y"]).save(tmp_path / "index")
    with running(Folder(tmp_path / "index", place / "model")) as client:
        best = client.search(text="the sky", k=1).json["hits"][0]
        assert (best["id"], "name" in best) == ("y", False)
        assert best["score"] == pytest.approx(float(rows.values[1] @ rows.values[1]), rel=1e-5)
    save_checkpoint(tmp_path / "wrong", seed=1)
    with pytest.raises(ValueError, match="is not the checkpoint that built"):
        Folder(place / "index", tmp_path / "wrong").open()


def test_a_batch_gives_each_query_its_own_answer_bit_for_bit() -> None:
    served = Served(sk.SparseIndex.build(random_rows(0)))
    rows = random_rows(2, 64)
    queries = [Query(served, 1 + q % 9, q % 4, row=(rows[q].data, rows[q].indices)) for q in range(64)]
    together = answer(queries)
    assert together == [answer([query])[0] for query in queries]
    assert all(len(found["hits"]) == query.k for found, query in zip(together, queries))


def test_a_batch_of_texts_pictures_and_vectors(client: Client, place: Path) -> None:
    """The encoder's matrix products may round otherwise in a batch, so that texts are compared closely, not by bits."""
    served = client.service.holder.current
    pixels = served.encoder.fitted(Image.open(place / "pictures" / "red.png"))
    texts = [Query(served, 3, 2, text=text) for text in ("a dog", "the round green apple", "night", "a a a")]
    queries = [*texts, Query(served, 3, 2, pixels=pixels), Query(served, 3, 2, row=(np.float32([1]), np.int32([9])))]
    for one, found in zip(queries, answer(queries)):
        (alone,) = answer([one])
        assert [hit["id"] for hit in found["hits"]] == [hit["id"] for hit in alone["hits"]]
        assert [hit["score"] for hit in found["hits"]] == pytest.approx(
            [hit["score"] for hit in alone["hits"]], rel=1e-5
        )


def test_concurrent_requests_share_batches_and_keep_their_answers(plain: Client) -> None:
    rows = random_rows(3, 40)
    alone = [plain.search(**vector(rows[q])).json["hits"] for q in range(40)]
    with running(Fixed(plain.service.holder.current), Settings(batch=8, wait_ms=500)) as client:
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda q: client.search(**vector(rows[q])).json["hits"], range(40)))
        assert together == alone
        families = {f.name: f for f in text_string_to_metric_families(client.ask("GET", "/metrics").body.decode())}
    sizes = {sample.name: sample.value for sample in families["stair_batch_queries"].samples}
    assert sizes["stair_batch_queries_sum"] == 40
    assert sizes["stair_batch_queries_count"] <= 10


def test_a_query_at_fault_does_not_take_its_batch_along(slow: Slow) -> None:
    with running(Fixed(Served(slow)), Settings(batch=3, wait_ms=5000)) as client, ThreadPoolExecutor(3) as pool:
        slow.go.set()
        values = ([1.0], [9.0], [2.0])
        answers = list(pool.map(lambda value: client.search(indices=[0], values=value), values))
        assert slow.batches == [3, 1, 1, 1]
    assert [found.status for found in answers] == [200, 500, 200]
    assert answers[1].error == (500, "internal", None)


REFUSED = {
    "no query": ({}, "body"),
    "two queries": ({"text": "a", "terms": {"a": 1}}, "body"),
    "no object": ([1], "body"),
    "an empty text": ({"text": ""}, "text"),
    "a blank text": ({"text": " \u2003\x1c"}, "text"),
    "half a character": ({"text": "\ud800"}, "text"),
    "a long text": ({"text": "a" * 101}, "text"),
    "a number as text": ({"text": 1}, "text"),
    "k 0": ({"text": "a", "k": 0}, "k"),
    "a large k": ({"text": "a", "k": 51}, "k"),
    "k in words": ({"text": "a", "k": "5"}, "k"),
    "many matches": ({"text": "a", "matches": 101}, "matches"),
    "another field": ({"text": "a", "q": 1}, "q"),
    "no term": ({"terms": {}}, "terms"),
    "an unknown term": ({"terms": {"zebra": 1}}, "terms"),
    "a negative weight": ({"terms": {"red": -1}}, "terms.red"),
    "NaN": ({"terms": {"red": float("nan")}}, "terms.red"),
    "infinity": ({"indices": [1], "values": [float("inf")]}, "values.0"),
    "no values": ({"indices": [1]}, "values"),
    "fewer values": ({"indices": [1, 2], "values": [1]}, "values"),
    "an entry twice": ({"indices": [1, 2, 1], "values": [1, 1, 1]}, "indices"),
    "an entry outside": ({"indices": [80], "values": [1]}, "indices"),
    "true as an entry": ({"indices": [True], "values": [1]}, "indices.0"),
    "a large entry": ({"indices": [2**40], "values": [1]}, "indices.0"),
}


@pytest.mark.parametrize(("query", "at"), REFUSED.values(), ids=REFUSED)
def test_a_bad_query_is_refused_by_the_name_of_its_field(client: Client, query: Any, at: str) -> None:
    assert client.ask("POST", "/v1/search", json.dumps(query), JSON).error == (422, "invalid", at)


def test_what_is_no_json_no_route_or_no_method(client: Client) -> None:
    assert client.ask("POST", "/v1/search", b"{", JSON).error == (422, "invalid", "body")
    assert client.ask("POST", "/v1/search", b"\xff{}", JSON).status in (400, 422)
    assert client.ask("POST", "/v1/search", b"[" * 50_000, JSON).status in (400, 422)
    assert client.ask("GET", "/v1/nothing").error == (404, "not_found", None)
    wrong = client.ask("GET", "/v1/search")
    assert (wrong.error, wrong.headers["Allow"]) == ((405, "method_not_allowed", None), "POST")


def picture_bytes(size: tuple[int, int], kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size).save(stream, kind)
    return stream.getvalue()


def test_pictures_that_are_refused(client: Client) -> None:
    whole = picture_bytes((100, 100))
    assert client.upload(whole).status == 200
    refused = {
        "bomb": picture_bytes((101, 100)),
        "cut": whole[:-40],
        "none": b"GIF",
        "other": picture_bytes((9, 9), "EPS"),
    }
    for name, data in refused.items():
        assert client.upload(data).error == (422, "invalid", "image"), name
    assert client.upload(whole, k=51).error == (422, "invalid", "k")
    assert client.ask("POST", "/v1/search/image", "", {"Content-Type": "multipart/form-data; boundary=x"}).status == 422


def test_a_large_body_is_refused_whether_or_not_it_says_its_size(client: Client) -> None:
    body = json.dumps({"text": "a" * 200_000}).encode()
    assert client.ask("POST", "/v1/search", body, JSON).error == (413, "too_large", "body")
    chunks = (body[i : i + 10_000] for i in range(0, len(body), 10_000))
    assert client.ask("POST", "/v1/search", chunks, JSON).error == (413, "too_large", "body")
    assert client.upload(bytes(200_000)).error == (413, "too_large", "body")
    assert client.search(text="a dog").status == 200


def test_only_pictures_of_the_collection_are_given_out(client: Client, place: Path, tmp_path: Path) -> None:
    other = tmp_path / "secret.png"
    other.write_bytes(picture_bytes((9, 9)))
    names = [str(other), "../../etc/passwd", str(place / "pictures" / ".." / "pictures" / "red.png"), "a red fruit", ""]
    for name in names:
        assert client.ask("GET", f"/v1/picture?id={name.replace(' ', '+')}").error == (404, "not_found", "id")
    known = str((place / "pictures" / "grey.png").resolve())
    assert client.ask("GET", f"/v1/picture?id={known}").status == 200
    assert client.ask("GET", f"/v1/picture?id={known}&side=9999").error == (422, "invalid", "side")
    hidden = place / "pictures" / "away.png"
    Path(known).rename(hidden)
    assert client.ask("GET", f"/v1/picture?id={known}").error == (404, "not_found", "id")
    Path(known).write_text("no picture any more")
    assert client.ask("GET", f"/v1/picture?id={known}").error == (404, "not_found", "id")
    hidden.rename(known)


def test_pictures_are_decoded_as_many_at_a_time_as_batches_are_answered(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of thumbnails and of queries together: each may take 4 bytes a pixel."""
    inside, most = [0], [0]
    decode = pictures.decoded

    def decoded(*arguments: Any) -> Any:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.05)
        inside[0] -= 1
        return decode(*arguments)

    monkeypatch.setattr(pictures, "decoded", decoded)
    monkeypatch.setattr("stair.serve.service.decoded", decoded)
    known = str((place / "pictures" / "red.png").resolve())
    with running(Folder(place / "index"), Settings(threads=2)) as client, ThreadPoolExecutor(8) as pool:
        shown = [pool.submit(client.ask, "GET", f"/v1/picture?id={known}&side={side}") for side in range(100, 106)]
        found = [pool.submit(client.upload, picture_bytes((9, 9))) for _ in range(2)]
        assert [one.result(60).status for one in shown + found] == [200] * 8
    assert most == [2]


def test_more_queries_than_may_wait_are_told_to_come_again(slow: Slow) -> None:
    settings = Settings(batch=1, queue=2)
    with running(Fixed(Served(slow)), settings) as client, ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(client.search, indices=[0], values=[1])]
        assert slow.began.wait(10)
        waiting += [pool.submit(client.search, indices=[0], values=[1]) for _ in range(2)]
        wait_until(lambda: len(client.service.batcher) == 2)
        refused = client.search(indices=[0], values=[1])
        assert (refused.error, refused.headers["Retry-After"]) == ((503, "busy", None), "1")
        assert client.ask("GET", "/readyz").error == (503, "busy", None)
        assert client.ask("GET", "/healthz").status == 200
        slow.go.set()
        assert [one.result().status for one in waiting] == [200, 200, 200]
        assert client.ask("GET", "/readyz").status == 200


def test_a_late_answer_is_a_504_and_a_query_that_still_waits_is_not_searched(slow: Slow) -> None:
    with running(Fixed(Served(slow)), Settings(batch=1, timeout_s=0.2)) as client:
        assert client.search(indices=[0], values=[1]).error == (504, "timeout", None)
        assert slow.began.is_set()
        assert client.search(indices=[0], values=[1]).error == (504, "timeout", None)
        slow.go.set()
        wait_until(lambda: len(client.service.batcher) == 0)
    assert slow.batches == [1]


def test_shards_are_served_and_a_build_of_them_is_noticed(place: Path, tmp_path: Path) -> None:
    inputs = read_inputs(["a red fruit", "dog", "blue sky", "night"])
    build = partial(commands.build, model_dir=place / "model", pool=Here(), k=None, batch=2, progress=lambda *_: None)
    assert build(inputs, tmp_path / "many", shards=2) == (4, ())
    with running(Folder(tmp_path / "many"), Settings()) as client:
        assert client.ask("GET", "/v1/index").json["documents"] == 4
        assert client.search(text="dog", k=1).json["hits"][0]["name"] == "dog"
        assert not client.service.holder.stale()
        build(inputs[:3], tmp_path / "many", shards=3)
        assert client.service.holder.stale()
        client.service.holder.reload()
        assert client.ask("GET", "/v1/index").json["documents"] == 3


class Lost(Slow):
    def search(self, queries: scipy.sparse.csr_matrix, k: int) -> tuple[Any, Any]:
        raise ClusterError("shard 1: its worker was lost 3 times")

    def payloads(self, ids: Any) -> list[bytes]:
        raise ClusterError("shard 1: its worker was lost 3 times")


def test_a_cluster_that_cannot_answer_is_a_503(tmp_path: Path) -> None:
    with running(Fixed(Served(Lost(), folder=tmp_path)), Settings()) as client:
        for found in (client.search(indices=[0], values=[1]), client.ask("GET", "/v1/picture?id=a")):
            assert (found.error, found.headers["Retry-After"]) == ((503, "busy", None), "10")
            assert "shard 1" in found.json["error"]["message"]


@dataclass
class Unreachable(Fixed):
    """A source of something new, which its workers cannot open for a while."""

    opened: int = 0
    failures: int = 0

    def open(self) -> Served:
        self.opened += 1
        if 1 < self.opened <= 1 + self.failures:
            raise ClusterError("shard 1: no answer for 10 s")
        return self.served

    def stamp(self) -> object:
        return self.opened > 0


def test_a_reload_that_a_cluster_cannot_do_is_a_503_and_tried_again(slow: Slow) -> None:
    source = Unreachable(Served(slow), failures=3)
    with running(source) as client:
        refused = client.ask("POST", "/v1/reload")
        assert refused.error == (503, "busy", None)
        assert "shard 1" in refused.json["error"]["message"]
        assert (client.service.holder.generation, client.service.holder.stale()) == (1, True)
    with running(Unreachable(Served(slow), failures=3), Settings(watch_s=0.01)) as client:
        wait_until(lambda: client.service.holder.generation == 2)
        assert not client.service.holder.stale()


def test_a_batch_that_a_cluster_cannot_answer_is_asked_once(slow: Slow) -> None:
    """Not once more for each of its queries, which would take the time-out of the workers as often."""

    def search(queries: scipy.sparse.csr_matrix, k: int) -> tuple[Any, Any]:
        slow.batches.append(queries.shape[0])
        raise ClusterError("shard 1: no answer for 10 s")

    slow.search = search  # type: ignore[method-assign]
    with running(Fixed(Served(slow)), Settings(batch=3, wait_ms=5000)) as client, ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda value: client.search(indices=[0], values=[value]), (1, 2, 3)))
    assert [found.error for found in answers] == [(503, "busy", None)] * 3
    assert slow.batches == [3]


def test_a_query_whose_time_is_over_is_not_tried_again() -> None:
    asked: list[list[int]] = []
    futures: list[Future[int]] = []

    def answered(batch: list[int]) -> list[int]:
        asked.append(batch)
        if len(batch) == 3:
            futures[1].cancel()
            raise ValueError("one of them is at fault")
        return batch

    batcher: Batcher[int, int] = Batcher(answered, size=3, wait_s=30, queue=9)
    futures += [batcher.submit(number) for number in range(3)]
    assert [futures[number].result(10) for number in (0, 2)] == [0, 2]
    batcher.close()
    assert asked == [[0, 1, 2], [0], [2]]
    assert futures[1].cancelled()


def test_a_body_that_never_ends_is_a_504(plain: Client) -> None:
    with (
        running(Fixed(plain.service.holder.current), Settings(timeout_s=0.2)) as client,
        socket.create_connection(("127.0.0.1", client.port), 60) as connection,
    ):
        connection.sendall(b"POST /v1/search HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n")
        connection.sendall(b"Content-Length: 100\r\n\r\n{")
        assert connection.recv(100).startswith(b"HTTP/1.1 504")


def test_the_batcher_answers_what_waits_before_it_closes() -> None:
    go = threading.Event()
    batcher: Batcher[int, int] = Batcher(
        lambda batch: [go.wait(10) and 2 * number for number in batch], size=2, wait_s=0, queue=9
    )
    futures = [batcher.submit(number) for number in range(7)]
    futures[5].cancel()
    closing = threading.Thread(target=batcher.close)
    closing.start()
    go.set()
    assert [future.result(10) for future in futures if not future.cancelled()] == [0, 2, 4, 6, 8, 12]
    closing.join(10)
    with pytest.raises(FullError):
        batcher.submit(1)


@pytest.mark.parametrize("shards", [0, 3])
def test_reloads_under_load_lose_nothing_and_mix_nothing(tmp_path: Path, shards: int) -> None:
    save = partial(save_shards, shards=shards) if shards else sk.SparseIndex.save
    reload_under_load(Folder(tmp_path / "index"), tmp_path / "index", save, 20)


def test_a_reload_that_fails_keeps_the_old_index_and_says_so(tmp_path: Path) -> None:
    sk.SparseIndex.build(random_rows(0)).save(tmp_path / "index")
    with running(Folder(tmp_path / "index")) as client:
        before = client.search(indices=[3], values=[1]).json["hits"]
        manifest = tmp_path / "index" / "manifest.json"
        whole = manifest.read_bytes()
        manifest.write_bytes(b"{}")
        refused = client.ask("POST", "/v1/reload")
        assert refused.error == (409, "reload_failed", None)
        assert refused.json["error"]["message"].endswith("generation 1 is still served")
        assert client.search(indices=[3], values=[1]).json["hits"] == before
        manifest.write_bytes(whole)
        assert client.ask("POST", "/v1/reload").json["generation"] == 2
        counted = client.ask("GET", "/metrics").body.decode()
    assert 'stair_reloads_total{result="failed"} 1.0' in counted
    assert 'stair_reloads_total{result="ok"} 1.0' in counted


def test_a_watched_index_is_reloaded_when_it_changes(tmp_path: Path) -> None:
    sk.SparseIndex.build(random_rows(0)).save(tmp_path / "index")
    with running(Folder(tmp_path / "index"), Settings(watch_s=0.02)) as client:
        with sk.SparseIndex.open(tmp_path / "index", mode="a") as index:
            index.add(random_rows(1, 2))
        wait_until(lambda: client.ask("GET", "/v1/index").json["documents"] == N + 2)
        assert client.ask("GET", "/v1/index").json["generation"] == 2


def test_a_reload_keeps_the_model_until_another_built_the_index(tmp_path: Path) -> None:
    save_tiny_collection(tmp_path)
    source = Folder(tmp_path / "index")
    first = source.open()
    assert source.open().encoder is first.encoder
    save_checkpoint(tmp_path / "model", seed=1)
    with pytest.raises(ValueError, match="is not the checkpoint that built"):
        source.open()
    save_tiny_collection(tmp_path)
    assert source.open().encoder is not None


def test_metrics_are_what_prometheus_reads(client: Client) -> None:
    client.search(text="a dog")
    client.ask("GET", "/v1/nothing/at/all")
    got = client.ask("GET", "/metrics")
    assert got.headers["Content-Type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(got.body.decode())}
    assert {sample.labels["route"] for sample in families["stair_requests"].samples} >= {"/v1/search", "other"}
    assert not [s for s in families["stair_requests"].samples if "nothing" in s.labels["route"]]
    stages = {s.labels["stage"] for s in families["stair_stage_seconds"].samples}
    assert stages == {"encode", "search", "explain"}
    for name, value in {"documents": 6, "generation": 1}.items():
        assert [sample.value for sample in families[f"stair_index_{name}"].samples] == [value]
    assert [sample.value for sample in families["stair_requests_in_flight"].samples] == [1]  # this one


def test_only_known_names_are_answered(plain: Client) -> None:
    settings = Settings(hosts=("127.0.0.1", "localhost", "[::1]", "search.example"))
    with running(Fixed(plain.service.holder.current), settings) as client:
        for host in ("127.0.0.1:1", "LOCALHOST", "[::1]:8000", "[::1]", "search.example"):
            assert client.ask("GET", "/healthz", headers={"Host": host}).status == 200, host
        for host in ("evil.example", "127.0.0.1.evil.example:80", "::1"):
            assert client.ask("GET", "/healthz", headers={"Host": host}).error == (403, "forbidden", "host")


@pytest.mark.parametrize(
    "wrong", [{"batch": 0}, {"wait_ms": -1}, {"queue": 0}, {"timeout_s": 0}, {"max_k": float("nan")}]
)
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
        Settings(**wrong)


def test_gradients_are_not_kept(client: Client) -> None:
    assert not client.service.holder.current.encoder.texts(["a dog"]).values.requires_grad
    assert torch.is_grad_enabled()
