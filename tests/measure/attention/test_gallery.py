"""The gallery: its page, its errors, and its behaviour in a real browser."""

import re
from dataclasses import replace

import pytest
import torch
from playwright.sync_api import Browser, Page

from infvit.errors import UsageError
from infvit.measure.attention import gallery
from infvit.measure.attention.gallery import LOWEST, codes, write_gallery
from infvit.measure.attention.gallery_input import GalleryInput, columns, gallery_input
from infvit.measure.attention.maps import offered, token_map
from tests.chromium import needs_chromium, opened_page
from tests.measure.attention.gallery_cases import COLUMNS, EVIL, ROWS, images, inputs, network

PURE, LINEAR = "infvit", EVIL
SHOWN = ["attention", "rollout", "katz_in", "random"]


@pytest.fixture(scope="module")
def networks():
    return {PURE: network("infsa", depth=3), LINEAR: network("linear_infsa"), "xca": network("xca")}


@pytest.fixture(scope="module")
def page_file(networks, tmp_path_factory):
    file = tmp_path_factory.mktemp("gallery") / "gallery.html"
    return write_gallery(file, GalleryInput(networks, images(), ["first", EVIL]), SHOWN)


@pytest.fixture
def opened(browser: Browser, page_file):
    with opened_page(browser, page_file) as page:
        yield page


def the_map(page: Page, model: int, method: int, image: int):
    return page.locator(f".map[data-model='{model}'][data-method='{method}'][data-image='{image}']")


def hover(page: Page, model: int, method: int, image: int, token: int):
    """Points at the middle of a token → (title, the text under each name)."""
    chosen = the_map(page, model, method, image)
    chosen.scroll_into_view_if_needed()
    box = chosen.bounding_box()
    row, column = divmod(token, COLUMNS)
    page.mouse.move(box["x"] + (column + 0.5) * box["width"] / COLUMNS, box["y"] + (row + 0.5) * box["height"] / ROWS)
    return tooltip(page)


def tooltip(page: Page):
    title, *lines = page.eval_on_selector_all("#tip strong, #tip dt, #tip dd", "all => all.map(e => e.textContent)")
    facts: dict[str, list[str]] = {}
    name = ""
    for term, words in zip(lines[::2], lines[1::2], strict=True):
        name = term or name
        facts.setdefault(name, []).append(words)
    return title, facts


def outlined(page: Page, model: int, method: int, image: int, kind: str):
    rects = the_map(page, model, method, image).locator(f"rect.{kind}")
    return rects.evaluate_all(f"all => all.map(r => r.getAttribute('y') * {COLUMNS} + +r.getAttribute('x'))")


def choose(page: Page, slider: str, value: int):
    page.locator(f"#{slider}").fill(str(value))


def pixels(chosen) -> str:
    return chosen.locator("canvas").evaluate("c => c.toDataURL()")


def percent(words: str) -> float:
    number = re.match(r"([\d.]+)(?: × 10\^(-\d+))? %", words)
    return float(number[1]) * 10 ** int(number[2] or 0) / 100


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("block", [1, 3, None])
def test_a_token_shows_its_share_its_rank_and_its_largest_weights(opened, networks, block):
    if block is None:
        opened.click("#together")
    else:
        choose(opened, "block", block)
    pure, x = networks[PURE].model, inputs(images())
    shares = token_map(pure, x, "katz_in", block=None if block is None else block - 1)[1].flatten()
    # What each patch weighs the patches with, by the formula: heads averaged, blocks too where all are together.
    named = pure.features(x)
    each = [pure.blocks[i].attn.weights(named[f"blocks.{i}.norm1"])[1].mean(0)[1:, 1:].detach() for i in range(3)]
    weights = sum(each) if block is None else each[block - 1]
    for token in (0, 9, ROWS * COLUMNS - 1):
        title, facts = hover(opened, 0, 2, 1, token)
        assert title == f"{PURE}, katz in, " + ("all blocks" if block is None else f"block {block} of 3")
        assert facts["Token"] == [f"row {token // COLUMNS + 1}, column {token % COLUMNS + 1}"]
        assert percent(facts["Share"][0]) == pytest.approx(shares[token].item(), rel=6e-3)
        assert facts["Rank"] == [f"{1 + int((shares > shares[token]).sum())} of {ROWS * COLUMNS}"]
        row = weights[token] / weights[token].sum()
        strongest = [i for i in row.argsort(descending=True).tolist()[:5] if row[i] > 0]
        expected = ["itself" if i == token else f"row {i // COLUMNS + 1}, column {i % COLUMNS + 1}" for i in strongest]
        assert [words.partition(":")[0] for words in facts["Weighs most"]] == expected
        assert [percent(words.partition(": ")[2]) for words in facts["Weighs most"]] == pytest.approx(
            row[strongest].tolist(), rel=6e-3
        )
        assert outlined(opened, 0, 2, 1, "near") == strongest
        # The token itself in every map of its row, in no other.
        assert outlined(opened, 0, 2, 1, "here") == outlined(opened, 1, 0, 1, "here") == [token]
        assert outlined(opened, 0, 2, 0, "here") == []
    opened.mouse.move(5, 5)
    assert not opened.locator("#tip").is_visible()
    assert opened.locator("rect").count() == 0


