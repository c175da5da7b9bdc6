"""The page of `tbsn serve`, in a real browser, and what its server refuses."""

import json
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from conftest import EXAMPLES, save, tbsn
from served import Page, Server, finish, start, until
from tbsn import images
from tbsn.denoiser import PRETRAINED
from tbsn.web.serve import _listen

PHOTO = EXAMPLES / "01_14.png"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = start(tmp_path_factory.mktemp("server") / "tmp")
    yield running
    finish(running)


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver: `make browser` installs them")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "force-color-profile=srgb"):
        options.add_argument(f"--{argument}")
    options.add_argument("--window-size=1280,1000")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driven = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield driven
    driven.quit()


@pytest.fixture
def page(browser: webdriver.Chrome, server: Server, tmp_path: Path) -> Page:
    return Page(browser, server, tmp_path / "downloads")


def test_a_photo_is_compared_and_downloaded_as_the_command_writes_it(page: Page, tmp_path: Path) -> None:
    assert "256x256 pixels" in page.drop(PHOTO)
    assert tbsn("denoise", PHOTO, "-o", tmp_path / "out.png").returncode == 0
    assert page.download("01_14_denoised.png") == (tmp_path / "out.png").read_bytes()
    assert not [link for link in page.all("a") if link.is_displayed()], "the upload is not where it was"
    noisy, denoised = (images.read(path).pixels for path in (PHOTO, tmp_path / "out.png"))
    inside = np.s_[20:-20, 20:-20]  # of the round corners
    assert np.array_equal(page.seen(1000)[inside], noisy[inside])
    assert np.array_equal(page.seen(0)[inside], denoised[inside])
    half = page.seen(500)
    assert np.array_equal(half[20:-20, 20:120], noisy[20:-20, 20:120])
    assert np.array_equal(half[20:-20, 140:-20], denoised[20:-20, 140:-20])
    until(lambda: page.all("#noise pre"))
    assert [line.rstrip() for line in page.all("#noise pre")[0].text.splitlines()] == [
        line.rstrip() for line in tbsn("diagnose", PHOTO).stdout.partition("\n\n")[0].splitlines()
    ]


def test_model_and_strength_are_the_commands(page: Page, server: Server, tmp_path: Path) -> None:
    deep = images.read(PHOTO).pixels[:64, :80].astype(np.uint16) * 257
    photo = save(tmp_path / "deep.png", deep)
    page.drop(photo)
    page.named("unet").click()
    page.named("Strength: as much as is noise").click()
    number = until(lambda: [each for each in page.all("input[type=number]") if each.is_displayed()])[0]
    number.send_keys(Keys.CONTROL, "a")
    number.send_keys("0.4", Keys.TAB)
    tbsn("denoise", photo, "-o", tmp_path / "out.png", "--model", "unet", "--strength", "0.4")
    expected = (tmp_path / "out.png").read_bytes()
    until(lambda: [each for each in server.files("*/result/deep_denoised.png") if each.read_bytes() == expected])
    assert page.download("deep_denoised.png") == expected
    assert images.read(tmp_path / "out.png").pixels.dtype == np.uint16


def test_what_is_no_photo_gets_one_line(page: Page, tmp_path: Path) -> None:
    html, picture, large = (tmp_path / name for name in ("page.png", "drawing.png", "large.png"))
    html.write_text("<html>not found</html>")
    picture.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="300" height="300"/>')
    large.write_bytes(b"0" * 2_000_001)
    assert page.drop(html) == "page.png: is HTML or SVG; convert it to PNG, JPEG, TIFF, WebP, NumPy"
    for path, reason in (
        (picture, "is HTML or SVG; "),
        (bomb(tmp_path / "bomb.png"), "claims 60000x60000 pixels, over 100 million; "),
        (pages(tmp_path / "pages.tif"), "claims 200 pages of 1000x1000 pixels, over 100 million; "),
        (array(tmp_path / "array.png"), "is no photo in PNG, JPEG, TIFF, WebP; "),
        (large, "is larger than 2 MB; "),
    ):
        page.browser.refresh()
        until(lambda: page.all("input[type=file]") and page.all(".empty"))
        assert page.drop(path).startswith(f"{path.name}: {reason}")
        assert page.all(".empty") and not page.all(".view")


def bomb(path: Path) -> Path:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(900))) + chunk(b"IEND", b""))
    return path


def pages(path: Path) -> Path:
    tifffile.imwrite(path, np.zeros((200, 1000, 1000), np.uint8), compression="zlib", photometric="minisblack")
    return path


def array(path: Path) -> Path:
    with path.open("wb") as file:
        np.save(file, np.zeros((8, 8), np.uint8))
    return path


