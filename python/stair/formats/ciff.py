"""CIFF, the Common Index File Format (arXiv 2003.08276): one file that Lucene, PISA, JASS, Terrier and others import.

A header, a postings list a term, a record a document; each a protocol buffer behind its length. A posting's integer
"tf" is the weight times the scale, 1 to 255 here, which engines that keep a byte a posting hold without a loss.
"""

from __future__ import annotations

import functools
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from stair.files import replacing
from stair.formats.documents import Documents, Meta, Progress, known_keys, typed_ids

MOST = 255
FIELDS = {
    "Header": (
        ("version", "INT32"),
        ("num_postings_lists", "INT32"),
        ("num_docs", "INT32"),
        ("total_postings_lists", "INT32"),
        ("total_docs", "INT32"),
        ("total_terms_in_collection", "INT64"),
        ("average_doclength", "DOUBLE"),
        ("description", "STRING"),
    ),
    "Posting": (("docid", "INT32"), ("tf", "INT32")),
    "PostingsList": (("term", "STRING"), ("df", "INT64"), ("cf", "INT64"), ("postings", "Posting")),
    "DocRecord": (("docid", "INT32"), ("collection_docid", "STRING"), ("doclength", "INT32")),
}
DESCRIPTION = re.compile(r"scale=(\d+(?:\.\d+)?(?:e[+-]?\d+)?)")


def write(path: Path, documents: Documents, keys: str, scale: float | None, progress: Progress) -> Meta:
    from google.protobuf.proto import serialize_length_prefixed

    kinds, terms, names, N = _messages(), documents.terms(keys), documents.names(), len(documents)
    heaviest = float(documents.rows.data.max()) if documents.rows.nnz else 1.0
    used = MOST / heaviest if scale is None else scale
    if round(heaviest * used) > MOST:
        raise ValueError(
            f"scale: expected at most {MOST / heaviest:.6g}, since {heaviest:.6g} is the largest weight, got {scale}"
        )
    integers = np.clip(np.floor(documents.rows.data.astype(np.float64) * used + 0.5), 1, MOST).astype(np.int64)
    rows = scipy.sparse.csr_matrix((integers, documents.rows.indices, documents.rows.indptr), documents.rows.shape)
    columns, lengths = rows.tocsc(), np.asarray(rows.sum(axis=1)).ravel()
    columns.sort_indices()
    present = [
        v
        for v in sorted(range(len(terms)), key=lambda v: terms[v].encode())
        if columns.indptr[v + 1] > columns.indptr[v]
    ]
    header = kinds["Header"](
        version=1,
        num_postings_lists=len(present),
        num_docs=N,
        total_postings_lists=len(present),
        total_docs=N,
        total_terms_in_collection=int(lengths.sum()),
        average_doclength=float(lengths.mean()) if N else 0.0,
        description=f"stair_kernels: weight = tf / scale, scale={used!r}",
    )
    with replacing(path, "wb") as stream:
        serialize_length_prefixed(header, stream)
        for done, v in enumerate(present):
            part = slice(columns.indptr[v], columns.indptr[v + 1])
            gaps = np.diff(columns.indices[part], prepend=0).tolist()
            weights = columns.data[part].tolist()
            posting = kinds["Posting"]
            found = [posting(docid=gap, tf=tf) for gap, tf in zip(gaps, weights)]
            message = kinds["PostingsList"](term=terms[v], df=len(found), cf=sum(weights), postings=found)
            serialize_length_prefixed(message, stream)
            progress(N * (done + 1) // (len(present) + 1), N)
        for number, name in enumerate(names):
            record = kinds["DocRecord"](docid=number, collection_docid=name, doclength=int(lengths[number]))
            serialize_length_prefixed(record, stream)
    progress(N, N)
    return {"keys": keys, "scale": used}


def read(path: Path, vocabulary: Sequence[str] | None, meta: Meta) -> Documents:
    kinds = _messages()
    with open(path, "rb") as stream:
        header = _next(path, stream, kinds["Header"])
        if header.version != 1:
            raise ValueError(f"{path}: expected CIFF version 1, got {header.version}")
        lists = [_next(path, stream, kinds["PostingsList"]) for _ in range(header.num_postings_lists)]
        records = [_next(path, stream, kinds["DocRecord"]) for _ in range(header.num_docs)]
        if stream.read(1):
            raise ValueError(f"{path}: expected its end after {header.num_docs} documents, got more bytes")
    found = DESCRIPTION.search(header.description)
    scale = float(meta["scale"] if "scale" in meta else found.group(1) if found else 1.0)
    if not 0 < scale < math.inf:
        raise ValueError(f"{path}: expected a scale > 0, got {scale}")
    known = known_keys(meta, vocabulary) or [message.term for message in lists]
    number = {term: v for v, term in enumerate(known)}
    documents, columns, weights, seen = [], [], [], set[str]()
    for message in lists:
        if message.term in seen:
            raise ValueError(f"{path}: expected a postings list a term, got two of {message.term!r}")
        seen.add(message.term)
        if message.term not in number:
            raise ValueError(f"{path}: the vocabulary has no term {message.term!r}")
        places = np.cumsum([posting.docid for posting in message.postings], dtype=np.int64)
        if len(places) and not (places.min() >= 0 and places.max() < header.num_docs and (np.diff(places) > 0).all()):
            raise ValueError(f"{path}, term {message.term!r}: expected rising documents below {header.num_docs}")
        documents.append(places)
        columns.append(np.full(len(places), number[message.term]))
        weights.append(np.array([posting.tf for posting in message.postings], np.float64) / scale)
    parts = [np.concatenate(part) if part else np.zeros(0) for part in (weights, documents, columns)]
    shape = (header.num_docs, len(known))
    rows = scipy.sparse.coo_matrix((parts[0], (parts[1].astype(int), parts[2].astype(int))), shape).tocsr()
    tokens = vocabulary if meta.get("keys") == "id" else known
    if [record.docid for record in records] != list(range(len(records))):
        raise ValueError(f"{path}: expected the records of documents 0 .. {len(records) - 1} in order")
    ids = typed_ids(path, [record.collection_docid for record in records], meta)
    try:
        return Documents(rows, ids, tokens)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _next(path: Path, stream: io.BufferedReader, kind: Any) -> Any:
    from google.protobuf.message import DecodeError
    from google.protobuf.proto import parse_length_prefixed

    place = stream.tell()
    try:
        message = parse_length_prefixed(kind, stream)
    except (DecodeError, ValueError) as error:
        raise ValueError(f"{path}, byte {place}: expected a {kind.DESCRIPTOR.name} of CIFF ({error})") from None
    if message is None:
        raise ValueError(f"{path}, byte {place}: expected a {kind.DESCRIPTOR.name} of CIFF, got the end of the file")
    return message


@functools.cache
def _messages() -> dict[str, Any]:
    """The message classes, from FIELDS in place of generated code."""
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("CIFF needs protobuf: pip install 'stair-kernels[model]'", name="protobuf") from error
    file = descriptor_pb2.FileDescriptorProto(name="stair/ciff.proto", package="stair.ciff", syntax="proto3")
    for name, fields in FIELDS.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields, 1):
            repeated = kind in FIELDS
            added = message.field.add(name=field, number=number, label=3 if repeated else 1)
            added.type = 11 if repeated else getattr(added, f"TYPE_{kind}")
            if repeated:
                added.type_name = f".stair.ciff.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"stair.ciff.{name}")) for name in FIELDS}
