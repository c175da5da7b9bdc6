"""Recipes and losses, and what no recipe can train on."""

import re
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pydantic import BaseModel
from torch import nn

from conftest import save
from tbsn import teacher
from tbsn.denoiser import mean_over_symmetries
from tbsn.errors import InputError
from tbsn.network import TBSN, FastUNet, FastUNetConfig, TBSNConfig, UNet, UNetConfig
from tbsn.network.files import NETWORKS, build, save_network
from tbsn.training import losses, runs
from tbsn.training.fit import learning_rate
from tbsn.training.recipe import (
    DistillRecipe,
    FitSettings,
    RenoiseRecipe,
    TrainRecipe,
    load_recipe,
)
from tbsn.training.start import Start
from test_training import SHORT, TINY


@pytest.mark.parametrize("name", ["sidd", "dnd", "cpu", "hole"])
def test_packaged_recipes_are_valid(name: str) -> None:
    recipe = load_recipe(TrainRecipe, name, [])
    assert recipe.fit.crop % (recipe.pd * recipe.network.multiple) == 0
    load_recipe(DistillRecipe, "distill", [])
    load_recipe(DistillRecipe, "distill-cpu", [])
    assert isinstance(load_recipe(RenoiseRecipe, "renoise-cpu", []).network, FastUNetConfig)


def test_the_sidd_recipe_is_the_papers() -> None:
    recipe = load_recipe(TrainRecipe, "sidd", [])
    assert recipe == TrainRecipe() and (recipe.pd, recipe.fit.crop, recipe.fit.batch) == (5, 640, 4)
    rates = [learning_rate(recipe.fit, step, step / 100_000) for step in (0, 39_999, 40_000, 79_999, 80_000, 99_999)]
    assert rates == pytest.approx([3e-4, 3e-4, 3e-5, 3e-5, 3e-6, 3e-6])


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["fit.stepz=3"], "fit.stepz"),
        (["fit.steps=many"], "fit.steps"),
        (["network.window=12"], "network"),
        (["network.kind=UNet"], "network"),
        (["network.kind=HalfPlane"], "network.HalfPlane.width"),
        (["network={kind: HalfPlane}", "recompute=true"], "recompute"),
        (["fit.steps.more=1"], "fit.steps.more"),
        (["fit.steps"], "fit.steps"),
        (["fit.steps=[1"], r"--set fit.steps=\[1"),
        (["fit.seed=99999999999999999999999"], "fit.seed"),
        (["network=5"], "network"),
        (["network=null"], "network"),
    ],
)
def test_wrong_settings_are_named(overrides: list[str], named: str) -> None:
    with pytest.raises(InputError, match=named):
        load_recipe(TrainRecipe, "cpu", overrides)


def test_the_docs_list_every_setting_and_its_value() -> None:
    def values(part: BaseModel, prefix: str = "") -> Iterator[tuple[str, object]]:
        for name, value in part:
            inner = isinstance(value, BaseModel)
            yield from values(value, f"{name}.") if inner else [(f"{prefix}{name}", value)]

    page = (Path(__file__).parent.parent / "docs" / "settings.md").read_text()
    rows = [line.replace(" for students", "").replace(";", ",").split("|") for line in page.splitlines()]
    cells = {key: row[-2] for row in rows if len(row) > 1 for key in re.findall(r"`([\w.]+)`", row[1])}
    listed = {key: yaml.safe_load(f"[{cell}]") for key, cell in cells.items()}
    networks = (values(config(), "network.") for config, _ in NETWORKS.values())
    settings = [*chain(*map(values, (TrainRecipe(), DistillRecipe(), RenoiseRecipe())), *networks)]
    assert {key for key, _ in settings} == {"network.kind", *listed} and "`network.kind`" in page
    for key, value in settings:
        written = list(value) if isinstance(value, tuple) else "the teacher's" if value is None else value
        assert key == "network.kind" or written in listed[key], key


def test_off_is_a_word_whatever_yaml_says() -> None:
    recipe = load_recipe(TrainRecipe, "cpu", ["network.channel_attention=off"])
    assert recipe.network.model_dump()["channel_attention"] == "off"


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="cpu, distill"):
        load_recipe(TrainRecipe, "sid", [])


