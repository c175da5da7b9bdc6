"""The page of `tbsn serve`: what is on it, and what happens when it is used."""

import html
import time
from collections.abc import Mapping
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from gradio_client.utils import traverse

from tbsn import batch, images
from tbsn.denoiser import Denoiser
from tbsn.diagnose import describe, diagnose
from tbsn.errors import InputError
from tbsn.web import preview
from tbsn.web.guard import too_large
from tbsn.web.sessions import Files, Sessions

HERE = Path(__file__).parent
WAITING, HOUR = 16, 3600
PROGRESS = gr.Progress()  # as a default it tells gradio that there is some


class Page(gr.Blocks):
    """A page that takes no file but uploads: gradio would copy the server's own, and fetch those of an address."""

    root: Path

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *more: Any, **named: Any) -> Any:
        """Raises `gradio.Error` for inputs that name another file."""

        def check(file: dict[str, Any]) -> None:
            path = Path(str(file["path"])).resolve()
            if not (path.is_relative_to(self.root) and path.is_file()):
                raise gr.Error("not an upload")

        traverse(inputs, check, lambda value: isinstance(value, dict) and "path" in value)
        return await super().preprocess_data(block_fn, inputs, *more, **named)


class Desk:
    """The answers to what users do. Sessions share nothing but the models."""

    def __init__(self, models: Mapping[str, Denoiser], sessions: Sessions, megabytes: int) -> None:
        self._models, self._sessions, self._megabytes = models, sessions, megabytes

    def start(
        self,
        upload: str | None,
        model: str,
        automatic: bool,
        strength: float,
        request: gr.Request,
        progress: gr.Progress = PROGRESS,
    ) -> tuple[Any, ...]:
        """A photo has been dropped, or taken away."""
        files = self._sessions.files(request.session_hash)
        try:
            files.take(Path(upload)) if upload else files.delete()
            if not self._sessions.open(request.session_hash):  # closed while this waited for its turn
                files.delete()
        except InputError as error:
            files.delete()
            return _nothing(files.line(error))
        return self.denoise(model, automatic, strength, None, request, progress)

    def denoise(
        self,
        model: str,
        automatic: bool,
        strength: float,
        shown: dict[str, Any] | None,
        request: gr.Request,
        progress: gr.Progress = PROGRESS,
    ) -> tuple[Any, ...]:
        """The views, of the part that is shown already; the download and a note."""
        files = self._sessions.files(request.session_hash)
        if not files.open and not shown:
            return _nothing()
        began, done, context = time.monotonic(), 0.0, copy_context()

        def watch(step: batch.Step) -> None:
            nonlocal done
            files.keep_on()
            done += step.share
            context.run(progress, min(done, 1), "Denoising")  # in another thread gradio would not know whose it is

        try:
            denoiser = replace(self._models[model], strength=None if automatic else strength)
            batch.denoise_file(denoiser, files.photo, files.result, watch=watch)
            views = _views(files, *(shown["centre"] if shown else (0.5, 0.5)))
        except InputError as error:
            if not files.open:
                files.delete()
            return _nothing(files.line(error))
        took = f"{files.photo.name}: {views['size']}, denoised in {time.monotonic() - began:.1f} seconds"
        return views, gr.DownloadButton(value=files.result, visible=True), _note(took)

    def look(self, request: gr.Request, event: gr.EventData) -> tuple[Any, ...]:
        """Another part of the photo."""
        files = self._sessions.files(request.session_hash)
        try:
            return _views(files, event.x, event.y), gr.skip(), gr.skip()
        except InputError as error:
            return _nothing(files.line(error))

    def refuse(self, event: gr.EventData) -> tuple[Any, ...]:
        """A photo was too large to be sent."""
        return _nothing(str(too_large(event.name, self._megabytes)))

    def diagnose(self, request: gr.Request) -> Any:
        """What the noise is like, in lines of plain words."""
        files = self._sessions.files(request.session_hash)
        if not (files.open and files.result.exists()):
            return gr.HTML(visible=False)
        try:
            lines = describe(diagnose([files.photo], lambda error: None))
        except InputError as error:
            lines = [files.line(error)]
        table, _, advice = html.escape("\n".join(lines)).partition("\n\n")
        return gr.HTML(f"<h2>What its noise is like</h2><pre>{table}</pre><p>{advice}</p>", visible=True)


