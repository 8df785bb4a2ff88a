"""Toy landscapes: a seeded generator of a raw `folder` dataset that a small model can learn in minutes.

Nine classes that colour alone does not tell apart (sky and water, field and tree, mountain and road share theirs),
sizes that differ, things in front of things, textures, uneven light, sensor noise, and an ignored line along every
border between two classes.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from segfleet_pipelines.picture import Pixels, encode_mask
from segfleet_pipelines.staging import refuse_occupied

IGNORE_INDEX = 255
SIDE_MIN, SIDE_MAX = 96, 176
CLASSES = {
    "sky": (120, 180, 235),
    "cloud": (245, 245, 245),
    "mountain": (140, 110, 140),
    "field": (150, 200, 80),
    "water": (30, 90, 170),
    "road": (90, 90, 95),
    "house": (200, 70, 50),
    "tree": (20, 110, 45),
    "balloon": (250, 190, 30),
}
SKY, CLOUD, MOUNTAIN, FIELD, WATER, ROAD, HOUSE, TREE, BALLOON = range(len(CLASSES))

Field = npt.NDArray[np.float32]
Rng = np.random.Generator


def generate(out: Path, *, samples: int, seed: int, progress: Callable[[int, int], None] | None = None) -> None:
    """Write `samples` pictures with masks and a classes.yaml into a new folder.

    Args:
        out: Must not exist, or be empty.
        samples: How many; a longer run begins with the same pictures.
        seed: Of all of them.
        progress: Called with pictures done and pictures in all.

    Raises:
        DataError: `out` holds something already.
    """
    refuse_occupied(out)
    for folder in ("images", "masks"):
        (out / folder).mkdir(parents=True)
    for i in range(samples):
        image, mask = draw_landscape(np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(i,))))
        suffix = "png" if i % 4 == 3 else "jpg"
        (out / "images" / f"scene_{i:05d}.{suffix}").write_bytes(_encode(image, suffix))
        (out / "masks" / f"scene_{i:05d}.png").write_bytes(encode_mask(mask, tuple(CLASSES.values())))
        if progress:
            progress(i + 1, samples)
    colors = ", ".join(str(list(color)) for color in CLASSES.values())
    (out / "classes.yaml").write_text(
        f"names: [{', '.join(CLASSES)}]\ncolors: [{colors}]\nignore_index: {IGNORE_INDEX}\n", encoding="utf-8"
    )


def draw_landscape(rng: Rng) -> tuple[Pixels, Pixels]:
    """One picture, RGB (H, W, 3), and its labels (H, W), with 96 <= H, W <= 176."""
    height, width = (int(side) for side in rng.integers(SIDE_MIN, SIDE_MAX + 1, 2))
    scene = _Scene(height, width, rng)
    horizon = int(height * rng.uniform(0.4, 0.6))
    _draw_sky(scene)
    _draw_mountains(scene, horizon)
    _draw_ground(scene, horizon)
    for _ in range(rng.integers(1, 4)):
        _draw_house(scene, horizon)
    for _ in range(rng.integers(2, 6)):
        _draw_tree(scene, horizon)
    for _ in range(rng.integers(0, 3)):
        _draw_balloon(scene)
    return _photograph(scene), _ignore_borders(scene.mask)


class _Scene:
    """A canvas of colours (0..255, float) and labels, and the randomness to fill it."""

    def __init__(self, height: int, width: int, rng: Rng) -> None:
        self.height, self.width, self.rng = height, width, rng
        self.color = np.zeros((height, width, 3), np.float32)
        self.mask = np.zeros((height, width), np.uint8)
        self.y, self.x = (grid.astype(np.float32) for grid in np.mgrid[:height, :width])

    def paint(self, where: npt.NDArray[np.bool_], label: int, color: tuple[float, ...], texture: Field) -> None:
        """Cover a region: one colour, made lighter or darker by `texture` (H, W)."""
        self.color[where] = (np.asarray(color, np.float32) + texture[..., None])[where]
        self.mask[where] = label

    def polygon(self, points: list[tuple[float, float]]) -> npt.NDArray[np.bool_]:
        """The region of a polygon of (x, y) corners."""
        region = np.zeros((self.height, self.width), np.uint8)
        cv2.fillPoly(region, [np.rint(np.asarray(points)).astype(np.int32)], 1)
        return region.astype(np.bool_)

    def disc(self, x: float, y: float, rx: float, ry: float) -> npt.NDArray[np.bool_]:
        """The region of an upright ellipse."""
        return np.asarray(((self.x - x) / rx) ** 2 + ((self.y - y) / ry) ** 2 <= 1, np.bool_)

    def grain(self, size: float, strength: float) -> Field:
        """Smooth noise: blobs of about `size` pixels."""
        shape = (max(2, round(self.height / size)), max(2, round(self.width / size)))
        coarse = self.rng.normal(0, strength, shape).astype(np.float32)
        return np.asarray(cv2.resize(coarse, (self.width, self.height), interpolation=cv2.INTER_CUBIC), np.float32)

    def tint(self, color: tuple[int, int, int], spread: float = 18) -> tuple[float, ...]:
        """A colour near the given one."""
        return tuple(float(value) for value in np.asarray(color) + self.rng.normal(0, spread, 3))


def _draw_sky(scene: _Scene) -> None:
    rng = scene.rng
    base = scene.tint(((110, 165, 225), (225, 170, 140), (150, 165, 185))[rng.integers(3)])
    scene.paint(scene.mask == 0, SKY, base, 60 * scene.y / scene.height + scene.grain(40, 4))
    for _ in range(rng.integers(0, 4)):
        x, y, size = rng.uniform(0, scene.width), rng.uniform(0.04, 0.3) * scene.height, rng.uniform(8, 18)
        puffs = [
            scene.disc(x + shift * size, y + rng.uniform(-0.3, 0.2) * size, size * 0.9, size * rng.uniform(0.4, 0.7))
            for shift in (-0.8, 0, 0.8)
        ]
        scene.paint(np.logical_or.reduce(puffs), CLOUD, scene.tint((225, 225, 230), 8), scene.grain(6, 8))


def _draw_mountains(scene: _Scene, horizon: int) -> None:
    rng = scene.rng
    for _ in range(rng.integers(1, 4)):
        x, half = rng.uniform(0, scene.width), rng.uniform(0.2, 0.45) * scene.width
        peak = horizon - rng.uniform(0.3, 0.75) * horizon
        ridge = [(x - half, horizon + 2), (x - half * 0.45, (peak + horizon) / 2 + rng.uniform(-6, 6)), (x, peak)]
        ridge += [(x + half * 0.5, (peak + horizon) / 2 + rng.uniform(-6, 6)), (x + half, horizon + 2)]
        slope = 0.5 * np.where(scene.x > x, -25, 15).astype(np.float32)
        scene.paint(scene.polygon(ridge), MOUNTAIN, scene.tint((125, 112, 120)), scene.grain(5, 14) + slope)


def _draw_ground(scene: _Scene, horizon: int) -> None:
    rng, height, width = scene.rng, scene.height, scene.width
    line = horizon + 4 * np.sin(scene.x / width * rng.uniform(2, 8) + rng.uniform(0, 6))
    furrows = 10 * np.sin(scene.y * rng.uniform(0.5, 1.2) + scene.x * rng.uniform(-0.5, 0.5))
    scene.paint(scene.y >= line, FIELD, scene.tint((125, 160, 70)), scene.grain(4, 8) + furrows)
    if rng.random() < 0.7:
        lake = scene.disc(
            rng.uniform(0, width),
            horizon + rng.uniform(0.4, 0.9) * (height - horizon),
            rng.uniform(0.2, 0.5) * width,
            rng.uniform(0.12, 0.3) * (height - horizon),
        )
        waves = 14 * np.sin(scene.y * 1.6 + 2 * np.sin(scene.x / 7))
        scene.paint(lake & (scene.y >= line), WATER, scene.tint((70, 120, 175)), waves.astype(np.float32))
    if rng.random() < 0.7:
        far, near, wide = rng.uniform(0.2, 0.8) * width, rng.uniform(0, 1) * width, rng.uniform(0.1, 0.2) * width
        road = scene.polygon(
            [(far - 2, horizon + 3), (far + 2, horizon + 3), (near + wide, height), (near - wide, height)]
        )
        middle = near + (far - near) * (height - scene.y) / (height - horizon)
        dashes = 90 * ((np.abs(scene.x - middle) < 1.5) & (np.sin(scene.y * 0.5) > 0)).astype(np.float32)
        scene.paint(road, ROAD, scene.tint((115, 112, 115), 10), scene.grain(2, 7) + dashes)


def _draw_house(scene: _Scene, horizon: int) -> None:
    rng = scene.rng
    bottom = rng.uniform(horizon + 6, horizon + 0.6 * (scene.height - horizon))
    # What stands nearer is larger.
    size = (12 + 0.35 * (bottom - horizon)) * rng.uniform(0.9, 1.5)
    left, right, top = (x := rng.uniform(0, scene.width)) - size * 0.7, x + size * 0.7, bottom - size
    walls = scene.polygon([(left, bottom), (left, top), (right, top), (right, bottom)])
    bricks = 12 * (np.sin(scene.y * 2.1) > 0.6) + 10 * (np.sin(scene.x * 1.1 + 3 * (scene.y // 3 % 2)) > 0.8)
    windows = -70.0 * (
        (np.abs((scene.x - left) % (size * 0.45) - size * 0.22) < size * 0.09)
        & (np.abs(scene.y - top - size * 0.4) < size * 0.14)
    )
    color = ((185, 95, 75), (215, 190, 150), (170, 150, 145), (205, 205, 200))[rng.integers(4)]
    scene.paint(walls, HOUSE, scene.tint(color), (bricks + windows).astype(np.float32))
    roof = scene.polygon([(left - 2, top), (x, top - size * rng.uniform(0.4, 0.7)), (right + 2, top)])
    scene.paint(roof, HOUSE, scene.tint((130, 60, 50)), 10 * np.sin(scene.y * 1.5))


def _draw_tree(scene: _Scene, horizon: int) -> None:
    rng = scene.rng
    x, bottom = rng.uniform(0, scene.width), rng.uniform(horizon + 4, scene.height)
    size = (9 + 0.25 * (bottom - horizon)) * rng.uniform(0.8, 1.4)
    trunk = (np.abs(scene.x - x) < size * 0.14) & (scene.y <= bottom) & (scene.y > bottom - size)
    scene.paint(trunk, TREE, scene.tint((85, 60, 40), 8), scene.grain(3, 6))
    leaves = scene.grain(3, 16) - 12 * (scene.x - x) / size
    color = scene.tint((45, 95, 45), 12)
    if rng.random() < 0.5:
        scene.paint(scene.disc(x, bottom - size * 1.5, size * 0.75, size * 0.95), TREE, color, leaves)
    else:
        fir = [(x - size * 0.7, bottom - size * 0.5), (x, bottom - size * 2.6), (x + size * 0.7, bottom - size * 0.5)]
        scene.paint(scene.polygon(fir), TREE, color, leaves)


def _draw_balloon(scene: _Scene) -> None:
    rng = scene.rng
    x, y, size = rng.uniform(0, scene.width), rng.uniform(0.1, 0.5) * scene.height, rng.uniform(9, 20)
    basket = (np.abs(scene.x - x) < size * 0.22) & (np.abs(scene.y - y - size * 1.6) < size * 0.2)
    ropes = (np.abs(np.abs(scene.x - x) - size * 0.2) < 0.7) & (scene.y > y) & (scene.y < y + size * 1.6)
    scene.paint(basket | ropes, BALLOON, (110, 75, 45), np.zeros_like(scene.x))
    stripes = 55 * np.sign(np.sin((scene.x - x) / size * rng.uniform(5, 9)))
    color = ((220, 90, 60), (225, 180, 50), (90, 90, 190), (190, 80, 160))[rng.integers(4)]
    scene.paint(scene.disc(x, y, size, size * 1.1), BALLOON, scene.tint(color), stripes.astype(np.float32))


def _photograph(scene: _Scene) -> Pixels:
    """What a camera makes of the scene: uneven light, a soft lens, noise."""
    rng = scene.rng
    light = rng.uniform(0.7, 1.15) + scene.grain(70, 0.07)
    exposed = cv2.GaussianBlur(scene.color * light[..., None], (0, 0), rng.uniform(0.4, 0.8))
    noisy = exposed + rng.normal(0, rng.uniform(2, 9), exposed.shape)
    image: Pixels = np.clip(noisy, 0, 255).astype(np.uint8)
    return image


def _ignore_borders(mask: Pixels) -> Pixels:
    kernel = np.ones((2, 2), np.uint8)
    border = cv2.dilate(mask, kernel) != cv2.erode(mask, kernel)
    labels: Pixels = np.where(border, IGNORE_INDEX, mask).astype(np.uint8)
    return labels


def _encode(image: Pixels, suffix: str) -> bytes:
    buffer = io.BytesIO()
    if suffix == "png":
        Image.fromarray(image).save(buffer, format="PNG")
    else:
        Image.fromarray(image).save(buffer, format="JPEG", quality=92, subsampling=0)
    return buffer.getvalue()
