"""stair.explain: the terms of a text and a picture, and where each was seen."""

from __future__ import annotations

import pytest
from PIL import Image
from stair import STAIRConfig, STAIRModel, STAIRProcessor
from stair.evaluate import unit
from stair.explain import explain, heard, heat, place, spans_of

import stair_kernels as sk


def test_the_score_is_the_cosine_and_the_shares_are_its_parts(
    loaded: tuple[STAIRModel, STAIRProcessor], picture: Image.Image
) -> None:
    model, processor = loaded
    result = explain(model, processor, text="a red fruit", image=picture)
    text = model.encode_text(**processor(text="a red fruit"))
    image = model.encode_image(**processor(images=picture))
    assert result.score == pytest.approx(sk.sparse_dot(unit(text), unit(image)).item(), rel=1e-5)
    assert len(result.shared) > 0
    assert sum(term.share for term in result.shared) == pytest.approx(1)
    for term in result.shared:
        assert term.share == pytest.approx(term.text_weight * term.image_weight / result.score)
    assert len(result.text_terms) == int(text.nnz())
    assert len(result.image_terms) == int(image.nnz())


def test_each_term_names_the_position_that_won(loaded: tuple[STAIRModel, STAIRProcessor], picture: Image.Image) -> None:
    model, processor = loaded
    result = explain(model, processor, text="a red fruit", image=picture)
    pieces = ["[CLS]", "a", "red", "fruit", "[SEP]"]
    rows = model.encode_text(**processor(text="a red fruit"))
    assert [term.where for term in result.text_terms] == [pieces[p] for p in rows.positions[0].tolist() if p >= 0]
    rows = model.encode_image(**processor(images=picture))
    assert [term.position for term in result.image_terms] == [p for p in rows.positions[0].tolist() if p >= 0]


@pytest.mark.parametrize("head", ["fused", "reference"])
def test_maps_say_what_each_position_alone_would_give(
    loaded: tuple[STAIRModel, STAIRProcessor], picture: Image.Image, head: str
) -> None:
    model, processor = loaded
    fused = explain(model, processor, text="a red fruit", image=picture)
    towers = (model.text_head, model.image_head)
    for tower in towers:
        tower.kind = head
    try:
        result = explain(model, processor, text="a red fruit", image=picture)
    finally:
        for tower in towers:
            tower.kind = "fused"
    for terms, length in ((result.text_terms, len(result.pieces)), (result.image_terms, result.grid**2)):
        for term in terms:
            assert len(term.map) == length
            assert max(term.map) == pytest.approx(term.weight, rel=1e-5)
            assert term.map[term.position] == max(term.map)
            assert min(term.map) >= 0
    assert [term.term for term in result.shared] == [term.term for term in fused.shared]
    assert [term.image_position for term in result.shared] == [term.image_position for term in fused.shared]
    own = {term.term: term for term in result.image_terms}
    assert all(term.image_map == own[term.term].map for term in result.shared)


def test_spans_are_those_of_the_pooled_features() -> None:
    """An uneven side: the last row and column of positions cover what is left."""
    config = STAIRConfig(text_config={"vocab_size": 80}, vision_config={"image_size": 112, "pool": 2})
    assert (config.grid, spans_of(config)) == (4, [2, 2, 2, 1])
    assert sum(spans_of(config)) == config.vision_config.side


def test_one_side_alone(loaded: tuple[STAIRModel, STAIRProcessor], picture: Image.Image) -> None:
    only_text = explain(*loaded, text="a red fruit")
    assert only_text.score is None
    assert only_text.image_terms == []
    only_image = explain(*loaded, image=picture, image_name="red.png", k=3)
    assert only_image.image == "red.png"
    assert len(only_image.image_terms) == 3


def test_nothing_or_an_empty_text_is_refused(loaded: tuple[STAIRModel, STAIRProcessor]) -> None:
    with pytest.raises(ValueError, match="at least one of the two"):
        explain(*loaded)
    with pytest.raises(ValueError, match="text: expected words"):
        explain(*loaded, text="  ")


def test_heat_holds_every_share_once(loaded: tuple[STAIRModel, STAIRProcessor], picture: Image.Image) -> None:
    result = explain(*loaded, text="a red fruit", image=picture)
    cells = heat(result.shared, result.grid)
    assert len(cells) == len(cells[0]) == 2
    assert sum(map(sum, cells)) == pytest.approx(1)
    assert sum(heard(result.shared, result.pieces)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("position", "words"),
    [
        (0, "top left (1, 1)"),
        (6, "top right (1, 7)"),
        (24, "centre (4, 4)"),
        (45, "bottom (7, 4)"),
        (21, "left (4, 1)"),
    ],
)
def test_places_are_said_in_words(position: int, words: str) -> None:
    assert place(position, 7) == words


def test_places_are_symmetrical_on_an_even_grid() -> None:
    assert [place(column, 4).split(" (")[0] for column in range(4)] == ["top left", "top", "top", "top right"]
    assert [place(4 * row, 4).split(" (")[0] for row in range(4)] == ["top left", "left", "left", "bottom left"]
