"""A page of runs in Chromium, clicked through by mouse and keyboard."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from covering import covered
from pages import EVIL, MakeRun, data_of

from budgetnet.reports.page import write_page
from budgetnet.reports.rows import final_row
from budgetnet.reports.tables import header
from budgetnet.runs.directory import RunDirectory

LEARNING = ["Learning curve: loss", "Learning curve: top-1 (%)"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    quiet = ("--disable-gpu", "--disable-extensions", "--disable-background-networking", "--disable-component-update")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000", *quiet):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    window.command_executor.client_config.timeout = 30  # of one command, which a browser that hangs is asked four times
    yield window
    window.quit()


class Visitor:
    """A page in the browser, used by mouse and keyboard."""

    def __init__(self, browser: Any, runs: list[RunDirectory], file: Path) -> None:
        self.browser, self.runs, self.address = browser, runs, write_page(runs, file).as_uri()
        self.panels = len(data_of(file.read_text(encoding="utf-8"))["panels"])

    def go(self) -> None:
        """Open the page anew."""
        self.browser.get("about:blank")
        self.browser.get(self.address)
        self.used = self.complete = False

    def load(self) -> None:
        """Open the page anew and wait for its figures."""
        self.go()
        self.wait(lambda: len(self.all("#panels .main-svg .xaxislayer-above")) >= self.panels)
        self.complete = True

    def load_if_used(self) -> None:
        """Bring the page into its first state."""
        if self.used:
            self.load()

    def all(self, selector: str) -> list[Any]:
        return list(self.browser.find_elements("css selector", selector))

    def one(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def script(self, text: str) -> Any:
        return self.browser.execute_script(f"return {text}")

    def wait(self, condition: Callable[[], Any]) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, 20, poll_frequency=0.05).until(lambda _: condition())

    def press(self, key: str) -> None:
        self.actions().send_keys(key).perform()

    def actions(self) -> Any:
        from selenium.webdriver import ActionChains

        return ActionChains(self.browser, duration=50)

    def place(self, heading: str) -> int:
        """Which column it is."""
        return header([final_row(run) for run in self.runs]).index(heading)

    def column(self, heading: str) -> list[str]:
        return [str(cell.text) for cell in self.all(f"tbody td:nth-child({self.place(heading) + 1})")]

    def opened(self, name: str) -> str:
        """Wait for the view of a run; its text."""
        self.wait(lambda: self.one("dialog").is_displayed() and self.one("#name").text == name)
        return str(self.one("dialog").text)

    def figures(self, count: int) -> list[str]:
        """Wait for as many drawn figures in a run's view; their headings."""
        self.wait(lambda: len(self.all("#details .figure .main-svg .xaxislayer-above")) == count)
        titles = self.script(
            "[...document.querySelectorAll('#details section:has(.figure) h3')].map(h => h.textContent)"
        )
        return [str(title) for title in titles]


@pytest.fixture(scope="module")
def opened_page(browser: Any, several: list[RunDirectory], tmp_path_factory: pytest.TempPathFactory) -> Visitor:
    opened = Visitor(browser, several, tmp_path_factory.mktemp("page") / "page.html")
    opened.load()
    return opened


@pytest.fixture
def visitor(browser: Any, opened_page: Visitor) -> Iterator[Visitor]:
    """With no run open. The page is loaded once for all tests, and again for one that asks for its first state."""
    if browser.current_url.partition("#")[0] != opened_page.address or not opened_page.complete:
        opened_page.load()
    opened_page.script("[dialog.close(), document.querySelector('.scroll').scrollTo(0, 0), scrollTo(0, 0)]")
    opened_page.wait(lambda: opened_page.script("location.hash") == "")
    yield opened_page
    opened_page.used = True
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.execute_script("return window.broken === undefined")


def test_the_table_is_used_with_the_keyboard_alone(visitor: Visitor) -> None:
    from selenium.webdriver.common.keys import Keys

    visitor.load_if_used()
    visitor.press(Keys.TAB)  # the filter
    visitor.press(Keys.TAB)  # the table, which scrolls
    visitor.press(Keys.TAB)
    assert visitor.script("document.activeElement.textContent") == "Run"
    visitor.press(Keys.ENTER)
    assert visitor.one("th[aria-sort]").text.startswith("Run")
    for _ in visitor.all("th"):
        if visitor.script("document.activeElement.closest('th') !== null"):
            visitor.press(Keys.TAB)
    name = visitor.script("document.activeElement.textContent")
    visitor.press(Keys.ENTER)
    visitor.opened(name)
    visitor.press(Keys.ESCAPE)
    visitor.wait(lambda: not visitor.one("dialog").is_displayed())
    assert visitor.script("location.hash") == ""


