"""The report: what a row says stays text, everything is in one small file, and bad input gets a sentence."""

import csv
import io
import json
import re
import struct
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from attacks import PGD
from experiments import _report, report
from experiments._provenance import provenance
from experiments._report import draw, read, write
from experiments._report._kinds import family, methods
from experiments._report._matrix import make_columns
from experiments._report._png import png
from experiments._report._style import GLYPHS
from experiments._report._svg import Scale, el
from experiments._report._taxonomy import RISKS
from experiments._report._text import csv_text, write_parquet
from secure_ml.attack import Result
from secure_ml.errors import UsageError
from secure_ml.exhibits import SHOWN
from secure_ml.rows import Row, row_from, save_rows
from secure_ml.threats import Linf
from secure_ml.victim import Claim
from tests.laws import tiny_task, tiny_victim

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "benchmarks" / "results" / "matrix-digits_cnn.json"
EVIL = "<script>alert(1)</script>"


def row(defenses: str, seed: int, value: float | None, measure: str = "accuracy", **more: object) -> Row:
    given: dict[str, object] = {"task": "t()", "attack": "", "unit": "share", **more}
    if value is not None and given["unit"] == "share":
        given |= {"low": max(value - 0.05, 0), "high": min(value + 0.05, 1), "interval": "Clopper-Pearson", "n": 100}
    return Row(defenses=defenses, seeds=(seed,), measure=measure, value=value, **given)  # type: ignore[arg-type]


CLAIM = Claim(kind="differential privacy", short="(3, 1e-05)-DP", statement="three", values={"epsilon": 3.0})
STACKS = {"none": 0.0, "A()": 0.3, "DPSGD()": -0.1, "A() + DPSGD()": 0.25}


def material(seeds: int = 3) -> list[Row]:
    """Rows of four stacks against five attacks with checks and claims."""
    bound, seen = "epsilon lower bound (95 %), one run", "WARN  negative controls: seen -> do it"
    rows = []
    for name, gain in STACKS.items():
        more: dict[str, object] = {"claims": (CLAIM,)} if "DPSGD" in name else {}
        for s in range(seeds):
            by = 0.004 * s
            rows += [
                row(name, s, 0.95 + by, **more),
                row(name, s, 0.4 + gain + by, "accuracy under Linf(0.1)", attack="PGD()", **more),
                row(name, s, 0.6 + gain / 4 + by, "membership AUC", attack="LossThreshold()", **more),
                row(name, s, 0.9 - gain / 3 - by, "fidelity at 300 queries", attack="Knockoff()", **more),
                row(name, s, None, "certification", attack="Certified()", note="nothing is proved", **more),
                row(name, s, 1.0 + gain, bound, attack="OneRun()", unit="epsilon", **more),
                row(name, s, 2, "negative controls", attack="EvasionChecks()", unit="verdict", note=seen),
            ]
    return rows


ORIGIN = {"command": "secure-ml matrix", "hardware": {"cpu": "a chip"}, "versions": {"torch": "2"}}


