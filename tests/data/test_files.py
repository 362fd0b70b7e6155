"""The registry of formats: which one opens a file, formats of other packages, and demonstrations that are made in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from difftop.data.demonstrations import Demonstration, DemonstrationError, Demonstrations, EnvInfo, Images
from difftop.data.files import FORMATS, open_demonstrations, recorded_env
from tests.data.test_maniskill import write_file as write_maniskill
from tests.data.test_robomimic import write_file as write_robomimic

WORDS = """
from difftop.data.demonstrations import Demonstration, Demonstrations, EnvInfo, Format
import torch

def recorded_env(path):
    return EnvInfo("toy/reach")

def open_words(path, *, obs_keys, filter_key, limit, cache_bytes, successful_only, bad):
    numbers = torch.tensor([[float(word)] for word in path.read_text().split()])
    return Demonstrations.of(path, recorded_env(path), [Demonstration("all", numbers, {"state": 2 * numbers})])

FORMAT = Format("words", lambda path: path.suffix == ".words", recorded_env, open_words)
"""


@pytest.fixture(autouse=True)
def reread() -> Iterator[None]:
    """Other packages are looked for anew in every test, and after the last one."""
    FORMATS.reread()
    yield
    FORMATS.reread()


def install(folder: Path, entries: str) -> None:
    """A package `words` with these entry points, as pip would leave it in `folder`."""
    (folder / "words.py").write_text(WORDS)
    (about := folder / "words-1.0.dist-info").mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: words\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{FORMATS.group}]\n{entries}\n")


def test_a_file_is_opened_by_its_format(tmp_path: Path) -> None:
    robomimic, maniskill = write_robomimic(tmp_path / "a.hdf5"), write_maniskill(tmp_path / "b.h5")
    assert recorded_env(robomimic).name == "Lift" and recorded_env(maniskill).name == "PickCube-v1"
    made = open_demonstrations(robomimic, obs_keys=["object"], filter_key="train", limit=2)
    assert made.names == ("demo_0", "demo_2") and list(made.low_dim) == ["object"]
    assert open_demonstrations(str(maniskill), limit=1).names == ("traj_0",)
    assert open_demonstrations(robomimic.rename(tmp_path / "no_suffix")).length.tolist() == [19, 5, 17, 40, 6]
    with pytest.raises(DemonstrationError, match=r"has no filters; leave dataset\.filter=train out"):
        open_demonstrations(maniskill, filter_key="train")


def test_what_no_format_knows_is_one_sentence_that_names_them(tmp_path: Path) -> None:
    for name in ("a.txt", "a.npz"):
        (path := tmp_path / name).write_text("what")
        path.with_suffix(".json").write_text("{}")  # a .json beside it doesn't make it ManiSkill's
        for ask in (open_demonstrations, recorded_env):
            with pytest.raises(
                DemonstrationError, match=r"no format knows this file; there are maniskill \(.*\), robomimic \(.*\)\.$"
            ):
                ask(path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DemonstrationError, match="no format knows this folder"):
        open_demonstrations(tmp_path / "folder")
    with pytest.raises(DemonstrationError, match="no such file"):
        open_demonstrations(tmp_path / "gone.hdf5")
    (broken := tmp_path / "page.hdf5").write_text("<html>404</html>")
    with pytest.raises(DemonstrationError, match="not a whole HDF5 file"):
        open_demonstrations(broken)


def test_a_format_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "words = words:FORMAT")
    (path := tmp_path / "f.words").write_text("0.5 -1 0.25")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert list(FORMATS) == ["maniskill", "robosuite", "robomimic", "lerobot", "zarr", "words"]
    assert recorded_env(path).name == "toy/reach"
    assert open_demonstrations(path).low_dim["state"].flatten().tolist() == [1.0, -2.0, 0.5]


def test_a_broken_format_of_another_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(tmp_path, "lost = gone:FORMAT\nwords = words:EnvInfo")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert len(open_demonstrations(write_robomimic(tmp_path / "a.hdf5"))) == 5 and not caplog.records  # is not concerned
    (path := tmp_path / "f.words").write_text("0")
    with pytest.raises(DemonstrationError, match=r"format words: .* must be a difftop\.data\.demonstrations\.Format"):
        open_demonstrations(path)
    assert "lost of words is left out: No module named 'gone'" in caplog.text


def episodes(lengths: Sequence[int] = (4, 7, 2)) -> list[Demonstration]:
    generator = torch.Generator().manual_seed(0)

    def episode(k: int, steps: int) -> Demonstration:
        image = torch.randint(0, 256, (steps, 3, 5, 6), dtype=torch.uint8, generator=generator)
        obs = {"state": torch.randn(steps, 3, generator=generator), "points": torch.randn(steps, 8, 3, generator=generator)}
        return Demonstration(f"e{k}", torch.rand(steps, 2, generator=generator), obs | {"camera_image": image})

    return [episode(k, steps) for k, steps in enumerate(lengths)]


def of(path: Path, made: list[Demonstration], **options: object) -> Demonstrations:
    return Demonstrations.of(path, EnvInfo("toy/reach"), made, **options)  # type: ignore[arg-type]


def test_demonstrations_in_memory_are_what_they_were_made_of(tmp_path: Path) -> None:
    keys = ["camera_image", "state", "points"]
    made = of(tmp_path, episodes(), obs_keys=keys)
    assert made.shapes == {"camera_image": (3, 5, 6), "state": (3,), "points": (8, 3)} and len(made) == 3
    for before, after in zip(episodes(), made.episodes(images=True), strict=True):
        assert before.name == after.name and torch.equal(before.actions, after.actions)
        assert all(torch.equal(before.obs[key], after.obs[key]) for key in keys)
    images: Images = made.images["camera_image"]
    assert images.gather(torch.tensor([2, 0]), torch.tensor([[0, 1, 1], [3, 0, 1]])).shape == (2, 3, 3, 5, 6)
    batch = made.only([1]).windows(3, 2).gather(torch.tensor([2]))
    assert torch.equal(batch.obs["camera_image"][0], episodes()[1].obs["camera_image"][2:5])
    assert list(of(tmp_path, episodes()).shapes) == ["state", "points"]
    assert of(tmp_path, episodes(), limit=2).names == ("e0", "e1")


def test_bad_demonstrations_in_memory_are_refused(tmp_path: Path) -> None:
    good = episodes()
    two = torch.zeros(2, 2)
    cases = {
        "it has no demonstration": [],
        r"e1, actions step 0 is .* leave \[-1, 1\]": [good[0], Demonstration("e1", two + 3, {"state": torch.zeros(2, 3)})],
        "e1 has no observation 'state'; it has points": [good[0], Demonstration("e1", two, {"points": torch.zeros(2, 8, 3)})],
        "e1, state has 3 rows for 2 actions": [good[0], Demonstration("e1", two, {"state": torch.zeros(3, 3)})],
        r"e1, state has rows of shape \[4\], .* are \[3\]": [good[0], Demonstration("e1", two, {"state": torch.zeros(2, 4)})],
        "e1, state has NaN": [good[0], Demonstration("e1", two, {"state": torch.full((2, 3), torch.nan)})],
        r"actions of \[2, 5\] entries": [good[0], Demonstration("e1", torch.zeros(2, 5), {"state": torch.zeros(2, 3)})],
    }
    for message, made in cases.items():
        with pytest.raises(DemonstrationError, match=message):
            of(tmp_path, made, obs_keys=["state"])