def test_a_click_on_a_heading_sorts_and_another_turns_the_order(visitor: Visitor) -> None:
    place = visitor.place("Test top-1 %")
    head = visitor.all("th button")[place]
    head.click()
    groups = visitor.script(
        "[...document.querySelectorAll('tbody')].map(body => "
        f"[...body.rows].map(row => row.cells[{place}].textContent))"
    )
    ranks = [group[-1] for group in groups if group != [""]]  # a mean stands last in its group
    assert [float(text.split()[0]) for text in ranks] == sorted(
        (float(text.split()[0]) for text in ranks), reverse=True
    )
    seeds = next(group for group in groups if len(group) > 1)
    tested = [text for text in seeds[:-1] if text]
    assert tested == sorted(tested, key=float, reverse=True)
    assert len(tested) == 3
    assert visitor.one("th[aria-sort]").get_attribute("aria-sort") == "descending"
    first = visitor.column("Run")
    head.click()
    assert visitor.one("th[aria-sort]").get_attribute("aria-sort") == "ascending"
    assert visitor.column("Run") != first
    assert sorted(visitor.column("Run")) == sorted(first)


def test_what_is_not_known_is_sorted_last_either_way(visitor: Visitor) -> None:
    place = visitor.place("Budget used")
    head = visitor.all("th button")[place]
    for _ in range(2):
        head.click()
        used = [
            row.find_elements("css selector", "td")[place].text
            for row in visitor.all("tr[data-run]")
            if "killed" not in row.text
        ]
        assert "" not in used
        seeds = [row.text.split()[0] for row in visitor.all("tbody:has(.mean) tr")]
        assert seeds[-2:] == ["killed", "mean"]


def test_a_click_on_a_row_opens_the_run(visitor: Visitor) -> None:
    row = next(row for row in visitor.all("tr[data-run]") if row.text.startswith("seed1"))
    row.find_elements("css selector", "td")[3].click()
    text = visitor.opened("seed1")
    summary = visitor.runs[1].summary or {}
    assert summary["command"] in text
    assert f"{summary['budget']['flops']['percent']:.2f} %" in text
    assert "Stop reason\nflops" in text
    assert visitor.figures(5) == [*LEARNING, "Growth path", "Saturation", "Final widths"]
    for name, width in summary["widths"].items():
        assert f"{name} {width}" in text
    visitor.one("#details a[href='#run-2']").click()  # its repetition
    visitor.opened("seed2")
    visitor.one("dialog form button").click()
    visitor.wait(lambda: not visitor.one("dialog").is_displayed())


def test_a_point_names_its_run_and_opens_it(visitor: Visitor) -> None:
    full = visitor.runs[3]
    index = visitor.script("data.panels[0].points.findIndex(point => point.series.endsWith('train'))")
    assert index == 1
    traces = visitor.all("#panels .figure")[0].find_elements("css selector", ".scatterlayer .trace")
    point = traces[-2].find_element("css selector", ".points path")  # front, runs, then a trace per series
    visitor.actions().move_to_element(point).perform()
    visitor.wait(lambda: any(full.path.name in label.text for label in visitor.all(".hoverlayer .hovertext")))
    visitor.actions().click().perform()
    visitor.opened("full")


def test_a_run_that_did_not_grow_shows_its_widths_alone(visitor: Visitor) -> None:
    visitor.one("a[href='#run-3']").click()
    assert "there was no growing phase" in visitor.opened("full")
    assert visitor.figures(3) == [*LEARNING, "Final widths"]


def test_an_unfinished_run_shows_how_far_it_got(visitor: Visitor) -> None:
    visitor.one("a[href='#run-4']").click()
    text = visitor.opened("killed")
    assert "Unfinished: read after epoch 19" in text
    assert visitor.figures(5) == [*LEARNING, "Growth path", "Saturation", "Widths so far"]
    assert "Command" not in text


def test_names_are_shown_as_they_are_and_run_nothing(visitor: Visitor) -> None:
    visitor.one("a[href='#run-5']").click()
    assert EVIL in visitor.opened("<b>&'bold\"")
    visitor.figures(5)
    labels = [label.text for label in visitor.all("#details .ytick text, #details .xtick text")]
    assert {"<i>1", "a&b", 'c"d'} <= set(labels)
    assert visitor.all("#details img, #details b b, td b") == []


