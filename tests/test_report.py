"""The page of a study: everything on it, nothing from the network; and in Chromium (`make test-report`)."""

import base64
import gzip
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from cca_dynamics.errors import DamagedFile
from cca_dynamics.report import page as page_module
from cca_dynamics.report import verification
from cca_dynamics.results.registry import RESULTS

from tests.builders import SMOKE, snakemake

NARROW, WIDE = (390, 844), (1200, 900)


@pytest.fixture(scope="module")
def page(finished, tmp_path_factory) -> Path:
    """The report of the smoke study, made by its target."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("report") / "copy", symlinks=True)
    run = snakemake(folder, *SMOKE, "--", "report")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "othing to be done" in (again := snakemake(folder, *SMOKE, "--", "report")).stdout + again.stderr
    return folder / "figures/smoke/report.html"


@pytest.mark.thorough
def test_snakemake_s_own_report_shows_figures_with_captions_and_the_page(page):
    folder = page.parents[2]
    run = snakemake(folder, *SMOKE, "--report", "snakemake.html", "--", "report")
    assert run.returncode == 0, run.stdout + run.stderr
    text = (folder / "snakemake.html").read_text()
    assert "Wider networks converge to more similar solutions" in text  # the caption of width
    assert run.stderr.count(".png") + run.stdout.count(".png") >= 8 and "report.html" in text


class Page(HTMLParser):
    """Tags with attributes, in order, and the text of the table of verdicts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.scripts, self.inside = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def unpacked(attributes: dict) -> bytes:
    """What an element of the page holds."""
    return gzip.decompress(base64.b64decode(attributes["data-content"], validate=True))


def test_every_claim_and_figure_is_on_the_page(page):
    parsed = Page(page.read_text())
    claims = pd.read_csv(page.parents[2] / "results/smoke/claims.csv")
    rows = [attributes for attributes in parsed.all("tr") if "data-verdict" in attributes]
    assert [row["data-verdict"] for row in rows] == claims["verdict"].tolist()
    names = {path.stem for path in page.parent.glob("*.png")}
    images = parsed.all("img")
    assert len(images) == claims["claim"].str.partition(".")[0].nunique() == len(names)
    assert {unpacked(image) for image in images} == {(page.parent / f"{name}.svg").read_bytes() for name in names}
    assert all(len(image["alt"]) > 60 and int(image["width"]) == 504 for image in images)  # 7 inches in points
    downloads = {link["download"]: link for link in parsed.all("a") if "download" in link}
    assert set(downloads) == {f"smoke-{name}.{kind}" for name in names for kind in ("csv", "svg")}
    assert len(page.read_bytes()) < 6e6
    for name in names:
        content = unpacked(downloads[f"smoke-{name}.csv"])
        table = pd.read_parquet(page.parents[2] / f"results/smoke/{name}.parquet")
        assert pd.read_csv(io.BytesIO(content))["value"].to_numpy() == pytest.approx(
            table["value"].to_numpy(), nan_ok=True
        )