class Structure(HTMLParser):
    """Tags as they open and close, and everything that addresses something."""

    VOID = frozenset("meta link img br path line input hr".split())

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in self.VOID or self.get_starttag_text().startswith("<path") or tag == "line":  # type: ignore[union-attr]
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Structure]:
    out = tmp_path_factory.mktemp("run")
    rows = material()
    save_rows(rows, out / "rows.jsonl")
    scores = torch.linspace(0, 1, 200, dtype=torch.float64)
    images = torch.randint(0, 255, (4, 1, 8, 8), dtype=torch.uint8)
    shown = {"clean": images, "changed": images // 2, "decided": torch.tensor([[1, 2]] * 4), "target": torch.ones(4)}
    results = [
        Result((next(r for r in rows if r.attack == "LossThreshold()"),), {"members": scores, "others": scores**2}),
        Result((next(r for r in rows if r.attack == "PGD()"),), {"worst": torch.ones(4), **shown}),
    ]
    write(rows, results, out, ORIGIN)
    text = (out / "report.html").read_text()
    return out, text, Structure(text)


def test_the_page_is_whole(drawn: tuple[Path, str, Structure]) -> None:
    _, _, page = drawn
    assert page.open == []
    assert [tag for tag, n in Counter(page.ids).items() if n > 1] == []
    anchors = [value[1:] for _, name, value in page.attributes if name == "href" and value.startswith("#")]
    assert anchors
    assert set(anchors) <= set(page.ids)
    named = [
        v for _, name, value in page.attributes if name in ("aria-labelledby", "aria-controls") for v in value.split()
    ]
    assert set(named) <= set(page.ids)


def test_nothing_is_loaded_from_anywhere(drawn: tuple[Path, str, Structure]) -> None:
    _, text, page = drawn
    for tag, name, value in page.attributes:
        if name in ("src", "srcset", "data", "poster", "action") or (tag == "link" and name == "href"):
            assert value.startswith("data:"), (tag, name, value)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|WebSocket", text)
    assert not any(name == "style" or name.startswith("on") for _, name, _ in page.attributes)
    policy = next(v for tag, name, v in page.attributes if tag == "meta" and name == "content" and "default-src" in v)
    assert policy.startswith("default-src 'none'")


def test_tables_can_be_read_out(drawn: tuple[Path, str, Structure]) -> None:
    _, text, page = drawn
    heads = re.findall(r"<th\b[^>]*>", text)
    assert heads
    assert all("scope=" in head for head in heads)
    for svg in re.findall(r"<svg\b[^>]*>", text):
        assert "aria-label=" in svg or 'aria-hidden="true"' in svg, svg
    assert all("alt=" in image for image in re.findall(r"<img\b[^>]*>", text))
    cells = re.findall(r'<td class="h\d[^>]*>(.*?)</td>', text, re.DOTALL)
    assert cells
    assert all(re.search(r'class="v">', cell) and "aria-label" in cell for cell in cells), "never by colour alone"
    assert page.tags["h1"] == 1
    assert 'lang="en"' in text


def test_everything_has_its_part(drawn: tuple[Path, str, Structure]) -> None:
    _, text, page = drawn
    for part in ("card", "matrix", "effects", "stacked", "pareto", "roc", "examples", "claims", "checks"):
        assert f"t0-{part}" in page.ids, part
    for said in ("AML.T0015", "NISTAML.033", "(3, 1e-05)-DP", "within the claim", "nothing is proved", "a chip"):
        assert said in text, said
    assert page.tags["img"] == 12
    assert "https://arxiv.org/abs/1706.06083" in text


@pytest.mark.parametrize("field", ["note", "task", "defenses", "attack", "measure", "interval", "version", "unit"])
def test_what_a_row_says_stays_text(field: str, tmp_path: Path) -> None:
    rows = [replace(r, **{field: f"{EVIL}\"' onload=x {getattr(r, field)}"}) for r in material(1)]
    evil = Claim(kind="differential privacy", short=EVIL, statement=EVIL, values={"epsilon": 1.0})
    rows = [replace(r, claims=(evil,)) for r in rows]
    written = write(rows, [], tmp_path, {"command": EVIL, "versions": {EVIL: EVIL}, "hardware": {"cpu": EVIL}})
    text = written[0].read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text
    page = Structure(text)
    assert page.tags["script"] == 1
    assert not any(name == "onload" for _, name, _ in page.attributes)
    for name in ("report.md", "model-card.md"):
        prose = re.sub(r"```.*?```|`[^`]*`", "", (tmp_path / name).read_text(), flags=re.DOTALL)
        assert "<script" not in prose, name


def test_svg_escapes_text_and_attributes() -> None:
    assert el("text", EVIL, aria_label='"><x>', class_="a") == (
        '<text aria-label="&#34;&gt;&lt;x&gt;" class="a">&lt;script&gt;alert(1)&lt;/script&gt;</text>'
    )


def test_the_escape_test_fires() -> None:
    with pytest.raises(AssertionError, match="closes"):
        Structure("<p><b></p></b>")


def test_a_large_matrix_stays_small(tmp_path: Path) -> None:
    """4 stacks, 6 attacks, 3 seeds, with as many images as evidence holds: below 3 MB."""
    rows, results = material(), []
    for name in STACKS:
        for i in range(6):
            noise = torch.randint(0, 255, (SHOWN, 3, 64, 64), dtype=torch.uint8)
            hit = row(name, 0, 0.5, f"accuracy under Linf(0.{i})", attack=f"PGD(steps={i})")
            results.append(Result((hit,), {"worst": torch.ones(4), "clean": noise, "changed": noise}))
            rows.append(hit)
    write(rows, results, tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 3_000_000


def test_it_is_drawn_again_as_it_was(drawn: tuple[Path, str, Structure]) -> None:
    out, text, _ = drawn
    (out / "run.json").write_text(json.dumps(ORIGIN))
    assert report.main([str(out)]) == 0
    assert (out / "report.html").read_text() == text


def test_a_record_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(RECORD), "--out", str(tmp_path)]) == 0
    assert "report.html" in capsys.readouterr().out
    page = Structure((tmp_path / "report.html").read_text())
    assert page.open == []
    kept = [row_from(one) for one in json.loads(RECORD.read_text())["rows"]]
    table = list(csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_text())))
    assert len(table) == len(kept)
    assert [line["measure"] for line in table] == [one.measure for one in kept]
    assert float(table[0]["value"]) == kept[0].value
    card = (tmp_path / "model-card.md").read_text()
    assert card.startswith("---\nlibrary_name:")
    assert "## Evaluation" in card
    assert "| none" in (tmp_path / "report.md").read_text()


