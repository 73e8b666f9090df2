"""What the service takes and gives, as pydantic models; the OpenAPI schema is made of them."""

# No `from __future__ import annotations`: the models below are made inside a function, for the limits of a service.

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    field_validator,
)

from stair.serve.settings import Settings

KINDS = ("text", "terms", "indices")
HITS, MATCHES, MOST_MATCHES = 10, 8, 100
LARGEST = 1e6  # a weight: the square of a thousand of them is still a float32
Weight = Annotated[float, Field(ge=0, le=LARGEST, allow_inf_nan=False)]


def whole(value: Any) -> Any:
    """7.0 is an integer in JSON; "7" and true are none."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(whole)


def kind_of(request: Any) -> str | None:
    """Which of KINDS a search asks for, or None where it is none or several."""
    present = [name for name in KINDS if isinstance(request, dict) and name in request]
    return present[0] if len(present) == 1 else None


def search_request(settings: Settings) -> Any:
    """The body of POST /v1/search: one of three models, told apart by their fields."""

    class Query(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True)
        k: Annotated[int, Field(ge=1, le=settings.max_k, description="hits"), WHOLE] = min(HITS, settings.max_k)
        matches: Annotated[
            int, Field(ge=0, le=MOST_MATCHES, description="terms shown, of the query and of a hit"), WHOLE
        ] = MATCHES

    class TextQuery(Query):
        """Words, for the model that built the index."""

        model_config = ConfigDict(json_schema_extra={"examples": [{"text": "a red fruit", "k": 5}]})
        text: Annotated[str, StringConstraints(min_length=1, max_length=settings.max_text)]

        @field_validator("text")
        @classmethod
        def has_words(cls, text: str) -> str:
            if not text.strip():
                raise ValueError("expected words, got none")
            return text

    class TermsQuery(Query):
        """Terms of the model's vocabulary with their weights."""

        model_config = ConfigDict(json_schema_extra={"examples": [{"terms": {"red": 1.0, "fruit": 0.5}}]})
        terms: Annotated[dict[str, Weight], Field(min_length=1)]

    class VectorQuery(Query):
        """A sparse vector; no entry comes twice."""

        model_config = ConfigDict(json_schema_extra={"examples": [{"indices": [7, 10], "values": [1.0, 0.5]}]})
        indices: Annotated[
            list[Annotated[int, Field(ge=0, lt=2**31), WHOLE]], Field(json_schema_extra={"uniqueItems": True})
        ]
        values: Annotated[list[Weight], Field(description="as many as indices")]

    discriminator = Discriminator(
        kind_of,
        custom_error_type="query",
        custom_error_message="expected one of text, terms, and indices with values",
    )
    return Annotated[
        Annotated[TextQuery, Tag("text")]
        | Annotated[TermsQuery, Tag("terms")]
        | Annotated[VectorQuery, Tag("indices")],
        discriminator,
    ]


class Term(BaseModel):
    """What a query was read as."""

    term: Annotated[str, Field(description="its number where the index has no model")]
    weight: float


class MatchingTerm(BaseModel):
    """A term that query and item share."""

    term: str
    query: Annotated[float, Field(description="its weight in the query")]
    item: Annotated[float, Field(description="its weight in the item")]
    share: Annotated[float, Field(description="query * item / score")]


class FoundItem(BaseModel):
    rank: int
    score: float
    id: int | str
    name: str | None = None
    picture: Annotated[str | None, Field(description="address of a thumbnail, relative to /")] = None
    item: Annotated[dict[str, Any] | None, Field(description="what the index keeps of it")] = None
    matches: Annotated[list[MatchingTerm], Field(description="largest share first")]


class Answer(BaseModel):
    """Hits, best first. A document that shares no term with the query is none."""

    terms: Annotated[list[Term], Field(description="what the query was read as, heaviest first")]
    hits: list[FoundItem]
    generation: Annotated[int, Field(description="of the index; a reload adds 1")]
    took_ms: float


class About(BaseModel):
    """What is served."""

    documents: int
    vocab_size: int
    queries: Annotated[list[str], Field(description="of text, image, terms and vector")]
    generation: int
    loaded_at: Annotated[float, Field(description="seconds since 1970")]
    max_k: int


class Status(BaseModel):
    status: str


class Reloaded(BaseModel):
    generation: int
    documents: int


class Error(BaseModel):
    code: Annotated[str, Field(description="for programs: invalid, too_large, busy, timeout, ...")]
    message: Annotated[str, Field(description="for people: what was expected and what came")]
    field: Annotated[str | None, Field(description="the part of the request that is wrong")]


class Failure(BaseModel):
    """Every answer with a status of 400 or more."""

    error: Error
