"""The benchmarks of search: what counts as found, engines that are absent, WordNet's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peers
import peers_inverted
import pytest
import scipy.sparse
import search
import wordnet

import stair_kernels as sk

NOUNS = """  1 This software and database is being provided to you
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 | that which is perceived; "the entity | of it"; "more"
00002684 03 n 02 object 0 physical_object(p) 0 039 @ 00001930 n 0000 | a tangible and visible entity
00002685 03 n 01 quoted 0 000 | "only an example"
"""


def test_glosses_are_read_without_their_examples(tmp_path: Path) -> None:
    for part in wordnet.PARTS:
        (tmp_path / f"data.{part}").write_text(NOUNS if part == "noun" else "  1 licence\n")
    assert wordnet.glosses(tmp_path) == [
        (["entity"], "that which is perceived"),
        (["object", "physical object"], "a tangible and visible entity"),
        (["quoted"], '"only an example"'),
    ]
    (tmp_path / "data.adv").unlink()
    with pytest.raises(ValueError, match="apt-get install wordnet-base"):
        wordnet.glosses(tmp_path)


def test_recall_counts_a_document_as_good_as_the_tenth() -> None:
    weights = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0.5, 0.5, 0.25]
    documents = scipy.sparse.csr_matrix(np.array(weights, np.float32)[:, None])
    query = scipy.sparse.csr_matrix(np.ones((1, 1), np.float32))
    assert peers.recall(documents, query, np.array([*range(9), 10])) == 1  # 10 is as good as 9
    assert peers.recall(documents, query, np.array([*range(9), 11])) == 0.9
    assert peers.recall(documents, query, np.array([0, 0, 0, -1])) == 0.1
    assert peers.recall(documents[:3], query, np.array([0, 1, 2])) == 1


def test_engines_take_turns_and_absent_ones_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    absent = (peers.vsag, "no_such_module", "pyvsag")
    monkeypatch.setattr(peers, "ENGINES", (*peers.ENGINES[:2], absent))
    picture = tmp_path / "peers.svg"
    arguments = ["peers.py", "--documents", "400", "--queries", "4", "--passes", "1", "--plot", str(picture)]
    monkeypatch.setattr("sys.argv", arguments)
    for name in peers.ONE_THREAD:
        monkeypatch.setenv(name, "1")
    peers.main()
    captured = capsys.readouterr()
    rows = [line.split(" | ") for line in captured.out.splitlines() if line.startswith(("| stair", "| scipy"))]
    assert [(row[0], row[2]) for row in rows] == [("| stair_kernels", "1.0000")] * 2 + [("| scipy", "1.0000")]
    assert "pyvsag is not installed and left out" in captured.err
    assert "<svg" in picture.read_text()


@pytest.mark.usefixtures("one_thread")
def test_a_wrong_answer_ends_the_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of whatever kind: a score, an id that is missing. Without one the table has a line for every kind of query."""
    monkeypatch.setattr("sys.argv", ["search.py", "--documents", "400", "--queries", "3", "--passes", "1"])
    search.main()
    table = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert table[1:] == ["| plain", "| long", "| two merged", "| one rare term", "| all frequent"]
    right = sk.SparseIndex.search

    def wrong_score(*arguments: Any) -> Any:
        scores, ids = right(*arguments)
        scores[1, 2] *= 1.001
        return scores, ids

    def missing(*arguments: Any) -> Any:
        scores, ids = right(*arguments)
        ids[1, 2] = -1
        return scores, ids

    for wrong in (wrong_score, missing):
        monkeypatch.setattr(sk.SparseIndex, "search", wrong)
        with pytest.raises(SystemExit, match=r"(?s)^plain: query 1 is wrong: .*, the C loop has") as caught:
            search.main()
        assert isinstance(caught.value.code, str), "exit code 1"
        assert "| plain" not in capsys.readouterr().out


def test_inverted_lists_as_pisa_reads_them(tmp_path: Path) -> None:
    rows = scipy.sparse.csr_matrix(np.array([[0.5, 0, 1.0], [0.001, 0, 0.25]], np.float32))
    peers_inverted._write_inverted(rows, tmp_path)
    read = {name: np.fromfile(tmp_path / f"inv.{name}", np.uint32).tolist() for name in ("docs", "freqs", "sizes")}
    assert read == {
        "docs": [1, 2, 2, 0, 1, 2, 0, 1],
        "freqs": [2, 128, 1, 2, 255, 64],
        "sizes": [2, 128 + 255, 1 + 64],
    }
    assert (tmp_path / "fwd.terms").read_text() == "0\n2\n"
    assert (tmp_path / "fwd.documents").read_text() == "0\n1\n"
