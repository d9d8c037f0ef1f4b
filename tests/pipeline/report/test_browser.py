import numpy as np
import pytest
from helpers.pages import CHROMIUM, PageBrowser
from helpers.runs import plots_of
from PIL import Image


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser without a window."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with PageBrowser(tmp_path_factory.mktemp("profile")) as found:
        yield found


def test_a_browser_asks_for_nothing_complains_of_nothing_and_runs_no_caption(whole, browser):
    path = whole[0].at("report", "index.html")
    browser.visit(path)
    browser.value("document.querySelectorAll('details').forEach(one => one.open = true)")
    browser.value("Promise.all([...document.images].map(i => (i.loading = 'eager', i.decode())))")
    browser.draw()
    assert browser.requests == [f"file://{path}"]
    assert browser.complaints == []
    assert browser.value("document.title") == "hostile <b>run \u00b7 capfilt report"
    data = "[...document.scripts].filter(script => !script.type).length"
    assert browser.value(data) == 2
    assert "document.title='pwned'" in browser.value("document.body.innerText")


def test_a_reason_opens_its_gallery_by_click_and_by_key(whole, browser):
    browser.visit(whole[0].at("report", "index.html"))
    shown = "document.querySelector('#reason-filter-unmatched .example').checkVisibility()"
    summary = "document.querySelector('#reason-filter-unmatched > summary')"
    assert not browser.value(shown)
    browser.value(f"{summary}.click()")
    assert browser.value(shown)
    browser.value(f"{summary}.focus()")
    browser.press("Enter")
    assert not browser.value(shown)
    browser.visit(whole[0].at("report", "index.html") + "#reason-filter-unmatched")
    assert browser.value(shown)


def test_an_image_grows_by_click_and_each_card_says_how_to_see_more(whole, browser):
    browser.visit(whole[0].at("report", "index.html"))
    browser.value("document.querySelector('#reason-filter-unmatched > summary').click()")
    image = "document.querySelector('#reason-filter-unmatched .frame img')"
    before = browser.value(f"{image}.getBoundingClientRect().width")
    browser.value(f"{image}.click()")
    grown = browser.value(
        "document.querySelector('dialog[open] img').getBoundingClientRect().width"
    )
    assert grown > 2 * before
    browser.value("document.querySelector('dialog').click()")
    assert browser.value("document.querySelector('dialog[open]')") is None
    said = browser.value("document.querySelector('#reason-filter-unmatched').innerText")
    assert said.count("capfilt show ") >= 2
    cut = (
        "[...document.querySelectorAll('.command')].some(e => e.scrollHeight > e.clientHeight + 2)"
    )
    assert not browser.value(cut)
    assert browser.complaints == []


def test_the_images_at_the_ends_are_shown_with_their_numbers(whole, browser):
    browser.visit(whole[0].at("report", "index.html"))
    ends = "[...document.querySelectorAll('.ends-of details')]"
    titles = browser.value(
        f"{ends}.map(one => one.querySelector('summary').firstChild.data.trim())"
    )
    assert titles == ["Blurred or plain", "Dark", "Bright", "Wide", "Tall"]
    numbers = browser.value(
        f"{ends}.map(end => [...end.querySelectorAll('.body b')].map(b => Number(b.textContent)))"
    )
    for title, values in zip(titles, numbers, strict=True):
        assert len(values) == 4
        assert values == sorted(values, reverse=title in ("Bright", "Wide"))
    said = browser.value("document.querySelector('.ends-of').textContent")
    assert said.count("capfilt show ") == 20 and "capfilt view " in said
    distances = browser.value("document.querySelector('#images .strip').innerText")
    assert "distance" in distances


def test_on_paper_the_page_is_open_and_nothing_leaves_it(whole, browser):
    browser.visit(whole[0].at("report", "index.html"), width=720)
    folded = "document.querySelectorAll('details:not([open], .numbers)').length"
    before = browser.value(folded)
    browser.call("Emulation.setEmulatedMedia", media="print")
    browser.draw()
    assert browser.value(folded) == 0 < before
    wide = (
        "[...document.querySelectorAll('table, figure, figcaption, summary, pre')].filter(e =>"
        " e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + 1)"
        ".map(e => e.tagName + ' ' + e.textContent.trim().slice(0, 60))"
    )
    assert browser.value(wide) == []
    browser.call("Emulation.setEmulatedMedia", media="")
    browser.value("dispatchEvent(new Event('afterprint'))")
    assert browser.value(folded) == before


def test_the_page_stays_under_three_megabytes(whole):
    assert len(whole[0].read("report", "index.html")) < 3_000_000


