"""An adapter comes as a tar of its PEFT folder, whole, whatever happens to the folder meanwhile."""

import io
import sys
import tarfile
from pathlib import Path
from urllib.parse import unquote

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "server")]

from report_pages import Page
from shown_runs import Client, shown, write_adapter, write_run

from fedlora.common.published import CODEC, METADATA_FILE, Published, described_files
from fedlora.dashboard.downloads import tar_of
from fedlora.dashboard.files import offered_adapters
from fedlora.dashboard.plain_folder import PlainFolder
from fedlora.server.disk.published_folder import roll_back, undo_rollback

LARGE = bytes(range(256)) * 20_000


def publish(run: Path, version: int, content: bytes) -> None:
    folder = run / "published" / f"clinics-v{version:04d}"
    write_adapter(folder, content)
    files = described_files(folder, ("adapter_config.json", "adapter_model.safetensors"))
    about = Published(folder.name, version, "id", version, 1_800_000_000, "accuracy", 0.5, "model", files)
    (folder / METADATA_FILE).write_text(CODEC.dump(about))


def unpacked(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]


def test_each_adapter_is_offered_and_comes_whole(tmp_path: Path) -> None:
    run = write_run(tmp_path / "größe")
    write_adapter(run / "adapter", LARGE)
    write_adapter(run / "best", b"best")
    (run / "adapter" / "adapter_model.safetensors.tmp").write_bytes(b"half")
    for version in (1, 2, 10):
        publish(run, version, f"version {version}".encode())
    with shown(tmp_path) as client:
        page = Page(client.get("/runs/gr%C3%B6%C3%9Fe").text)
        links = [attributes["href"] for attributes in page.named("a") if "/adapters/" in attributes["href"]]
        names = [link.partition("name=")[2] for link in links]
        assert names == ["newest", "best", "clinics-v0010", "clinics-v0002", "clinics-v0001"]
        assert "round 10, accuracy 50.0 %, published 2027-01-15 08:00 UTC" in page.text.replace(
            "\N{NO-BREAK SPACE}", " "
        )
        answers = {name: client.get(link) for name, link in zip(names, links, strict=True)}
    newest = answers["newest"]
    assert newest.headers["content-type"] == "application/x-tar"
    assert int(newest.headers["content-length"]) == len(newest.body)
    assert "filename*=UTF-8''größe-newest.tar" in unquote(newest.headers["content-disposition"])
    assert unpacked(newest.body) == {
        "größe-newest/adapter_config.json": b'{"peft_type": "LORA"}',
        "größe-newest/adapter_model.safetensors": LARGE,
    }
    assert unpacked(answers["best"].body)["größe-best/adapter_model.safetensors"] == b"best"
    tenth = unpacked(answers["clinics-v0010"].body)
    assert tenth["clinics-v0010/adapter_model.safetensors"] == b"version 10"
    assert CODEC.load(tenth[f"clinics-v0010/{METADATA_FILE}"]).version == 10


def test_what_was_asked_for_comes_although_the_run_replaces_it(tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", LARGE)
    folder = PlainFolder(tmp_path)
    (adapter,) = offered_adapters(folder)
    archive = tar_of(folder, adapter, name="a")
    assert archive is not None
    chunks = iter(archive)
    first = next(chunks)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "adapter" / name).unlink()
        (tmp_path / "adapter" / name).write_bytes(b"another")
    assert unpacked(first + b"".join(chunks))["a/adapter_model.safetensors"] == LARGE


def test_files_of_two_rounds_are_never_in_one_archive(tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter")
    folder = PlainFolder(tmp_path)
    (adapter,) = offered_adapters(folder)
    tensors = tmp_path / "adapter" / "adapter_model.safetensors"
    replaced: list[float] = []

    def replace_once(seconds: float) -> None:
        if not replaced:
            tensors.unlink()
            tensors.write_bytes(b"of the next round")
        replaced.append(seconds)

    archive = tar_of(folder, adapter, name="a", wait=replace_once)
    assert archive is not None
    assert unpacked(b"".join(archive))["a/adapter_model.safetensors"] == b"of the next round"
    assert len(replaced) == 2


def test_a_file_that_is_cut_meanwhile_leaves_a_whole_archive(tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", LARGE)
    folder = PlainFolder(tmp_path)
    archive = tar_of(folder, offered_adapters(folder)[0], name="a")
    assert archive is not None
    with open(tmp_path / "adapter" / "adapter_model.safetensors", "r+b") as file:
        file.truncate(1000)
    content = b"".join(archive)
    assert len(content) == archive.size_bytes
    assert unpacked(content)["a/adapter_model.safetensors"] == LARGE[:1000].ljust(len(LARGE), b"\0")


def test_what_is_gone_is_said(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    with shown(run) as client:
        assert client.get("/adapters/?name=newest").status == 404
    write_adapter(run / "adapter")
    folder = PlainFolder(run)
    (adapter,) = offered_adapters(folder)
    (run / "adapter" / "adapter_config.json").unlink()
    assert tar_of(folder, adapter, name="a") is None


def test_an_adapter_that_was_rolled_back_is_not_handed_out_and_the_page_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    for version in (1, 2, 3):
        publish(run, version, b"tensors")
    roll_back(run, "clinics-v0001")
    with shown(run) as client:
        assert offered_on(client) == ["clinics-v0001"]
        text = Page(client.get("/parts/?part=now").text).text
        assert "Rolled back: clinics-v0001 is offered in place of newer adapters, since " in text
        for name in ("clinics-v0002", "clinics-v0003"):
            assert client.get(f"/adapters/?name={name}").status == 404
        assert client.get("/adapters/?name=clinics-v0001").status == 200
    publish(run, 4, b"better")
    with shown(run) as client:
        assert offered_on(client) == ["clinics-v0004", "clinics-v0001"]
        assert "Rolled back" not in client.get("/parts/?part=now").text
    undo_rollback(run)
    with shown(run) as client:
        assert len(offered_on(client)) == 4


def test_no_published_adapter_is_handed_out_while_nobody_knows_what_is_withdrawn(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    write_adapter(run / "adapter")
    publish(run, 1, b"tensors")
    (run / "published" / "rollback.json").write_text("{")
    with shown(run) as client:
        assert offered_on(client) == ["newest"]
        assert client.get("/adapters/?name=clinics-v0001").status == 404
        assert "published/rollback.json cannot be read" in Page(client.get("/parts/?part=now").text).text


def offered_on(client: Client) -> list[str]:
    page = Page(client.get("/parts/?part=files").text)
    links = [attributes["href"] for attributes in page.named("a") if "/adapters/" in attributes["href"]]
    return [link.partition("name=")[2] for link in links]
