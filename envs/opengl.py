"""Finds an OpenGL that works without a display, before dm_control is imported.

dm_control reads MUJOCO_GL once, at its import, and fails there if that backend can't be loaded, even if nothing is to be drawn.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
from collections.abc import MutableMapping

INSTALL_LINE = "apt-get install -y libegl1 libgl1"

_EGL_PLATFORM_DEVICE = 0x313F
_MAX_DEVICES = 32


def choose_backend(environ: MutableMapping[str, str] = os.environ) -> str:
    """Sets MUJOCO_GL to `egl`, `osmesa` or, where neither loads, `disabled`; a value that the user set stays.

    Returns:
        The value of MUJOCO_GL.
    """
    if "MUJOCO_GL" not in environ:
        environ["MUJOCO_GL"] = "egl" if _egl_works() else "osmesa" if ctypes.util.find_library("OSMesa") else "disabled"
    return environ["MUJOCO_GL"]


def advice(backend: str) -> str:
    """What to do where `backend` doesn't work, as the end of a sentence."""
    if backend in ("egl", "disabled"):
        return f"run `{INSTALL_LINE}`" + ("" if backend == "egl" else " and leave MUJOCO_GL unset")
    return f"unset MUJOCO_GL={backend}, or run `{INSTALL_LINE}` and set MUJOCO_GL=egl"


def _egl_works() -> bool:
    """Whether some EGL device can be initialized. PyOpenGL needs libGL (or libOpenGL) beside libEGL."""
    library = ctypes.util.find_library("EGL")
    if library is None or not (ctypes.util.find_library("OpenGL") or ctypes.util.find_library("GL")):
        return False
    try:
        egl = ctypes.CDLL(library)
    except OSError:
        return False
    address = egl.eglGetProcAddress
    address.restype, address.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    query_devices, platform_display = address(b"eglQueryDevicesEXT"), address(b"eglGetPlatformDisplayEXT")
    if not query_devices or not platform_display:
        return False
    devices, count = (ctypes.c_void_p * _MAX_DEVICES)(), ctypes.c_int()
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(query_devices)
    if not query(_MAX_DEVICES, devices, ctypes.byref(count)):
        return False
    make = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)(platform_display)
    egl.eglInitialize.argtypes = [ctypes.c_void_p] * 3
    # A display that came up is not terminated: handles are shared in the process, and dm_control is about to use this one.
    displays = (make(_EGL_PLATFORM_DEVICE, device, None) for device in devices[: count.value])
    return any(display and egl.eglInitialize(display, None, None) for display in displays)