def _views(files: Files, x: float, y: float) -> dict[str, Any]:
    """What `page.html` shows: addresses, and where the window lies in the whole, in hundredths."""
    window = preview.show(files.photo, files.result, files.folder, x, y)
    # The query makes the browser fetch what has changed under an old name.
    address = {
        name: f"gradio_api/file={files.folder}/{file}?{time.time_ns()}"
        for name, file in (("before", "before.png"), ("after", "after.png"), ("overview", "overview.jpg"))
    }
    if (window.width, window.height) == (window.whole_width, window.whole_height):
        del address["overview"]
    return address | {
        "width": window.width,
        "height": window.height,
        "centre": [x, y],
        "size": f"{window.whole_width}x{window.whole_height} pixels",
        "left": 100 * window.left / window.whole_width,
        "top": 100 * window.top / window.whole_height,
        "across": 100 * window.width / window.whole_width,
        "down": 100 * window.height / window.whole_height,
    }


def _nothing(error: str = "") -> tuple[Any, ...]:
    return None, gr.DownloadButton(value=None, visible=False), _note(error, "note error") if error else ""


def _note(text: str, kind: str = "note") -> str:
    return f'<div class="{kind}" role="status">{html.escape(text)}</div>'


def build(models: Mapping[str, Denoiser], sessions: Sessions, megabytes: int) -> gr.Blocks:
    """The page, for these models, the first of which is chosen, and photos of at most ``megabytes``."""
    desk = Desk(models, sessions, megabytes)
    with Page(title="Denoise a photo", analytics_enabled=False, delete_cache=(HOUR, 24 * HOUR)) as page:
        page.root = sessions.root.resolve()
        gr.HTML(
            "<h1>Denoise a photo</h1><p>Nothing is kept: photo and result are deleted when you close this page.</p>",
            elem_id="head",
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                upload = gr.File(
                    label="Photo", file_types=[suffix for suffix in images.SUFFIXES if suffix != ".npy"], height=150
                )
                model = gr.Radio(list(models), value=next(iter(models)), label="Model")
                automatic = gr.Checkbox(True, label="Strength: as much as is noise")
                strength = gr.Slider(0, 1, 1, step=0.05, label="Strength", visible=False)
                download = gr.DownloadButton("Download the result", variant="primary", visible=False)
                note = gr.HTML()
            with gr.Column(scale=3, min_width=320):
                template, script = ((HERE / f"page.{kind}").read_text() for kind in ("html", "js"))
                compare = gr.HTML(html_template=template, js_on_load=script, megabytes=megabytes)
                noise = gr.HTML(visible=False, elem_id="noise")
        settings, results = [model, automatic, strength], [compare, download, note]
        # All that takes memory waits in one queue.
        work: Any = {"concurrency_id": "work", "api_visibility": "private", "show_progress_on": compare}
        dropped = gr.on([upload.upload, upload.clear], desk.start, [upload, *settings], results, **work)
        dropped.then(desk.diagnose, None, noise, **(work | {"show_progress_on": noise}))
        changes = [model.change, automatic.change, strength.change]
        gr.on(changes, desk.denoise, [*settings, compare], results, trigger_mode="always_last", **work)
        automatic.change(lambda on: gr.Slider(visible=not on), automatic, strength, api_visibility="private")
        compare.select(desk.look, None, results, api_visibility="private")
        compare.large(desk.refuse, None, results, api_visibility="private")
        # Only where something listens does gradio's page tell the server that it is open, see `Sessions`.
        page.unload(lambda: None)
    return page.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)
