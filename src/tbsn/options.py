"""What options of the command line say, checked: each raises `InputError` for what it does not know."""

from pathlib import Path

from tbsn.errors import InputError
from tbsn.lines import warn

NEW_FILE = "name a file in a writable folder with --"


def seconds(duration: str) -> float:
    """``90s``, ``30m`` or ``2h`` in seconds; nothing is no limit."""
    units = {"S": 1.0, "M": 60.0, "H": 3600.0}
    return _amount("--max-time", duration, units, "90s, 30m or 2h") if duration else float("inf")


def memory(amount: str) -> float:
    """``800MB`` or ``2GB`` in bytes; nothing is 0, the default."""
    if not amount:
        return 0.0
    from tbsn.denoiser import LEAST_BYTES

    bytes_ = _amount("--max-memory", amount, {"MB": 1e6, "GB": 1e9}, "800MB or 2GB")
    if bytes_ < LEAST_BYTES:
        raise InputError(f"--max-memory {amount}", "less than it takes", f"give {LEAST_BYTES / 1e6:.0f}MB or more")
    return bytes_


def strength(text: str) -> float | None:
    """A number; ``auto`` is None."""
    try:
        amount = None if text == "auto" else float(text)
    except ValueError:
        raise InputError(f"--strength {text}", "not a number", "give one from 0 to 1, or auto") from None
    if amount is not None and not 0 <= amount <= 1:
        raise InputError(f"--strength {text}", "not from 0 to 1", "give 1 for all of the noise, 0 for none")
    return amount


def suffix(format_: str) -> str | None:
    """The suffix of a format; nothing is None."""
    from tbsn.images import SUFFIXES

    found = f".{format_.lower().removeprefix('.')}"
    if format_ and found not in SUFFIXES:
        raise InputError(f"--format {format_}", "unknown", f"use one of {' '.join(known[1:] for known in SUFFIXES)}")
    return found if format_ else None


def share(shard: str) -> tuple[int, int]:
    """``3/16`` as numbers."""
    part, _, parts = shard.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise InputError(f"--shard {shard}", "not a share", "write k/n with k from 1 to n, as in 3/16")
    return int(part), int(parts)


def strides(pd: str, folder: Path, run: Path, channels: int) -> tuple[int, int | None]:
    """PD strides for training and, if ``pd`` says so, inference; ``auto`` is what the run has, else what is advised."""
    if pd == "auto":
        from tbsn.diagnose import pd_strides
        from tbsn.training.recipe import TrainRecipe, load_recipe

        if (run / "recipe.yaml").exists():
            known = load_recipe(TrainRecipe, str(run / "recipe.yaml"), [])
            return known.pd, known.network.pd if known.network.kind == "TBSN" else None
        train, inference = pd_strides(folder, channels)
        warn(f"PD stride {train}, {inference} in use, by what `tbsn diagnose` found")
        return train, inference
    if not pd.isdecimal() or int(pd) == 0:
        raise InputError(f"--pd {pd}", "not a PD stride", "give a number of at least 1, or auto")
    return int(pd), None


def new_files(**files: Path | None) -> None:
    """Raises `InputError` for one whose folder is not there, before there is work to lose."""
    for option, path in files.items():
        if path and not path.parent.is_dir():
            raise InputError(f"--{option} {path}", "no such folder", NEW_FILE + option)


def _amount(option: str, text: str, units: dict[str, float], example: str) -> float:
    """``text`` is a number and a unit. Raises `InputError`, with an ``example``."""
    unit = next((unit for unit in units if text.upper().endswith(unit)), "")
    number = text[: len(text) - len(unit)]
    if not unit or not number.replace(".", "", 1).isdecimal() or float(number) == 0:
        raise InputError(f"{option} {text}", "not an amount with its unit", f"write for example {example}")
    return float(number) * units[unit]
