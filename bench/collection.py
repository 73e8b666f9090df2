"""A made-up collection with the statistics of learned sparse rows: topics, frequent terms of low weight."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

V = 30522
N_TOPICS = 1000
TOPIC_TERMS = 160
SUBJECTS = 12  # of a topic: what a document is about, a part of the topic's terms
SUBJECT_TERMS = 36
# Terms drawn, each with the range of its activation: the subject's, the topic's, another topic's, the language's.
DOCUMENT_TERMS = ((32, 0.7, 1.0), (38, 0.05, 0.6), (16, 0.05, 0.6), (64, 0.02, 0.35))
QUERY_TERMS = ((14, 0.6, 1.0), (10, 0.05, 0.5), (2, 0.05, 0.4), (30, 0.02, 0.3))


class Collection(NamedTuple):
    documents: scipy.sparse.csr_matrix
    queries: dict[str, scipy.sparse.csr_matrix]  # by kind


class Language:
    """Terms by rank: how often each is used, how much it weighs, and topics that prefer some of them."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        popularity = 1 / (np.arange(V) + 12.0)
        self.cumulative = np.cumsum(popularity / popularity.sum())
        rarity = np.log(popularity[0] / popularity)
        self.weight = (0.1 + 0.9 * rarity / rarity.max()).astype(np.float32)
        blend = popularity**0.55
        terms = random.choice(V, (N_TOPICS, TOPIC_TERMS), p=blend / blend.sum())
        self.topic_terms = terms
        affinity = random.gamma(0.7, 1.0, terms.shape)
        self.topic_cumulative = np.cumsum(affinity, axis=1) / affinity.sum(axis=1, keepdims=True)
        size = random.gamma(1.0, 1.0, N_TOPICS)
        self.topic_size = np.cumsum(size) / size.sum()
        self.subjects = random.random((N_TOPICS, SUBJECTS, TOPIC_TERMS)).argsort(axis=2)[:, :, :SUBJECT_TERMS]

    def topics(self, n: int) -> np.ndarray:
        return np.searchsorted(self.topic_size, self.random.random(n)).clip(max=N_TOPICS - 1)

    def of_topics(self, topics: np.ndarray, n: int) -> np.ndarray:
        draw = self.random.random((len(topics), n)) + topics[:, None]
        flat = (self.topic_cumulative + np.arange(N_TOPICS)[:, None]).ravel()
        at = np.searchsorted(flat, draw).clip(max=flat.size - 1)
        return self.topic_terms.ravel()[at]

    def at_large(self, rows: int, n: int) -> np.ndarray:
        return np.searchsorted(self.cumulative, self.random.random((rows, n))).clip(max=V - 1)

    def of_subjects(self, topics: np.ndarray, subjects: np.ndarray, n: int) -> np.ndarray:
        draw = self.random.integers(0, SUBJECT_TERMS, (len(topics), n))
        return self.topic_terms[topics[:, None], self.subjects[topics[:, None], subjects[:, None], draw]]

    def texts(self, topics: np.ndarray, subjects: np.ndarray, parts: tuple[Any, ...]) -> scipy.sparse.csr_matrix:
        """One row for each topic and subject; weights as log(1 + relu) has them: bounded, frequent terms low."""
        n = len(topics)
        drawn = [
            self.of_subjects(topics, subjects, parts[0][0]),
            self.of_topics(topics, parts[1][0]),
            self.of_topics(self.topics(n), parts[2][0]),
            self.at_large(n, parts[3][0]),
        ]
        activation = [low + (high - low) * self.random.random((n, count)) for count, low, high in parts]
        return self.rows(np.hstack(drawn), np.hstack(activation))

    def about(self, n: int, parts: tuple[Any, ...]) -> scipy.sparse.csr_matrix:
        """Texts about whatever comes up."""
        return self.texts(self.topics(n), self.random.integers(0, SUBJECTS, n), parts)

    def rows(self, terms: np.ndarray, activation: np.ndarray) -> scipy.sparse.csr_matrix:
        """Of a term that is drawn more than once, the first counts."""
        keys, first = np.unique(
            np.repeat(np.arange(len(terms)), terms.shape[1]) * np.int64(V) + terms.ravel(), return_index=True
        )
        data = np.log1p(4 * self.weight[terms.ravel()[first]] * activation.ravel()[first]).astype(np.float32)
        indptr = np.searchsorted(keys, np.arange(len(terms) + 1) * np.int64(V))
        return scipy.sparse.csr_matrix((data, (keys % V).astype(np.int32), indptr), (len(terms), V))


def make_documents(language: Language, N: int) -> scipy.sparse.csr_matrix:
    """N documents of about 120 terms."""
    sizes = [min(50_000, N - first) for first in range(0, N, 50_000)]
    return scipy.sparse.vstack([language.about(n, DOCUMENT_TERMS) for n in sizes], "csr")


def make_collection(N: int, Q: int, seed: int) -> Collection:
    """N documents, and Q queries of each kind, "plain" ones of about 47 terms."""
    random = np.random.default_rng(seed)
    language = Language(random)
    documents = make_documents(language, N)
    plain = language.about(2 * Q, QUERY_TERMS)
    counts = np.bincount(documents.indices, minlength=V)
    by_count = np.argsort(-counts)
    rare = random.choice(np.flatnonzero((counts > 0) & (counts <= max(20, np.median(counts)))), Q)
    frequent = np.stack([random.choice(by_count[:200], 30, replace=False) for _ in range(Q)])
    queries = {
        "plain": plain[:Q],
        "long": documents[random.integers(0, N, Q)],
        "two merged": (plain[:Q] + plain[Q:]).tocsr(),
        "one rare term": language.rows(rare[:, None], np.ones((Q, 1))),
        "all frequent": language.rows(frequent, 0.02 + 0.3 * random.random((Q, 30))),
    }
    return Collection(documents, queries)
