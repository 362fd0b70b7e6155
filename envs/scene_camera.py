"""Images, depths and points of a MuJoCo scene, also of one whose model is replaced at every reset.

robosuite's own renderer binds its OpenGL context when it is made, and never again: of two environments in a process, the first
silently returns the second's images. And it makes a context at every reset, which takes most of a second. Here the context is
bound for every image, and meshes and textures stay in it as long as models share them.
"""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import mujoco
import numpy as np

from envs.errors import RenderError
from envs.opengl import advice, ensure_drawing
from envs.suites import Array

_LARGEST = 480  # height and width of the buffer that is drawn to, pixels
_MAX_GEOMS = 10000
_ASSETS = ("mesh_vert", "mesh_face", "tex_data")  # what a context holds of a model


class SceneCamera:
    """Draws the scenes of one environment.

    Args:
        fast: no shadow map, no anti-aliasing and no reflections: 3 to 4 times as fast.
        hidden: groups of geoms that aren't drawn; robosuite's group 0 collides and has a visible twin.
    """

    def __init__(self, fast: bool, hidden: Sequence[int] = (0,)) -> None:
        self._fast = fast
        self._model: Any = None  # that the context was made for
        self._gl: Any = None
        self._context: Any = None
        self._scene: Any = None
        self._scene_model: Any = None
        self._visible = mujoco.MjvOption()
        for group in hidden:
            self._visible.geomgroup[group] = 0

    def image(self, model: Any, data: Any, camera: str, height: int, width: int) -> Array:
        """The view of `camera` `[height, width, 3]`, uint8, upright.

        Raises:
            RenderError: no OpenGL, no such camera, or an image of more than 480 x 480.
        """
        number = self._number(model, camera, height, width)
        self._prepare(model)
        pixels, _ = self._drawn(model, data, number, height, width)
        return np.ascontiguousarray(pixels[::-1])  # OpenGL counts rows from below

    def depth(self, model: Any, data: Any, camera: str, height: int, width: int) -> Array:
        """How far along the axis of `camera` what it shows is `[height, width]`, float32, m, upright; the camera must be fast.

        Where it shows nothing, the far plane: `vis.map.zfar` times the scene's extent. With OpenGL's depth t:

            d = near / (1 - t (1 - near / far))

        Raises:
            RenderError: see `image`.
        """
        assert self._fast, "anti-aliasing mixes the depths of surfaces"
        number = self._number(model, camera, height, width)
        self._prepare(model)
        _, raw = self._drawn(model, data, number, height, width)
        return np.ascontiguousarray(_metres(model, raw)[::-1], np.float32)

    def points(self, model: Any, data: Any, camera: str, height: int, width: int) -> Array:
        """What `camera` sees of bodies that can move, a point per pixel `[N, 3]`, m, in the world; the camera must be fast.

        Pixels tell which geom they show and how far it is, in one drawing; what is welded to the world (tables, bins, the floor)
        is left out. A pixel (i, j) at depth d (see `depth`), of a camera at c with axes R, that looks along -z:

            f = height / (2 tan(fovy / 2)),
            p = c + R d [(j + 1/2 - width/2) / f, (i + 1/2 - height/2) / f, -1],   i counted from below

        Raises:
            RenderError: see `image`.
        """
        assert self._fast, "anti-aliasing mixes the numbers of geoms"
        number = self._number(model, camera, height, width)
        self._prepare(model)
        flags = (mujoco.mjtRndFlag.mjRND_SEGMENT, mujoco.mjtRndFlag.mjRND_IDCOLOR)
        self._scene.flags[list(map(int, flags))] = 1
        try:
            pixels, raw = self._drawn(model, data, number, height, width)
        finally:
            self._scene.flags[list(map(int, flags))] = 0
        drawn = pixels.astype(np.int64) @ np.array([1, 2**8, 2**16]) - 1  # number of what the scene shows, -1 for nothing
        moves = np.zeros(self._scene.ngeom + 1, bool)  # the last: nothing
        for geom in self._scene.geoms[: self._scene.ngeom]:
            if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM and geom.segid >= 0:
                moves[geom.segid] = model.body_weldid[model.geom_bodyid[geom.objid]] != 0
        row, column = np.nonzero(moves[drawn])
        depth = _metres(model, raw[row, column])
        focal = height / (2 * np.tan(np.deg2rad(model.cam_fovy[number]) / 2))
        rays = np.stack([(column + 0.5 - width / 2) / focal, (row + 0.5 - height / 2) / focal, -np.ones(len(row))], 1)
        seen: Array = data.cam_xpos[number] + (depth[:, None] * rays) @ data.cam_xmat[number].reshape(3, 3).T
        return seen

    def _number(self, model: Any, camera: str, height: int, width: int) -> int:
        number = int(mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, camera))
        if number < 0:
            names = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_CAMERA, i) for i in range(model.ncam)]
            raise RenderError(f"There is no camera {camera!r}; there are {', '.join(names)}.")
        if not 0 < min(height, width) <= max(height, width) <= _LARGEST:
            raise RenderError(f"An image of {height} x {width} pixels is not offered; at most {_LARGEST} x {_LARGEST}.")
        return number

    def _drawn(self, model: Any, data: Any, number: int, height: int, width: int) -> tuple[Array, Array]:
        """Colours `[height, width, 3]` and OpenGL's depths `[height, width]`, 0 near to 1 far, both from below."""
        view = mujoco.MjvCamera()
        view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, number
        mujoco.mjv_updateScene(model, data, self._visible, None, view, mujoco.mjtCatBit.mjCAT_ALL, self._scene)
        area = mujoco.MjrRect(0, 0, width, height)
        pixels, depth = np.empty((height, width, 3), np.uint8), np.empty((height, width), np.float32)
        mujoco.mjr_render(area, self._scene, self._context)
        mujoco.mjr_readPixels(pixels, depth, area, self._context)
        return pixels, depth

    def close(self) -> None:
        """Frees the context; closing twice is fine, and it closes itself at the latest when Python ends."""
        if self._gl is not None:
            atexit.unregister(self.close)
            self._gl.make_current()
            self._context.free()
            self._gl.free()
        self._gl = self._context = self._scene = self._model = self._scene_model = None

    def _prepare(self, model: Any) -> None:
        """Binds the context, made anew where the meshes or textures are other ones."""
        if self._gl is not None and model is not self._model and not self._same_assets(model):
            self.close()
        if self._gl is None:
            self._open(model)
        self._gl.make_current()
        if model is not self._scene_model:
            self._scene, self._scene_model = mujoco.MjvScene(model, maxgeom=_MAX_GEOMS), model
            if self._fast:
                self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0

    def _open(self, model: Any) -> None:
        backend = ensure_drawing()
        quality = model.vis.quality  # of contexts that are made; other cameras of the model may be of another
        kept = quality.shadowsize, quality.offsamples
        if self._fast:
            quality.shadowsize, quality.offsamples = 0, 0
        model.vis.global_.offwidth = model.vis.global_.offheight = _LARGEST
        try:
            self._gl = import_module(f"mujoco.{'osmesa' if backend == 'osmesa' else 'egl'}").GLContext(_LARGEST, _LARGEST)
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        except Exception as error:  # OpenGL, EGL and MuJoCo each have their own
            self._gl = None
            raise RenderError(f"MuJoCo can't render with MUJOCO_GL={backend} ({error}): {advice(backend)}.") from error
        finally:
            quality.shadowsize, quality.offsamples = kept
        self._model = model
        atexit.register(self.close)  # contexts that are left over are freed before MuJoCo ends EGL, or they complain

    def _same_assets(self, model: Any) -> bool:
        return all(np.array_equal(getattr(model, name), getattr(self._model, name)) for name in _ASSETS)


def _metres(model: Any, raw: Array) -> Array:
    """Distances along a camera's axis, m, float64, of OpenGL's depths, 0 near to 1 far; see `SceneCamera.depth`."""
    near, far = model.vis.map.znear * model.stat.extent, model.vis.map.zfar * model.stat.extent
    made: Array = near / (1 - raw.astype(np.float64) * (1 - near / far))
    return made