@needs_chromium
def test_one_weight_for_all_tokens_has_no_neighbours_and_no_weights_have_none_at_all(opened, networks):
    choose(opened, "block", 3)
    title, facts = hover(opened, 1, 0, 0, 7)
    assert title == f"{EVIL}, attention, block 2 of 2"  # the last that it has
    assert facts["Neighbours"][0].startswith("none of its own")
    heaviest = token_map(networks[LINEAR].model, inputs(images()), "attention")[0].flatten().topk(5).indices.tolist()
    assert outlined(opened, 1, 0, 0, "near") == heaviest
    assert len(facts["Neighbours"]) == 6
    title, facts = hover(opened, 2, 0, 0, 7)
    assert title.startswith("xca, random")
    assert facts["Neighbours"] == ["none: this attention weighs no tokens"]


@needs_chromium
def test_sliders_change_what_is_drawn(opened):
    drawn = {method: [] for method in SHOWN}
    for value in (1, 2, 3, None):
        if value is None:
            opened.click("#together")
        else:
            choose(opened, "block", value)
        assert opened.inner_text("#which") == ("all" if value is None else f"{value} of 3")
        for k, method in enumerate(SHOWN):
            drawn[method].append(pixels(the_map(opened, 0, k, 1)))
    # Rollout through all blocks ends at the last; random has no blocks.
    assert [len(set(drawn[method])) for method in SHOWN] == [4, 3, 4, 1]
    assert drawn["rollout"][2] == drawn["rollout"][3]
    opacity = "document.querySelector('canvas').computedStyleMap().get('opacity').value"
    assert opened.evaluate(opacity) == pytest.approx(0.65)
    choose(opened, "opacity", 20)
    assert opened.evaluate(opacity) == pytest.approx(0.2)
    assert opened.inner_text("#how") == "20 %"
    assert pixels(the_map(opened, 0, 0, 1)) == drawn["attention"][-1]


@needs_chromium
def test_a_map_is_lightest_at_its_largest_share(opened, networks):
    shares = token_map(networks[PURE].model, inputs(images()), "attention")[0].flatten()
    read = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    colours = torch.tensor(the_map(opened, 0, 0, 0).locator("canvas").evaluate(read)).view(-1, 4)
    lightness = colours[:, :3].float() @ torch.tensor([0.299, 0.587, 0.114])
    assert lightness.argmax() == shares.argmax()
    assert colours[shares.argmax()].tolist() == [252, 255, 164, 255]
    order = shares.argsort()
    assert (lightness[order].diff() >= -1).all()


@needs_chromium
def test_the_keyboard_goes_from_map_to_map_and_token_to_token(opened, networks):
    opened.focus("#opacity")
    opened.keyboard.press("Tab")
    largest = int(token_map(networks[PURE].model, inputs(images()), "attention")[0].argmax())
    row, column = divmod(largest, COLUMNS)
    assert tooltip(opened)[1]["Token"] == [f"row {row + 1}, column {column + 1}"]
    assert tooltip(opened)[1]["Rank"][0].startswith("1 of")
    for key in ["ArrowLeft"] * COLUMNS + ["ArrowUp"] * ROWS + ["ArrowRight", "ArrowDown", "ArrowDown"]:
        opened.keyboard.press(key)
    assert tooltip(opened)[1]["Token"] == ["row 3, column 2"]
    opened.keyboard.press("Tab")
    assert tooltip(opened)[0].startswith(f"{PURE}, rollout")
    opened.keyboard.press("Escape")
    assert not opened.locator("#tip").is_visible()
    opened.keyboard.press("ArrowLeft")
    assert opened.locator("#tip").is_visible()


