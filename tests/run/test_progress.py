"""The progress line."""

import io

from difftop.run.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_rate_and_time_left_are_of_the_last_minute():
    stream, now = io.StringIO(), [0.0]
    progress = Progress(100_000, frames=10_000, stream=stream, every_s=30, clock=lambda: now[0])
    for second in range(1, 301):  # 1,000 seed frames a second at first, then 100
        now[0] = float(second)
        progress.update(10_000 + 1_000 * min(second, 30) + 100 * max(0, second - 30), last_return=123.456, failures=2)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10  # one each 30 s, the last at 271 s
    assert lines[-1] == "64,100/100,000 frames (64%)  100 frames/s  5m 59s left  return 123.5  2 planner failures"
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_gets_one_line_that_is_redrawn():
    stream, now = Terminal(), [0.0]
    progress = Progress(100, stream=stream, clock=lambda: now[0])
    for frames in (10, 20, 100):
        now[0] += 1
        progress.update(frames)
    progress.message("saved")
    progress.close()
    assert stream.getvalue().count("\r\x1b[K") == 4
    assert stream.getvalue().endswith("100/100 frames (100%)  33 frames/s\r\x1b[Ksaved\n\n")


def test_the_last_update_is_always_shown():
    stream = io.StringIO()
    progress = Progress(100, stream=stream, clock=lambda: 5.0)
    progress.update(50)
    progress.update(60)
    progress.update(100)
    assert [line.split()[0] for line in stream.getvalue().splitlines()] == ["50/100", "100/100"]


def test_slow_steps_have_a_rate_and_samples():
    stream, now = io.StringIO(), [0.0]
    progress = Progress(100, stream=stream, every_s=1, clock=lambda: now[0], unit="gradient steps", samples=64)
    now[0] = 4.0
    progress.update(1)
    assert stream.getvalue() == "1/100 gradient steps (1%)  0.25 steps/s  16 samples/s  6m 36s left\n"
