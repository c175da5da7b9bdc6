"""One process of a distributed step: writes the gradients of batch 0, in float64. Arguments: images, run, output."""

import sys
from functools import partial
from pathlib import Path

import torch

from tbsn.network.files import build
from tbsn.training import losses, runs
from tbsn.training.data import Crops
from tbsn.training.decoded import cached_folder
from tbsn.training.fit import gradients
from tbsn.training.processes import made_by_first, open_fabric
from tbsn.training.recipe import TrainRecipe, load_recipe
from tbsn.training.start import share

folder, run, output = map(Path, sys.argv[1:])
settings = ["network={width: 8, group_channels: 8, blocks: [1, 1, 1], refinement: 1}", "fit.batch=4"]
recipe = load_recipe(TrainRecipe, "cpu", settings)
fabric = open_fabric("cpu")
places = share(recipe.fit, fabric)
photos = made_by_first(fabric, lambda: cached_folder(folder, run / "cache", 3))
crops, _ = runs.open_crops(partial(Crops, [photos], stride=recipe.pd), photos, recipe.fit, places)
torch.manual_seed(0)
network = build(recipe.network).double()
model = fabric.setup(network)
gradients(model, losses.blind_spot, [[part.double()] for part in crops[0]], fabric, mixed=False)
if fabric.is_global_zero:
    torch.save([p.grad for p in network.parameters()], output)
