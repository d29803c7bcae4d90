"""The plot of a run: throughput of each contender at 64 clients. The same figures give the same file, byte for byte."""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from tests.benchmark.cases import CLIENTS, OTHERS, Case

CONTENDERS = ("ceiling", "postgres-1", "postgres-2", "sqlite", "textbook", *OTHERS)
_OURS, _THEIRS = "#2a6f97", "#9aa5b1"


def draw(path: Path, cases: list[Case], caption: str) -> None:
    """Bars for medians, a line from the least to the most, and the p50 in words."""
    shown = [case for case in cases if case.name in CONTENDERS and case.figures("throughput_per_s")][::-1]
    plt.rcParams.update({"svg.hashsalt": "holdfast", "svg.fonttype": "path", "font.size": 10})
    figure, axes = plt.subplots(figsize=(9, 0.9 + 0.55 * len(shown)), layout="constrained")
    most = 0.0
    for row, case in enumerate(shown):
        found = case.figures("throughput_per_s")
        median = case.median("throughput_per_s") or 0.0
        most = max(most, *found)
        axes.barh(row, median, height=0.62, color=_OURS if case.label.startswith("Holdfast") else _THEIRS)
        axes.plot([min(found), max(found)], [row, row], color="black", linewidth=1.2, marker="|", markersize=7)
        text = f"{median:,.0f} a second, p50 {case.median('p50_ms') or 0:,.0f} ms"
        axes.annotate(text, (max(found), row), xytext=(7, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(shown)), [case.label for case in shown])
    axes.set_xlim(0, most * 1.45)
    axes.set_xlabel(caption, fontsize=8)
    axes.set_title(f"Two-branch transactions a second, {CLIENTS} clients waiting for the outcome", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)
