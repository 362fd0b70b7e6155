"""Which OpenGL is taken, and what is said where none works."""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from envs import RenderError, opengl
from envs.opengl import advice, choose_backend, ensure_drawing

ROOT = Path(__file__).resolve().parents[2]
INSTALL = "apt-get install -y libegl1 libgl1"


def devices(monkeypatch: pytest.MonkeyPatch, *work: bool) -> None:
    """EGL has these devices, and says of each whether it can be initialized."""
    monkeypatch.setattr(opengl, "_egl_devices", lambda: [lambda works=works: works for works in work])


@pytest.mark.parametrize(
    ("egl_works", "osmesa", "expected"), [(True, None, "egl"), (False, "libOSMesa.so.8", "osmesa"), (False, None, "disabled")]
)
def test_backend_is_the_first_that_works(monkeypatch, egl_works, osmesa, expected):
    devices(monkeypatch, egl_works)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: osmesa)
    environ: dict[str, str] = {}
    assert choose_backend(environ) == environ["MUJOCO_GL"] == expected
    assert choose_backend(environ) == expected


@pytest.mark.parametrize("given", [{"MUJOCO_GL": "glfw", "DISPLAY": ":0"}, {"MUJOCO_GL": "disabled"}, {"MUJOCO_GL": "no-such"}])
def test_the_user_s_choice_stays(given):
    environ = dict(given)
    assert choose_backend(environ) == given["MUJOCO_GL"]
    assert environ == given


@pytest.mark.parametrize("present", [{"EGL"}, {"GL"}, set()])
def test_egl_needs_both_libraries(monkeypatch, present):
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: f"lib{name}.so.1" if name in present else None)
    assert not opengl._egl_devices()


def test_a_library_that_does_not_load_is_no_egl(monkeypatch):
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: "libno-such-library.so")
    assert not opengl._egl_devices()


@pytest.mark.parametrize("backend", ["egl", "disabled", "osmesa", "glfw"])
def test_advice_holds_the_install_line(backend):
    assert INSTALL in advice(backend, {})


