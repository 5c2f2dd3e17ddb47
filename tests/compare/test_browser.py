"""The page alive in a real browser: headless Chromium, driven by Playwright."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from playwright.sync_api import Browser, Page

from tests.chromium import needs_chromium, opened_page
from tests.compare.conftest import EVIL

pytestmark = [needs_chromium, pytest.mark.slow]


@pytest.fixture
def opened(browser: Browser, page_file: Path) -> Iterator[Page]:
    """The page drawn, at 1280 pixels by day."""
    with opened_page(browser, page_file) as page:
        page.wait_for_selector("[data-chart=train_loss] svg .mark-line path")
        yield page


def names(page: Page) -> list[str]:
    """The visible rows of the table, from the top."""
    return page.eval_on_selector_all("#results tr[data-row]:not([hidden])", "rows => rows.map(r => r.dataset.row)")


def lines(page: Page, chart: str) -> int:
    """The curves that a chart draws."""
    return page.locator(f"[data-chart={chart}] .mark-line path[d*='L']").count()


DIGITS, MINE = "vit (recipe=digits)", "vit (recipe=mine)"


def test_a_click_on_a_heading_sorts_and_another_turns_the_order(opened):
    assert names(opened) == ["infvit", DIGITS, "linear_infvit", MINE, EVIL]
    opened.click("#rare")
    heading = opened.locator("#results th", has_text="Test loss")
    heading.click()
    assert names(opened) == ["infvit", DIGITS, "linear_infvit", MINE, EVIL]
    heading.click()
    assert names(opened) == [EVIL, MINE, "linear_infvit", DIGITS, "infvit"]
    opened.locator("#results th", has_text="Δ top-1").click()
    # What has no difference stays last, in either order; the baseline stands at zero.
    assert names(opened)[:3] == ["infvit", DIGITS, "linear_infvit"]
    opened.locator("#results th", has_text="Δ top-1").click()
    assert names(opened)[:3] == ["linear_infvit", DIGITS, "infvit"]
    assert opened.eval_on_selector_all("#results th[aria-sort]", "heads => heads.map(h => h.ariaSort)") == ["ascending"]


def test_filters_by_model_and_recipe_hold_for_tables_and_charts(opened):
    assert lines(opened, "val_top1") == 5
    opened.click("[data-filter=model] summary")
    opened.check("[data-filter=model] input[value=vit]")
    opened.check("[data-filter=model] input[value=infvit]")
    assert names(opened) == ["infvit", DIGITS, MINE]
    opened.wait_for_function("document.querySelectorAll(`[data-chart=val_top1] .mark-line path[d*='L']`).length == 3")
    opened.click("[data-filter=recipe] summary")
    opened.check("[data-filter=recipe] input >> nth=1")
    assert names(opened) == [MINE]
    assert opened.locator("#runs tbody tr:visible").count() == 1
    assert opened.inner_text("#shown") == "1 of 5 shown"
    opened.wait_for_function("document.querySelectorAll(`[data-chart=val_top1] .mark-line path[d*='L']`).length == 1")
    assert opened.locator("[data-chart=val_top1] .role-legend-label text").all_text_contents() == [MINE]
    opened.click("#clear")
    assert len(names(opened)) == 5


def test_charts_mark_what_is_not_comparable_and_the_cost_can_be_chosen(opened):
    dashed = "[data-chart=val_top1] .mark-line path[d*='L'][stroke-dasharray='5,4']"
    assert opened.locator(dashed).count() == 2
    for chart in ("accuracy", "paired", "flops_forward"):
        assert opened.locator(f"[data-chart={chart}] svg").is_visible()
    opened.click("[data-cost=seconds]")
    opened.wait_for_selector("[data-chart=seconds] svg")
    assert not opened.locator("[data-chart=flops_forward]").is_visible()
    hollow = opened.locator("[data-chart=seconds] .mark-symbol path[fill-opacity='0.15']")
    assert hollow.count() == 2


def test_pointing_at_a_row_shows_its_configuration(opened):
    assert not opened.locator("#tip").is_visible()
    opened.hover("#results tbody tr:nth-child(3) td:nth-child(2)")
    words = opened.inner_text("#tip").split("\n")
    assert words[0] == "linear_infvit"
    assert "linear_infsa" in words
    assert "34cd90ab12ef5678" in words
    opened.hover("h1")
    assert not opened.locator("#tip").is_visible()
    opened.hover(f'#runs tr[data-row="{MINE}"] td:nth-child(2)')
    assert "python train.py -m experiment=digits model=vit,infvit,linear_infvit seed=0,1" in opened.inner_text("#tip")


def test_pictures_are_seen_follow_the_filters_and_lead_to_the_run_folder(opened, page_file):
    pictures = opened.locator("figure[data-row] img")
    assert pictures.count() == 2
    widths = pictures.evaluate_all("images => images.map(i => [i.complete, i.naturalWidth, i.clientWidth > 200])")
    assert widths == [[True, 40, True]] * 2
    opened.click("[data-filter=model] summary")
    opened.check("[data-filter=model] input[value=infvit]")
    assert opened.locator("figure[data-row]:visible").evaluate_all("all => all.map(f => f.dataset.row)") == ["infvit"]
    opened.click("figure[data-row=infvit] a")
    opened.wait_for_url(re.compile(r"/attention.png$"))
    assert Path(unquote(opened.url.removeprefix("file://"))) == page_file.parent / "2_seed=0" / "attention.png"


def test_dark_is_the_systems_choice_or_the_buttons(browser, opened, page_file):
    ground = "getComputedStyle(document.body).backgroundColor"
    light = opened.evaluate(ground)
    opened.click("#theme")
    dark = opened.evaluate(ground)
    assert dark != light
    opened.wait_for_selector("[data-chart=val_top1][data-drawn=dark] svg")
    opened.reload()
    assert opened.evaluate(ground) == dark
    context = browser.new_context(color_scheme="dark")
    at_night = context.new_page()
    at_night.goto(page_file.as_uri())
    assert at_night.evaluate(ground) == dark
    context.close()


def test_a_phone_scrolls_no_wider_than_itself_and_a_tap_shows_the_configuration(browser, page_file):
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(page_file.as_uri())
    page.wait_for_selector("[data-chart=gamma] svg, [data-chart=flops_forward] svg")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.tap("#results tr[data-row=infvit] td:nth-child(1)")
    box = page.locator("#tip").bounding_box()
    assert box is not None
    assert 0 <= box["x"] <= box["x"] + box["width"] <= 390
    context.close()


def test_the_table_fits_and_rare_columns_are_behind_a_switch(browser, page_file):
    with opened_page(browser, page_file, viewport={"width": 1440, "height": 900}) as page:
        room = "document.querySelector('.scroll').scrollWidth - document.querySelector('.scroll').clientWidth"
        loss = page.locator("#results th", has_text="Test loss")
        assert page.evaluate(room) == 0
        assert not loss.is_visible()
        page.click("#rare")
        assert loss.is_visible()
        page.set_viewport_size({"width": 800, "height": 900})
        assert page.evaluate(room) > 0
        # What scrolls fades out at its right edge, until it has been scrolled there.
        page.wait_for_selector(".scroll.more #results")
        page.evaluate("document.querySelector('.scroll').scrollLeft = 9999")
        page.wait_for_selector(".scroll:not(.more) #results")


def test_a_name_that_is_a_script_is_shown_and_not_run(opened):
    assert opened.title() != "broken into"
    assert EVIL in opened.inner_text("#results")
