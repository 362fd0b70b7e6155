"""Videos of episodes, as mp4."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


class VideoError(RuntimeError):
    """A video that can't be written; the message says why and what to do. A run goes on without it."""


def write_video(path: Path | str, frames: Sequence[np.ndarray[Any, Any]], *, fps: float = 30.0) -> Path:
    """Writes frames as H.264, beside and renamed, so that `path` is always a whole video.

    Args:
        path: the mp4; its folder is made.
        frames: at least one, uint8 `[height, width, 3]`, all of one size; odd sizes get their last row or column doubled.
        fps: frames per second.
    Raises:
        VideoError: ffmpeg is missing or failed, the disk can't be written, or the frames aren't such images.
    """
    import imageio_ffmpeg

    path = Path(path)
    shape = frames[0].shape if len(frames) else None
    if shape is None or len(shape) != 3 or shape[2] != 3:
        raise VideoError(f"{path.name} needs at least one frame [height, width, 3], not {'none' if shape is None else shape}.")
    for i, frame in enumerate(frames):
        if frame.shape != shape or frame.dtype != np.uint8:
            raise VideoError(f"frame {i} of {path.name} is {frame.dtype} {frame.shape}, but the first is uint8 {shape}.")
    height, width = shape[0], shape[1]
    odd = ((0, height % 2), (0, width % 2), (0, 0))  # H.264 stores colour at half size
    temporary = path.with_name(f".writing_{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        size = f"{width + width % 2}x{height + height % 2}"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size]
        command += ["-r", f"{fps:g}", "-i", "-", "-c:v", "libx264", "-pix_fmt", "yuv420p", str(temporary)]
        padded = b"".join(np.pad(frame, odd, mode="edge").tobytes() for frame in frames)
        done = subprocess.run(command, input=padded, capture_output=True)
        if done.returncode:
            raise OSError(done.stderr.decode(errors="replace").strip() or f"ffmpeg failed with status {done.returncode}")
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise VideoError(
            f"can't write {path}: {reason}; check that the disk has space and that ffmpeg is there (pip install imageio-ffmpeg, "
            "or its path in IMAGEIO_FFMPEG_EXE), or record no video."
        ) from error
    return path
