"""`tbsn serve` as a process, its page as a user has it, and its server as a stranger asks it."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyvips
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

# The program without torch, which tells of every connection that would leave the machine.
ALONE = """
import sys
sys.modules["torch"] = None
def watch(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][0] not in ("127.0.0.1", "::1"):
        print("CONNECTS", arguments[1], file=sys.stderr, flush=True)
    if event == "socket.getaddrinfo" and arguments[0] not in ("127.0.0.1", "localhost", "::1"):
        print("LOOKS UP", arguments[0], file=sys.stderr, flush=True)
sys.addaudithook(watch)
from tbsn.cli import run
run()
"""


@dataclass
class Server:
    process: subprocess.Popen[str]
    port: int
    folder: Path
    log: Path

    def files(self, pattern: str) -> list[Path]:
        return list(self.folder.glob(f"tbsn-serve-*/{pattern}"))

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        """Ask as no browser would: the path goes out as it stands."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        finally:
            connection.close()

    @contextmanager
    def open(self, session: str) -> Iterator[None]:
        """As an open page does."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", f"/gradio_api/heartbeat/{session}")
        with closing(connection), connection.getresponse():
            yield

    def send(self, photo: Path, session: str, **more: Any) -> tuple[int, str]:
        """Upload a file and say that it was dropped."""
        body = b'--x\r\ncontent-disposition: form-data; name="files"; filename="a.png"\r\n\r\n%b\r\n--x--\r\n'
        headers = {"content-type": "multipart/form-data; boundary=x"}
        status, answer = self.ask("POST", "/gradio_api/upload", body % photo.read_bytes(), **headers)
        assert status == 200
        return self.drop(session, json.loads(answer)[0], **more)

    def drop(self, session: str, path: str, model: Any = "default", **more: Any) -> tuple[int, str]:
        dependencies = json.loads(self.ask("GET", "/config")[1])["dependencies"]
        number = next(each["id"] for each in dependencies if ["upload"] in [t[1:] for t in each["targets"]])
        file = {"path": path, "meta": {"_type": "gradio.FileData"}} | more
        event = {"data": [file, model, True, 1], "fn_index": number, "session_hash": session}
        return self.ask("POST", "/gradio_api/queue/join", json.dumps(event), **{"content-type": "application/json"})


def start(folder: Path) -> Server:
    folder.mkdir(parents=True)
    with (folder / "log").open("w") as log:
        command = [
            "env",
            "--default-signal=HUP",
            sys.executable,
            "-c",
            ALONE,
            "serve",
            "--port",
            "0",
            "--max-upload",
            "2",
        ]
        # Libraries are on their best behaviour where they see that they are tested.
        environment = {key: value for key, value in os.environ.items() if key != "CI"} | {"TMPDIR": str(folder)}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout
    address = process.stdout.readline()
    assert address.startswith("http://127.0.0.1:"), (folder / "log").read_text()
    return Server(process, int(address.split()[0].rpartition(":")[2]), folder, folder / "log")


def finish(server: Server, number: int = signal.SIGINT) -> int:
    assert server.process.stdout
    server.process.send_signal(number)
    try:
        return server.process.wait(20)
    finally:
        server.process.kill()
        server.process.stdout.close()


def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


class Page:
    """The page as a user has it; everything downloaded lies in a folder."""

    def __init__(self, browser: webdriver.Chrome, server: Server, downloads: Path) -> None:
        self.browser, self.downloads = browser, downloads
        browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})
        browser.get(f"http://127.0.0.1:{server.port}")
        until(lambda: self.all("input[type=file]") and self.all(".empty"))

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def named(self, text: str) -> WebElement:
        return self.browser.find_element(
            By.XPATH, f"//label[contains(., '{text}')]//input | //button[contains(., '{text}')]"
        )

    def drop(self, photo: Path) -> str:
        """The note that a photo is answered with."""
        self.all("input[type=file]")[0].send_keys(str(photo))
        return until(lambda: [note.text for note in self.all(".note") if photo.name in note.text])[0]

    def seen(self, share: int) -> np.ndarray:
        """The picture on the screen, with the divider at so many thousandths."""
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))"
        self.browser.execute_script(script, self.all(".bar input")[0], share)
        picture = pyvips.Image.new_from_buffer(self.all(".stack")[0].screenshot_as_png, "")
        return picture.numpy()[..., :3]

    def download(self, name: str) -> bytes:
        self.named("Download").click()
        until((self.downloads / name).exists)
        return (self.downloads / name).read_bytes()
