"""The command line: it parses, calls and prints. Nothing here imports torch before a verb needs it."""

import json
import sys
import warnings
from dataclasses import asdict
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tbsn import options
from tbsn.errors import FULL, SOME_FAILED, InputError, NoRoomError
from tbsn.lines import warn
from tbsn.settings import TeacherSettings

if TYPE_CHECKING:
    from tbsn.session import Work

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

EXTRAS = {"gradio": "serve", "ray": "ray", "fsspec": "ray"}

Model = Annotated[str, typer.Option(help="`default`, `unet`, `teacher`, a model file, or the folder of a run.")]
Ensemble = Annotated[
    bool, typer.Option("--ensemble", help="Mean over flips and quarter turns: the best result, 8 times as long.")
]
Noisy = Annotated[Path, typer.Argument(help="Noisy images: a folder, searched recursively, or one file.")]
Run = Annotated[Path, typer.Option("--output", "-o", help="Folder of the run: recipe, log, checkpoints, model.")]
Overrides = Annotated[list[str], typer.Option("--set", help="Override a setting, as in fit.steps=500; repeatable.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder; begin none.")]
AcceptChanges = Annotated[bool, typer.Option("--accept-changes", help="Go on with a run though its recipe changes.")]
Init = Annotated[
    Path | None, typer.Option(help="Run, model file or name of the same network to start from: fine-tuning.")
]
MaxTime = Annotated[str, typer.Option(help="Train no longer, schedule finished: 90s, 30m, 2h. [default: no limit]")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")]


def _show_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(f"tbsn {version('tbsn')}")
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Denoise photos with a network that learned from noisy photos alone."""


@app.command()
def denoise(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Image files or folders; - is standard input.")
    ],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="File or folder, or -. [default: NAME_denoised beside the input]"),
    ] = None,
    model: Model = "default",
    strength: Annotated[str, typer.Option(help="How much to take out: 0 to 1, or auto: as much as is noise.")] = "auto",
    ensemble: Ensemble = False,
    suffix: Annotated[str, typer.Option(help="What names get without --output.")] = "_denoised",
    format_: Annotated[str, typer.Option("--format", help="png, jpg, tif, webp or npy. [default: the input's]")] = "",
    quality: Annotated[int, typer.Option(help="Of JPEG and WebP.", min=1, max=100)] = 95,
    strip_metadata: Annotated[bool, typer.Option("--strip-metadata", help="Leave out EXIF, XMP, IPTC.")] = False,
    nan: Annotated[str, typer.Option(help="NaN and infinite values: error, or keep them.")] = "error",
    recursive: Annotated[bool, typer.Option(help="Search folders below folders too.")] = True,
    overwrite: Overwrite = False,
    skip_existing: Annotated[bool, typer.Option("--skip-existing", help="Leave out what has its output.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go where.")] = False,
    shard: Annotated[str, typer.Option(help="Work on the k-th of n shares of the inputs, as in 3/16.")] = "1/1",
    ray: Annotated[
        str, typer.Option(help="Work on a Ray cluster, given its address or local; files may be URLs, as s3://...")
    ] = "",
    max_memory: Annotated[str, typer.Option(help="Keep to about this much, as in 800MB or 2GB.")] = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show errors only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show pixels and seconds of each file.")] = False,
    device: Annotated[
        str, typer.Option(help="auto, cpu, openvino, ncnn, or what ONNX Runtime has: cuda, coreml, dml.")
    ] = "auto",
) -> None:
    """Denoise images: same format, bit depth and metadata."""
    from tbsn import session
    from tbsn.denoiser import load
    from tbsn.plan import Output, check_writable, plan
    from tbsn.streams import STREAM, files_for_streams

    warnings.showwarning = lambda message, *_: warn(f"warning: {message}")
    amount = options.strength(strength)
    settings = session.settings(quality, strip_metadata, nan, options.memory(max_memory))
    if overwrite and skip_existing:
        raise InputError("--overwrite --skip-existing", "do not go together", "give one of them")
    if "" in (*inputs, output):
        raise InputError('""', "is no name", "name a file or folder; the current one is .")
    exists = "replace" if overwrite else "skip" if skip_existing else "refuse"
    where = Output(Path(output) if output else None, suffix, options.suffix(format_), exists)
    urls = any("://" in name for name in (*inputs, output or ""))
    if urls and not ray:
        raise InputError("URLs", "are for Ray alone", "add --ray local, or the address of a cluster")
    with files_for_streams([Path(name) for name in inputs], where) as (files, where, called):
        if urls:
            from tbsn.urls import plan_urls

            jobs = plan_urls(inputs, output, where, recursive, options.share(shard))
            where = Output(Path()) if "://" in str(output) else where  # run.jsonl is here
        else:
            jobs = plan(files, where, recursive, options.share(shard))
        loudness = 0 if quiet or str(STREAM) in (output, *inputs) else 1 + verbose
        if loudness:
            session.tell_left_out(files, recursive)
        if dry_run:
            raise typer.Exit(session.show(jobs, called))
        check_writable(where, jobs)
        denoiser = load(model, strength=amount, device=device, ensemble=ensemble)
        facts = {"strength": strength, "ensemble": ensemble, "device": device, "settings": asdict(settings)}
        log = session.Log.of(where, shard, model, **facts)
        code = session.run(denoiser, jobs, settings, log, loudness, _work(ray), called)
    if code:
        raise typer.Exit(code)


@app.command()
def train(
    folder: Noisy,
    output: Run = Path("runs/teacher"),
    recipe: Annotated[str, typer.Option(help="cpu, hole, sidd, dnd, or a YAML file.")] = "cpu",
    pd: Annotated[str, typer.Option(help="PD stride: a number, or auto to diagnose. [default: the recipe's]")] = "",
    set_: Overrides = [],  # noqa: B006 (Typer copies it)
    resume: Resume = False,
    accept_changes: AcceptChanges = False,
    init: Init = None,
    max_time: MaxTime = "",
    device: Device = "auto",
) -> None:
    """Train the blind-spot network on noisy images. The same command again goes on where it stopped."""
    from tbsn.training import runs
    from tbsn.training.recipe import TrainRecipe, load_recipe

    _tell_left_out([folder])
    start = runs.Start(device, resume, accept_changes, init, options.seconds(max_time))
    settings = load_recipe(TrainRecipe, recipe, set_)
    if pd:
        settings = settings.with_pd(*options.strides(pd, folder, output, settings.network.channels))
    runs.train(folder, output, settings, start)
    print(f"trained: {output / 'model.safetensors'}")


@app.command()
def distill(
    folder: Noisy,
    teacher: Annotated[list[Path], typer.Option(help="Blind-spot network: run, file or `teacher`; repeatable.")],
    output: Run = Path("runs/student"),
    recipe: Annotated[str, typer.Option(help="distill, distill-cpu, or a YAML file.")] = "distill-cpu",
    set_: Overrides = [],  # noqa: B006 (Typer copies it)
    resume: Resume = False,
    accept_changes: AcceptChanges = False,
    init: Init = None,
    max_time: MaxTime = "",
    device: Device = "auto",
) -> None:
    """Distil a trained network into a small, fast student. The same command again goes on where it stopped."""
    from tbsn.training import runs
    from tbsn.training.recipe import DistillRecipe, load_recipe

    _tell_left_out([folder])
    start = runs.Start(device, resume, accept_changes, init, options.seconds(max_time))
    runs.distill(folder, teacher, output, load_recipe(DistillRecipe, recipe, set_), start)
    print(f"distilled: {output / 'model.safetensors'}")


@app.command()
def renoise(
    folder: Noisy,
    model: Annotated[
        list[str], typer.Option(help="What denoises them first: a name, model file, or run; repeatable, for the mean.")
    ] = ["default"],  # noqa: B006 (Typer copies it)
    output: Run = Path("runs/renoised"),
    recipe: Annotated[str, typer.Option(help="renoise-cpu, or a YAML file.")] = "renoise-cpu",
    set_: Overrides = [],  # noqa: B006 (Typer copies it)
    resume: Resume = False,
    accept_changes: AcceptChanges = False,
    init: Init = None,
    max_time: MaxTime = "",
    device: Device = "auto",
) -> None:
    """Train a better student: on denoised images with noise like the real one added. The same command again goes on."""
    from tbsn.training import runs
    from tbsn.training.recipe import RenoiseRecipe, load_recipe

    _tell_left_out([folder])
    start = runs.Start(device, resume, accept_changes, init, options.seconds(max_time))
    runs.renoise(folder, model, output, load_recipe(RenoiseRecipe, recipe, set_), start)
    print(f"renoised: {output / 'model.safetensors'}")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="`default`, `unet`, `teacher`, a file, a run; or noisy, blur, nlm.")],
    noisy: Annotated[Path, typer.Argument(metavar="NOISY_DIR", help="Folder of noisy images.")],
    clean: Annotated[Path, typer.Argument(metavar="CLEAN_DIR", help="Folder of clean images of the same names.")],
    protocol: Annotated[str, typer.Option(help="sidd (8-bit rounding) or dnd (clip only).")] = "sidd",
    pd: Annotated[int | None, typer.Option(help="Teacher: PD stride. [default: the network's]", min=1)] = None,
    passes: Annotated[
        int | None, typer.Option(help="Teacher: R3 passes; 0 leaves R3 out. [default: 8, or 0 at stride 1]", min=0)
    ] = None,
    probability: Annotated[
        float, typer.Option(help="Teacher: R3 probability.", min=0, max=1)
    ] = TeacherSettings.probability,
    ensemble: Ensemble = False,
    hole: Annotated[
        int | None, typer.Option(help="Teacher with a hole: its radius. [default: as trained]", min=0)
    ] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write all scores to this file.")] = None,
) -> None:
    """Score a denoiser on pairs of noisy and clean images: PSNR and SSIM, per image and mean."""
    from tbsn import metrics
    from tbsn.denoiser import load
    from tbsn.evaluation import pairs
    from tbsn.evaluation.baselines import BASELINES
    from tbsn.files import atomic

    options.new_files(json=as_json)
    if protocol not in metrics.PROTOCOLS:
        raise InputError(f"--protocol {protocol}", "unknown", f"use one of {', '.join(metrics.PROTOCOLS)}")
    rule = metrics.PROTOCOLS[protocol]
    if model in BASELINES and (ensemble, pd, passes, hole) != (False, None, None, None):
        raise InputError(model, "is no network", "leave out --ensemble, --pd, --passes and --hole")
    denoiser = BASELINES.get(model) or load(model, TeacherSettings(pd, passes, probability, hole), ensemble=ensemble)
    scores = []
    for score in pairs.evaluate(denoiser, pairs.find_pairs(noisy, clean), rule):
        scores.append(score)
        print(f"{score.name}  {score.psnr:.2f} dB  {score.ssim:.4f}  {score.seconds:.2f} s")
    result = pairs.report(model, rule, scores)
    mean = result["mean"]
    values = f"{mean['psnr']:.2f} dB, SSIM {mean['ssim']:.4f}, {mean['seconds']:.2f} s an image"
    print(f"{model}: {values}, mean of {len(scores)} images")
    print(f"protocol {rule.name}: {rule.description}")
    if as_json:
        with atomic(as_json, options.NEW_FILE + "json") as partial:
            partial.write_text(json.dumps(result, indent=1))


@app.command()
def diagnose(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT...", help="Noisy image files or folders.", show_default=False)
    ],
    as_json: Annotated[Path | None, typer.Option("--json", help="Write everything measured to this file.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw it into this file: .png, .svg or .pdf.")] = None,
) -> None:
    """Tell what the noise is like, from noisy images alone, and how to train on it."""
    from tbsn import diagnose as diagnosis
    from tbsn.files import atomic

    options.new_files(json=as_json, picture=picture)
    _tell_left_out(inputs)
    result = diagnosis.diagnose(inputs, lambda error: warn(f"error: {error}"))
    print("\n".join(diagnosis.describe(result)))
    if as_json:
        with atomic(as_json, options.NEW_FILE + "json") as partial:
            partial.write_text(json.dumps(diagnosis.as_dict(result), indent=1))
    if picture:
        from tbsn import chart

        chart.draw(result, picture)
    if result.failed:
        raise typer.Exit(SOME_FAILED)


@app.command()
def serve(
    model: Annotated[
        list[str], typer.Option(help="A model to offer beside `default` and `unet`: a file or run; repeatable.")
    ] = [],  # noqa: B006 (Typer copies it)
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine's own are open to all.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any free one.", min=0, max=65535)] = 7860,
    max_upload: Annotated[int, typer.Option(help="Largest photo, in MB.", min=1)] = 200,
) -> None:
    """Denoise photos on a page in the browser: before and after, and what the noise is like."""
    from tbsn.web.serve import MODELS
    from tbsn.web.serve import serve as serve_page

    serve_page([*MODELS, *model], host, port, max_upload)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Run, model file or name; for .onnx a student's.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File: .onnx or .safetensors.")] = Path("student.onnx"),
    half: Annotated[bool, typer.Option("--half", help="A .safetensors file in half precision, half as large.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Export a student to ONNX, checked against torch, or any network to safetensors."""
    from tbsn.denoiser import find
    from tbsn.export import export as export_student
    from tbsn.network.files import Student, load_network, save_network

    _refuse_existing(output, overwrite)
    network = load_network(find(model))
    if output.suffix == ".safetensors":
        save_network(output, network.half() if half else network)
        print(f"exported: {output}")
        return
    if half:
        raise InputError("--half", "is for .safetensors files", "leave it out, or name another file with -o")
    if not isinstance(network, Student):
        raise InputError(model, "is a blind-spot network, not a student", "distil it first with `tbsn distill`")
    difference = export_student(network, output)
    print(f"exported: {output} (largest difference to torch {difference:.1e})")


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Released TBSN weights, .pth or .safetensors.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Safetensors file.")] = Path("tbsn.safetensors"),
    overwrite: Overwrite = False,
) -> None:
    """Convert released TBSN weights into a model file; nothing in a pickle is run."""
    from tbsn.network.files import parameters, save_network
    from tbsn.network.released import load_released

    _refuse_existing(output, overwrite)
    network = load_released(checkpoint)
    save_network(output, network)
    print(f"converted: {output} ({parameters(network):,} parameters)")


def _work(ray: str) -> "Work":
    """Where images are denoised: in this process, or by a Ray cluster."""
    if not ray:
        from tbsn.batch import denoise_files

        return denoise_files
    from tbsn.cluster import denoise_everywhere

    return partial(denoise_everywhere, ray)


def _tell_left_out(inputs: list[Path]) -> None:
    from tbsn.session import tell_left_out

    tell_left_out(inputs, recursive=True)


def _refuse_existing(output: Path, overwrite: bool) -> None:
    if output.exists() and not overwrite:
        raise InputError(output, "exists already", "add --overwrite, or choose another output with -o")


def run() -> None:
    """The program: `app`, with bad input as one line on standard error and its exit code."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names are bytes, and need not be in the user's encoding
    try:
        app()
    except InputError as error:
        warn(f"{error.label}: {error}")
        sys.exit(error.code)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        warn(f"error: {error.filename or 'tbsn'}: {reason}; make room or mend it, then again")
        sys.exit(NoRoomError.code if error.errno in FULL else 2)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(str(error.name), "train")
        warn(f"error: tbsn: this command needs {error.name}; pip install 'tbsn[{extra}]'")
        sys.exit(2)
