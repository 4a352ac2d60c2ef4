"""Tables: aligned plain text for the terminal, Markdown for reports."""

from collections.abc import Sequence

__all__ = ["format_markdown", "format_rate", "format_table"]


def format_rate(rate: object) -> str:
    """A rate in [0, 1] as per cent with two digits; a dash where the data cannot resolve it."""
    return f"{100 * rate:.2f}" if isinstance(rate, int | float) else "-"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines of equal columns: the first flush left, the others right, a rule below the header."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = [
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        for row in (header, *rows)
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def format_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
