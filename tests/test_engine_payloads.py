"""What `stair export` writes for engines that do not run here, held to the forms that their documentation describes:
OpenSearch's and Elasticsearch's _bulk requests and mappings, Vespa's feed and schema."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import scipy.sparse
from engine_cases import FLOAT32, Case, K

LOOKED_AT = 60  # documents that are validated
FLOAT_MAX = float(np.finfo(np.float32).max)
# An object of distinct features, no dot in a name, with positive normal floats; strings up to 512 bytes as _id.
ACTION = {
    "type": "object",
    "properties": {
        "index": {
            "type": "object",
            "properties": {"_id": {"type": "string", "minLength": 1, "maxLength": 512}},
            "required": ["_id"],
            "additionalProperties": False,
        }
    },
    "required": ["index"],
    "additionalProperties": False,
}
FEATURES = {
    "type": "object",
    "propertyNames": {"pattern": r"^[^.]*$"},
    "additionalProperties": {"type": "number", "minimum": 2.0**-126, "maximum": FLOAT_MAX},
}
SOURCE = {
    "type": "object",
    "properties": {"terms": FEATURES, "item": {"type": "object"}},
    "required": ["terms"],
    "additionalProperties": False,
}
FIELD_TYPES = {"opensearch": "rank_features", "elasticsearch": "sparse_vector"}
# Of the document JSON format: a put of a document id, fields by name; a weighted set is an object of int32 by key.
PUT = {
    "type": "object",
    "properties": {
        "put": {"type": "string", "pattern": r"^id:[a-zA-Z0-9_.-]+:stair:(n=\d+|g=[^:]+)?:[\s\S]+$"},
        "fields": {
            "type": "object",
            "properties": {
                "terms": {
                    "type": "object",
                    "additionalProperties": {"type": "integer", "minimum": 1, "maximum": 2**31 - 1},
                },
                "item": {"type": "string"},
            },
            "required": ["terms"],
            "additionalProperties": False,
        },
    },
    "required": ["put", "fields"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("payloads"))


def lines_of(file: Path) -> list[Any]:
    text = file.read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line, object_pairs_hook=_distinct) for line in text.split("\n")[:-1]]


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len({name for name, _ in pairs}) == len(pairs)
    return dict(pairs)


def beside(file: Path, ending: str) -> str:
    return file.with_name(f"{file.name}.{ending}").read_text(encoding="utf-8")


def searched(
    case: Case, rows: list[dict[int, float]], ids: list[str], queries: Any, kept: Any = np.asarray
) -> list[list[tuple[str, float]]]:
    """The best K of each query by the inner product with these documents {term: weight}, as the engine keeps them."""
    starts = np.cumsum([0, *map(len, rows)])
    terms = np.array([term for row in rows for term in row])
    weights = np.array([weight for row in rows for weight in row.values()], np.float64)
    scores = (queries @ scipy.sparse.csr_matrix((kept(weights), terms, starts), case.documents.shape).T).toarray()
    best = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    return [[(ids[n], row[n]) for n in order if row[n] > 0] for row, order in zip(scores, best)]


@pytest.mark.parametrize(("engine", "keys"), [*((engine, "token") for engine in FIELD_TYPES), ("opensearch", "id")])
def test_bulk_requests_and_mapping(case: Case, engine: str, keys: str) -> None:
    file = case.export(f"{engine}-{keys}.ndjson", "--format", engine, "--keys", keys)
    lines = lines_of(file)
    assert len(lines) == 2 * len(case.ids)
    action, source = jsonschema.Draft202012Validator(ACTION), jsonschema.Draft202012Validator(SOURCE)
    for number, name in enumerate(case.ids):
        if number < LOOKED_AT:
            action.validate(lines[2 * number])
            source.validate(lines[2 * number + 1])
        assert lines[2 * number]["index"]["_id"] == name
    field = json.loads(beside(file, "index.json"))["mappings"]["properties"]["terms"]
    assert field == {"type": FIELD_TYPES[engine]}
    written = json.loads(beside(file, "meta.json"))
    assert written["keys"] == keys
    names = case.vocabulary if keys == "token" else [str(v) for v in range(len(case.vocabulary))]
    number_of = {written["renamed"].get(term, term): v for v, term in enumerate(names)}
    assert len(number_of) == len(names)
    rows = [{number_of[term]: weight for term, weight in line["terms"].items()} for line in lines[1::2]]
    off = 2.0**-8 * case.exact + FLOAT32 * case.exact.max()
    case.check(searched(case, rows, case.ids, case.queries.astype(np.float64), _nine_bits), off, 0.98)


def _nine_bits(weights: np.ndarray) -> np.ndarray:
    """A feature is kept as the upper 17 bits of its float32: 8 of the mantissa after the leading one."""
    return (weights.astype(np.float32).view(np.uint32) >> 15 << 15).view(np.float32).astype(np.float64)


@pytest.mark.parametrize("keys", ["token", "id"])
def test_vespa_feed_and_schema(case: Case, keys: str) -> None:
    scale = 2000
    file = case.export(f"vespa-{keys}.jsonl", "--format", "vespa", "--scale", scale, "--keys", keys)
    lines, put = lines_of(file), jsonschema.Draft202012Validator(PUT)
    for line in lines[:LOOKED_AT]:
        put.validate(line)
    ids = [line["put"].removeprefix("id:stair:stair::") for line in lines]
    assert ids == case.ids
    assert json.loads(beside(file, "meta.json"))["scale"] == scale
    schema = beside(file, "sd")
    assert schema.count("{") == schema.count("}")
    assert dict(re.findall(r"field (\w+) type ([\w<>]+)", schema)) == {"terms": "weightedset<string>", "item": "string"}
    assert re.search(r"match: cased\s+dictionary \{\s+cased\s+\}", schema)  # else "Apple" is "apple"
    names = case.vocabulary if keys == "token" else [str(v) for v in range(len(case.vocabulary))]
    number_of = {term: v for v, term in enumerate(names)}
    rows = [{number_of[term]: weight for term, weight in line["fields"]["terms"].items()} for line in lines]
    queries = case.queries.astype(np.float64)
    queries.data = np.round(queries.data * scale)  # wand's weights are integers too
    found = searched(case, rows, ids, queries)
    unscaled = [[(name, score / scale**2) for name, score in hits] for hits in found]
    case.check(unscaled, case.rounded(scale, scale), 0.99)


GOOD: dict[str, tuple[Any, Any]] = {
    "action": (ACTION, {"index": {"_id": "a"}}),
    "source": (SOURCE, {"terms": {"cat": 0.5}, "item": {}}),
    "put": (PUT, {"put": "id:stair:stair::a", "fields": {"terms": {"cat": 5}}}),
}
BAD: list[tuple[str, list[str], Any]] = [
    ("action", ["index", "_id"], ""),
    ("action", ["index", "_id"], 5),
    ("action", ["index", "_type"], "_doc"),
    ("source", ["terms", "a.b"], 0.5),
    ("source", ["terms", "cat"], 0),
    ("source", ["terms", "cat"], "0.5"),
    ("source", ["terms", "cat"], [0.5]),
    ("source", ["terms", "cat"], 1e-39),
    ("put", ["put"], "stair::a"),
    ("put", ["fields", "terms", "cat"], 0.5),
    ("put", ["fields", "terms", "cat"], 2**31),
    ("put", ["fields", "item"], {"name": "a"}),
]


@pytest.mark.parametrize(("form", "place", "value"), BAD)
def test_the_schemas_refuse(form: str, place: list[str], value: Any) -> None:
    schema, good = GOOD[form]
    jsonschema.validate(good, schema)
    bad = copy.deepcopy(good)
    inner = bad
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(bad, schema)
