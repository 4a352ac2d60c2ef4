"""Pictures of evaluations: curves, marks of several models, grids of images, hits of a query.

Each function writes a PNG file and returns the figure.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from core.evaluation.backfill import RAW, Curve
from core.evaluation.identification import SearchCurves
from core.evaluation.precision_recall import RECALLS
from core.outputs import replaced_atomically

__all__ = ["image_grid", "plot_backfill", "plot_hits", "plot_identification", "plot_matrices",
           "plot_precision_recall", "plot_roc", "plot_trade_off"]  # fmt: skip

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
"""Okabe and Ito's palette, which colour-blind readers can distinguish too."""
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "h", "<", ">")
FRAMES = {"positive": "#1a9850", "negative": "#d73027", "junk": "#999999"}
QUERY_FRAME = "#0072b2"
SHOWN_PIXELS = 256


def plot_roc(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], path: str | Path, title: str = "1:1") -> Figure:
    """Draw ROC curves, by name the arrays (fpr, tpr) with rates in [0, 1], over a logarithmic axis of false accepts."""
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for (name, (fpr, tpr)), style in zip(curves.items(), _styles(len(curves))):
        axes.plot(fpr, tpr, label=name, **style)
    lowest = min((fpr[0] for fpr, _ in curves.values() if len(fpr)), default=1e-6)
    _finish(axes, title, "false accept rate", "true accept rate")
    axes.set_xscale("log")
    axes.set_xlim(max(lowest, 1e-7), 1)
    return _save(figure, path)


