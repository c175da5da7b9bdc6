"""Dead leaves: random pictures of shapes that cover each other, which no camera took.

Their edges, their scales and their spectra are like those of photos (Lee, Mumford, Huang, Occlusion models for natural
images, 2001), and a denoiser can learn from them (Achddou, Gousseau, Ladjal, Synthetic images as a regularity prior for
image restoration neural networks, 2021).
"""

from dataclasses import dataclass
from functools import cache, reduce
from typing import Self

import numpy as np
from numpy.fft import irfft2, rfft2
from scipy.ndimage import gaussian_filter

SIDE = 512
FINE = 2
LARGEST_CROP = SIDE // FINE
PICTURES = 24
TEXTURES = 16
SMALLEST, LARGEST = (2.0, 32.0), 200.0
COVERED = 5
TEXTURED, STRENGTH = 0.5, 0.05
BLUR = 1.0


@dataclass(frozen=True)
class Leaves:
    """What all pictures are cut from.

    ``shapes`` (PICTURES, SIDE, SIDE): the number of the shape seen at each pixel. ``textures`` (TEXTURES, SIDE, SIDE):
    random fields of standard deviation 1 that may be rolled.
    """

    shapes: np.ndarray
    textures: np.ndarray

    @classmethod
    def make(cls, seed: int) -> Self:
        random = np.random.default_rng(seed)
        shapes = np.stack([_shapes(random) for _ in range(PICTURES)])
        return cls(shapes, np.stack([_texture(random) for _ in range(TEXTURES)]))

    def draw(self, colours: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
        """A picture (size, size, c) float32 in [0, 1] in some of the ``colours`` (n, c), at most LARGEST_CROP wide."""
        fine = FINE * size
        top, left = random.integers(SIDE - fine + 1, size=2)
        shapes = self.shapes[random.integers(PICTURES)][top : top + fine, left : left + fine]
        count = int(shapes.max()) + 1
        contrast = np.float32(2 ** random.uniform(-2, 0))
        colour = colours[random.integers(len(colours), size=count)]
        colour = colour.mean(axis=0) + contrast * (colour - colour.mean(axis=0))
        strength = random.exponential(STRENGTH, count) * (random.random(count) < TEXTURED)
        texture = np.roll(self.textures[random.integers(TEXTURES)], random.integers(SIDE, size=2), (0, 1))[:fine, :fine]
        picture = colour[shapes] + (strength.astype(np.float32)[shapes] * texture)[..., None]
        coarse = shrunk(picture, FINE)
        blur = random.uniform(0, BLUR)
        return np.clip(gaussian_filter(coarse, (blur, blur, 0)), 0, 1)


def shrunk(image: np.ndarray, factor: int) -> np.ndarray:
    """Means of factor x factor pixels of an image (h, w, c): (h / factor, w / factor, c)."""
    parts = (image[i::factor, j::factor] for i in range(factor) for j in range(factor))
    return reduce(np.add, parts) * np.float32(1 / factor**2)  # a mean over two axes takes six times as long


@cache
def dead_leaves() -> Leaves:
    """Made once a process, in some seconds."""
    return Leaves.make(0)


def _shapes(random: np.random.Generator) -> np.ndarray:
    """Ellipses and rectangles of all directions, their sizes by a power law of -3: it looks the same at every scale."""
    picture = np.zeros((SIDE, SIDE), np.int16)
    smallest = np.exp(random.uniform(*np.log(SMALLEST)))
    area = 2 * np.pi * smallest**2 * np.log(LARGEST / smallest)
    count = int(COVERED * SIDE**2 / area)
    sizes = (smallest**-2 - random.random(count) * (smallest**-2 - LARGEST**-2)) ** -0.5
    for number, radius in enumerate(sizes):
        stretch, angle = 2 ** random.uniform(0, 1.5), random.uniform(0, np.pi)
        row, column = random.uniform(0, SIDE, size=2)
        reach = int(radius * stretch * 1.5) + 1
        top, left = max(0, int(row) - reach), max(0, int(column) - reach)
        y, x = np.ogrid[top : min(SIDE, int(row) + reach), left : min(SIDE, int(column) + reach)]
        along = (np.cos(angle) * (x - column) + np.sin(angle) * (y - row)) / (radius * stretch)
        across = (np.cos(angle) * (y - row) - np.sin(angle) * (x - column)) * (stretch / radius)
        inside = along**2 + across**2 < 1 if number % 2 else np.maximum(abs(along), abs(across)) < 1
        picture[top : top + inside.shape[0], left : left + inside.shape[1]][inside] = number
    return picture


def _texture(random: np.random.Generator) -> np.ndarray:
    """A field whose amplitude falls as a power of the frequency, of all directions or of some."""
    rows, columns = np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = 1
    angle, narrow = random.uniform(0, np.pi), random.choice([0, 4, 16])
    direction = np.abs((rows * np.sin(angle) + columns * np.cos(angle)) / frequency) ** narrow
    spectrum = rfft2(random.standard_normal((SIDE, SIDE))) * direction * frequency ** -random.uniform(0.5, 2)
    spectrum[0, 0] = 0
    field = irfft2(spectrum, (SIDE, SIDE))
    return (field / field.std()).astype(np.float32)
