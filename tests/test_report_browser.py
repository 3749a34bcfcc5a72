"""The report in a real Chromium: no request, no complaint; sorting, tooltips, themes and paper."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments._report import draw, read, write
from secure_ml.rows import save_rows
from tests.browser import Page, browser, chromium
from tests.test_report import RECORD, material

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="no Chromium is installed"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    pytest.importorskip("websocket")
    out = tmp_path_factory.mktemp("run")
    rows = material()
    save_rows(rows, out / "rows.jsonl")
    write(rows, [], out, {"command": "secure-ml matrix"})
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        tab.media()
        tab.size(1280)
        tab.open((out / "report.html").as_uri())
        yield tab


def test_nothing_is_asked_of_a_network_and_nothing_complained(page: Page, tmp_path: Path) -> None:
    draw([read(RECORD)], tmp_path)
    page.open((tmp_path / "report.html").as_uri())
    page.js("document.querySelectorAll('button').forEach((one) => one.click())")
    assert page.requests() == []
    assert page.complaints() == []


def test_the_watch_fires(page: Page, tmp_path: Path) -> None:
    """A page that asks, complains and lets scripts in is told from ours."""
    bad = tmp_path / "bad.html"
    bad.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('oh')</script>")
    before = len(page.events)
    page.open(bad.as_uri())
    assert "http://127.0.0.1:9/x.png" in page.requests()
    assert any("oh" in text for text in page.complaints())
    del page.events[before:]


@pytest.fixture
def fresh(page: Page, tmp_path: Path) -> Page:
    """The report of the material, as it opens."""
    rows = material()
    save_rows(rows, tmp_path / "rows.jsonl")
    write(rows, [], tmp_path, {"command": "secure-ml matrix"})
    page.media()
    page.size(1280)
    page.open((tmp_path / "report.html").as_uri())
    page.js("try { localStorage.clear() } catch {} delete document.documentElement.dataset.theme")
    return page


FIRST = "[...document.querySelectorAll('#t0-heat tbody tr')].map((row) => row.cells[{0}].dataset.sort)"
STACKS = "[...document.querySelectorAll('#t0-heat tbody tr')].map((row) => row.cells[0].textContent.trim())"


def test_columns_sort_up_and_down(fresh: Page) -> None:
    button = "document.querySelectorAll('#t0-heat thead button')[2]"
    given = [float(one) for one in fresh.js(FIRST.format(2))]
    fresh.js(f"{button}.click()")
    assert [float(one) for one in fresh.js(FIRST.format(2))] == sorted(given)
    assert fresh.js(f"{button}.closest('th').getAttribute('aria-sort')") == "ascending"
    fresh.js(f"{button}.click()")
    assert [float(one) for one in fresh.js(FIRST.format(2))] == sorted(given, reverse=True)
    fresh.js("document.querySelectorAll('#t0-heat thead button')[0].click()")
    names = fresh.js(STACKS)
    assert names == sorted(names, key=str.lower)
    assert fresh.js(f"{button}.closest('th').getAttribute('aria-sort')") == "none"
    assert fresh.complaints() == []


def test_what_is_missing_sorts_last_either_way(fresh: Page) -> None:
    fresh.js("document.querySelector('#t0-heat tbody tr').cells[1].dataset.sort = ''")
    for _ in range(2):
        fresh.js("document.querySelectorAll('#t0-heat thead button')[1].click()")
        assert fresh.js(FIRST.format(1))[-1] == ""


def test_hovering_tells(fresh: Page) -> None:
    target = "document.querySelector('#t0-pareto .mark[data-tip]')"
    fresh.js(f"{target}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    x, y = fresh.js(f"(() => {{ const b = {target}.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }})()")  # fmt: skip  # noqa: E501
    fresh.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")  # scrolling hides it
    assert fresh.js("document.getElementById('tip').hidden") is True
    fresh.mouse(x, y)
    assert fresh.js("document.getElementById('tip').hidden") is False
    told = fresh.js("document.getElementById('tip').textContent")
    assert "accuracy" in told
    box = fresh.js("(() => { const b = document.getElementById('tip').getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; })()")  # fmt: skip  # noqa: E501
    assert box[0] >= 0
    assert box[1] >= 0
    assert box[2] <= 1280
    fresh.mouse(5, 5)
    assert fresh.js("document.getElementById('tip').hidden") is True


def test_the_keyboard_reaches_the_marks(fresh: Page) -> None:
    fresh.js("document.querySelector('#t0-pareto .legend').scrollIntoView({behavior: 'instant'})")
    assert fresh.js("document.querySelector('#t0-pareto .mark[tabindex]').getAttribute('aria-label')")
    fresh.js("document.querySelector('.copy').focus()")
    for kind in ("keyDown", "keyUp"):
        fresh.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9, modifiers=8)
    assert fresh.js("document.activeElement !== document.body")


BACKGROUND = "getComputedStyle(document.body).backgroundColor"


def test_dark_follows_the_system_and_the_switch(fresh: Page) -> None:
    light = fresh.js(BACKGROUND)
    fresh.media(scheme="dark")
    dark = fresh.js(BACKGROUND)
    assert dark != light
    fresh.js("document.getElementById('theme').click()")
    assert fresh.js(BACKGROUND) == light
    fresh.js("document.getElementById('theme').click()")
    assert fresh.js(BACKGROUND) == dark
    assert fresh.complaints() == []


CONTRAST = """(() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const lum = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const over = ([r, g, b, a = 1], under) => [r, g, b].map((v, i) => v * a + under[i] * (1 - a));
  const ground = (one) => {
    const chain = [];
    for (let at = one; at; at = at.parentElement) chain.unshift(parse(getComputedStyle(at).backgroundColor));
    return chain.reduce((under, layer) => over(layer, under), [255, 255, 255]);
  };
  const bad = [];
  for (const one of document.querySelectorAll("body *")) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !one.checkVisibility() || one.closest(".sr, .skip, script, style, [hidden]")) continue;
    const style = getComputedStyle(one);
    const back = ground(one);
    const ink = parse(one instanceof SVGElement ? style.fill : style.color);
    const front = over([...ink.slice(0, 3), (ink[3] ?? 1) * Number(style.opacity)], back);
    const [high, low] = [lum(front), lum(back)].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) bad.push(`${one.tagName}.${one.getAttribute("class")} ${one.textContent.trim().slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return bad;
})()"""  # noqa: E501


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read_aa(fresh: Page, scheme: str) -> None:
    """A contrast of at least 4.5 to 1 for all text (WCAG 2.2, 1.4.3)."""
    fresh.media(scheme=scheme)
    fresh.js("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert fresh.js(CONTRAST) == []


def test_the_contrast_test_fires(fresh: Page) -> None:
    fresh.js("document.querySelector('h1').style.color = '#bbb'")
    assert any(text.startswith("H1") for text in fresh.js(CONTRAST))


def test_nothing_hangs_over_on_a_telephone(fresh: Page) -> None:
    fresh.size(390)
    assert fresh.js("document.documentElement.scrollWidth") <= 390
    assert fresh.js("[...document.querySelectorAll('h1, h2, p, .tile, .panel')].every((one) => one.getBoundingClientRect().right <= 391)")  # fmt: skip  # noqa: E501


def test_paper_is_light_whole_and_without_buttons(fresh: Page) -> None:
    fresh.media(scheme="dark")
    fresh.js("dispatchEvent(new Event('beforeprint'))")
    fresh.media("print", "dark")
    assert fresh.js(BACKGROUND) == "rgb(255, 255, 255)"
    assert fresh.js("[...document.querySelectorAll('details')].every((one) => one.open)")
    assert fresh.js("[...document.querySelectorAll('#theme, .toc, .copy')].every((one) => !one.checkVisibility())")
    assert fresh.js("getComputedStyle(document.querySelector('h1')).color") == "rgb(23, 32, 42)"
    pdf = fresh.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)["data"]
    assert len(pdf) > 10_000
    assert not fresh.js("[...document.querySelectorAll('details')].every((one) => one.open)")


def test_a_smuggled_script_does_not_run(page: Page, tmp_path: Path) -> None:
    """Even past the escaping, the page's own policy stops it."""
    save_rows(material(), tmp_path / "rows.jsonl")
    (path,) = [one for one in write(material(), [], tmp_path) if one.suffix == ".html"]
    before = len(page.events)
    smuggled = "<script>window.pwned = 1</script><img src='http://127.0.0.1:9/x.png'>"
    path.write_text(path.read_text().replace("</main>", f"{smuggled}</main>"))
    page.open(path.as_uri())
    assert page.js("window.pwned") is None
    assert page.js("document.images[document.images.length - 1].naturalWidth") == 0
    assert any("Content Security Policy" in text for text in page.complaints())
    del page.events[before:]
