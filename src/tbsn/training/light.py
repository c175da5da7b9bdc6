"""Values of a picture and the light they stand for: what noise is unbiased in, and what adds up."""

from collections.abc import Callable
from typing import Literal

import numpy as np

Curve = Literal["sRGB", "linear"]
TOE, SLOPE, OFFSET, POWER = 0.0031308, 12.92, 0.055, 2.4  # IEC 61966-2-1


def _to_light(value: np.ndarray) -> np.ndarray:
    bright = ((np.maximum(value, TOE * SLOPE) + OFFSET) / (1 + OFFSET)) ** POWER
    return np.where(value <= TOE * SLOPE, value / SLOPE, bright)


def _from_light(light: np.ndarray) -> np.ndarray:
    bright = (1 + OFFSET) * np.maximum(light, TOE) ** (1 / POWER) - OFFSET
    return np.where(light <= TOE, light * SLOPE, bright)


CURVES: dict[Curve, tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    "sRGB": (_to_light, _from_light),
    "linear": (np.asarray, np.asarray),
}


def exposed(
    noisy: np.ndarray, clean: np.ndarray, curve: Curve, stops: float, weak: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A noisy and a clean image, values in [0, 1], as of another exposure, up to ``stops`` darker or brighter.

    Photon noise goes with the square root of the light; the noise is up to half as many stops weaker or stronger still,
    and anything from none to that with the probability ``weak``.
    """
    to_light, from_light = CURVES[curve]
    gain = np.float32(2 ** random.uniform(-stops, stops))
    strength = np.float32(np.sqrt(gain) * 2 ** (random.uniform(-stops, stops) / 2))
    if random.random() < weak:
        strength *= np.float32(random.random())
    light = to_light(clean)
    noise = to_light(noisy) - light
    return tuple(from_light(np.clip(one, 0, 1)) for one in (gain * light + strength * noise, gain * light))  # type: ignore[return-value]