def test_a_recipe_that_is_a_picture_is_named_and_an_empty_part_can_be_set(photo: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not YAML"):
        load_recipe(TrainRecipe, str(photo), [])
    (tmp_path / "mine.yaml").write_text("fit:\n")
    assert load_recipe(TrainRecipe, str(tmp_path / "mine.yaml"), ["fit.steps=3"]).fit.steps == 3


def test_what_cannot_be_trained_on_is_named(folder: Path, tmp_path: Path) -> None:
    recipe = load_recipe(TrainRecipe, "cpu", [*TINY, *SHORT])
    (tmp_path / "empty").mkdir()
    (tmp_path / "small").mkdir()
    save(tmp_path / "small" / "small.png", np.zeros((100, 300, 3), np.uint8))
    for place, complaint in (
        (tmp_path / "empty", "no images"),
        (tmp_path / "absent", "no images"),
        (tmp_path / "small", "small.png: is 300x100"),
    ):
        with pytest.raises(InputError, match=complaint):
            runs.train(place, tmp_path / f"run-{place.name}", recipe, Start("cpu"))
    with pytest.raises(InputError, match="multiple of 160"):
        runs.train(folder, tmp_path / "run", load_recipe(TrainRecipe, "cpu", ["fit.crop=250"]), Start("cpu"))
    with pytest.raises(InputError, match="crop=0"):
        runs.train(folder, tmp_path / "run", load_recipe(TrainRecipe, "cpu", ["fit.crop=3"]).with_pd(2), Start("cpu"))
    with pytest.raises(InputError, match="is a student"):
        save_network(tmp_path / "student.safetensors", UNet(UNetConfig(width=4)))
        distilled = DistillRecipe(fit=FitSettings(crop=128))
        runs.distill(folder, [tmp_path / "student.safetensors"], tmp_path / "d", distilled, Start())
    save_network(tmp_path / "grey.safetensors", build(TBSNConfig(channels=1)))
    with pytest.raises(InputError, match="has 1 channels, the student 3"):
        runs.distill(folder, [tmp_path / "grey.safetensors"], tmp_path / "d", distilled, Start())
    with pytest.raises(InputError, match="teacher: has 3 channels, the student 1"):  # the package's, by its name
        runs.distill(folder, [Path("teacher")], tmp_path / "d", DistillRecipe(network=UNetConfig(channels=1)), Start())
    for settings in (["network.channels=4"], ["network.channels=1", "ensemble=1"]):
        with pytest.raises(InputError, match="default: has 3 channels, the student"):
            runs.renoise(
                folder, ["default"], tmp_path / "r", load_recipe(RenoiseRecipe, "renoise-cpu", settings), Start()
            )
    ensemble = load_recipe(RenoiseRecipe, "renoise-cpu", ["ensemble=2", "fit.crop=72"])
    with pytest.raises(InputError, match="not a multiple of 32, as a model takes"):
        runs.renoise(folder, ["unet"], tmp_path / "e", ensemble, Start())
    with pytest.raises(InputError, match="instead of PD"):
        load_recipe(TrainRecipe, "hole", []).with_pd(5)
    with pytest.raises(InputError, match=r"network\.pd=1"):
        load_recipe(RenoiseRecipe, "renoise-cpu", ["network.kind=TBSN"])
    ensemble = load_recipe(RenoiseRecipe, "renoise-cpu", ["ensemble=2"])
    with pytest.raises(InputError, match="is no student"):
        runs.renoise(folder, [tmp_path / "grey.safetensors"], tmp_path / "r", ensemble, Start("cpu"))


def test_a_network_is_not_used_with_a_larger_stride_than_it_was_trained_with(blocks: Path, tmp_path: Path) -> None:
    recipe = load_recipe(TrainRecipe, "cpu", [])
    assert [recipe.with_pd(stride).network.pd for stride in (1, 2, 5)] == [1, 2, 2]
    assert recipe.with_pd(5, 3).network.pd == 3
    settings = [*SHORT, *TINY, "pd=1", "fit.crop=32"]
    trained = runs.train(blocks, tmp_path / "run", load_recipe(TrainRecipe, "cpu", settings), Start("cpu"))
    assert isinstance(trained, TBSN) and trained.config.pd == 1
    noisy, first = torch.rand(1, 3, 32, 32), teacher.targets([trained], None, True, (), (), 0)
    assert torch.equal(first(noisy), trained(noisy))


def test_targets_of_an_ensemble_are_what_teachers_make_of_symmetries_that_the_values_decide() -> None:
    noisy = torch.randint(0, 256, (6, 3, 16, 16), generator=torch.Generator().manual_seed(0)) / 255
    torch.manual_seed(0)
    teacher, student = (FastUNet(FastUNetConfig(widths=(8, 8), blocks=(1, 1))) for _ in range(2))
    for network in (teacher, student):
        nn.init.normal_(network.output.weight)
    of_all = [mean_over_symmetries(_as_numpy(teacher), one.permute(1, 2, 0).numpy()) for one in noisy]
    whole = torch.from_numpy(np.stack(of_all)).permute(0, 3, 1, 2)
    distance = (student(noisy) - whole).square().mean(dim=(1, 2, 3)) + losses.LEAST_DISTANCE
    torch.testing.assert_close(losses.ensembled([teacher], 8)(student, (noisy, noisy)), distance.log().mean())
    of_two = losses.ensembled([teacher, teacher], 2)
    together = of_two(student, (noisy, noisy))
    alone = torch.stack([of_two(student, (one[None], one[None])) for one in noisy])
    torch.testing.assert_close(together, alone.mean())
    together.backward()
    assert student.output.weight.grad is not None and teacher.output.weight.grad is None


def _as_numpy(network: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    def run(image: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
        return network(batch)[0].detach().permute(1, 2, 0).numpy()

    return run