@pytest.mark.parametrize(
    ("environ", "work", "said"),
    [
        ({"MUJOCO_GL": "glfw"}, [True], "MUJOCO_GL=glfw needs a display, and DISPLAY is not set: unset MUJOCO_GL, or set MUJOCO"),
        ({"MUJOCO_GL": "osmesa"}, [True], "needs libOSMesa: run `apt-get install -y libosmesa6`, or unset MUJOCO_GL"),
        ({"MUJOCO_EGL_DEVICE_ID": "7"}, [True], "MUJOCO_EGL_DEVICE_ID=7 is none of the devices (there is EGL device 0): unset"),
        ({"MUJOCO_EGL_DEVICE_ID": "GPU-8f2c"}, [True] * 2, "GPU-8f2c is none of the devices (there are EGL devices 0 to 1)"),
        ({"MUJOCO_EGL_DEVICE_ID": "-1"}, [True], "MUJOCO_EGL_DEVICE_ID=-1 is none of the devices"),
        ({"MUJOCO_EGL_DEVICE_ID": "1"}, [True, False], "EGL can't be initialized on this device: unset MUJOCO_EGL_DEVICE_ID"),
        ({"MUJOCO_GL": "egl"}, [], f"no EGL device is found: run `{INSTALL}`"),
        ({}, [False, False], "EGL can't be initialized on any device"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_states_go_on(monkeypatch, environ, work, said):
    devices(monkeypatch, *work)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    monkeypatch.setattr(opengl.glob, "glob", lambda pattern: [])
    assert choose_backend(environ) == environ["MUJOCO_GL"] == "disabled"
    for _ in range(2):
        with pytest.raises(RenderError, match="nothing can be drawn") as caught:
            ensure_drawing(environ)
        assert said in str(caught.value) and str(caught.value).count("\n") == 0
    assert said in advice("disabled", environ)


def test_a_device_file_without_permission_is_named(monkeypatch, tmp_path):
    devices(monkeypatch, False)
    monkeypatch.setattr(opengl.glob, "glob", lambda pattern: ["/dev/dri/renderD128"])
    monkeypatch.setattr(opengl.os, "access", lambda path, mode: False)
    environ = {"MUJOCO_GL": "egl"}
    with pytest.raises(RenderError, match=r"no permission to open /dev/dri/renderD128: add the user to its group \(`usermod -aG"):
        ensure_drawing(environ)


@pytest.mark.parametrize(
    ("probe", "said"),
    [
        ("import os; os.abort()", "a trial picture failed (killed by SIGABRT)"),
        ("raise RuntimeError('no context for you')", "a trial picture failed (RuntimeError: no context for you)"),
    ],
)
def test_a_backend_that_ends_the_process_is_tried_in_another_one_once(monkeypatch, probe, said):
    monkeypatch.setattr(opengl, "_PROBE", probe)
    environ = dict(os.environ) | {"MUJOCO_GL": "glfw", "DISPLAY": ":77"}
    environ.pop("DIFFTOP_OPENGL", None)
    with pytest.raises(RenderError) as caught:
        ensure_drawing(environ)
    assert said in str(caught.value) and "unset MUJOCO_GL=glfw" in str(caught.value)
    monkeypatch.setattr(opengl.subprocess, "run", None)  # not a second time
    with pytest.raises(RenderError) as again:
        ensure_drawing(environ)
    assert str(again.value) == str(caught.value)


def test_a_backend_that_was_found_to_work_is_not_tried_again(monkeypatch):
    devices(monkeypatch, True)
    monkeypatch.setattr(opengl, "_PROBE", "")
    environ = {"MUJOCO_GL": "egl", "PATH": os.environ["PATH"]}
    assert ensure_drawing(environ) == "egl"
    monkeypatch.setattr(opengl.subprocess, "run", None)
    assert ensure_drawing(environ) == "egl"
    auto: dict[str, str] = {}  # chosen because it works
    assert choose_backend(auto) == ensure_drawing(auto) == "egl"


def headless(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL", "DIFFTOP_OPENGL", "DIFFTOP_NO_OPENGL", "MUJOCO_EGL_DEVICE_ID")
    environ = {key: value for key, value in os.environ.items() if key not in hidden} | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["MUJOCO_GL=glfw", "MUJOCO_EGL_DEVICE_ID=31"])
def test_a_run_on_states_goes_on_without_videos_and_says_so_once(tmp_path, variable):
    pytest.importorskip("dm_control")
    options = ["env=dmc/cartpole-swingup", "preset=cpu", "run.frames=16", "run.seed_steps=8", "run.eval_every=8"]
    options += ["run.eval_episodes=1", "run.eval_envs=1", "threads=1", f"root={tmp_path}"]
    key, _, value = variable.partition("=")
    done = headless("train.py", *options, **{key: value})
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no videos: ") == done.stderr.count(variable) == 1, done.stderr
    assert list(tmp_path.rglob("eval.csv")) and not list(tmp_path.rglob("*.mp4"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["metaworld/reach", "gym/Reacher-v5"])
def test_an_environment_that_was_not_closed_ends_in_silence(name):
    pytest.importorskip({"metaworld": "metaworld", "gym": "mujoco"}[name.partition("/")[0]])
    if choose_backend() == "disabled":
        pytest.skip("no OpenGL")
    code = f"import envs; env = envs.make_env(envs.EnvConfig({name!r})); env.reset(seed=0); print(env.render().shape)"
    done = headless("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(256, 256, 3)\n", "")


def test_robosuite_is_imported_where_cuda_devices_have_other_names():
    pytest.importorskip("robosuite")
    code = "from envs.robosuite.simulator import import_robosuite; import_robosuite()"
    code += "; import os; print(os.environ['MUJOCO_EGL_DEVICE_ID'])"
    done = headless("-c", code, CUDA_VISIBLE_DEVICES="GPU-8f2c", MUJOCO_EGL_DEVICE_ID="0")
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_triton_is_loaded_before_what_mesa_draws_with(tmp_path):
    """Triton's LLVM after Mesa's ends the process."""
    (tmp_path / "triton.py").write_text(
        "print('libLLVM' in open('/proc/self/maps').read(), 'libEGL' in open('/proc/self/maps').read())\n"
    )
    code = "from envs.opengl import choose_backend; choose_backend()"
    done = headless("-c", code, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert (done.returncode, done.stdout) == (0, "False False\n"), done.stderr