def plot_identification(curves: Mapping[str, SearchCurves], path: str | Path, title: str = "1:N") -> Figure:
    """Draw, side by side, identification over false positives (DIR) and over ranks (CMC), a line a name."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    detection, ranking = figure.subplots(1, 2)
    for (name, curve), style in zip(curves.items(), _styles(len(curves))):
        detection.plot(curve.fpir, curve.tpir, label=name, **style)
        ranking.plot(np.arange(1, len(curve.cmc) + 1), curve.cmc, label=name, **style)
    _finish(detection, f"{title}: found and accepted (DIR)", "false positive identification rate", "found at rank 1")
    detection.set_xscale("log")
    drawn = [curve.fpir[np.isfinite(curve.tpir)] for curve in curves.values()]
    detection.set_xlim(min((fpir[0] for fpir in drawn if len(fpir)), default=1e-4), 1)
    _finish(ranking, f"{title}: found among the first (CMC)", "rank", "found up to this rank")
    ranking.set_xscale("log")
    ranks = [rank for rank in (1, 2, 5, 10, 20, 50) if rank <= max((len(c.cmc) for c in curves.values()), default=50)]
    ranking.set_xticks(ranks, [str(rank) for rank in ranks], minor=False)
    ranking.set_xticks([], minor=True)
    ranking.set_xlim(1, ranks[-1])
    return _save(figure, path)


def image_grid(images: Sequence[np.ndarray], titles: Sequence[str], path: str | Path, columns: int = 8) -> Figure:
    """Draw uint8 images (H, W, 3) RGB with a title each (empty: none), `columns` in a row."""
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.25 * columns, 1.45 * rows), layout="constrained")
    for place, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if place < len(images):
            axes.imshow(images[place], interpolation="nearest")
            axes.set_title(titles[place], fontsize=8, pad=3)
    return _save(figure, path)


def plot_trade_off(
    panels: Mapping[str, tuple[Mapping[str, tuple[np.ndarray, np.ndarray]], float, float]], path: str | Path
) -> Figure:
    """Draw compatibility over discrimination: for each test a panel with a mark a method.

    `panels`: by test, the methods' scores in per cent by name (self-test and cross-test, a value a seed each, drawn as
    mean and range), the old model's self-test (a line across: above it lies what is compatible) and the independent
    model's (a line upright: left of it lies what compatibility costs).
    """
    figure = Figure(figsize=(5.2 * len(panels), 4.8), layout="constrained")
    for axes, (test, (points, old, star)) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items()):
        axes.axhline(old, color="#555555", linestyle="--", linewidth=1.5, label="old/old")
        axes.axvline(star, color="#555555", linestyle=":", linewidth=1.5, label="independent/independent")
        for i, (name, scores) in enumerate(points.items()):
            x, y = (values.mean() for values in scores)
            x_error, y_error = ([[values.mean() - values.min()], [values.max() - values.mean()]] for values in scores)
            style = {"fmt": MARKERS[i % len(MARKERS)], "color": COLOURS[i % len(COLOURS)], "markersize": 9}
            axes.errorbar(x, y, xerr=x_error, yerr=y_error, elinewidth=1, label=name, **style)
        axes.set_title(test, fontsize=11)
        axes.set_xlabel("new/new (%)")
        axes.set_ylabel("new/old (%)")
        axes.grid(color="#dddddd")
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(0.1)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    return _save(figure, path)


def plot_matrices(
    panels: Mapping[str, tuple[np.ndarray, Sequence[Sequence[str]]]], names: Sequence[str], path: str | Path
) -> Figure:
    """Draw square matrices as heat maps side by side, by title the rates in [0, 1] (M, M) and the text of each cell.

    Rows are query models and columns gallery models, both called `names`; a cell that is NaN stays grey.
    """
    inches = 1.6 + 1.0 * len(names)
    figure = Figure(figsize=(inches * len(panels), inches), layout="constrained")
    for axes, (title, (rates, texts)) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items()):
        top = np.nanmax(rates, initial=1e-9)
        axes.set_facecolor("#dddddd")
        axes.imshow(rates, cmap="YlGnBu", vmin=0, vmax=top)
        for row, column in np.ndindex(rates.shape):
            colour = "white" if rates[row, column] > 0.6 * top else "black"
            axes.text(column, row, texts[row][column], ha="center", va="center", color=colour, fontsize=10)
        axes.set_title(title, fontsize=11)
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("gallery model")
        axes.set_ylabel("query model")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    return _save(figure, path)


def plot_precision_recall(curves: Mapping[str, np.ndarray], path: str | Path, title: str) -> Figure:
    """Draw, by name, mean interpolated precisions at `precision_recall.RECALLS` (101,); NaN: no line."""
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for (name, precision), style in zip(curves.items(), _styles(len(curves))):
        axes.plot(RECALLS, precision, label=name, **style)
    _finish(axes, title, "recall", "precision, mean over the queries")
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    return _save(figure, path)


def plot_hits(
    query: np.ndarray, hits: Sequence[np.ndarray], kinds: Sequence[str], scores: Sequence[float], path: str | Path
) -> Figure:
    """Draw a query and its first hits, uint8 images (H, W, 3) RGB, with rank and score.

    The colour of a hit's frame is that of its kind, a key of FRAMES. Images are shown no larger than 256 pixels.
    """
    columns = max(len(hits), 1) + 1
    figure = Figure(figsize=(1.3 * columns, 1.75), layout="constrained")
    titles = ["query", *(f"{rank}: {score:.3f}" for rank, score in enumerate(scores, 1))]
    frames = [QUERY_FRAME, *(FRAMES[kind] for kind in kinds)]
    for axes, image, title, colour in zip(figure.subplots(1, columns), [query, *hits], titles, frames):
        step = max(1, max(image.shape[:2]) // SHOWN_PIXELS)
        axes.imshow(image[::step, ::step])
        axes.set_title(title, fontsize=8, pad=4)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(color=colour, linewidth=4)
    labels = [Line2D([], [], color=colour, linewidth=4, label=kind) for kind, colour in FRAMES.items()]
    figure.legend(handles=labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    return _save(figure, path)


def plot_backfill(
    roads: Mapping[str, Mapping[str, Mapping[str, Curve]]],
    shares: np.ndarray,
    metric: str,
    path: str | Path,
    title: str,
) -> Figure:
    """Draw a metric over the share (S,) of a gallery that is embedded again, a panel a road, a line an order.

    `roads`: curves by road, scale and order. The last scale is drawn solid, raw scores dotted in the same colours.
    """
    figure = Figure(figsize=(0.6 + 4.4 * len(roads), 4.8), layout="constrained")
    for axes, (road, scales) in zip(figure.subplots(1, len(roads), sharey=True, squeeze=False).flat, roads.items()):
        last = list(scales)[-1]
        for scale, style in ((RAW, ":"), (last, "-")) if last != RAW else ((RAW, "-"),):
            for (order, curve), colour in zip(scales[scale].items(), COLOURS):
                name = f"{order.replace('_', ' ')}, {scale}"
                axes.plot(shares, curve.metrics[metric], style, color=colour, linewidth=2, label=name)
        axes.set_title(road.replace("_", " "), fontsize=11)
        axes.set_xlabel("share of the gallery embedded again")
        axes.set_xlim(0, 1)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(color="#dddddd")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, loc="lower right")
    figure.axes[0].set_ylabel(metric)
    figure.suptitle(title, fontsize=11)
    return _save(figure, path)


def _styles(count: int) -> list[dict[str, Any]]:
    """A colour and a dash for each of `count` lines; lines that fall on each other stay visible."""
    return [
        {"color": COLOURS[i % len(COLOURS)], "linestyle": STYLES[i % len(STYLES)], "linewidth": 2} for i in range(count)
    ]


def _finish(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_ylim(-0.01, 1.01)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(which="major", color="#dddddd")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=True, framealpha=0.9, fontsize=9, loc="best")


def _save(figure: Figure, path: str | Path) -> Figure:
    picture = io.BytesIO()  # Pillow does not say why a file could not be written
    figure.savefig(picture, format="png", dpi=130)
    with replaced_atomically(path) as temporary:
        temporary.write_bytes(picture.getbuffer())
    return figure