def test_closing_the_page_deletes_and_nothing_left_the_machine(page: Page, server: Server) -> None:
    page.drop(PHOTO)
    assert server.files("*/photo/*") and server.files("*/result/*")
    page.browser.get("about:blank")
    until(lambda: not server.files("*/photo/*") and not server.files("*/result/*"))
    events = [json.loads(entry["message"])["message"] for entry in page.browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    ours = (f"http://127.0.0.1:{server.port}/", "data:", "blob:", "about:")
    assert len(asked) > 20 and not [url for url in asked if not url.startswith(ours)]


def test_an_upload_that_no_page_took_is_deleted_with_the_last_page(server: Server) -> None:
    with server.open("first"):
        body = b'--x\r\ncontent-disposition: form-data; name="files"; filename="left.png"\r\n\r\nleft\r\n--x--\r\n'
        headers = {"content-type": "multipart/form-data; boundary=x"}
        assert server.ask("POST", "/gradio_api/upload", body, **headers)[0] == 200
        assert server.files("*/left.png")
    until(lambda: not server.files("*"))
    with server.open("second"):
        assert server.send(PHOTO, "second")[0] == 200
        until(lambda: server.files("*/result/*_denoised.png"))
    until(lambda: not server.files("*"))


def test_files_are_given_to_none_but_who_knows_their_names(server: Server) -> None:
    with server.open("first"):
        assert server.send(PHOTO, "first")[0] == 200
        (result,) = until(lambda: server.files("*/result/*_denoised.png"))
        assert result.parents[1].name not in ("first", "result") and "first" not in str(result)
        assert server.ask("GET", f"/gradio_api/file={result}")[0] == 200
        for path in (
            "/etc/passwd",
            "../../../../../../../../etc/passwd",
            f"{result.parent}/../../../../log",
            f"{result.parent}/%2e%2e/%2e%2e/%2e%2e/%2e%2e/log",
            *result.parents,
            "http://127.0.0.1:1/",
            "file:///etc/passwd",
            "~/.profile",
            "",
        ):
            status, answer = server.ask("GET", f"/gradio_api/file={path}")
            assert status in (403, 404) and "root:" not in answer and result.name not in answer, path
        for path in (
            "/../etc/passwd",
            "/assets/../../../../../../etc/passwd",
            "/static/%2e%2e/%2e%2e/routes.py",
            "/runs",
        ):
            assert server.ask("GET", path)[0] in (403, 404), path


def test_a_large_photo_shows_how_far_it_has_come(server: Server, tmp_path: Path) -> None:
    photo = save(tmp_path / "a.jpg", np.random.default_rng(0).integers(0, 255, (2000, 2000, 3), np.uint8), Q=20)
    with server.open("large"):
        server.send(photo, "large")
        answer = server.ask("GET", "/gradio_api/queue/data?session_hash=large")[1]
    messages = [json.loads(line.removeprefix("data: ")) for line in answer.splitlines() if line.startswith("data: ")]
    shares = [each["progress_data"][0]["progress"] for each in messages if each["msg"] == "progress"]
    assert shares == sorted(shares) and 0 < shares[0] < 1


def test_the_server_trusts_no_client(server: Server, tmp_path: Path) -> None:
    assert server.ask("GET", "/", host="evil.example")[0] == 403
    assert server.ask("GET", "/", origin="http://evil.example")[0] == 403
    status, answer = server.ask("POST", "/gradio_api/upload", b"0" * 3_100_000)
    assert status == 413 and "is larger than 2 MB; " in answer
    theirs = save(tmp_path / "theirs.png", images.read(PHOTO).pixels)
    address = {"path": "http://evil.example/a.png", "meta": {"_type": "gradio.FileData"}}
    server.drop("thief0", address["path"])
    server.drop("thief1", str(theirs))
    server.drop("thief2", str(theirs), is_stream=True)
    server.send(PHOTO, "thief3", model=address)
    server.send(PHOTO, "thief4", model=str(PRETRAINED / "unet.onnx"))
    for number in range(5):
        answer = server.ask("GET", f"/gradio_api/queue/data?session_hash=thief{number}")[1]
        assert '"success":false' in answer.replace(" ", "") and "denoised" not in answer
    assert theirs.exists() and not server.files("*/theirs.png") and not server.files("*/photo/theirs.png")


def test_without_gradio_one_line_tells_what_to_install() -> None:
    without = "import sys; sys.modules['gradio'] = None; from tbsn.cli import run; run()"
    command = [sys.executable, "-c", without]
    assert subprocess.run([*command, "--help"], capture_output=True, check=False).returncode == 0
    done = subprocess.run([*command, "serve"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: tbsn: this command needs gradio; pip install 'tbsn[serve]'\n"


def test_an_address_in_use_is_named(server: Server) -> None:
    done = tbsn("serve", "--port", server.port)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and f"port {server.port}" in done.stderr


def test_other_addresses_than_this_machines_are_warned_of(capfd: pytest.CaptureFixture[str]) -> None:
    for host, local in (("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)):
        listening, only_here = _listen(host, 0)
        listening.close()
        assert only_here == local and bool(capfd.readouterr().err) != local


def test_sigterm_ends_it_in_the_middle_of_a_photo(tmp_path: Path) -> None:
    server = start(tmp_path / "tmp")
    photo = save(tmp_path / "a.jpg", np.random.default_rng(0).integers(0, 255, (2000, 2000, 3), np.uint8), Q=20)
    with server.open("first"):
        server.send(photo, "first")
        until(lambda: server.files("*/photo/*"))
        # Who leaves before their turn comes leaves nothing.
        with server.open("second"):
            server.send(PHOTO, "second")
        time.sleep(0.5)
        assert len(server.files("*/photo/*")) == 1
        assert finish(server, signal.SIGHUP) == 129
    assert [path.name for path in server.folder.iterdir()] == ["log"]


def test_ctrl_c_ends_it_and_nothing_is_left(server: Server) -> None:
    assert finish(server) == 130
    assert [path.name for path in server.folder.iterdir()] == ["log"]
    log = server.log.read_text()
    assert "CONNECTS" not in log and "LOOKS UP" not in log
