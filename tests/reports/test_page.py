from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from html import unescape
from html.parser import HTMLParser
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from covering import covered

from budgetnet.errors import UsageError
from budgetnet.reports import drawing
from budgetnet.reports.comparison import pareto_front
from budgetnet.reports.page import _run, page, write_page
from budgetnet.reports.tables import as_csv, cells, final_row, header
from budgetnet.runs.directory import RunDirectory
from src.report import main

MakeRun = Callable[..., Path]
LEARNING = ["Learning curve: loss", "Learning curve: top-1 (%)"]
EVIL = "<img src=x onerror=window.broken=1>&amp;\"'</script>"


class Elements(HTMLParser):
    """Every tag of a page with its attributes, the cells of its table, and the texts of its scripts by id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.lines: list[list[str]] = []
        self.scripts: dict[str, str] = {}
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.lines.append([])
        elif tag in ("th", "td"):
            self.lines[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("th", "td")

    def handle_data(self, text: str) -> None:
        tag, attributes = self.tags[-1] if self.tags else ("", {})
        if self.in_cell:
            self.lines[-1][-1] += text
        elif tag == "script":
            name = attributes.get("id") or "page.js"
            self.scripts[name] = self.scripts.get(name, "") + text


def data_of(text: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Elements(text).scripts["data"])
    return data


@pytest.fixture(scope="module")
def several(write: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> list[RunDirectory]:
    """Repetitions, a full backbone that was tested after every epoch, an unfinished run, and names that do harm."""
    folder = tmp_path_factory.mktemp("several")
    paths = [write(folder / f"seed{seed}", seed=seed) for seed in range(3)]
    paths += [write(folder / "full", method="train", test_every_epoch=True)]
    paths += [write(folder / "killed", finished=False, seed=7)]
    paths += [write(folder / "<b>&'bold\"", backbone=EVIL, names=("<i>1", "a&b", 'c"d'), ratio=0.8)]
    return [RunDirectory(path) for path in paths]


def test_the_page_refers_to_nothing_outside_it(several: list[RunDirectory]) -> None:
    text = page(several)
    assert not re.search(r"https?:|@import|url\(", text)
    elements = Elements(text)
    for tag, attributes in elements.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
    policy = next(attributes["content"] for _, attributes in elements.tags if "http-equiv" in attributes)
    assert policy is not None
    assert policy.startswith("default-src 'none';")


def test_plotly_stands_in_the_page_as_it_was_released(several: list[RunDirectory]) -> None:
    from plotly.offline import get_plotlyjs

    packed = Elements(page(several)).scripts["plotly"]
    assert gzip.decompress(base64.b64decode(packed)).decode() == get_plotlyjs()


def test_the_page_holds_every_number_of_runs_csv(several: list[RunDirectory]) -> None:
    runs = data_of(page(several))["runs"]
    lines = list(csv.DictReader(io.StringIO(as_csv([final_row(run) for run in several]))))
    assert len(lines) == len(runs) == 6
    for line, run in zip(lines, runs, strict=True):
        known = {name: "" if value is None else str(value) for name, value in run.items()}
        assert line == {name: known.get(name, "") for name in line}


def test_the_pages_table_is_the_reports(several: list[RunDirectory]) -> None:
    rows = [final_row(run) for run in several]
    assert Elements(page(several)).lines == [list(header(rows)), *cells(rows)]


def test_names_are_text_not_markup(several: list[RunDirectory]) -> None:
    text = page(several)
    assert EVIL not in text
    elements = Elements(text)
    assert "b" not in [tag for tag, _ in elements.tags]
    assert [tag for tag, _ in elements.tags].count("script") == 4
    assert elements.lines[-1][:3] == ["<b>&'bold\"", "adenel", EVIL]
    assert data_of(text)["runs"][-1]["path"]["names"] == ["<i>1", "a&b", 'c"d']


BREAKING = (
    "'\" onmouseover=window.broken=1 x='\"><img src=x onerror=window.broken=1><script>window.broken=1</script>$x\\"
)


def poisoned(path: Path) -> Iterator[Callable[[], None]]:
    """Changes of a run directory, each of which puts markup into one value, or one name, of one of its files."""

    def places(tree: Any) -> Iterator[tuple[Any, Any]]:
        """Containers and the keys of all their values, within them too."""
        for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
            yield tree, key
            if isinstance(value, (dict, list)):
                yield from places(value)

    def json_file(name: str, lines: bool = False) -> Iterator[Callable[[], None]]:
        text = (path / name).read_text()
        for number, (_, key) in enumerate(places(load(text, lines))):
            for of_name in (False, True) if isinstance(key, str) else (False,):

                def change(number: int = number, of_name: bool = of_name) -> None:
                    tree = load(text, lines)
                    container, at = list(places(tree))[number]
                    container[BREAKING if of_name else at] = container.pop(at) if of_name else BREAKING
                    written = "".join(json.dumps(line) + "\n" for line in tree) if lines else json.dumps(tree)
                    (path / name).write_text(written)

                yield change

    def load(text: str, lines: bool) -> Any:
        return [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)

    def table(name: str) -> Iterator[Callable[[], None]]:
        with open(path / name, newline="") as file:
            rows = list(csv.reader(file))
        for row in (0, 1):
            for column in range(len(rows[0])):

                def change(row: int = row, column: int = column) -> None:
                    changed = [list(cells) for cells in rows]
                    changed[row][column] = BREAKING
                    with open(path / name, "w", newline="") as file:
                        csv.writer(file, lineterminator="\n").writerows(changed)

                yield change

    yield from json_file("config.yaml")
    yield from json_file("task.json")
    yield from json_file("summary.json")
    yield from json_file("growth.jsonl", lines=True)
    yield from table("metrics.csv")
    yield from table("saturation.csv")


def all_poisoned(write: MakeRun, folder: Path) -> list[RunDirectory]:
    """A run for every such change, of those that can be read."""
    original, runs = write(folder / "original", rounds=1, epochs_per_round=1, finetune=1, names=("a",), full=(20,)), []
    for number, _ in enumerate(poisoned(original)):
        copied = shutil.copytree(original, folder / f"run{number}")
        next(islice(poisoned(copied), number, None))()
        run = RunDirectory(copied)
        try:
            _run(run, final_row(run))
        except UsageError as error:
            assert "damaged" in str(error), str(error)
        else:
            runs.append(run)
    assert len(runs) > 20
    return runs


@pytest.fixture(scope="module")
def poisoned_runs(write: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> list[RunDirectory]:
    return all_poisoned(write, tmp_path_factory.mktemp("poisoned"))


def test_no_value_of_any_file_is_markup_in_the_page(poisoned_runs: list[RunDirectory]) -> None:
    elements = Elements(page(poisoned_runs))
    assert {name for _, attributes in elements.tags for name in attributes if name.startswith("on")} == set()
    assert [tag for tag, _ in elements.tags].count("script") == 4 and "img" not in [tag for tag, _ in elements.tags]


def test_only_the_scripts_of_the_page_may_run(several: list[RunDirectory]) -> None:
    text = page(several)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    policy = unescape(policy)
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy
    assert not re.search(r"script-src[^;]*unsafe", policy) and policy.count("'sha256-") == 3


def test_panels_show_test_accuracy_on_the_front_that_validation_selects(make_run: MakeRun) -> None:
    runs = [RunDirectory(make_run(f"r{ratio}", ratio=ratio)) for ratio in (0.2, 0.4, 0.6, 0.8)]
    # The best on the test set is the worst on validation: it must not be selected.
    summary = json.loads((runs[2].path / "summary.json").read_text())
    (runs[2].path / "summary.json").write_text(json.dumps(summary | {"test_top1": 99.9, "val_top1": 1.0}))
    rows = [final_row(run) for run in runs]
    panels = data_of(page(runs))["panels"]
    assert [panel["label"] for panel in panels] == ["FLOPs", "params", "train cost (FLOPs)"]
    for panel in panels:
        costs, tests = ([row.number(name) or 0.0 for row in rows] for name in (panel["cost"], panel["score"]))
        assert [(point["x"], point["y"]) for point in panel["points"]] == list(zip(costs, tests, strict=True))
        selected = pareto_front(costs, [row.number("val_top1") or 0.0 for row in rows])
        assert 2 not in selected
        assert panel["front"]["y"] == [tests[index] for index in selected]


def test_a_runs_view_holds_its_growth(make_run: MakeRun) -> None:
    run = RunDirectory(make_run())
    summary = run.summary or {}
    shown = data_of(page([run]))["runs"][0]
    names, sizes = shown["path"]["names"], shown["sizes"]
    assert dict(zip(names, sizes["final"], strict=True)) == summary["widths"]
    assert dict(zip(names, sizes["seed"], strict=True)) == summary["seed_widths"]
    assert dict(zip(names, sizes["full"], strict=True)) == summary["full_widths"]
    assert shown["path"]["epochs"] == [time for time, _ in run.widths()]
    assert shown["path"]["sizes"] == [[at[name] for _, at in run.widths()] for name in names]
    assert not shown["deep"]
    assert shown["phases"] == [["grow", 0, 12], ["finetune", 12, 20]]
    for name, values in zip(shown["saturation"]["names"], shown["saturation"]["values"], strict=True):
        assert values == [round(row[name], 2) for row in run.saturation]
    assert shown["command"] == summary["command"]
    assert shown["stop_reason"] == "flops"


def test_a_page_of_unfinished_runs_has_no_panel_but_every_row(make_run: MakeRun) -> None:
    runs = [RunDirectory(make_run(f"s{seed}", seed=seed, finished=False)) for seed in range(2)]
    data = data_of(page(runs))
    assert data["panels"] == []
    assert [run["command"] for run in data["runs"]] == [None, None]


def test_colours_are_those_of_the_other_figures(make_run: MakeRun) -> None:
    colours = data_of(page([RunDirectory(make_run())]))["colours"]
    assert colours["series"] == list(drawing.COLOURS)
    assert colours["phases"] == {name: list(shown) for name, shown in drawing.PHASES.items()}


def test_a_number_that_json_cannot_write_is_shown_as_unknown(make_run: MakeRun) -> None:
    path = make_run()
    summary = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(json.dumps(summary | {"test_top1_last": float("nan")}))
    assert data_of(page([RunDirectory(path)]))["runs"][0]["test_top1_last"] is None


def test_the_same_runs_give_the_same_page(several: list[RunDirectory]) -> None:
    again = [RunDirectory(run.path) for run in several]
    assert page(several) == page(again)


def test_two_hundred_runs_take_less_than_six_megabytes(make_run: MakeRun) -> None:
    names = [f"layer{depth}" for depth in range(19)]
    run = make_run(names=names, full=[64] * 19, rounds=8, epochs_per_round=10, finetune=80)
    text = page([RunDirectory(run)] * 200)
    assert len(data_of(text)["runs"]) == 200
    assert len(text.encode()) < 6_000_000


def test_html_writes_the_page_beside_the_report(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    file = tmp_path / "page.html"
    assert main([str(run), "--out", str(tmp_path / "out"), "--html", str(file)]) == 0
    assert file.read_text(encoding="utf-8") == page([RunDirectory(run)])


def test_html_into_a_missing_folder_is_one_line_and_exit_code_2(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "missing" / "page.html"
    assert main([str(make_run()), "--out", str(tmp_path / "out"), "--html", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --html {file}: cannot be written (No such file or directory); choose a file in a")
    assert error.count("\n") == 1


# Clicked through --------------------------------------------------------------------------------------------------


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
    yield window
    window.quit()


class Visitor:
    """A page in the browser, used by mouse and keyboard."""

    def __init__(self, browser: Any, runs: list[RunDirectory], file: Path) -> None:
        self.browser, self.runs, self.address = browser, runs, write_page(runs, file).as_uri()
        self.panels = len(data_of(file.read_text(encoding="utf-8"))["panels"])
        self.load()

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
    return Visitor(browser, several, tmp_path_factory.mktemp("page") / "page.html")


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
    while visitor.script("document.activeElement.closest('th') !== null"):
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


@pytest.mark.parametrize("step", covered((39, 13), (39,)))
def test_a_run_of_somebody_else_runs_nothing(
    browser: Any, poisoned_runs: list[RunDirectory], step: int, tmp_path: Path
) -> None:
    visitor = Visitor(browser, poisoned_runs, tmp_path / "page.html")
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


def test_a_click_selects_the_whole_command(visitor: Visitor) -> None:
    visitor.one("a[href='#run-0']").click()
    visitor.opened("seed0")
    visitor.one("#details pre").click()
    visitor.wait(lambda: visitor.script("getSelection().toString()") == (visitor.runs[0].summary or {})["command"])


def test_a_table_with_every_column_fits_into_1400_pixels(browser: Any, make_run: MakeRun, tmp_path: Path) -> None:
    runs = [RunDirectory(make_run(method, method=method, test_every_epoch=True)) for method in ("adenel", "grow_prune")]
    size = {"width": 1400, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        visitor = Visitor(browser, runs, tmp_path / "page.html")
        assert visitor.place("Stop reason") == len(visitor.all("th")) - 1
        table = "document.querySelector('.scroll')"
        assert visitor.script(f"{table}.scrollWidth === {table}.clientWidth && innerWidth === 1400")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


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


def test_without_figures_the_table_and_the_numbers_are_there(visitor: Visitor) -> None:
    source = {"source": "delete window.DecompressionStream"}
    hidden = visitor.browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", source)
    try:
        visitor.go()
        visitor.wait(lambda: "cannot unpack the figures" in visitor.one("#panels").text)
        visitor.one("a[href='#run-0']").click()
        text = visitor.opened("seed0")
        assert (visitor.runs[0].summary or {})["command"] in text
        assert "cannot unpack the figures" in text
    finally:
        visitor.browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", hidden)


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
