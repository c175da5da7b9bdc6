"""Loss curves: what makes training fast does not change what it learns."""

import numpy as np
import pytest
import torch

from conftest import EXAMPLES
from literal import LiteralTBSN
from tbsn import images
from tbsn.network import TBSN, TBSNConfig
from tbsn.training import losses

STEPS = 25
PHOTO = torch.from_numpy(images.to_float(images.read(EXAMPLES / "01_14.png").pixels)).permute(2, 0, 1)


def curve(form: str) -> np.ndarray:
    """The losses (STEPS) of one seed, on crops of a photo, PD-2."""
    torch.manual_seed(0)
    network = TBSN(TBSNConfig(width=8, group_channels=8, blocks=(1, 1, 1), refinement=1))
    network.set_recompute("recompute" in form)
    run = LiteralTBSN(network) if "literal" in form else network
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    random, found = np.random.default_rng(0), []
    for _ in range(STEPS):
        rows, columns = random.integers(0, 64, (2, 2))
        crops = [PHOTO[:, r : r + 64 : 2, c : c + 64 : 2] for r, c in zip(rows, columns, strict=True)]
        with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in form):
            loss = losses.blind_spot(run, [torch.stack(crops)])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return np.array(found)


@pytest.fixture(scope="module")
def plain() -> np.ndarray:
    losses_ = curve("literal")
    assert losses_[-10:].mean() < 0.7 * losses_[:3].mean()
    return losses_


@pytest.mark.parametrize(("form", "bound"), [("ours", 1e-5), ("ours recompute", 1e-5), ("ours bf16 recompute", 5e-3)])
def test_the_fast_forms_learn_what_the_literal_form_learns(plain: np.ndarray, form: str, bound: float) -> None:
    fast = curve(form)
    assert np.abs(fast / plain - 1).max() < bound