def test_every_plot_is_drawn_with_all_its_series_and_points(whole, browser):
    path = whole[0].at("report", "index.html")
    plots = plots_of(whole[0].read("report", "index.html").decode())
    browser.visit(path)
    assert browser.value("document.querySelectorAll('.plot.js-plotly-plot').length") < len(plots)
    browser.draw()
    drawn = browser.value(
        "[...document.querySelectorAll('.plot')].map(plot => plot.data.map(t => t.x.length))"
    )
    assert drawn == [[len(trace["x"]) for trace in spec["data"]] for _, spec in plots.values()]
    bars = browser.value(
        "document.querySelectorAll('#filter .plot')[0].querySelectorAll('.point').length"
    )
    assert bars == sum(drawn[0])
    assert browser.value("document.querySelectorAll('#filter .shape-label').length") == 2
    lines = "document.querySelectorAll('#models .plot')[{}].querySelectorAll('.js-line').length"
    assert [browser.value(lines.format(n)) for n in (0, 1)] == [1, 5]
    assert browser.complaints == []


def test_a_plot_tells_its_values_by_key_and_by_pointer(whole, browser):
    browser.visit(whole[0].at("report", "index.html"))
    browser.value("document.querySelector('#filter .plot').focus()")
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        browser.press(key)
    (_, spec) = plots_of(whole[0].read("report", "index.html").decode())[
        "ITM scores of web captions"
    ]
    told = ", ".join(trace["hovertext"][0] for trace in spec["data"])
    assert browser.value("document.querySelector('#filter output').textContent") == (
        f"{spec['data'][0]['x'][0]}: {told}"
    )
    mark = "document.querySelector('#filter .plot .hoverlayer').textContent"
    for part in (spec["data"][0]["x"][0], *told.split(", ")):
        browser.wait(f"{mark}.includes({part!r})")
    browser.press("Escape")
    assert browser.value(mark) == ""
    assert browser.value("document.querySelector('#filter output').textContent") == ""
    box = browser.value(
        "(r => [r.x + r.width / 2, r.y + r.height / 2])"
        "(document.querySelector('#filter .plot .nsewdrag').getBoundingClientRect())"
    )
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])
    browser.wait(f"{mark}.includes('kept')")
    assert browser.complaints == []


def test_dragging_over_a_plot_zooms_in_and_a_double_click_goes_back(whole, browser):
    browser.visit(whole[0].at("report", "index.html"))
    browser.value("document.querySelector('#filter .plot').scrollIntoView({block: 'center'})")
    plot = "document.querySelector('#filter .plot')"
    browser.wait(f"{plot}.classList.contains('js-plotly-plot')")
    reach = f"(([a, b]) => b - a)({plot}.layout.xaxis.range)"
    whole_reach = browser.value(reach)
    x, y, width = browser.value(
        f"(r => [r.x, r.y + r.height / 2, r.width])"
        f"({plot}.querySelector('.nsewdrag').getBoundingClientRect())"
    )

    def mouse(kind, share, **fields):
        place = {"x": x + share * width, "y": y}
        browser.call("Input.dispatchMouseEvent", type=kind, button="left", **place, **fields)

    mouse("mousePressed", 0.25, clickCount=1)
    for share in (0.3, 0.5, 0.75):
        mouse("mouseMoved", share, buttons=1)
    mouse("mouseReleased", 0.75, clickCount=1)
    browser.wait(f"{reach} < {0.6 * whole_reach}")
    browser.value(
        "new Promise(done => setTimeout(done, 500))"
    )  # two clicks apart are no double one
    for count in (1, 2):
        mouse("mousePressed", 0.5, clickCount=count)
        mouse("mouseReleased", 0.5, clickCount=count)
    browser.wait(f"{reach} === {whole_reach}")
    assert browser.complaints == []


def test_a_legend_hides_a_series_from_eyes_and_keys(whole, browser):
    browser.visit(whole[0].at("report", "index.html"))
    browser.value("document.querySelector('#filter .legend button').click()")
    assert browser.value("document.querySelector('#filter .legend button').ariaPressed") == "false"
    shown = "document.querySelector('#filter .plot').data.map(trace => trace.visible !== false)"
    assert browser.value(shown) == [False, True]
    browser.value("document.querySelector('#filter .plot').focus()")
    browser.press("ArrowRight")
    assert "kept" not in browser.value("document.querySelector('#filter output').textContent")
    browser.value("document.querySelector('#filter .legend button').click()")
    assert browser.value(shown) == [True, True]


def test_colours_follow_the_scheme(whole, browser):
    browser.visit(whole[0].at("report", "index.html"))
    browser.draw()
    colour = "document.querySelector('#filter .plot').data[0].marker.color"
    light = browser.value(colour)
    scheme = {"name": "prefers-color-scheme", "value": "dark"}
    browser.call("Emulation.setEmulatedMedia", features=[scheme])
    browser.wait(f"{colour} !== {light!r}")
    assert browser.complaints == []


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_the_page_fits_its_window_and_can_be_seen(whole, browser, tmp_path, width, dark):
    browser.visit(whole[0].at("report", "index.html"), width=width, dark=dark)
    assert browser.value("document.documentElement.scrollWidth") <= width
    picture = Image.open(browser.picture_of_all(tmp_path / "report.png"))
    assert width - 20 < picture.width <= width  # without the scroll bar
    brightness = np.asarray(picture.convert("L")).mean()
    assert brightness < 80 if dark else brightness > 180
