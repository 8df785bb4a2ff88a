"""The class embeddings of a mask decoder in two dimensions, with names: which classes the model holds for alike.

Figure 8 of Strudel et al. 2021, which does not state centring and scaling; here the embeddings are centred (their mean
is taken off) and not scaled.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from segfleet_jobs.charts import DPI, Color, shortened
from segfleet_jobs.name_places import place_name, place_of_point

_MANY_CLASSES = 40


def embedding_coordinates(embeddings: NDArray[np.floating]) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """The two main directions of the centred embeddings.

    With X = U S V', the coordinates are the first two columns of U S. The signs are free: the entry of the largest
    magnitude of each column is made positive, so that the same weights always give the same picture.

    Args:
        embeddings: (K, C), K and C at least 2.

    Returns:
        Coordinates, (K, 2), and the share of the squared singular values that each direction holds.
    """
    centred = np.asarray(embeddings, np.float64) - np.mean(embeddings, axis=0, dtype=np.float64)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    coordinates: NDArray[np.float64] = left[:, :2] * singular[:2]
    largest = np.abs(coordinates).argmax(axis=0)
    coordinates *= np.where(coordinates[largest, [0, 1]] < 0, -1.0, 1.0)
    shares = singular**2 / max(float((singular**2).sum()), np.finfo(np.float64).tiny)
    return coordinates, (float(shares[0]), float(shares[1]))


def draw_embeddings(
    embeddings: NDArray[np.floating], names: Sequence[str], palette: Sequence[Color], path: Path
) -> int:
    """A point a class in its colour, each with its name where there is room for it.

    Args:
        embeddings: (K, C).
        names: Of the K classes.
        palette: Their colours.
        path: PNG to write.

    Returns:
        How many names found no free place and are left out.
    """
    coordinates, shares = embedding_coordinates(embeddings)
    side = 7.5 if len(names) <= _MANY_CLASSES else 13.0
    figure = Figure(figsize=(side * 1.25, side), dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    colors = np.asarray(palette, np.float64) / 255
    axes.scatter(coordinates[:, 0], coordinates[:, 1], c=colors, s=46, edgecolors="#444444", linewidths=0.7, zorder=3)
    axes.margins(0.12)
    axes.grid(alpha=0.2)
    axes.set(
        title=f"class embeddings: first two singular directions, {shares[0]:.0%} and {shares[1]:.0%} of the variance",
        xlabel="first direction",
        ylabel="second direction",
    )
    axes.spines[["top", "right"]].set_visible(False)
    canvas.draw()
    figure.set_layout_engine("none")  # or the names to come would move the axes under them
    taken = [place_of_point(axes, x, y) for x, y in coordinates.tolist()]
    # From the outside in: what stands at the rim has the most places to go.
    order = np.argsort(-np.linalg.norm(coordinates, axis=1)).tolist()
    missing = sum(
        not place_name(axes, canvas, (coordinates[i, 0], coordinates[i, 1]), shortened(names[i]), taken) for i in order
    )
    figure.savefig(path, facecolor="white")
    return missing