@needs_chromium
def test_names_that_are_scripts_are_shown_and_not_run(opened, page_file):
    assert opened.title() == f"What {PURE}, {EVIL} and xca look at"
    assert EVIL in opened.inner_text("thead")
    assert EVIL in opened.inner_text("tbody tr:nth-child(2) th")
    assert EVIL not in page_file.read_text()


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_every_model_without_scrolling_sideways_and_a_tap_shows_the_token(
    browser, networks, page_file, scheme
):
    phone = {"viewport": {"width": 400, "height": 840}, "has_touch": True, "is_mobile": True, "color_scheme": scheme}
    with opened_page(browser, page_file, **phone) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 400
        # Every map of every model is within the width of the page, under the model's name.
        right = page.eval_on_selector_all(".map", "maps => maps.map(m => m.getBoundingClientRect().right)")
        assert len(right) == 2 * sum(map(len, columns(networks, SHOWN).values()))
        assert max(right) <= 400
        names = page.eval_on_selector_all("td", "all => all.map(td => getComputedStyle(td, '::before').content)")
        assert all(any(words.startswith(f'"{name}: ') for words in names) for name in (PURE, LINEAR))
        light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(245, 246, 249)"
        assert light == (scheme == "light")
        first = the_map(page, 0, 0, 0)
        first.tap(position={"x": 5, "y": 5})
        assert tooltip(page)[1]["Token"] == ["row 1, column 1"]
        box = page.locator("#tip").bounding_box()
        assert 0 <= box["x"] <= box["x"] + box["width"] <= 400
        first.tap(position={"x": 5, "y": 5})
        assert not page.locator("#tip").is_visible()


def test_sixteen_bits_keep_three_digits_of_every_share():
    shares = torch.cat([torch.logspace(-16, 0, 5000, dtype=torch.float64), torch.zeros(1)])
    kept = codes(shares).astype(float)
    read = [code and LOWEST ** (1 - (code - 1) / 65534) for code in kept]
    assert read == pytest.approx(shares.tolist(), rel=3e-4, abs=0)
    assert codes(torch.tensor([1e-30, 0.0, 1.0])).tolist() == [1, 0, 65535]


@needs_chromium
def test_heads_that_are_off_leave_empty_maps_with_a_note(browser, tmp_path):
    networks = {attention: network(attention) for attention in ("infsa", "linear_infsa")}
    with torch.no_grad():  # q = 1 and k = -1 for every token
        for off in networks.values():
            for block in off.model.blocks:
                block.attn.qkv.weight.zero_()
                block.attn.qkv.bias[:16], block.attn.qkv.bias[16:32] = 1, -1
    file = write_gallery(tmp_path / "gallery.html", GalleryInput(networks, images(), ["1", "2"]), ["attention"])
    with opened_page(browser, file) as page:
        assert set(page.locator(".peak").all_text_contents()) == {"0 everywhere"}
        for model in (0, 1):
            _, facts = hover(page, model, 0, 1, 7)
            assert facts["Share"] == ["0"]
            assert facts["Weighs most"] == ["nothing: every head is off"]


def test_input_that_cannot_be_shown_is_refused_in_one_line(networks, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="methods has katz, which is unknown: choose of attention"):
        columns(networks, ["katz"])
    alone = {"linear": networks[LINEAR]}
    with pytest.raises(UsageError, match="methods has rollout, which no model here offers: linear offers attention"):
        columns(alone, ["rollout"])
    assert columns(networks, ["weights", "katz_in"]) == {PURE: ("katz_in",), LINEAR: ("weights", "katz_in")}
    assert columns(alone)["linear"] == offered(networks[LINEAR].model)
    broken = network("infsa")
    torch.nn.init.constant_(broken.model.blocks[0].attn.qkv.weight, torch.nan)
    with pytest.raises(UsageError, match="broken: its maps are not finite"):
        write_gallery(tmp_path / "gallery.html", GalleryInput({"broken": broken}, images(), ["1", "2"]), ["attention"])
    monkeypatch.setattr(gallery, "MOST_BYTES", 1000)
    with pytest.raises(UsageError, match="would be larger than"):
        write_gallery(tmp_path / "gallery.html", GalleryInput(alone, images(), ["1", "2"]))
    assert not (tmp_path / "gallery.html").exists()


def test_models_for_images_of_different_sizes_share_no_page():
    class TwoSizes:
        def load(self, checkpoint):
            return replace(network("softmax"), view=lambda _: torch.zeros(3, int(checkpoint), 12, dtype=torch.uint8))

    with pytest.raises(UsageError, match=r"different sizes \(softmax#1 8 × 12, softmax#2 16 × 12\)"):
        gallery_input(TwoSizes(), ["8", "16"], 1, image="photograph.jpg")
