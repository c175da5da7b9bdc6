"""Recipes: every setting of a run, validated; the YAML files beside this one and whatever the user overrides."""

from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationError,
    model_validator,
)

from tbsn.errors import InputError
from tbsn.network import FastUNetConfig, HalfPlaneConfig, TBSNConfig, UNetConfig
from tbsn.training.leaves import LARGEST_CROP
from tbsn.training.light import Curve
from tbsn.training.losses import SYMMETRIES

R = TypeVar("R", bound="Settings")
Precision = Literal["float32", "bf16", "auto"]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def _kind(default: str) -> Discriminator:
    """Which network a recipe means: its ``kind``, if it says so."""

    def kind(network: object) -> object:
        return network.get("kind", default) if isinstance(network, dict) else getattr(network, "kind", network)

    return Discriminator(kind)


BlindConfig = Annotated[
    Annotated[TBSNConfig, Tag("TBSN")] | Annotated[HalfPlaneConfig, Tag("HalfPlane")], _kind("TBSN")
]
StudentConfig = Annotated[
    Annotated[UNetConfig, Tag("UNet")] | Annotated[FastUNetConfig, Tag("FastUNet")], _kind("UNet")
]
AnyConfig = Annotated[
    Annotated[TBSNConfig, Tag("TBSN")]
    | Annotated[HalfPlaneConfig, Tag("HalfPlane")]
    | Annotated[UNetConfig, Tag("UNet")]
    | Annotated[FastUNetConfig, Tag("FastUNet")],
    _kind("FastUNet"),
]


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FitSettings(Settings):
    """The training loop; the defaults are the paper's (TBSN, section 4.1), but for the precision.

    ``milestones`` are fractions of ``steps`` at which the learning rate is multiplied by ``gamma``. ``ema`` is the
    decay of the averaged weights; 0 keeps the last. ``augment`` adds flips and quarter turns. ``precision`` "auto" is
    bf16 where the processor computes in it, else float32. ``clip`` is the largest norm of the gradient; 0 is no limit.
    ``beta2`` is the decay of AdamW's mean of the squared gradient.
    ``batch`` is that of all processes together; each takes its share in ``accumulate`` parts, one after another, with
    as much less memory. ``hold_back`` is the share of the images that training does not see: the weights of the
    checkpoint with the least loss on them are the result.
    """

    steps: PositiveInt = 100_000
    batch: PositiveInt = 4
    accumulate: PositiveInt = 1
    crop: PositiveInt = 640
    lr: PositiveFloat = 3e-4
    warmup: NonNegativeInt = 0
    milestones: tuple[float, ...] = (0.4, 0.8)
    gamma: PositiveFloat = 0.1
    weight_decay: float = Field(default=0.01, ge=0)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    clip: float = Field(default=0.0, ge=0)
    ema: float = Field(default=0.0, ge=0, lt=1)
    augment: bool = False
    hold_back: float = Field(default=0.0, ge=0, lt=1)
    precision: Precision = "auto"
    workers: NonNegativeInt = 1
    seed: Seed = 0
    checkpoint_every: PositiveInt = 1000
    log_every: PositiveInt = 50


