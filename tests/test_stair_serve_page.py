"""The search page of `stair serve`, in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import BACK, ENTER, MISSING, Browser, browser
from html_page import assert_loads_nothing, assert_well_formed
from serving import Client, running, save_tiny_collection
from stair.serve import Folder, Settings
from stair.templates import rendered

import stair_kernels as sk

HITS = "document.querySelectorAll('#hits > li')"
ERROR = "document.getElementById('error')"
NAMES = "return [...document.querySelectorAll('#hits h2')].map(found => found.firstChild.textContent)"
needs_browser = pytest.mark.skipif(MISSING is not None, reason=MISSING or "")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    save_tiny_collection(folder)
    return folder


@pytest.fixture(scope="module")
def client(place: Path) -> Iterator[Client]:
    with running(Folder(place / "index"), Settings(max_text=60, max_body=20_000)) as made:
        yield made


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as made:
        made.shape(1200)
        yield made


@pytest.fixture
def page(window: Browser, client: Client) -> Iterator[Browser]:
    """The page as it opens; after the test its console must hold nothing but refused requests."""
    window.open(f"http://127.0.0.1:{client.port}/")
    window.wait("document.getElementById('about').textContent")
    yield window
    assert [line for line in window.log() if "the server responded with a status of 4" not in line] == []


def test_the_page_loads_nothing_and_may_not(client: Client) -> None:
    got = client.ask("GET", "/")
    policy = got.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    html = got.body.decode()
    assert html == rendered("serve.html", {"version": sk.__version__})
    before, script, after = html.partition("<script>")
    assert script
    still = before + after.partition("</script>")[2]
    assert_well_formed(still)
    assert_loads_nothing(still)
    assert "innerHTML" not in after


@needs_browser
def test_words_typed_find_items_with_their_matching_terms(page: Browser, client: Client) -> None:
    page.press(*"a red fruit", ENTER)  # the box has the focus when the page opens
    page.wait(f"{HITS}.length")
    expected = client.search(text="a red fruit", k=12).json
    assert page.run(NAMES) == [hit["name"] for hit in expected["hits"]]
    first = page.run("return document.querySelector('#hits > li').innerText").split()
    best = expected["hits"][0]
    assert f"{best['score']:.3f}" in first
    for match in best["matches"]:
        assert match["term"] in first
        assert f"{100 * match['share'] + 1e-9:.0f}%" in first
    read = page.run("return document.getElementById('read').innerText").split()
    assert [term["term"] for term in expected["terms"]] == read[::2]
    assert page.run("return location.search") == "?q=a+red+fruit"
    page.wait("[...document.querySelectorAll('#hits img')].every(image => image.naturalWidth > 0)")
    assert page.run("return document.querySelectorAll('#hits img').length") == 4


@needs_browser
def test_an_uploaded_picture_finds_itself(page: Browser, place: Path) -> None:
    page.type("#picture", str(place / "pictures" / "green.png"))
    page.wait(f"{HITS}.length")
    assert page.run(NAMES)[0] == "green"
    assert page.wait("document.getElementById('preview').naturalWidth") == 40
    page.click("#clear")
    assert page.run("return document.activeElement.id") == "text"
    page.press(*"night", ENTER)
    page.wait("location.search === '?q=night' && document.getElementById('status').textContent.includes('read as')")
    assert page.run("return document.getElementById('preview').hidden")


@needs_browser
def test_a_dropped_picture_is_searched_with(page: Browser) -> None:
    page.run(
        "const canvas = document.createElement('canvas'); canvas.width = canvas.height = 20;"
        "const context = canvas.getContext('2d'); context.fillStyle = '#00d'; context.fillRect(0, 0, 20, 20);"
        "const data = Uint8Array.from(atob(canvas.toDataURL().split(',')[1]), (c) => c.charCodeAt(0));"
        "const moved = new DataTransfer(); moved.items.add(new File([data], 'b.png', {type: 'image/png'}));"
        "document.dispatchEvent(new DragEvent('dragover', {dataTransfer: moved, cancelable: true}));"
        "window.marked = document.body.className;"
        "document.dispatchEvent(new DragEvent('drop', {dataTransfer: moved, cancelable: true}));"
    )
    page.wait(f"{HITS}.length")
    assert page.run("return [window.marked, document.body.className]") == ["over", ""]


@needs_browser
def test_what_went_wrong_is_said(page: Browser, tmp_path: Path) -> None:
    page.press(ENTER)
    assert "Type some words" in page.wait(f"!{ERROR}.hidden && {ERROR}.textContent")
    page.press(*"a" * 61, ENTER)
    page.wait(f"{ERROR}.textContent.startsWith('text: ')")
    page.press(*[BACK] * 61, *"dog", ENTER)
    page.wait(f"{ERROR}.hidden && {HITS}.length")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    page.type("#picture", str(tmp_path / "broken.png"))
    page.wait(f"{ERROR}.textContent.startsWith('image: expected')")
    assert page.run(f"return {HITS}.length") == 0
    (tmp_path / "large.png").write_bytes(bytes(30_000))
    page.type("#picture", str(tmp_path / "large.png"))
    page.wait(f"{ERROR}.textContent.startsWith('body: expected at most')")


@needs_browser
def test_names_are_shown_as_text_and_links_open_a_search(page: Browser, client: Client) -> None:
    page.open(f"http://127.0.0.1:{client.port}/?q=%3Cimg%20src%3Dx%20onerror%3D%22document.title%3D1%22%3E%20dog")
    page.wait(f"{HITS}.length || !{ERROR}.hidden")
    assert page.run("return document.querySelector('#text').value").startswith("<img")
    assert page.run(
        "return [document.title, document.querySelectorAll('main img:not(#preview, .thumb img)').length]"
    ) == [
        "STAIR search",
        0,
    ]
    page.run("history.pushState(null, '', '?q=night'); history.pushState(null, '', '?q=dog'); history.back()")
    page.wait("document.getElementById('text').value === 'night'")


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 420, 320])
def test_it_fits_the_window_and_every_control_has_a_name(
    window: Browser, client: Client, width: int, dark: bool
) -> None:
    window.shape(width, dark=dark)
    window.open(f"http://127.0.0.1:{client.port}/?q=a+red+fruit")
    window.wait(f"{HITS}.length")
    assert window.run("return document.documentElement.scrollWidth") <= width
    paper = window.run("return getComputedStyle(document.body).backgroundColor").strip("rgb()").split(",")
    assert (int(paper[0]) < 60) == dark
    nodes = window.devtools("Accessibility.getFullAXTree")["nodes"]
    controls = {"searchbox", "button", "combobox", "list", "img", "textbox"}
    named = [(n["role"]["value"], n["name"]["value"]) for n in nodes if n.get("role", {}).get("value") in controls]
    assert len(named) > 8
    assert [role for role, name in named if not name] == []
    window.shape(1200)


@needs_browser
def test_an_index_without_a_model_says_what_it_takes(window: Browser, tmp_path: Path) -> None:
    import scipy.sparse

    sk.SparseIndex.build(scipy.sparse.identity(3, "float32", "csr")).save(tmp_path / "index")
    with running(Folder(tmp_path / "index"), Settings(max_k=5)) as client:
        window.open(f"http://127.0.0.1:{client.port}/")
        window.wait("document.getElementById('about').textContent.includes('takes vectors')")
        assert window.run("return document.getElementById('k').value") == "5"