def test_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, gain in (("before", 0.0), ("after", 0.2)):
        (tmp_path / name).mkdir()
        attacked = [r for r in material() if r.measure.startswith("accuracy under")]
        rows = [r for r in material() if r not in attacked]
        rows += [replace(r, value=(r.value or 0.0) + gain) for r in attacked]
        save_rows(rows, tmp_path / name / "rows.jsonl")
    assert report.main([str(tmp_path / "before"), str(tmp_path / "after"), "--out", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text()
    said = "after against before: Of 20 numbers 4 got better and 0 got worse beyond noise."
    assert said in capsys.readouterr().err
    assert "What moved" in text
    assert Structure(text).open == []
    assert "4 got better" in (tmp_path / "report.md").read_text()


ONE = json.dumps(asdict(row("none", 0, 0.5)))


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "holds no rows.jsonl"),
        ({"rows.jsonl": ""}, "holds no rows"),
        ({"rows.jsonl": "{]"}, "does not hold rows as JSON Lines"),
        ({"rows.jsonl": "[1]"}, "does not hold rows of a run"),
        ({"rows.jsonl": json.dumps({"measure": "x", "schema": 99})}, "rows of schema 99; this version reads schema 1"),
        ({"rows.jsonl": json.dumps({"measure": "x", "schema": 1})}, "other fields"),
        ({"rows.jsonl": json.dumps({**asdict(row("none", 0, 0.5)), "extra": 1})}, "other fields"),
        ({"rows.jsonl": ONE, "evidence.json": '{"rates": [{"x": 1}]}'}, "another version"),
        ({"rows.jsonl": ONE, "run.json": "["}, "is not JSON"),
    ],
)
def test_bad_runs_get_a_sentence(files: dict[str, str], sentence: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=re.escape(sentence)) as told:
        read(tmp_path)
    assert "\n" not in str(told.value)


def test_bad_input_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from experiments._main import main

    for given in ([], [str(tmp_path / "nowhere")], [str(tmp_path)]):
        assert main(["report", *given]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "other.json").write_text('{"rows": 3}')
    assert main(["report", str(tmp_path / "other.json")]) == 2
    assert "holds no rows" in capsys.readouterr().err


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_read_back(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (channels, 5, 7), dtype=np.uint8)
    data = png(image)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    place, raw = 8, b""
    while place < len(data):
        (size,) = struct.unpack(">I", data[place : place + 4])
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + size]
        assert struct.unpack(">I", data[place + 8 + size : place + 12 + size])[0] == zlib.crc32(kind + body)
        raw += zlib.decompress(body) if kind == b"IDAT" else b""
        place += 12 + size
    lines = np.frombuffer(raw, np.uint8).reshape(5, 1 + 7 * channels)
    assert (lines[:, 0] == 0).all()
    assert (lines[:, 1:].reshape(5, 7, channels).transpose(2, 0, 1) == image).all()


