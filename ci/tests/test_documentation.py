"""The pages name files, commands, options and modules that exist, and the README's Python example runs."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny import write_records, write_run_folder

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("methods/*/README.md"), *ROOT.glob(".github/*.md")]
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
QUOTED = re.compile(r"`([^`\n]+)`")
FOLDERS = ("core", "methods", "tools", "old_model", "configs", "ci", "docs", ".github")
MADE_BY_A_READER = ("methods/toy", "core/backbones/toy.py", "ci/tests/methods/test_toy.py")
"""What CONTRIBUTING.md has its reader make."""

pytestmark = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


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


def test_links_lead_to_files_and_headings(page):
    for target in LINK.findall(prose(page)):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}: no such heading"


def test_quoted_paths_exist(page):
    if page.name == "CHANGELOG.md":
        return
    for quoted in QUOTED.findall(prose(page)):
        folder, slash, _ = quoted.partition("/")
        if not slash or folder not in FOLDERS or " " in quoted or quoted.startswith(MADE_BY_A_READER):
            continue
        base = page.parent if page.parents[1].name == "methods" and folder == "configs" else ROOT
        pattern = re.sub(r"<\w+>", "*", quoted.rstrip("/"))
        assert any(base.glob(pattern)) or any(ROOT.glob(pattern)), f"{page.name} names {quoted}"


def test_quoted_modules_exist(page):
    if page.name == "CHANGELOG.md":
        return
    for name in re.findall(r"`(core(?:\.\w+)+)", prose(page)):
        module, parts = importlib.import_module("core"), name.split(".")[1:]
        for i, part in enumerate(parts):
            if not hasattr(module, part):
                importlib.import_module(".".join(["core", *parts[: i + 1]]))
            module = getattr(module, part)


def test_commands_name_programs_configs_and_options_that_exist(page):
    shared = (ROOT / "tools" / "command_line.py").read_text()
    for command in commands(page):
        for program in re.findall(r"\b((?:tools|ci|methods|old_model)/[\w/]+\.py)\b", command):
            assert (ROOT / program).is_file() or program.startswith(MADE_BY_A_READER), command
        for config in re.findall(r"train\.py\s+(configs/\w+\.py)", command):
            assert any(ROOT.glob(f"*/*/{config}")) or any(ROOT.glob(f"*/{config}")), command
        tool = re.search(r"\btools/\w+\.py(.*)", command)
        if tool:
            code = (ROOT / tool[0].split()[0]).read_text() + shared + '"--help"'
            for option in re.findall(r"\s(--?[a-zA-Z][\w-]*)", tool[1]):
                assert f'"{option}"' in code, f"{option} in {command}"


def test_make_targets_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = page.read_text()
    named = re.findall(r"^    make (\w+)", text, re.MULTILINE) + re.findall(r"`make (\w+)", text)
    assert set(named) <= targets


def test_python_examples_run(page, tmp_path, monkeypatch):
    examples = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    if not examples:
        return
    demo = tmp_path / "work_dirs" / "demo"
    (demo / "data").mkdir(parents=True)
    (demo / "old" / "features").mkdir(parents=True)
    write_records(demo / "data" / "train_part_70_class", sorted(list(range(3)) * 4))
    write_run_folder(demo / "new")
    gallery = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)
    np.save(demo / "old" / "features" / "features.npy", gallery)
    monkeypatch.chdir(tmp_path)
    for example in examples:
        exec(compile(example, str(page), "exec"), {})
