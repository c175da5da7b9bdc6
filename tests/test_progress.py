import re

import pytest

from tbsn import progress


@pytest.mark.parametrize(("seconds", "least", "most"), [(90.0, 0, 90), (float("inf"), 10**6, 10**9)])
def test_the_time_left_is_no_more_than_the_limit(
    seconds: float, least: int, most: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    with progress.progress("step", 10**6, seconds=seconds) as report:
        report(1, "loss 0.1")
    line = capsys.readouterr().err.strip()
    found = re.fullmatch(r"step 1/1000000  loss 0\.1  left (\d+):(\d\d)", line)
    assert found
    minutes, rest = map(int, found.groups())
    assert least <= 60 * minutes + rest <= most


@pytest.mark.parametrize(("seconds", "lines"), [(1, 0), (20, 2)])
def test_work_that_is_soon_over_says_nothing_in_a_log(
    seconds: int, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, seconds))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.progress("image", 3) as report:
        for done in (1, 2, 3):
            report(done, "")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == lines and all(line.startswith("image ") for line in said)
    assert not said or said[-1].startswith("image 3/3")