def test_pictures_are_those_of_another_reader(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(1).integers(0, 256, (3, 4, 6), dtype=np.uint8)
    (tmp_path / "x.png").write_bytes(png(pixels))
    with image.open(tmp_path / "x.png") as seen:
        assert (np.asarray(seen).transpose(2, 0, 1) == pixels).all()


def test_parquet_says_what_csv_says(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = material()
    assert write_parquet(rows, tmp_path / "rows.parquet")
    theirs = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [one["value"] for one in theirs] == [one.value for one in rows]
    assert len(list(csv.DictReader(io.StringIO(csv_text(rows))))) == len(theirs)


@pytest.mark.parametrize("installed", [False, True])
def test_tables_that_say_the_same_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    def keep(rows: Sequence[Row], path: Path) -> bool:
        if installed:
            path.write_text(str(len(rows)), encoding="utf-8")
        return installed

    monkeypatch.setattr(_report, "can_write_parquet", lambda: installed)
    monkeypatch.setattr(_report, "write_parquet", keep)
    rows = material()

    def stamps(rows: Sequence[Row]) -> dict[str, int]:
        write(rows, None, tmp_path)
        return {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("rows.*")}

    first = stamps(rows)
    assert set(first) == ({"rows.csv", "rows.parquet"} if installed else {"rows.csv"})
    assert stamps(rows) == first
    (tmp_path / "rows.parquet").write_text("of another time", encoding="utf-8")
    later = stamps(rows[:-1])
    assert later["rows.csv"] != first["rows.csv"]
    assert ("rows.parquet" in later) is installed, "a table that nobody can write again does not stay"


def test_scales_agree_with_their_ticks() -> None:
    assert Scale(0, 1, 0, 100).ticks() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert Scale(0.001, 1, 0, 300, log=True).ticks() == pytest.approx([0.001, 0.01, 0.1, 1])
    assert Scale(0.001, 1, 0, 300, log=True)(0.1) == pytest.approx(200)
    assert Scale(0, 2, 10, 30)(5) == 30


def test_every_family_has_a_risk() -> None:
    from experiments._catalog import attacks

    kinds = {cls.family for cls in attacks().values()} - {"scrutiny"}
    assert kinds <= set(RISKS)
    identifiers = [name.identifier for risk in RISKS.values() for name in risk.names]
    assert all(re.fullmatch(r"AML\.T\d{4}(\.\d{3})?|NISTAML\.\d{3}", one) for one in identifiers)
    assert family(row("none", 0, 0.5)) == "utility"
    assert family(row("none", 0, 0.5, "accuracy under Linf(0.1)", attack="PGD(steps=3) | Square()")) == "evasion"
    assert family(row("none", 0, 0.5, "fidelity at 3 queries", attack="Stranger()")) == "extraction"


def test_methods_are_cited() -> None:
    (found,) = methods([row("none", 0, 0.5, attack="PGD(steps=3)")])
    assert found.settings == ("PGD(steps=3)",)
    assert found.links
    assert "http" not in found.summary


def test_attacks_of_one_stack_have_columns_of_their_own() -> None:
    one = [row("none", 0, 0.5, "membership AUC", attack=name) for name in ("A()", "B()")]
    assert [column.attack for column in make_columns(one, [])] == ["A()", "B()"]
    best = [row(stack, 0, 0.5, "membership AUC", attack=stack) for stack in ("A()", "B()")]
    assert [column.attack for column in make_columns(best, [])] == [""]


def test_provenance_leaves_places_out(tmp_path: Path) -> None:
    started = datetime.now(UTC)
    given = ["--out", "/secret/x", "--data-dir=/secret/y", "--attack", "pgd(steps=3)"]
    said = provenance("matrix", given, [row("none", 4, 0.5)], started, tmp_path)
    assert json.loads((tmp_path / "run.json").read_text()) == said
    assert said["command"] == "secure-ml matrix --out OUT --data-dir=DATA-DIR --attack 'pgd(steps=3)'"
    assert said["seeds"] == [4]
    assert set(said) == {"command", "versions", "hardware", "seeds", "threads", "started", "seconds"}


def test_evidence_holds_a_few_images() -> None:
    digits, victim = tiny_task("digits_cnn"), tiny_victim("digits_cnn")
    assert isinstance(digits.threat, Linf)
    result = PGD.tiny().evaluate(victim, threat=None, seed=0, examples=20)
    clean, changed, decided, target = (result.evidence[k] for k in ("clean", "changed", "decided", "target"))
    assert clean.dtype == changed.dtype == torch.uint8
    assert clean.shape == changed.shape == (SHOWN, 1, 8, 8)
    assert int((clean.int() - changed.int()).abs().max()) <= digits.threat.radius * 255 + 1
    before = digits.score.values(victim.served, victim.tested(20))
    turned = int(((before - result.evidence["worst"]) > 0).sum())
    right = decided == target[:, None]
    assert int((right[:, 0] & ~right[:, 1]).sum()) == min(SHOWN, turned), "those that were turned come first"


def test_inputs_that_are_no_images_have_none() -> None:
    victim = tiny_victim("linear_regression")
    assert set(PGD.tiny().evaluate(victim, threat=None, seed=0, examples=5).evidence) == {"worst"}


def test_several_runs_are_drawn_even_with_one_seed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_rows(material(1), tmp_path / name / "rows.jsonl")
    runs = [read(tmp_path / name) for name in ("a", "b")]
    draw(runs, tmp_path)
    assert "cannot tell: 1 seed" in (tmp_path / "report.html").read_text()


def test_the_guide_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its code runs, and the signs and words that it explains are those that are written."""
    guide = (ROOT / "docs" / "read-the-report.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    (tmp_path / "runs" / "matrix").mkdir(parents=True)
    save_rows(material(), tmp_path / "runs" / "matrix" / "rows.jsonl")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert "A() accuracy under Linf(0.1)" in capsys.readouterr().out
    assert all(sign in guide for verdict, sign in GLYPHS.items() if "different" not in verdict)
    assert all(word in guide for word in GLYPHS if "different" not in word)