def test_the_page_asks_the_network_for_nothing(page):
    parsed = Page(page.read_text())
    for tag, attributes in parsed.tags:
        for key in ("src", "href", "srcset", "action"):
            target = attributes.get(key) or "#"
            assert target.startswith(("#", "data:")), (tag, key, target[:80])
    policy = next(meta["content"] for meta in parsed.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'") and "http" not in policy
    ids = {attributes["id"] for _, attributes in parsed.tags if "id" in attributes}
    assert {link["href"][1:] for link in parsed.all("a") if link["href"].startswith("#")} <= ids


def test_charts_show_the_numbers_of_the_tables(page):
    (text,) = re.findall(r"^const charts = (.+);$", page.read_text(), flags=re.MULTILINE)
    charts = json.loads(text)
    assert set(charts) == {"generalization", "clusters", "recurrent_training"}
    results = page.parents[2] / "results/smoke"
    table = pd.read_parquet(results / "generalization.parquet").query(
        "quantity == 'distance' and measure == 'pwcca' and split == 'test' and layer == 'conv2' and group == 'inter'"
    )
    curve = charts["generalization"]["panels"]["PWCCA, test data"]["inter"]
    position = curve["x"].index("conv2")
    assert curve["x"] == ["conv1", "conv2", "conv3", "conv4", "conv5", "softmax"]
    assert curve["y"][position] == pytest.approx(table["value"].mean(), abs=1e-4) and curve["n"][position] == len(table)
    chart, table = charts["clusters"], pd.read_parquet(results / "clusters.parquet")
    names = [int(name.split()[1]) for name in chart["networks"]]
    both = table.query("quantity == 'distance' and network_a in [0, 3] and network_b in [0, 3]")
    assert len(both) == 2
    assert chart["values"][names.index(0)][names.index(3)] == pytest.approx(both["value"].mean(), abs=1e-4)
    rates = table.query("quantity == 'learning_rate'").set_index("network")["value"]
    assert chart["groups"] == [f"{rates[name]:g}" for name in names]


def test_text_of_the_study_cannot_become_markup():
    assert "</script>" not in page_module._embedded({"</script><script>alert(1)</script>": 1})
    assert "<script" not in page_module._html(
        "`x <javascript:alert(1)>`_ <script>alert(1)</script>\n\n.. raw:: html\n\n   <script>"
    )


@pytest.mark.parametrize("name", ["claims.csv", "width.parquet", "ro-crate-metadata.json"])
def test_what_is_missing_is_named_and_no_page_is_left(page, tmp_path, name):
    folder = shutil.copytree(page.parents[2], tmp_path / "copy", symlinks=True)
    config = verification.read("smoke", folder).config
    (folder / "results/smoke" / name).write_bytes(b"\x00")
    (folder / "figures/smoke/report.html").unlink()
    with pytest.raises(DamagedFile, match=re.escape(name)):
        page_module.write(config, folder / "figures/smoke/report.html", folder)
    assert not (folder / "figures/smoke/report.html").exists()


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium that keeps what it logs and asks for."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="`make test-report` installs it")
    driver = shutil.which("chromedriver")
    if driver is None:
        pytest.skip("no Chromium here; see `make test-report`")
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chromium = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chromium
    chromium.quit()


def show(browser, page: Path, size: tuple[int, int], scheme: str = "light") -> None:
    """Open the page at a size, in light or dark."""
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == NARROW}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(page.as_uri())
    browser.execute_async_script(
        "const done = arguments[0], decoded = () => Promise.all([...document.images].map(image => image.decode()));"
        "const wait = () => document.documentElement.dataset.ready ? decoded().then(done, done) : setTimeout(wait, 50);"
        "wait()"
    )


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio of two CSS colours rgb(...)."""

    def luminance(colour: str) -> float:
        values = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.thorough
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["desk", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_chromium(browser, page, size, scheme):
    browser.get_log("browser"), browser.get_log("performance")
    show(browser, page, size, scheme)
    widths = browser.execute_script("return [...document.images].map(i => [i.naturalWidth, i.clientWidth])")
    assert len(widths) == len(RESULTS) and all(natural > 500 and shown > 250 for natural, shown in widths)
    assert browser.execute_script("return document.querySelectorAll('.js-plotly-plot .main-svg').length") >= 3
    assert browser.execute_script("return document.documentElement.scrollWidth") <= size[0]
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert asked and all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    for selector in ("body", ".soft", ".reproduced", ".not-reproduced", ".inconclusive", ".not-testable", "main a"):
        text, back = browser.execute_script(
            "const e = document.querySelector(arguments[0]);"
            "return [getComputedStyle(e).color, getComputedStyle(document.body).backgroundColor]",
            selector,
        )
        assert contrast(text, back) >= 4.5, selector


@pytest.mark.thorough
def test_the_table_sorts_by_mouse_and_keyboard_and_filters(browser, page):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    show(browser, page, WIDE)

    def column(number: int) -> list[str]:
        cells = browser.find_elements(By.CSS_SELECTOR, f"#claims tbody tr:not([hidden]) td:nth-child({number})")
        return [cell.get_attribute("data-key") for cell in cells]

    values = [float(value) for value in column(3) if value]
    head = browser.find_elements(By.CSS_SELECTOR, "#claims th button")[2]
    head.click()
    assert [float(value) for value in column(3) if value] == sorted(values)
    head.send_keys(Keys.ENTER)
    assert [float(value) for value in column(3) if value] == sorted(values, reverse=True)
    assert not any(column(3)[len(values) :])  # what has no value stays last
    assert browser.find_elements(By.CSS_SELECTOR, "#claims th")[2].get_attribute("aria-sort") == "descending"
    everything = len(column(1))
    browser.find_element(By.CSS_SELECTOR, "#filter-result").send_keys("width")
    shown = browser.find_elements(By.CSS_SELECTOR, "#claims tbody tr:not([hidden])")
    assert 0 < len(shown) < everything and {row.get_attribute("data-result") for row in shown} == {"width"}
    assert browser.find_element(By.ID, "shown").text == f"{len(shown)} of {everything} claims"


@pytest.mark.thorough
def test_everything_can_be_reached_by_tab(browser, page):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    show(browser, page, WIDE)
    browser.execute_script(
        "window.reached = []; document.addEventListener('focusin', ({target}) =>"
        " window.reached.push(target.id || target.download || target.getAttribute('href') || target.textContent))"
    )
    reached, wanted = [], {"filter-verdict", "filter-result", "choose-clusters", "choose-generalization"}
    while len(reached) < 400 and not (wanted <= set(reached) and _tables(reached)):
        ActionChains(browser).send_keys(Keys.TAB * 25).perform()
        reached = browser.execute_script("return window.reached")
    assert reached[0].endswith("#verdicts")  # the link that skips
    assert wanted <= set(reached) and _tables(reached)


def _tables(reached: list[str | None]) -> list[str | None]:
    """Links to tables among what the Tab key reached."""
    return [name for name in reached if str(name).endswith(".csv")]


@pytest.mark.thorough
def test_a_link_leads_to_its_section_at_once(browser, page):
    show(browser, page, WIDE)
    for name in ("clusters", "toy_rnn", "stability"):
        browser.execute_script(f"document.documentElement.style.scrollBehavior = 'auto'; location.hash = '{name}'")
        top = browser.execute_script(f"return document.getElementById('{name}').getBoundingClientRect().top")
        assert 0 <= top < 100, name


@pytest.mark.thorough
def test_the_matrix_is_filtered_by_learning_rate(browser, page):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    show(browser, page, WIDE)
    size = "return document.getElementById('plot-clusters').data[0].z.length"
    assert browser.execute_script(size) == 10
    Select(browser.find_element(By.ID, "choose-clusters")).select_by_visible_text("0.02")
    assert browser.execute_script(size) == 5
