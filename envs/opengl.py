"""Finds an OpenGL that works without a display, before dm_control is imported, and says what is wrong where there is none.

dm_control reads MUJOCO_GL once, at its import, and fails there if that backend can't be loaded, even if nothing is to be drawn.
What is found is kept in the environment, which worker processes inherit: MUJOCO_GL, and two variables of our own.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import glob
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, MutableMapping
from functools import partial

from envs.errors import RenderError
from envs.llvm import load_triton

INSTALL_LINE = "apt-get install -y libegl1 libgl1"

_EGL_PLATFORM_DEVICE = 0x313F
_MAX_DEVICES = 32
_WORKS, _WHY_NOT = "DIFFTOP_OPENGL", "DIFFTOP_NO_OPENGL"  # the backend that was found to work; why there is none
_PROBE_TIMEOUT_S = 120.0
_PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
renderer = mujoco.Renderer(model, 16, 16)
renderer.update_scene(mujoco.MjData(model))
renderer.render()
"""


def choose_backend(environ: MutableMapping[str, str] = os.environ) -> str:
    """Sets MUJOCO_GL to `egl`, `osmesa` or, where neither loads, `disabled`.

    A value that the user set stays, unless it can't work: then it becomes `disabled`, so that what needs no pictures goes on.

    Returns:
        The value of MUJOCO_GL.
    """
    load_triton()
    given = environ.get("MUJOCO_GL")
    if given and (given == environ.get(_WORKS) or given == "disabled" or not (wrong := _fault(given, environ))):
        return given
    if given:
        environ[_WHY_NOT] = wrong
        environ["MUJOCO_GL"] = "disabled"
        return "disabled"
    wrong = _fault("egl", environ)
    found = "egl" if not wrong else "osmesa" if ctypes.util.find_library("OSMesa") else "disabled"
    environ["MUJOCO_GL"] = found
    if found == "disabled":
        environ[_WHY_NOT] = wrong
    else:
        environ[_WORKS] = found
    return found


def ensure_drawing(environ: MutableMapping[str, str] = os.environ) -> str:
    """Raises `RenderError` where nothing can be drawn; call it before anything is.

    A backend that the user chose is tried in a process of its own first, once: GLFW and some drivers end the process in which
    they fail.

    Returns:
        The value of MUJOCO_GL.
    """
    backend = choose_backend(environ)
    if backend == "disabled":
        raise RenderError(f"nothing can be drawn: {advice(backend, environ)}.")
    if environ.get(_WORKS) == backend:
        return backend
    wrong = environ.get(_WHY_NOT) or _died(environ)
    if wrong:
        environ[_WHY_NOT] = wrong
        raise RenderError(f"nothing can be drawn with MUJOCO_GL={backend}: {wrong}; {advice(backend, {})}.")
    environ[_WORKS] = backend
    return backend


def advice(backend: str, environ: MutableMapping[str, str] = os.environ) -> str:
    """What to do where `backend` doesn't work, as the end of a sentence."""
    if backend == "disabled" and environ.get(_WHY_NOT):
        return environ[_WHY_NOT]
    if backend in ("egl", "disabled"):
        return f"run `{INSTALL_LINE}`" + ("" if backend == "egl" else " and leave MUJOCO_GL unset")
    return f"unset MUJOCO_GL={backend}, or run `{INSTALL_LINE}` and set MUJOCO_GL=egl"


def _fault(backend: str, environ: MutableMapping[str, str]) -> str:
    """Why `backend` can't work and what to set, empty where nothing speaks against it."""
    if backend == "glfw" and sys.platform == "linux" and not (environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY")):
        return "MUJOCO_GL=glfw needs a display, and DISPLAY is not set: unset MUJOCO_GL, or set MUJOCO_GL=egl"
    if backend == "osmesa" and not ctypes.util.find_library("OSMesa"):
        return "MUJOCO_GL=osmesa needs libOSMesa: run `apt-get install -y libosmesa6`, or unset MUJOCO_GL"
    if backend != "egl":
        return ""
    devices = _egl_devices()
    if not devices:
        return f"no EGL device is found: run `{INSTALL_LINE}` and leave MUJOCO_GL unset"
    chosen = environ.get("MUJOCO_EGL_DEVICE_ID")
    if chosen is not None and not (chosen.isdecimal() and int(chosen) < len(devices)):
        there = f"are EGL devices 0 to {len(devices) - 1}" if len(devices) > 1 else "is EGL device 0"
        return f"MUJOCO_EGL_DEVICE_ID={chosen} is none of the devices (there {there}): unset it, or set one of these"
    if not any(initialize() for initialize in (devices if chosen is None else [devices[int(chosen)]])):
        locked = [path for path in sorted(glob.glob("/dev/dri/renderD*")) if not os.access(path, os.R_OK | os.W_OK)]
        if locked:
            return f"there is no permission to open {locked[0]}: add the user to its group (`usermod -aG render,video USER`)"
        other = "unset MUJOCO_EGL_DEVICE_ID, or set another" if chosen else f"run `{INSTALL_LINE}`, or check the GPU's driver"
        return f"EGL can't be initialized on {'this device' if chosen else 'any device'}: {other}"
    return ""


def _died(environ: MutableMapping[str, str]) -> str:
    """How a process that draws a small picture with these variables failed, in its own last words; empty where it didn't."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return f"a trial picture was not done after {_PROBE_TIMEOUT_S:.0f} s"
    if done.returncode == 0:
        return ""
    said = re.findall(r"^(?!Exception ignored).*?(\w*Error: .+?)\s*$", done.stderr, re.MULTILINE)
    how = f"killed by {signal.Signals(-done.returncode).name}" if done.returncode < 0 else f"exit status {done.returncode}"
    return f"a trial picture failed ({said[0] if said else how})"


def _egl_devices() -> list[Callable[[], bool]]:
    """Of each EGL device what initializes it and says whether that worked. PyOpenGL needs libGL (or libOpenGL) beside libEGL."""
    library = ctypes.util.find_library("EGL")
    if library is None or not (ctypes.util.find_library("OpenGL") or ctypes.util.find_library("GL")):
        return []
    try:
        egl = ctypes.CDLL(library)
    except OSError:
        return []
    address = egl.eglGetProcAddress
    address.restype, address.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    query_devices, platform_display = address(b"eglQueryDevicesEXT"), address(b"eglGetPlatformDisplayEXT")
    if not query_devices or not platform_display:
        return []
    devices, count = (ctypes.c_void_p * _MAX_DEVICES)(), ctypes.c_int()
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(query_devices)
    if not query(_MAX_DEVICES, devices, ctypes.byref(count)):
        return []
    make = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)(platform_display)
    egl.eglInitialize.argtypes = [ctypes.c_void_p] * 3

    def initialize(device: int | None) -> bool:
        # A display that came up is not terminated: handles are shared in the process, and dm_control is about to use this one.
        display = make(_EGL_PLATFORM_DEVICE, device, None)
        return bool(display and egl.eglInitialize(display, None, None))

    return [partial(initialize, device) for device in devices[: count.value]]
