"""The glosses of WordNet 3.0 as a collection of SPLADE rows: documents are glosses, queries their lemmas.

    apt-get install wordnet-base          # /usr/share/wordnet; WordNet's own licence, read as data
    python bench/wordnet.py               # encodes 117,659 glosses with SPLADE-tiny, kept in out/bench/wordnet-*.npz
    python bench/search.py --wordnet      # how fast and how good the search over them is

Examples in quotation marks are left out of a gloss: they hold the lemma, which the query asks for.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch

FOLDER = Path("/usr/share/wordnet")
CACHE = Path(__file__).resolve().parent.parent / "out" / "bench"
PARTS = ("noun", "verb", "adj", "adv")
EXAMPLE = re.compile(r'"[^"]*"?')
K = 256  # entries kept of a row: all that SPLADE-tiny gives a gloss
QUERIES = 5000


class Gloss(NamedTuple):
    lemmas: list[str]
    text: str


class WordNet(NamedTuple):
    documents: scipy.sparse.csr_matrix  # [117659, V]
    queries: scipy.sparse.csr_matrix  # [QUERIES, V]
    answers: np.ndarray  # [QUERIES], the document of each


def glosses(folder: Path = FOLDER) -> list[Gloss]:
    """Every synset's lemmas and definition. ValueError where WordNet is not installed."""
    found = []
    for part in PARTS:
        file = folder / f"data.{part}"
        if not file.is_file():
            raise ValueError(f"{file}: no such file; apt-get install wordnet-base")
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith("  "):
                continue  # the licence
            fields, gloss = line.split(" | ", 1)
            words = fields.split(" ")
            lemmas = [word.split("(")[0].replace("_", " ") for word in words[4 : 4 + 2 * int(words[3], 16) : 2]]
            text = " ".join(EXAMPLE.sub("", gloss).strip(" ;").split())
            found.append(Gloss(lemmas, text or gloss))
    return found


def wordnet(folder: Path = FOLDER, cache: Path = CACHE) -> WordNet:
    """The collection, from the cache where it is there."""
    found = glosses(folder)
    chosen = np.random.default_rng(0).permutation(len(found))[:QUERIES]
    documents = _encoded([gloss.text for gloss in found], cache / "wordnet-documents.npz")
    queries = _encoded([", ".join(found[number].lemmas) for number in chosen], cache / "wordnet-queries.npz")
    return WordNet(documents, queries, chosen)


def _encoded(texts: Sequence[str], file: Path) -> scipy.sparse.csr_matrix:
    if file.is_file():
        return scipy.sparse.load_npz(file)
    from stair.formats.documents import as_csr
    from stair.pretrained import initial_model

    model, processor = initial_model()
    model.eval()
    order = np.argsort([len(text) for text in texts], kind="stable")  # texts of a length together
    parts = []
    with torch.inference_mode():
        for start in range(0, len(texts), 256):
            batch = [texts[number] for number in order[start : start + 256]]
            parts.append(as_csr(model.encode_text(**processor(text=batch), k=K)))
            print(f"\rencoded {start + len(batch):,} of {len(texts):,}", end="", file=sys.stderr)
    print(file=sys.stderr)
    encoded = scipy.sparse.vstack(parts).tocsr()[np.argsort(order)]
    file.parent.mkdir(parents=True, exist_ok=True)
    scipy.sparse.save_npz(file, encoded)
    return encoded


if __name__ == "__main__":
    collection = wordnet()
    for name, rows in (("glosses", collection.documents), ("queries", collection.queries)):
        print(f"{rows.shape[0]:,} {name}, {rows.nnz / rows.shape[0]:.1f} terms each")