class TrainRecipe(Settings):
    """Train the blind-spot network: PD stride and network, a `TBSN` unless its ``kind`` is HalfPlane.

    ``recompute`` is activation checkpointing: about half of the memory for a little more time.
    """

    pd: PositiveInt = 5
    recompute: bool = False
    network: BlindConfig = TBSNConfig()
    fit: FitSettings = FitSettings()

    @model_validator(mode="after")
    def _can_recompute(self) -> Self:
        if self.recompute and self.network.kind != "TBSN":
            raise ValueError("recompute is of the TBSN alone")
        return self

    def with_pd(self, stride: int, inference: int | None = None) -> Self:
        """The recipe with another PD stride, its crops as much larger or smaller: the network sees the same size.

        It is never used with a larger stride than it was trained with; by default with its own.
        """
        if self.network.kind == "HalfPlane":
            raise InputError(f"--pd {stride}", "this network has a hole instead of PD", "--set network.hole=N")
        fit = self.fit.model_copy(update={"crop": self.fit.crop // self.pd * stride})
        network = self.network.model_copy(update={"pd": min(inference or self.network.pd, stride)})
        return self.model_copy(update={"pd": stride, "fit": fit, "network": network})


class TargetSettings(Settings):
    """What the student learns from: all that each of its teachers says.

    Of a `TBSN`, one PD pass if ``estimate`` is set, and for each probability in ``refinements`` one pass over it, with
    that share of the noisy values put back; ``pd`` is the stride, by default its own. The paper's one target has
    nothing put back. Of a `HalfPlane`, one pass for each radius in ``holes``.
    """

    pd: PositiveInt | None = None
    estimate: bool = False
    refinements: tuple[Share, ...] = (0.0,)
    holes: tuple[NonNegativeInt, ...] = (0, 1, 2)
    seed: Seed = 0

    @model_validator(mode="after")
    def _any(self) -> Self:
        if not (self.estimate or self.refinements):
            raise ValueError("no target: set estimate, or give refinements")
        if not self.holes:
            raise ValueError("no target of a network with a hole: give holes")
        return self


class DistillRecipe(Settings):
    """Distil teachers into a student; the loss is the mean of the L1 distances to all targets."""

    network: StudentConfig = UNetConfig()
    targets: TargetSettings = TargetSettings()
    fit: FitSettings = FitSettings(batch=8, crop=128)


class PairSettings(Settings):
    """How a noisy and a clean image are made of an estimate.

    ``curve`` is the tone curve of the images: linear where values are proportional to light, as those of a microscope.
    A share ``halved`` of the estimates is shrunk to half, where the photo is large enough: that is sharper, and what
    noise was left in it is weaker. A share ``leaves`` of the clean images is no estimate, but dead leaves in the
    colours of one: all that an estimate shows is smooth. A share ``mixed`` is of two photos: the one with less noise
    gives the estimate, which is the cleaner one, and the other the noise. A share ``plain`` has noise that no camera
    makes, see `plain_noise`. ``stops`` is the range of exposures, ``weak`` the share with weaker noise, see `exposed`.
    A share ``grey`` shows one channel in all.
    """

    curve: Curve = "sRGB"
    halved: Share = 0.5
    leaves: Share = 0.33
    mixed: Share = 0.5
    plain: Share = 0.15
    grey: Share = 0.1
    stops: float = Field(default=1.0, ge=0, le=4)
    weak: Share = 0.25


class RenoiseRecipe(Settings):
    """Train a network on estimates with noise like the photos' added: a student, or the next blind-spot network.

    Its targets are the clean images, or, with an ``ensemble`` of 1 to 8, what the models themselves make of the noisy
    ones, see `losses.ensembled`.
    """

    network: AnyConfig = FastUNetConfig()
    pairs: PairSettings = PairSettings()
    ensemble: int = Field(default=0, ge=0, le=SYMMETRIES)
    fit: FitSettings = FitSettings(batch=8, crop=128)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.pairs.leaves and self.fit.crop > LARGEST_CROP:
            raise ValueError(f"fit.crop is over {LARGEST_CROP}: set pairs.leaves=0")
        if isinstance(self.network, TBSNConfig) and self.network.pd != 1:
            raise ValueError("pairs are whole images: set network.pd=1")
        return self


def load_recipe(kind: type[R], name: str, overrides: list[str]) -> R:
    """A recipe of the package by its name, or a YAML file, with ``key.key=value`` overrides.

    Raises `InputError` that names an unknown recipe, key or value.
    """
    packaged = resources.files("tbsn.training") / "recipes" / f"{name}.yaml"
    source = packaged if packaged.is_file() else Path(name)
    if not source.is_file():
        known = sorted(f.name[:-5] for f in (resources.files("tbsn.training") / "recipes").iterdir())
        raise InputError(name, "no such recipe", f"use one of {', '.join(known)}, or a YAML file")
    try:
        settings = yaml.safe_load(source.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = f"not YAML ({' '.join(str(error).split())})"
        raise InputError(name, reason, "mend the file, or name another") from error
    try:
        for override in overrides:
            _override(settings, override)
        return kind.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"recipe {name}", f"{key}: {first['msg']}", "docs/settings.md lists all keys") from error


def _override(settings: object, override: str) -> None:
    path, equals, value = override.partition("=")
    *parents, leaf = path.split(".")
    for parent in parents:
        if isinstance(settings, dict):
            settings[parent] = settings = settings.get(parent) or {}
    try:
        if not equals or not isinstance(settings, dict):
            raise ValueError
        settings[leaf] = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        remedy = "write for example --set fit.steps=500"
        raise InputError(f"--set {override}", "not of the form key=value", remedy) from None