def test_a_click_selects_the_whole_command(visitor: Visitor) -> None:
    visitor.one("a[href='#run-0']").click()
    visitor.opened("seed0")
    visitor.one("#details pre").click()
    visitor.wait(lambda: visitor.script("getSelection().toString()") == (visitor.runs[0].summary or {})["command"])


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (400, "light")])
def test_the_page_fits_and_follows_the_scheme(visitor: Visitor, width: int, scheme: str) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    visitor.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    visitor.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        visitor.wait(lambda: visitor.script(overflow) == 0)
        ground = visitor.script("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
        ink = visitor.script("getComputedStyle(document.body).color")
        label = "getComputedStyle(document.querySelector('#panels .xtick text')).fill"
        visitor.wait(lambda: visitor.script(label) == ink)
        visitor.one("a[href='#run-0']").click()
        visitor.opened("seed0")
        visitor.figures(5)
        assert visitor.script("document.querySelector('dialog').offsetWidth") < width
        visitor.wait(lambda: visitor.script(overflow.replace("documentElement", "querySelector('dialog')")) == 0)
    finally:
        visitor.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        visitor.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_axes_fit_the_runs_that_the_filter_leaves(visitor: Visitor) -> None:
    figure = "document.querySelector('#panels .figure')"
    whole = visitor.script(f"[...{figure}.layout.yaxis.range, ...{figure}.layout.xaxis.range]")
    name = visitor.script("data.runs[data.panels[0].points[0].runs[0]].name")
    visitor.one("#filter").send_keys(name)
    fitted = f"[...{figure}.layout.yaxis.range, ...{figure}.layout.xaxis.range]"
    visitor.wait(lambda: visitor.script(fitted) != whole)
    low, high, cheap, costly = visitor.script(fitted)
    point = visitor.script("data.panels[0].points[0]")
    assert low < point["y"] < high and 10**cheap < point["x"] < 10**costly
    assert high - low < whole[1] - whole[0]
    shown = visitor.script(f"{figure}.data.slice(2).map(trace => trace.x.length)")
    assert sum(shown) < len(visitor.script("data.panels[0].points"))
    visitor.one("#filter").send_keys(*["\b"] * len(name))
    visitor.wait(lambda: visitor.script(f"{figure}.data.slice(2).map(trace => trace.x.length)") != shown)


@pytest.fixture
def no_figures(browser: Any) -> Iterator[None]:
    """The browser cannot unpack what draws them, which takes most of the time of a page."""
    source = {"source": "delete window.DecompressionStream"}
    hidden = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", source)
    yield
    browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", hidden)


def test_without_figures_the_table_and_the_numbers_are_there(visitor: Visitor, no_figures: None) -> None:
    visitor.go()
    visitor.wait(lambda: "cannot unpack the figures" in visitor.one("#panels").text)
    visitor.one("a[href='#run-0']").click()
    text = visitor.opened("seed0")
    assert (visitor.runs[0].summary or {})["command"] in text
    assert "cannot unpack the figures" in text


@pytest.mark.usefixtures("no_figures")
def test_a_table_with_every_column_fits_into_1400_pixels(browser: Any, make_run: MakeRun, tmp_path: Path) -> None:
    runs = [RunDirectory(make_run(method, method=method, test_every_epoch=True)) for method in ("adenel", "grow_prune")]
    size = {"width": 1400, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        visitor = Visitor(browser, runs, tmp_path / "page.html")
        visitor.go()
        assert visitor.place("Stop reason") == len(visitor.all("th")) - 1
        table = "document.querySelector('.scroll')"
        assert visitor.script(f"{table}.scrollWidth === {table}.clientWidth && innerWidth === 1400")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("step", covered((39, 13), (39,)))
def test_a_run_of_somebody_else_runs_nothing(
    browser: Any, poisoned_runs: list[RunDirectory], step: int, tmp_path: Path
) -> None:
    visitor = Visitor(browser, poisoned_runs, tmp_path / "page.html")
    visitor.load()
    for index in range(0, len(poisoned_runs), step):  # a figure takes a twentieth of a second
        visitor.browser.execute_script(f"showRun({index})")
        assert visitor.one("#name").text == final_row(poisoned_runs[index]).name
    shown = "[...document.querySelectorAll('#details .figure')].every(e => e.querySelector('.main-svg') || e.innerText)"
    visitor.wait(lambda: visitor.script(shown))
    handlers = "[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames()).filter(n => n.startsWith('on'))"
    assert visitor.script(handlers) == []
    assert visitor.script("document.querySelectorAll('img, #details script').length") == 0
    assert visitor.script("window.broken === undefined")
    browser.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.injected = 1'; document.body.append(s)"
    )
    assert visitor.script("window.injected === undefined")  # by the policy
    browser.get_log("browser")
