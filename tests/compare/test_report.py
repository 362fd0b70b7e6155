"""The report as a whole: what is said, in which order, in HTML and in Markdown, and which mistakes are one sentence."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from difftop.compare import CompareConfig, CompareError, Report, compare, compare_config
from difftop.compare.document import Bullets, Document, Picture, Section, Table, Text
from difftop.compare.page import page
from difftop.compare.tables import markdown
from difftop.options import ConfigError
from tests.compare.folders import curve_table, make_run, table
from tests.compare.test_imitation import ACC, make_evaluation

VOID = {"meta", "link", "img", "br"}
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010800000000"
    "3a7e9b550000000a49444154789c6360000000020001e221bc330000000049454e44ae426082"
)


class Parsed(HTMLParser):
    """Elements in order, and whether every one is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Two methods with unequal seeds on two tasks, a published one, a bad file, and an imitation evaluation."""
    root = tmp_path_factory.mktemp("compare")
    for task in ("dmc-walker-walk", "dmc-cup-catch"):
        for seed in (1, 2, 3):
            make_run(root / "runs", task=task, seed=seed, scale=seed)
        make_run(root / "runs", task=task, agent="difftop_rl", scale=4, repeat=4)
    table(root / "runs" / "notes.csv", "a,b\n1,2\n")
    make_evaluation(root / "runs", [1, 0, 1], metrics=ACC)
    for task in ("walker-walk", "cup-catch"):
        curve_table(root / "published" / "sac" / f"{task}.csv", {1: [(0, 0), (200, 300)], 2: [(0, 0), (200, 500)]})
    return compare(
        compare_config(
            {"runs": str(root / "runs"), "references": [str(root / "published")], "out": str(root / "out"), "frames": 200}
        )
    )


def test_the_page_parses_and_loads_nothing(report: Report) -> None:
    parsed = Parsed(report.html.read_text())
    assert parsed.all("script") == [] and parsed.all("iframe") == []
    loaded = [attributes.get("src") or attributes.get("href") or "" for _, attributes in parsed.elements]
    assert all(link.startswith(("data:", "#")) for link in loaded if link)
    assert "url(" not in report.html.read_text() and "@import" not in report.html.read_text()


def test_the_page_is_accessible(report: Report) -> None:
    parsed = Parsed(report.html.read_text())
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"] for a in parsed.all("a")} <= {f"#{name}" for name in ids}
    assert parsed.all("html") == [{"lang": "en"}]
    assert len(parsed.all("img")) == len(parsed.all("figcaption")) == 4
    assert all(len(a["alt"] or "") > 20 and int(a["width"] or 0) > 100 for a in parsed.all("img"))
    assert len(parsed.all("table")) == len(parsed.all("caption")) == 7
    assert all(a.get("scope") in ("col", "row") for a in parsed.all("th"))
    assert "prefers-color-scheme: dark" in report.html.read_text()


def test_what_is_left_out_and_unequal_comes_first(report: Report) -> None:
    text = report.markdown.read_text()
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings == [
        "What was left out, and what is unequal",
        "Over all tasks",
        "Probability of improvement",
        "Learning curves",
        "Scores by task",
        "Frames and wall-clock to reach a return",
        "Cost",
        "Imitation",
        "What was read, and how it was computed",
    ]
    first = text.split("## Over all tasks")[0]
    assert "notes.csv**: has no column step, reward, seed" in first
    assert "- **Seeds**: difftop_rl: 1; tdmpc: 3; sac (published): 2" in first
    assert "- **difftop_rl on cup-catch and difftop_rl on walker-walk**: a single seed, so no interval" in first
    assert (
        "- **Action repeat on cup-catch and Action repeat on walker-walk**: difftop_rl 4; tdmpc 2; all frames are environment"
        in first
    )
    assert "- **Intervals**: 4 of 6 curves have 2 to 4 seeds" in first
    html = report.html.read_text()
    assert html.index('id="unequal"') < html.index('id="aggregates"') and 'class="first"' in html


def test_numbers_are_those_of_the_runs(report: Report) -> None:
    text = report.markdown.read_text()
    assert "| tdmpc | 3 | 0.400 [0.250, 0.550] | 0.400 [0.267, 0.533] | 0.400 [" in text  # 200, 400 and 600 on both tasks
    assert "| difftop_rl | 1 | 0.800 | 0.800 | 0.800 | 0.200 |" in text
    assert "| walker-walk | difftop_rl | 1 | 200 | 800 | 800 | 800 | 200 |" in text
    assert "| walker-walk | tdmpc | not in 200 (1 of 3) | not in 200 (0 of 3) | — | — |" in text
    assert "| walker-walk | difftop_rl | 200 (1 of 1) | not in 200 (0 of 1) | 20 s | — |" in text
    assert "return 500" in text and "return 900" in text
    assert "| can | leto | 1 | 3 | 66.7 [20.8, 93.9] |" in text
    assert "as in tables II and III of LeTO" in text


def test_markdown_pictures_and_scores_are_beside(report: Report) -> None:
    folder = report.markdown.parent
    named = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", report.markdown.read_text())
    assert sorted(named) == sorted(f"pictures/{path.name}" for path in (folder / "pictures").iterdir())
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in named)
    rows = (folder / "scores.csv").read_text().splitlines()
    assert rows[0] == "task,method,published,step,reward,seed" and "walker-walk,tdmpc,0,200,600,3" in rows
    assert len(rows) == 1 + 2 * (3 * 3 + 3 + 2 * 2)
    assert report.line().startswith("6 curves on 3 tasks, 1 imitation evaluation; 1 note on what was left out: ")


def test_the_same_input_gives_the_same_report(report: Report, tmp_path: Path) -> None:
    root = report.html.parent.parent
    options = {"runs": str(root / "runs"), "references": str(root / "published"), "out": str(tmp_path), "frames": [200]}
    again = compare(compare_config(options))
    assert again.html.read_bytes() == report.html.read_bytes()
    other = compare(compare_config(options | {"seed": 1, "resamples": 100}))
    assert other.html.read_bytes() != report.html.read_bytes()


def test_without_frames_the_shortest_curve_decides_and_is_named(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", agent="a")
    make_run(tmp_path / "runs", agent="b", frames=(0, 100), config={"frames": 100})
    found = compare(CompareConfig(runs=[str(tmp_path / "runs")], out=str(tmp_path / "out")))
    (cut,) = found.cuts
    assert cut.frames == 100 and cut.tasks == ["walker-walk"]
    said = {note.subject: note.text for note in found.notes}
    assert said["Frames"].startswith(
        "compared over all tasks at 100 frames, because b on walker-walk ends at 100; others go up to 200"
    )
    assert said["Frames on walker-walk"] == "a to 200; b to 100"


def test_filters_choose_and_name_what_there_is(tmp_path: Path) -> None:
    for agent in ("tdmpc", "difftop_rl"):
        for task in ("dmc-walker-walk", "dmc-cup-catch"):
            make_run(tmp_path / "runs", agent=agent, task=task)
    options = {"runs": str(tmp_path / "runs"), "out": str(tmp_path / "out")}
    found = compare(compare_config(options | {"tasks": "cup-catch", "methods": "tdmpc"}))
    assert (found.curves, found.tasks) == (1, 1)
    with pytest.raises(ConfigError, match=r"methods=tdmcp: not there. Did you mean 'tdmpc'\? There are: difftop_rl, tdmpc"):
        compare(compare_config(options | {"methods": "tdmcp"}))


def test_nothing_to_compare_is_one_sentence_that_names_the_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to compare: give runs=FOLDER"):
        compare(CompareConfig())
    (tmp_path / "empty").mkdir()
    with pytest.raises(CompareError) as error:
        compare(CompareConfig(runs=[str(tmp_path / "empty")], out=str(tmp_path / "out")))
    assert str(error.value) == (
        f"no curve and no evaluated episodes in {tmp_path}/empty: nothing to compare. "
        f"The first problem: {tmp_path}/empty holds no run (a folder with eval.csv) and no CSV."
    )
    assert not (tmp_path / "out").exists()
    table(tmp_path / "empty" / "x.csv", b"\x00\xff")
    with pytest.raises(CompareError, match=r"x.csv can't be read: it is not text\.$"):
        compare(CompareConfig(runs=[str(tmp_path / "empty")], out=str(tmp_path / "out")))


@pytest.mark.parametrize(("key", "value"), [("frames", [0]), ("returns", [0.0]), ("min_coverage", 2.0), ("resamples", 1)])
def test_options_have_ranges(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{key}=.*must be"):
        compare_config({key: value})


def test_text_from_files_is_text_in_both_formats() -> None:
    nasty = '<script>alert("x")</script> *a* _b_ c_d [e](http://f) `g` | &amp;'
    blocks = [
        Text(nasty),
        Bullets([(nasty, nasty)]),
        Table(nasty, (nasty, "x"), [(nasty, "1")]),
        Picture(PIXEL, "p", nasty, nasty),
    ]
    document = Document(nasty, nasty, [Section(nasty, "anchor", blocks)])
    parsed = Parsed(page(document))
    assert parsed.all("script") == [] and all((a["href"] or "").startswith(("#", "data:")) for a in parsed.all("a"))
    assert parsed.all("img")[0]["alt"] == nasty
    text = markdown(document)
    unescaped = re.sub(r"\\.", "", text)
    assert not re.search(r"<script|\]\(http|`|\*a|_b", unescaped) and "c_d" in text
    row = next(line for line in text.splitlines() if line.endswith("| 1 |"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 3


def test_long_lists_fold_in_the_page_but_lose_nothing() -> None:
    items = [(f"subject{i}", "text") for i in range(40)]
    text = page(Document("t", "l", [Section("s", "unequal", [Bullets(items)])]))
    assert "<summary>25 more</summary>" in text and all(f"<strong>subject{i}</strong>" in text for i in range(40))
