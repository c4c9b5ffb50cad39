"""The procedural clay target: what a picture would look like modelled in plasticine and lit from the upper left.

Creases are the longer lines of the hint that the default graph finds, so that a ControlNet tells a network where they
go. All lengths are in pixels of the picture, whatever its size: clay has one grain.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from claygraph.diffusion.detectors import canny

Pixels = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float32]

LIGHT = np.array((-0.45, -0.6, 0.8), np.float32) / np.float32(np.sqrt(0.45**2 + 0.6**2 + 0.8**2))
SHORTEST = 60
"""Hint pixels of the shortest line that is a crease."""
HALF = (LIGHT + np.array((0, 0, 1), np.float32)) / np.linalg.norm(LIGHT + np.array((0, 0, 1), np.float32))


def edges(picture: Pixels, low: float = 40, high: float = 100, blur: float = 2) -> Pixels:
    """Canny lines (0 or 255) at twice the picture's size: [H,W,3] to [2H,2W], one hint pixel per 1/8 latent.

    The defaults are those of the default graph's edge detector.
    """
    doubled = cv2.resize(picture, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    return canny(np.asarray(doubled, np.uint8), low, high, blur)


def clayify(picture: Pixels, seed: int = 0, lumps: float = 1.0) -> Pixels:
    """RGB [H,W,3] uint8 to its clay version of the same size; the same seed gives the same bytes."""
    smooth = _simplify(picture)
    distance = _crease_distance(edges(picture))
    height = _relief(distance, smooth) + lumps * _lumps(np.random.default_rng(seed), *distance.shape)
    return _shade(_albedo(smooth), np.asarray(cv2.GaussianBlur(height, (0, 0), 1.0), np.float32), distance)


def _simplify(picture: Pixels) -> Pixels:
    """Few flat colours: texture melts away, contours stay."""
    calm = cv2.medianBlur(cv2.GaussianBlur(picture, (0, 0), 1.3), 5)
    flat = cv2.pyrMeanShiftFiltering(np.ascontiguousarray(calm), 14, 30, maxLevel=1)
    return np.asarray(cv2.bilateralFilter(flat, 9, 30, 4), np.uint8)


def _crease_distance(lines: Pixels) -> Plane:
    """Pixels [H,W] to the nearest of the longer lines [2H,2W]: short ones are texture, which would crawl with worms."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(lines, connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= SHORTEST
    keep[0] = False
    doubled = cv2.distanceTransform(1 - keep[labels].astype(np.uint8), cv2.DIST_L2, 5) / 2
    halved = cv2.resize(doubled, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return np.asarray(np.minimum(halved, 255), np.float32)


def _pillow(distance: Plane, radius: float) -> Plane:
    """A round bevel that rises to `radius` at that distance from a crease."""
    return np.asarray(radius * np.sqrt(1 - (1 - np.clip(distance / radius, 0, 1)) ** 2), np.float32)


def _relief(distance: Plane, smooth: Pixels) -> Plane:
    brightness = cv2.cvtColor(smooth, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    raised = cv2.GaussianBlur(brightness, (0, 0), 3.5) * 9
    relief = 0.75 * _pillow(distance, 8) + 0.4 * _pillow(distance, 24) + raised
    return np.asarray(cv2.GaussianBlur(relief, (0, 0), 1.2), np.float32)


def _lumps(random: np.random.Generator, height: int, width: int) -> Plane:
    """Kneading marks: smooth noise of two sizes and a few fingerprints."""
    field = np.zeros((height, width), np.float32)
    for cell, strength in ((26, 0.58), (10, 0.19)):
        grid = random.standard_normal((height // cell + 4, width // cell + 4)).astype(np.float32)
        big = cv2.resize(grid, None, fx=cell, fy=cell, interpolation=cv2.INTER_CUBIC)
        field += strength * big[cell : cell + height, cell : cell + width]
    for _ in range(round(height * width / 9000)):
        field += 0.2 * _fingerprint(random, height, width)
    return field


def _fingerprint(random: np.random.Generator, height: int, width: int) -> Plane:
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle, radius = random.uniform(0, np.pi), random.uniform(9, 15)
    dx, dy = x - random.uniform(0, width), y - random.uniform(0, height)
    u, v = dx * np.cos(angle) + dy * np.sin(angle), -dx * np.sin(angle) + dy * np.cos(angle)
    patch = np.exp(-(((u / radius) ** 2 + (v / (1.4 * radius)) ** 2) ** 2))
    ridges = np.sin(np.hypot(u, 0.8 * (v + 0.6 * radius)) * 2 * np.pi / 3.2)
    return np.asarray(patch * (0.5 * ridges - 0.8), np.float32)


def _albedo(smooth: Pixels) -> Plane:
    """Plasticine colours in 0..1: more saturated, no deep black, no glaring white."""
    hsv = cv2.cvtColor(smooth, cv2.COLOR_RGB2HSV).astype(np.float32) / (180, 255, 255)
    saturation, value = hsv[..., 1], hsv[..., 2]
    gain = 0.6 * saturation**0.75 * (1 - saturation) * np.clip(value * 2.5, 0, 1)
    hsv[..., 1] = np.clip(saturation + gain, 0, 0.9)
    hsv[..., 2] = 0.17 + 0.79 * value**0.85
    hsv[..., 0] *= 360
    return np.asarray(cv2.cvtColor(hsv.astype(np.float32), cv2.COLOR_HSV2RGB), np.float32)


def _shade(albedo: Plane, height: Plane, distance: Plane) -> Pixels:
    """Wrapped diffuse light, a broad soft highlight, and creases that darken but keep their hue."""
    slope_x, slope_y = (cv2.Sobel(height, cv2.CV_32F, dx, 1 - dx, ksize=3) / 8 for dx in (1, 0))
    normal = np.dstack([-slope_x, -slope_y, np.ones_like(slope_x)])
    normal /= np.linalg.norm(normal, axis=2, keepdims=True)
    diffuse = np.clip((normal @ LIGHT + 0.4) / 1.4, 0, 1)
    facing = np.clip(normal @ HALF, 0, 1)
    hollow = np.clip(0.05 * (cv2.GaussianBlur(height, (0, 0), 6) - height), 0, 0.3)
    crease = 0.40 * np.exp(-((distance / 1.2) ** 2))
    light = (0.40 + 0.74 * diffuse) * (1 - hollow)
    colour = albedo ** (1 + crease + hollow)[..., None] * (light * (1 - crease))[..., None]
    shine = 0.12 * facing**16 + 0.08 * facing**60
    return np.asarray(np.clip(colour + shine[..., None] * (1, 0.99, 0.96), 0, 1) * 255 + 0.5, np.uint8)
