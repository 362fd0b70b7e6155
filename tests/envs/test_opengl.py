import ctypes.util

import pytest

from envs import opengl


@pytest.mark.parametrize(
    ("egl_works", "osmesa", "expected"), [(True, None, "egl"), (False, "libOSMesa.so.8", "osmesa"), (False, None, "disabled")]
)
def test_backend_is_the_first_that_works(monkeypatch, egl_works, osmesa, expected):
    monkeypatch.setattr(opengl, "_egl_works", lambda: egl_works)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: osmesa)
    environ = {}
    assert opengl.choose_backend(environ) == environ["MUJOCO_GL"] == expected


def test_the_user_s_choice_stays():
    environ = {"MUJOCO_GL": "glfw"}
    assert opengl.choose_backend(environ) == "glfw"
    assert environ == {"MUJOCO_GL": "glfw"}


@pytest.mark.parametrize("present", [{"EGL"}, {"GL"}, set()])
def test_egl_needs_both_libraries(monkeypatch, present):
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: f"lib{name}.so.1" if name in present else None)
    assert not opengl._egl_works()


def test_a_library_that_does_not_load_is_no_egl(monkeypatch):
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: "libno-such-library.so")
    assert not opengl._egl_works()


@pytest.mark.parametrize("backend", ["egl", "disabled", "osmesa", "glfw"])
def test_advice_holds_the_install_line(backend):
    assert "apt-get install -y libegl1 libgl1" in opengl.advice(backend)
