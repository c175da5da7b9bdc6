"""Files in, files out."""

import os
from collections.abc import Iterator
from pathlib import Path

from tbsn import images
from tbsn.denoiser import Denoiser
from tbsn.errors import InputError

SUFFIX = "_denoised"


def plan(inputs: list[Path], output: Path | None, overwrite: bool) -> list[tuple[Path, Path | InputError]]:
    """Where the result of each input file goes, or why it cannot.

    Without an output ``photo_denoised.png`` beside ``photo.png``; a folder keeps the names, and the structure of input
    folders; a file name takes the one input. Raises `InputError` if there is no input, or several for one output file.
    """
    sources = [(path, root if os.path.isdir(root) else root.parent) for root in inputs for path in images.find([root])]
    sources = [(path, root) for path, root in sources if output or not path.stem.endswith(SUFFIX) or path == root]
    if not sources:
        raise InputError(
            inputs[0], "no images in this folder", f"name files or folders with {' '.join(images.SUFFIXES)}"
        )
    to_file = output is not None and output.suffix.lower() in images.SUFFIXES and not os.path.isdir(output)
    if to_file and len(sources) > 1:
        raise InputError(output, f"is one file for {len(sources)} inputs", "name a folder with -o")
    planned: list[tuple[Path, Path | InputError]] = []
    taken: dict[Path, Path] = {}
    for path, root in sources:
        target = _target(path, root, output, to_file)
        refusal = _refusal(path, target, overwrite, taken.get(target))
        taken.setdefault(target, path)
        planned.append((path, refusal or target))
    return planned


def denoise_file(denoise: Denoiser, source: Path, target: Path) -> None:
    """Denoise one image file into another of the same depth, with its metadata. Raises `InputError`."""
    photo = images.read(source, denoise.channels)
    if (found := photo.pixels.shape[2]) not in (1, denoise.channels):
        raise InputError(source, f"has {found} channels, the model {denoise.channels}", "train a model on such images")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(target, f"cannot write here ({error.strerror})", "choose a writable folder with -o") from error
    images.write(target, denoise(photo.pixels), photo)


def denoise_files(
    denoise: Denoiser, planned: list[tuple[Path, Path | InputError]]
) -> Iterator[tuple[Path, Path | InputError]]:
    """Work through a plan, one bad file never stopping the rest; each input with its result or what was wrong."""
    for source, target in planned:
        try:
            if isinstance(target, InputError):
                raise target
            denoise_file(denoise, source, target)
            yield source, target
        except InputError as error:
            yield source, error


def _target(path: Path, root: Path, output: Path | None, to_file: bool) -> Path:
    if output is None:
        return path.with_name(f"{path.stem}{SUFFIX}{path.suffix}")
    return output if to_file else output / path.relative_to(root)


def _refusal(path: Path, target: Path, overwrite: bool, other: Path | None) -> InputError | None:
    if other is not None:
        return InputError(path, f"would be written to {target}, as {other} is", "denoise them into different folders")
    if os.path.exists(target) and os.path.exists(path) and target.samefile(path):
        return InputError(path, "output and input are the same file", "choose another output with -o")
    if os.path.lexists(target) and not overwrite:
        return InputError(target, "exists already", "add --overwrite, or choose another output with -o")
    return None
