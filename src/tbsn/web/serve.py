"""`tbsn serve`: a page in the browser, from this machine. It keeps nothing and asks nothing of the network."""

import ipaddress
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from tbsn.denoiser import DEFAULT, Denoiser, load
from tbsn.errors import InputError
from tbsn.lines import warn
from tbsn.stopping import ended_by_signal

MODELS = (DEFAULT, "unet")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(models: list[str], host: str, port: int, megabytes: int) -> None:
    """Serve the page until a signal ends the process: with 128 and its number, as 130 for Ctrl-C.

    ``models``: what to choose from, the first by default; ``port`` 0 is any free one; ``megabytes``: the largest photo.
    Raises `InputError` for a model or address that cannot be used, and `ModuleNotFoundError` without gradio.
    """
    denoisers = {model: load(model) for model in models}
    listening, local = _listen(host, port)
    root = Path(tempfile.mkdtemp(prefix="tbsn-serve-"))
    code = 0
    try:
        with ended_by_signal():
            server = _server(denoisers, root, megabytes, (host, *LOOPBACK) if local else ())
            name = f"[{host}]" if ":" in host else host
            print(f"http://{name}:{listening.getsockname()[1]}  (Ctrl-C ends it)", flush=True)
            server.run(sockets=[listening])
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    sys.stdout.flush()
    # Not by sys.exit: a photo that is being denoised would hold the process until it is done.
    os._exit(code)


def _server(models: dict[str, Denoiser], root: Path, megabytes: int, hosts: tuple[str, ...]) -> Any:
    _no_network(root)
    import uvicorn
    from fastapi import FastAPI
    from gradio import mount_gradio_app
    from gradio.themes import Default

    from tbsn.web import page, preview
    from tbsn.web.guard import Guard
    from tbsn.web.sessions import Sessions

    preview.restrict()
    sessions = Sessions(root)
    app = mount_gradio_app(
        FastAPI(),
        page.build(models, sessions, megabytes),
        "/",
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=Default(font="system-ui", font_mono="ui-monospace"),
        css_paths=[page.HERE / "page.css"],
    )
    guarded = Guard(app, sessions, megabytes, hosts)
    return uvicorn.Server(uvicorn.Config(guarded, log_level="critical", timeout_graceful_shutdown=1))


def _no_network(root: Path) -> None:
    """Settings that gradio and its libraries read as they are imported."""
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": str(root),
        "GRADIO_EXAMPLES_CACHE": str(root),
        "HF_HUB_OFFLINE": "1",
    }


def _listen(host: str, port: int) -> tuple[socket.socket, bool]:
    """A socket, and whether only this machine reaches it; a warning if not."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.create_server(address[:2], family=family)
    except OSError as error:
        reason = f"cannot listen on port {port} ({error.strerror})"
        raise InputError(host, reason, "choose others with --host and --port") from error
    local = ipaddress.ip_address(address[0]).is_loopback
    if not local:
        warn(f"warning: {host} is open to others: no password, no encryption")
    return listening, local
