"""The pages name files, commands, options and modules that exist, and the README's Python example runs."""

import pkgutil
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from tiny import write_records, write_run_folder

from core.program import load_method
from core.settings import MapSettings, Settings

ROOT = Path(__file__).resolve().parents[2]
METHODS = sorted(path.parent for path in ROOT.glob("methods/*/train.py"))
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "methods/*/README.md", "old_model/README.md", ".github/*.md")
    for path in ROOT.glob(pattern)
)
PRESENT = [page for page in PAGES if page.name != "CHANGELOG.md"]
"""The pages that speak of the code as it is."""
LINK = re.compile(r"\]\(([^)\s]+)\)")
QUOTED = re.compile(r"`([^`\n]+)`")
FOLDERS = ("core/", "methods/", "tools/", "old_model/", "configs/", "ci/", "docs/", ".github/")
MADE_BY_A_READER = ("methods/toy", "core/backbones/toy.py", "ci/tests/methods/test_toy.py")
"""What CONTRIBUTING.md has its reader make."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """The page without its blocks of code, in which brackets are no links."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[str]:
    """Command lines of a page, continued lines joined."""
    for line in page.read_text().replace("\\\n", " ").splitlines():
        if re.search(r"\b(python3?|torchrun)\b", line):
            yield line.split("#")[0]


def test_links_lead_to_files_and_headings():
    broken = []
    for page in PAGES:
        for target in LINK.findall(prose(page)):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            is_address = re.match(r"\w+:", target)
            if not is_address and (not file.exists() or anchor and anchor not in anchors(file)):
                broken.append(f"{name_of(page)}: {target}")
    assert broken == []


def path_exists(quoted: str, page: Path) -> bool:
    """Whether a quoted path, with * or <name> for any part, is there; a method's README may mean its own configs."""
    pattern = re.sub(r"<\w+>", "*", quoted.rstrip("/"))
    return any(any(folder.glob(pattern)) for folder in (ROOT, page.parent))


def test_quoted_paths_exist():
    quoted = {(page, text) for page in PRESENT for text in QUOTED.findall(prose(page)) if text.startswith(FOLDERS)}
    missing = {
        f"{name_of(page)}: {text}"
        for page, text in quoted
        if " " not in text and not text.startswith(MADE_BY_A_READER) and not path_exists(text, page)
    }
    assert missing == set()


def settings_table(page: Path) -> dict[str, str]:
    """Of each key in a README's table of settings the cell with our value."""
    rows = [
        [cell.strip() for cell in line[1:-1].split("|")] for line in page.read_text().splitlines() if line[:1] == "|"
    ]
    (columns,) = (row for row in rows if row[0] == "key")
    ours = columns.index("ours") if "ours" in columns else 1
    return {key: row[ours] for row in rows if len(row) == len(columns) for key in QUOTED.findall(row[0])}


def as_told(value: object) -> str:
    """A default as the tables write it: whole numbers without a decimal point, strings in double quotes."""
    if isinstance(value, tuple):
        return f"({', '.join(map(as_told, value))})"
    return f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_settings_tables_have_every_key_of_the_method_with_its_default(method):
    settings, told = load_method(method / "train.py").settings_type(), settings_table(method / "README.md")
    own = {field.name for field in fields(settings)}
    own -= {field.name for shared in (Settings, MapSettings) for field in fields(shared)}
    for key in own:
        default = as_told(getattr(settings, key))
        assert re.match(rf"{re.escape(default)}(\.0)?($|, | \()", told[key]), f"{key}: {told[key]}, not {default}"


def test_quoted_modules_exist():
    for page in PRESENT:
        for name in re.findall(r"`(core(?:\.\w+)+)", prose(page)):
            pkgutil.resolve_name(name)


def problems(command: str) -> Iterator[str]:
    """The programs, configs and options of a command line that do not exist."""
    for program in re.findall(r"\b((?:tools|ci|methods|old_model)/[\w/]+\.py)\b", command):
        if not (ROOT / program).is_file() and not program.startswith(MADE_BY_A_READER):
            yield program
    for name in re.findall(r"-m ci\.benchmarks (\w+)", command):
        if name != "all" and not (ROOT / "ci" / "benchmarks" / f"{name}.py").is_file():
            yield name
    for config in re.findall(r"train\.py\s+(configs/\w+\.py)", command):
        if not any(ROOT.glob(f"*/*/{config}")) and not any(ROOT.glob(f"*/{config}")):
            yield config
    tool = re.search(r"\b(tools/\w+\.py)(.*)", command)
    if tool and (ROOT / tool[1]).is_file():
        code = (ROOT / tool[1]).read_text() + (ROOT / "tools" / "command_line.py").read_text() + '"--help"'
        yield from (option for option in re.findall(r"\s(--?[a-zA-Z][\w-]*)", tool[2]) if f'"{option}"' not in code)


def test_commands_name_programs_configs_and_options_that_exist():
    found = [f"{name_of(page)}: {what}" for page in PAGES for line in commands(page) for what in problems(line)]
    assert found == []


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        target for page in PAGES for target in re.findall(r"(?:^    |`)make (\w+)", page.read_text(), re.MULTILINE)
    }
    assert named <= targets


def test_the_readme_s_python_example_runs(tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    demo = tmp_path / "work_dirs" / "demo"
    (demo / "data").mkdir(parents=True)
    (demo / "old" / "features").mkdir(parents=True)
    write_records(demo / "data" / "train_part_70_class", sorted(list(range(3)) * 4))
    write_run_folder(demo / "new")
    gallery = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)
    np.save(demo / "old" / "features" / "features.npy", gallery)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    rows = re.findall(r"\d+", capsys.readouterr().out)
    assert len(rows) == 8 and max(map(int, rows)) < 12
