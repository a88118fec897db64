"""The pages in a real browser, wide and narrow, light and dark: they work, fetch nothing, and no answer can act."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.report.page.html_page import write_page
from semcal import Run
from tests.experiments.report.page.chromium import SIZES, Opened
from tests.experiments.report.page.conftest import HOSTILE, IDS

pytestmark = pytest.mark.long

LOOKS = [(size, theme) for size in SIZES for theme in ("light", "dark")]


def pages(study: Path) -> dict[str, Path]:
    (run,) = study.glob("*__concise__*")
    return {"run": run / "report.html", "study": study / "report.html"}


@pytest.mark.parametrize("kind", ["run", "study"])
@pytest.mark.parametrize(("size", "theme"), LOOKS)
def test_nothing_is_fetched_cut_off_or_inaccessible(browser, drawn, kind, size, theme):
    path = pages(drawn)[kind]
    opened = Opened(browser, path, size=size, theme=theme)
    opened.page.locator(".rows tbody.real tr").first.click()
    assert opened.beyond() == []
    assert not [url for url in opened.requests if not url.startswith(("data:", path.as_uri()))]
    assert opened.complaints == []
    axe = pytest.importorskip("axe_core_python", reason="axe-core comes with axe-core-python")
    opened.page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text())
    found = opened.page.evaluate("axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']})")
    bad = [
        (violation["id"], node["html"][:200])
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]
    assert bad == []


def test_hostile_texts_are_shown_and_do_nothing(browser, run):
    opened = Opened(browser, run.folder / "report.html")
    order = run.questions()["id"].tolist()
    for name, row in zip(HOSTILE, order, strict=False):
        opened.page.evaluate("id => { location.hash = '#q=' + encodeURIComponent(id); }", row)
        opened.page.wait_for_function("document.querySelector('#question h3')?.textContent.startsWith('q')")
        shown = opened.page.locator("#question .pair > div").last.inner_text()
        whole = opened.page.locator("#question .pair > div").last.text_content()
        if name == "bidi":
            assert "gnp⟨U+202E⟩txt.exe ⟨U+2066⟩ over" in shown
        elif name == "nul":
            assert "a⟨U+0000⟩b⟨U+001B⟩[31m" in shown
        elif name == "long":
            assert "2,000 of 100,000 characters" in whole
        else:
            assert HOSTILE[name] in shown
    assert opened.page.locator("main img").count() == 0
    assert opened.complaints == []
    assert "\u202e" not in (run.folder / "report.html").read_text()
    assert all(url.startswith((run.folder / "report.html").as_uri()) for url in opened.requests)


def test_the_surest_wrong_answers_are_two_clicks_away(browser, run):
    opened = Opened(browser, run.folder / "report.html")
    opened.choose("wrong and sure")
    assert set(opened.rows("right")) == {"wrong"}
    shown = [float(value) for value in opened.rows("confidence")]
    assert shown == sorted(shown, reverse=True)
    opened.page.locator(".rows tbody.real tr").first.click()
    table = run.table()
    wrong = table.loc[table["correct"] == 0, :]
    surest = wrong.loc[wrong["question_id"] == opened.page.evaluate("decodeURIComponent(location.hash.slice(3))"), :]
    assert surest["confidence"].item() == wrong["confidence"].max()
    assert f"{surest['confidence'].item():.3f}" in opened.page.locator("#question dl").inner_text()


def test_filters_search_and_sorting_agree_with_the_table_of_the_run(browser, run):
    table = run.table()
    opened = Opened(browser, run.folder / "report.html")
    count = opened.page.locator("[role=status]").first
    unsure = (table["correct"] == 1) & (table["confidence"] < float(opened.page.input_value("input[type=number]")))
    for name, rows in (("tied", table["tied"]), ("right and unsure", unsure), ("all", table["tied"] | True)):
        opened.choose(name)
        assert count.inner_text() == f"{rows.sum()} of {len(table)} questions"
    opened.page.select_option("label:has-text('group') select", table["group"].iloc[0])
    assert count.inner_text().startswith(f"{(table['group'] == table['group'].iloc[0]).sum()} of")
    opened.page.keyboard.press("Escape")
    opened.page.fill("input[type=search]", "U GREEN".removeprefix("U "))
    assert 0 < int(count.inner_text().split()[0]) < len(table)
    opened.page.keyboard.press("Escape")
    assert count.inner_text() == f"{len(table)} of {len(table)} questions"
    for title, column in (("KL gap", None), ("probe confidence", "probe_confidence"), ("confidence", "confidence")):
        opened.page.locator(
            ".rows th button", has_text=title.replace("confidence", "confi\u00addence")
        ).last.click() if (title == "probe confidence") else opened.page.locator(
            ".rows th button", has_text=title.replace("confidence", "confi\u00addence")
        ).first.click()
        shown = [float(value) for value in opened.rows(title)]
        assert shown == sorted(shown, reverse=True)
        if column:
            assert shown[0] == pytest.approx(table[column].max(), abs=0.006)


def test_the_address_names_a_question_and_the_keyboard_walks_on(browser, run):
    ids = run.questions()["id"].tolist()
    target = next(name for name in ids if name in IDS)
    from urllib.parse import quote

    opened = Opened(browser, run.folder / "report.html", at=f"#q={quote(target, safe='')}")
    page = opened.page
    named = "decodeURIComponent(location.hash.slice(3))"
    assert page.locator("tr[aria-current=true]").count() == 1
    at = ids.index(target)
    page.keyboard.press("j")
    assert page.evaluate(named) == ids[at + 1]
    page.keyboard.press("k")
    page.keyboard.press("k")
    assert page.evaluate(named) == ids[max(0, at - 1)]
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.type") == "search"
    page.keyboard.type("jk")  # letters of a search are no shortcuts
    assert page.evaluate(named) == ids[max(0, at - 1)]
    page.keyboard.press("Escape")
    assert page.input_value("input[type=search]") == ""
    page.evaluate("location.hash = '#q=nowhere'")
    page.wait_for_selector("text=This run has no question nowhere")
    assert opened.complaints == []


def test_a_question_is_copied_as_json_with_all_that_is_known_of_it(browser, run):
    opened = Opened(browser, run.folder / "report.html")
    opened.page.evaluate("navigator.clipboard.writeText = async text => { window.copied = text; }")
    opened.page.locator(".rows tbody.real tr").first.click()
    opened.page.locator("button", has_text="copy as JSON").click()
    copied = json.loads(opened.page.evaluate("window.copied"))
    first = run.questions().iloc[0]
    assert copied["id"] == first["id"]
    assert copied["prompt"] == first["prompt"]
    samples = run.samples()
    own = samples.loc[samples["question_id"] == first["id"], :]
    assert sorted((s["text"], s["count"]) for s in copied["samples"]) == sorted(
        zip(own["text"], own["count"], strict=True)
    )
    classes = run.classes()
    assert {c["class"] for c in copied["classes"]} == set(classes.loc[classes["question_id"] == first["id"], "class"])
    losses = run.probe_losses().set_index(["question_id", "rung", "layer"])["gap_nats"]
    for layer, gap in copied["kl_gap_nats"].items():
        assert gap == pytest.approx(losses[first["id"], "linear", layer], rel=0.01)


def test_plots_say_their_numbers_and_filter_the_questions(browser, run):
    opened = Opened(browser, run.folder / "report.html")
    page, table = opened.page, run.table()
    plots = page.locator(".plots figure")
    titles = plots.locator("h3").all_inner_texts()
    assert [title.partition(",")[0] for title in titles] == [
        "Reliability",
        "Confidence",
        "Correctness by KL gap",
        "KL gap by layer",
    ]
    tenth = plots.nth(0).locator(".hit").nth(3)
    tenth.hover()
    inside = table.loc[(table["confidence"] >= 0.3) & (table["confidence"] < 0.4), :]
    said = plots.nth(0).locator(".readout").inner_text()
    assert f"{len(inside)} question" in said
    assert f"accuracy {inside['correct'].mean():.3f}" in said or inside.empty
    count = page.locator("[role=status]").first
    tenth.click()
    assert count.inner_text().startswith(f"{len(inside)} of")
    page.locator("button", has_text="confidence 0.30 to 0.40").click()  # takes the filter away
    assert count.inner_text().startswith(f"{len(table)} of")
    box = plots.nth(2).locator("svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] / 2)
    page.mouse.up()
    assert 0 < int(count.inner_text().split()[0]) < len(table)
    page.keyboard.press("Escape")
    before = opened.rows("KL gap")
    plots.nth(3).locator(".hit").first.focus()
    page.keyboard.press("Enter")
    assert opened.rows("KL gap") != before
    assert "embed" in page.locator(".plots figure h3").nth(2).inner_text()
    assert opened.complaints == []


def test_a_narrow_window_shows_every_column_on_cards(browser, run):
    wide, narrow = (Opened(browser, run.folder / "report.html", size=size) for size in SIZES)
    titles = wide.page.locator(".rows th").all_text_contents()
    card = narrow.page.locator(".rows tbody.real tr").first.locator("td")
    assert card.evaluate_all("cells => cells.map(cell => cell.dataset.title)") == titles
    row = narrow.page.locator(".rows tbody.real tr").first.bounding_box()
    for cell in card.all():
        box = cell.bounding_box()
        assert box["width"] > 0
        assert box["y"] + box["height"] <= row["y"] + row["height"]
        assert box["x"] + box["width"] <= row["x"] + row["width"]
    narrow.page.select_option("select[aria-label='sort by']", "confidence")
    shown = [float(value) for value in narrow.rows("confidence")]
    assert shown == sorted(shown)


def test_the_theme_follows_the_system_until_it_is_chosen(browser, run):
    paper = "getComputedStyle(document.body).backgroundColor"
    light, dark = (Opened(browser, run.folder / "report.html", theme=theme).page for theme in ("light", "dark"))
    assert light.evaluate(paper) != dark.evaluate(paper)
    light.click("#theme")
    assert light.evaluate(paper) == dark.evaluate(paper)
    light.click("#theme")
    assert light.evaluate(paper) == "rgb(255, 255, 255)"


def test_what_is_printed_are_tables_figures_and_the_question_chosen(browser, run):
    opened = Opened(browser, run.folder / "report.html", theme="dark")
    opened.page.locator(".rows tbody.real tr").first.click()
    opened.page.emulate_media(media="print")
    assert not opened.page.locator(".rows").is_visible()
    assert opened.page.locator("#question").is_visible()


def test_of_two_thousand_questions_only_those_in_view_are_in_the_document(browser, tmp_path):
    n = 2000
    data = {
        "m": 50, "enumerated": False, "style": "concise", "prefix": "", "paragraphs": ["?"], "prompts": [[0]] * n,
        "samples": [[["a", 50, -1.0]]] * n, "samples_left_out": 0, "samples_kept": 1,
        "questions": {name: [f"{name} {at}" for at in range(n)] for name in ("id", "group", "text", "gold", "accepted")}
        | {"tokens": [1] * n},
    }  # fmt: skip
    parts = {"facts": "", "remarks": [], "headline": None, "browsable": True, "figures": [], "sections": []}
    empty = type("Empty", (), {"rows": ()})
    rest = {"interventions": [], "checks": empty, "calibration": empty}
    write_page(tmp_path / "page.html", "run.html", lambda _: data, title="many", **parts, **rest)
    opened = Opened(browser, tmp_path / "page.html")
    rows = opened.page.locator(".rows tbody.real tr")
    assert rows.count() < 60
    opened.page.evaluate("document.querySelector('.rows').scrollTop = 1e9")
    opened.page.wait_for_function("document.querySelector('.rows tbody.real').textContent.includes('text 1999')")
    assert rows.count() < 60
    opened.page.keyboard.press("j")
    assert rows.first.get_attribute("aria-current") == "true"
    assert opened.complaints == []


def test_a_run_that_is_half_done_shows_what_there_is(browser, run):
    from experiments.config.run_folder import stored_cell
    from experiments.report.pages import write_report

    cell = stored_cell(run)
    for name in ("calibration.json", "classes.parquet", "probes.parquet", "report.html"):
        (run.folder / name).unlink()
    for key in run.shard_keys()[2:]:
        (run.folder / "samples" / f"{key}.parquet").unlink()
    assert write_report(cell, Run.open(run.folder)) == []
    opened = Opened(browser, run.folder / "report.html")
    assert "16 of 48 questions are answered" in opened.page.locator(".remark").inner_text()
    opened.choose("answered")
    assert opened.page.locator("[role=status]").first.inner_text() == "16 of 48 questions"
    opened.page.locator(".rows tbody.real tr").nth(9).click()
    assert "Distinct answers" in opened.page.locator("#question").inner_text()
    opened.page.keyboard.press("Escape")
    opened.page.evaluate("document.querySelector('.rows').scrollTop = 1e9")
    opened.page.wait_for_timeout(50)
    opened.page.locator(".rows tbody.real tr").last.click()
    assert "not sampled yet" in opened.page.locator("#question").inner_text()
    assert opened.complaints == []


def test_a_study_sorts_compares_and_leads_to_the_question_in_each_run(browser, study):
    opened = Opened(browser, study / "report.html")
    page = opened.page
    smece = lambda: page.locator("table.sortable tbody tr td:nth-child(2)").all_inner_texts()  # noqa: E731
    page.locator("table.sortable th", has_text="smECE").locator("button").click()
    rising = smece()
    page.locator("table.sortable th", has_text="smECE").locator("button").click()
    assert smece() == rising[::-1]
    assert [float(text.split()[0]) for text in rising] == sorted(float(text.split()[0]) for text in rising)
    concise, sentence = (Run.open(next(study.glob(f"*__{style}__*"))).table() for style in ("concise", "sentence"))
    lost = (concise["correct"] >= 0.5) & ~(sentence["correct"] >= 0.5)
    opened.choose("concise right, sentence wrong")
    status = page.locator("[role=status]").first
    assert status.inner_text().startswith(f"{lost.sum()} of {len(lost)} questions")
    opened.choose("all")
    spread = (concise["confidence"] - sentence["confidence"]).abs()
    assert float(opened.rows("spread")[0]) == pytest.approx(spread.max(), abs=0.006)
    page.locator(".rows tbody.real tr").first.click()
    page.locator(".detail a").last.click()
    page.wait_for_selector("#question h3")
    assert "__sentence__" in page.url
    assert page.locator("tr[aria-current=true]").count() == 1
    assert opened.complaints == []
