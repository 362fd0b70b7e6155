"""Videos: what is written can be read again; failures are one sentence."""

import subprocess

import imageio_ffmpeg
import numpy as np
import pytest

from difftop.run.video import VideoError, write_video


@pytest.mark.parametrize("height, width", [(64, 96), (63, 97)])
def test_frames_come_back(tmp_path, height, width):
    ramp = np.linspace(0, 255, width, dtype=np.uint8)[None, :, None] * np.ones((height, 1, 3), dtype=np.uint8)
    frames = [np.roll(ramp, 2 * i, axis=1) for i in range(10)]
    path = write_video(tmp_path / "new" / "a.mp4", frames, fps=20)
    size = (width + width % 2, height + height % 2)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    decoded = subprocess.run(command, capture_output=True, check=True)
    assert b"20 fps" in decoded.stderr
    read = np.frombuffer(decoded.stdout, np.uint8).reshape(-1, size[1], size[0], 3)[:, :height, :width]
    assert len(read) == 10
    assert max(np.abs(a.astype(int) - b).mean() for a, b in zip(read, frames, strict=True)) < 12
    assert [p.name for p in path.parent.iterdir()] == ["a.mp4"]


def test_bad_frames_are_named(tmp_path):
    good = np.zeros((8, 8, 3), dtype=np.uint8)
    with pytest.raises(VideoError, match="at least one frame"):
        write_video(tmp_path / "a.mp4", [])
    with pytest.raises(VideoError, match=r"not \(8, 8\)"):
        write_video(tmp_path / "a.mp4", [good[..., 0]])
    with pytest.raises(VideoError, match=r"frame 1 of a.mp4 is uint8 \(8, 6, 3\)"):
        write_video(tmp_path / "a.mp4", [good, good[:, :6]])
    with pytest.raises(VideoError, match=r"frame 0 of a.mp4 is float64"):
        write_video(tmp_path / "a.mp4", [good / 255])


@pytest.mark.parametrize("program", ["/nonexistent/ffmpeg", "/bin/false"])
def test_a_missing_or_broken_ffmpeg_is_one_sentence(tmp_path, monkeypatch, program):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", program)
    with pytest.raises(VideoError, match=r"can't write .*a.mp4: .*record no video") as caught:
        write_video(tmp_path / "a.mp4", [np.zeros((64, 64, 3), dtype=np.uint8)] * 50)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
