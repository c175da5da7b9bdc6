"""What a server answers at all: ASGI middleware before gradio.

Gradio has many more routes than one page needs, some of which fetch addresses or run code for developers: those that
are not named here do not exist.
"""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse

from tbsn.errors import InputError
from tbsn.web.sessions import Sessions

PAGES = ("/", "/config", "/theme.css", "/favicon.ico", "/gradio_api/queue/join", "/gradio_api/upload")
FILE, UPLOAD, HEARTBEAT = "/gradio_api/file=", "/gradio_api/upload", "/gradio_api/heartbeat/"
FOLDERS = ("/assets/", "/static/", HEARTBEAT, "/gradio_api/upload_progress", "/gradio_api/queue/data")
MESSAGE = 1 << 20  # bytes of a request that is no upload, and of what surrounds an upload
# Inline scripts and compiled templates are gradio's way; whatever the page asks for, it comes from here.
HEADERS = {
    "content-security-policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Guard:
    """An app that answers only what `PAGES` and `FOLDERS` name, and the files of ``sessions``.

    A session lasts as long as gradio's page holds its heartbeat open.

    Requests have at most ``megabytes``, come from the app's own page and, if ``hosts`` are given, are addressed to one
    of these: else any website could have its name point here, and read along.
    """

    def __init__(self, app: Any, sessions: Sessions, megabytes: int, hosts: tuple[str, ...]) -> None:
        self.app, self.sessions, self.megabytes, self.hosts = app, sessions, megabytes, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers, or has the app answer."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                if not scope["path"].startswith("/assets/"):
                    headers["cache-control"] = "no-store"
            await send(message)

        status, reason = self._refusal(scope["path"], Headers(scope=scope))
        if status:
            return await PlainTextResponse(reason, status)(scope, receive, guarded)
        if not scope["path"].startswith(HEARTBEAT):
            return await self.app(scope, receive, guarded)
        session = scope["path"].removeprefix(HEARTBEAT)
        self.sessions.begin(session)
        try:
            await self.app(scope, receive, guarded)
        finally:
            self.sessions.end(session)

    def _refusal(self, path: str, headers: Headers) -> tuple[int, str]:
        host = headers.get("host", "")
        if self.hosts and urlsplit(f"//{host}").hostname not in self.hosts:
            return 403, "not the name of this server"
        if headers.get("origin", f"//{host}").partition("//")[2] != host:
            return 403, "not from the page of this server"
        if path.startswith(FILE):
            inside = Path(path.removeprefix(FILE)).resolve().is_relative_to(self.sessions.root.resolve())
            return (0, "") if inside else (404, "no such file")
        if path not in PAGES and not path.startswith(FOLDERS):
            return 404, "no such page"
        most = MESSAGE + (path == UPLOAD) * self.megabytes * 10**6
        if "transfer-encoding" in headers or int(headers.get("content-length", 0)) > most:
            return 413, str(too_large("the photo", self.megabytes))
        return 0, ""


def too_large(name: str, megabytes: int) -> InputError:
    """What is wrong with a photo of more than so many MB."""
    return InputError(name, f"is larger than {megabytes} MB", "use `tbsn denoise`, or `tbsn serve --max-upload`")
