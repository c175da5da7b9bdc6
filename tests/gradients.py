"""One process of a distributed step: writes the gradients of batch 0, in float64. Arguments: images, run, output."""

import sys
from pathlib import Path

import torch

from tbsn.network.files import build
from tbsn.training import losses, runs
from tbsn.training.fit import gradients
from tbsn.training.recipe import TrainRecipe, load_recipe

folder, run, output = map(Path, sys.argv[1:])
settings = ["network={width: 8, group_channels: 8, blocks: [1, 1, 1], refinement: 1}", "fit.batch=4"]
recipe = load_recipe(TrainRecipe, "cpu", settings)
fabric = runs.open_fabric("cpu", run)
with fabric.rank_zero_first():
    run.mkdir(exist_ok=True)
    photos = runs.open_photos(folder, run, 3)
crops, _ = runs.share_of_crops([photos], recipe.fit, recipe.pd, fabric)
torch.manual_seed(0)
network = build(recipe.network).double()
model = fabric.setup(network)
gradients(model, losses.blind_spot, [[part.double()] for part in crops[0]], fabric, mixed=False)
if fabric.is_global_zero:
    torch.save([p.grad for p in network.parameters()], output)
