"""Write the tables of RESULTS.md from the results of tools/benchmark.py.

    python ci/results_page.py work_dirs/benchmark     keeps its results in ci/benchmarks/results first, with pictures
    python ci/results_page.py                         from those that are kept there

The tables of a data set and scenario stand between two comments, which the page has already:

    <!-- tables: glyphs_opclass -->
    <!-- end -->
"""

import argparse
import re
from pathlib import Path

from core.errors import UserError, run_program
from core.evaluation.comparison import read_csv
from core.files import ROOT
from core.outputs import replaced_atomically

PAGE, KEPT = ROOT / "RESULTS.md", ROOT / "ci" / "benchmarks" / "results"
SECTION = re.compile(r"<!-- tables: (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def main() -> None:
    """Keep new results if there are any, and fill the page."""
    parser = argparse.ArgumentParser(description="Write the tables of RESULTS.md from the benchmark's results.")
    parser.add_argument("benchmark", nargs="?", type=Path, help="folder of tools/benchmark.py whose results to keep")
    args = parser.parse_args()
    if args.benchmark is not None:
        for name in keep(args.benchmark, KEPT):
            print(f"kept {name}")
    page = filled(PAGE.read_text(), KEPT)
    with replaced_atomically(PAGE) as temporary:
        temporary.write_text(page)


def keep(benchmark: Path, folder: Path) -> list[str]:
    """Keep the results of each data set and scenario below `benchmark`, and their pictures; returns their names.

    Methods, roads and seeds that the benchmark did not run stay as they were kept.
    """
    found = sorted(benchmark.glob("*/*/results.csv"))
    if not found:
        raise UserError(f"{benchmark} has no <data set>/<scenario>/results.csv: name the folder of tools/benchmark.py")
    names = []
    for path in found:
        names.append(f"{path.parts[-3]}_{path.parts[-2]}".replace("-", "_"))
        kept, comparison = folder / f"{names[-1]}.csv", read_csv(path)
        if kept.exists():
            try:
                comparison = comparison.completed_by(read_csv(kept))
            except ValueError as error:
                raise UserError(f"{path} cannot be joined with {kept}: {error}; remove the latter") from error
        comparison.write_csv(kept)
        comparison.plot(kept.with_suffix(".png"))
    return names


def filled(page: str, folder: Path) -> str:
    """The page with the tables of the results in `folder`; `UserError` if it has no place for some of them."""
    homeless = {path.stem for path in folder.glob("*.csv")} - set(SECTION.findall(page))
    if homeless:
        raise UserError(f"RESULTS.md has no place for {', '.join(sorted(homeless))}: add '<!-- tables: NAME -->'")
    return SECTION.sub(lambda match: section(match[1], folder), page)


def section(name: str, folder: Path) -> str:
    """The text of one data set and scenario, between its comments."""
    path = folder / f"{name}.csv"
    text = "Not measured yet."
    if path.exists():
        comparison = read_csv(path)
        seeds = f"Seeds: {', '.join(map(str, comparison.seeds))}.\n\n{comparison.summary()}"
        picture = f"![Compatibility against discrimination, {name}](ci/benchmarks/results/{name}.png)"
        text = f"{seeds}\n\n{comparison.tables()}\n{picture}"
    return f"<!-- tables: {name} -->\n{text}\n<!-- end -->"


if __name__ == "__main__":
    run_program(main)
