"""Makes docs/before_after.png: a part of a real noisy photo, and the same part denoised.

Run: python examples/before_after.py
"""

from pathlib import Path

import numpy as np
import pyvips

import tbsn
from tbsn import images

HERE = Path(__file__).parent

photo = images.read(HERE / "letters.png")
noisy, clean = photo.pixels, tbsn.load()(photo.pixels)
part, gap = (slice(80, 460), slice(80, 480)), np.full((380, 8, 3), 255, np.uint8)
sheet = np.concatenate([noisy[part], gap, clean[part]], axis=1)
pyvips.Image.new_from_array(sheet).resize(1.25, kernel="nearest").write_to_file(
    str(HERE.parent / "docs" / "before_after.png")
)
