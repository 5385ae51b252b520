"""Bad input of `fedlora aggregate`: one line that names the file, what was found and expected; nothing is written."""

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
QUERY_A = "base_model.model.blocks.0.query.lora_A.weight"

Spoil = Callable[[Path], object]


def with_config(**changes: object) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / CONFIG
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def with_tensors(change: Callable[[dict[str, Tensor]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / TENSORS)
        change(tensors)
        save_file(tensors, folder / TENSORS)

    return spoil


def filled(key: str, value: float) -> Spoil:
    return with_tensors(lambda tensors: tensors[key].view(-1)[3:5].fill_(value))


def of_shape(key: str, *shape: int) -> Spoil:
    return with_tensors(lambda tensors: tensors.update({key: torch.ones(shape)}))


def both(spoil: Spoil, *, of_the_other: Spoil) -> Spoil:
    """Return what spoils both folders, of which it is given the second."""

    def spoil_both(folder: Path) -> None:
        spoil(folder)
        of_the_other(folder.parent / "client-0")

    return spoil_both


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / TENSORS), folder / "adapter_model.bin")
    (folder / TENSORS).unlink()


def one_layer_missing(tensors: dict[str, Tensor]) -> None:
    for key in [key for key in tensors if "blocks.1.query" in key]:
        del tensors[key]


BAD: dict[str, tuple[Spoil, str]] = {
    "another base model": (
        with_config(base_model_name_or_path="bert-large"),
        "{b}/adapter_config.json: base_model_name_or_path is 'bert-large'; expected None as in "
        "{a}/adapter_config.json: all must adapt one base model, written the same in every file",
    ),
    "other target modules": (
        with_config(target_modules=["query", "key"]),
        "{b}/adapter_config.json: target_modules is ['query', 'key'], which does not choose blocks.0.value, and",
    ),
    "an expression for targets": (
        with_config(target_modules=".*query"),
        "{b}/adapter_config.json: target_modules is '.*query', which does not choose blocks.0.value, and",
    ),
    "another task": (
        both(with_config(task_type="SEQ_CLS"), of_the_other=with_config(task_type="CAUSAL_LM")),
        "{b}/adapter_config.json: task_type is 'SEQ_CLS'; expected 'CAUSAL_LM' as in {a}/adapter_config.json: all must",
    ),
    "another kind of adapter": (
        with_config(peft_type="IA3"),
        "{b}/adapter_config.json: peft_type is 'IA3'; expected 'LORA'",
    ),
    "a layer's number, which may be 0": (
        with_config(layers_to_transform=0),
        "{b}/adapter_config.json: layers_to_transform is 0, which does not choose blocks.0.query, and {b}/adapter_mo",
    ),
    "DoRA in one": (with_config(use_dora=True), "{b}/adapter_config.json: use_dora is True; expected None as in"),
    "an alpha of 0": (with_config(lora_alpha=0), "{b}/adapter_model.safetensors: blocks.0.query scales by 0.0 from"),
    "an alpha that is no number": (
        with_config(lora_alpha=float("nan")),
        "{b}/adapter_model.safetensors: blocks.0.query scales by nan from",
    ),
    "NaN": (
        filled(QUERY_A, float("nan")),
        "{b}/adapter_model.safetensors: base_model.model.blocks.0.query.lora_A.weight has 2 of 48 values that are not "
        "finite (nan, for one); expected numbers only",
    ),
    "infinity in the head": (
        filled("base_model.model.head.weight", float("-inf")),
        "{b}/adapter_model.safetensors: base_model.model.head.weight has 2 of 36 values that are not finite (-inf, for",
    ),
    "a missing configuration": (
        lambda folder: (folder / CONFIG).unlink(),
        "{b}/adapter_config.json: no such file; a PEFT folder holds adapter_config.json and adapter_model.safetensors",
    ),
    "missing tensors": (
        lambda folder: (folder / TENSORS).unlink(),
        "{b}/adapter_model.safetensors: no such file; a PEFT folder holds",
    ),
    "a pickle": (pickled, "{b}/adapter_model.bin: a pickle, which can run code when it is read; expected adapter_mod"),
    "tensors cut short": (
        lambda folder: (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-1]),
        "{b}/adapter_model.safetensors: not a safetensors file (",
    ),
    "a configuration cut short": (
        lambda folder: (folder / CONFIG).write_text("{"),
        "{b}/adapter_config.json: not JSON (",
    ),
    "half a pair": (
        with_tensors(lambda tensors: tensors.pop(QUERY_A)),
        "{b}/adapter_model.safetensors: blocks.0.query has no lora_A; a LoRA layer needs both A and B",
    ),
    "A and B of two ranks": (
        of_shape(QUERY_A, 3, 12),
        "{b}/adapter_model.safetensors: blocks.0.query has A (3, 12), B (8, 4); expected A (rank, in_features), B",
    ),
    "another width": (
        of_shape(QUERY_A, 4, 1),
        "{b}/adapter_model.safetensors: blocks.0.query.lora_A is (rank, 1); expected (rank, 12) as in {a}/adapter_mod",
    ),
    "another head": (
        of_shape("base_model.model.head.weight", 5, 12),
        "{b}/adapter_model.safetensors: head.weight is (5, 12); expected (3, 12) as in {a}/adapter_model.safetensors",
    ),
    "a layer less": (
        with_tensors(one_layer_missing),
        "{b}/adapter_model.safetensors: no blocks.1.query.lora_A and of 1 more; expected (rank, 12) as in {a}/",
    ),
    "a tensor more": (
        of_shape("base_model.model.tail", 3),
        "{a}/adapter_model.safetensors: no tail; expected (3,) as in {b}/adapter_model.safetensors: all must have",
    ),
    "a convolution": (
        with_tensors(lambda tensors: tensors.update({key: t[..., None, None] for key, t in tensors.items()})),
        "{b}/adapter_model.safetensors: blocks.0.query has A (4, 12, 1, 1), B (8, 4, 1, 1), a convolution's; fedlora",
    ),
    "no LoRA at all": (
        with_tensors(lambda tensors: [tensors.pop(key) for key in list(tensors) if "lora" in key]),
        "{b}/adapter_model.safetensors: no LoRA layer; expected tensors named lora_A and lora_B; found are 2",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_folder_is_one_line_and_nothing_is_written(spoil: Spoil, message: str, tiny: Any, fedlora: Any) -> None:
    a, b = tiny.save_clients(*[{"modules_to_save": ["head"]}] * 2)
    spoil(b)
    done = fedlora("aggregate", "--json", "--out", tiny.folder / "to" / "out", a, b)
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert f"error: {json.loads(done.out)['error']['message']}" == line
    assert line.startswith(f"error: {message.format(a=a, b=b)}")
    assert not (tiny.folder / "to").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--method", "lorafair"],
            "--method is 'lorafair'; expected one of fedex_lora, fedit, ffa_lora, flex_lora, flora, ",
        ),
        (
            ["--set", "rigde=1"],
            "--set rigde=1: lora_fair has no setting 'rigde'; expected one of its settings, with th",
        ),
        (["--method", "fedit", "--set", "ridge=1"], "--set ridge=1: fedit has no setting 'ridge'; it has no settings"),
        (["--set", "ridge"], "--set ridge: expected key=value, such as ridge=0.1"),
        (["--set", "=1"], "--set =1: expected key=value, such as ridge=0.1"),
        (["--set", "ridge=much"], "--set ridge=much: input should be a valid number"),
        (["--set", "ridge=true"], "--set ridge=true: input should be a valid number"),
        (["--set", "ridge=-1"], "--set ridge=-1: input should be greater than or equal to 0"),
        (["--set", "ridge=nan"], "--set ridge=nan: input should be a finite number"),
        (["--set", "corrects=C"], "--set corrects=C: input should be 'A' or 'B'"),
        (
            ["--method", "lora_fair_two_sided", "--set", "sweeps=0.5"],
            "--set sweeps=0.5: input should be a valid int",
        ),
        (
            ["--method", "lora_fair_cosine", "--set", "repairs_scale=1"],
            "--set repairs_scale=1: input should be a valid",
        ),
        (
            ["--method", "lora_fair_cosine", "--set", "solver=x"],
            "--set solver=x: input should be 'exact' or 'sgd'",
        ),
        (
            ["--weights", "3"],
            "--weights 3: 1 of them for 2 adapters; give one number for each, in the order of the fold",
        ),
        (["--weights", "3,1,2"], "--weights 3,1,2: 3 of them for 2 adapters; give one number for each, in the order"),
        (["--weights", "3,x"], "--weights 3,x: the weight of client-1 is 'x'; expected a positive number"),
        (["--weights", "0,1"], "--weights 0,1: the weight of client-0 is '0'; expected a positive number"),
        (["--weights=-1,1"], "--weights -1,1: the weight of client-0 is '-1'; expected a positive number"),
        (["--weights", "inf,1"], "--weights inf,1: the weight of client-0 is 'inf'; expected a positive number"),
        (["--weights", "1,"], "--weights 1,: the weight of client-1 is ''; expected a positive number"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_option_is_one_line_and_nothing_is_written(
    arguments: list[str], message: str, tiny: Any, fedlora: Any
) -> None:
    done = fedlora("aggregate", *arguments, "--out", tiny.folder / "out", *tiny.save_clients({}, {}))
    assert (done.code, done.out) == (1, "")
    (line,) = done.err.splitlines()
    assert line.startswith(f"error: {message}")
    assert not (tiny.folder / "out").exists()


def test_settings_are_words_numbers_and_truths(tiny: Any, fedlora: Any) -> None:
    folders = tiny.save_clients({}, {})
    arguments = ("--set", "solver=sgd", "--set", "steps=3", "--set", "repairs_scale=true", "--set", "penalty=1")
    done = fedlora("aggregate", "--method", "lora_fair_cosine", *arguments, "--out", tiny.folder / "out", *folders)
    assert done.code == 0
    assert "(penalty=1.0, repairs_scale=true, solver=sgd, steps=3," in done.out.splitlines()[0]


def test_a_folder_given_twice_is_refused(tiny: Any, fedlora: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder,) = tiny.save_clients({})
    monkeypatch.chdir(tiny.folder)
    done = fedlora("aggregate", "--out", "out", folder, "client-0")
    assert done.err == f"error: {folder}: given twice; give each folder once, and with --weights its share\n"


@pytest.mark.parametrize("method", ["flora", "fedex_lora"])
def test_dora_beside_a_change_of_the_base_weights_is_refused_with_the_clients_folder(
    method: str, tiny: Any, fedlora: Any
) -> None:
    folders = tiny.save_clients(*[{"use_dora": True}] * 2)
    done = fedlora("aggregate", "--method", method, "--out", tiny.folder / "out", *folders)
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert f"client-0 trains DoRA, whose magnitudes {method} cannot move into the base weights" in done.err
    assert not (tiny.folder / "out").exists()


def test_values_whose_product_overflows_are_refused(tiny: Any, fedlora: Any) -> None:
    folders = tiny.save_clients({}, {})
    for folder in folders:
        with_tensors(lambda tensors: [tensor.fill_(3e38) for tensor in tensors.values()])(folder)
    done = fedlora("aggregate", "--method", "flora", "--rank", 1, "--out", tiny.folder / "out", *folders)
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert "values so large that their products overflow torch.float32" in done.err
    assert not (tiny.folder / "out").exists()


@pytest.mark.parametrize(
    ("ranks", "code"), [(({"r": 4}, {"r": 4}), 0), (({"r": 4}, {"r": 2}), 1)], ids=["one rank", "two ranks"]
)
def test_a_start_from_the_base_weight_goes_with_the_rank_it_had(
    ranks: tuple[dict[str, int], ...], code: int, tiny: Any, fedlora: Any
) -> None:
    folders = tiny.save_clients(*ranks)
    for folder in folders:
        with_config(init_lora_weights="pissa_niter_4")(folder)
    done = fedlora("aggregate", "--out", tiny.folder / "out", *folders)
    assert done.code == code
    assert ("PEFT would load it onto other base weights" in done.err) == bool(code)
    assert (tiny.folder / "out").exists() != bool(code)


def test_what_is_in_the_way_of_the_result_stays(tiny: Any, fedlora: Any) -> None:
    folders = tiny.save_clients({}, {})
    full, file = tiny.folder / "full", tiny.folder / "file"
    full.mkdir()
    (full / "thesis.tex").write_text("precious")
    file.write_text("precious")
    for out, found in [
        (full, f"--out {full}: is not empty"),
        (file, f"--out {file}: is a file"),
        (folders[0], f"--out {folders[0]}: is not empty"),
        (file / "out", f"cannot write {file / 'out' / CONFIG}"),
    ]:
        done = fedlora("aggregate", "--out", out, *folders)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith(f"error: {found}")
        assert len(done.err.splitlines()) == 1
    assert [path.name for path in full.iterdir()] == ["thesis.tex"]
    assert file.read_text() == "precious"


def test_what_was_begun_is_removed_when_it_cannot_be_finished(tiny: Any, fedlora: Any) -> None:
    folders = tiny.save_clients({}, {})
    (tiny.folder / "empty").mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for out in (tiny.folder / "empty", tiny.folder / "to" / "out"):
        # Room for the configuration, and not for the tensors, as on a disk that is almost full.
        resource.setrlimit(resource.RLIMIT_FSIZE, ((folders[0] / CONFIG).stat().st_size + 100, hard))
        try:
            done = fedlora("aggregate", "--out", out, *folders)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (done.code, len(done.err.splitlines())) == (1, 1)
        assert done.err.startswith(f"error: cannot write {out / TENSORS} (")
    assert list((tiny.folder / "empty").iterdir()) == []
    assert not (tiny.folder / "to").exists()


def test_folders_without_any_pair_are_refused(tiny: Any, fedlora: Any) -> None:
    folders = tiny.save_clients(*[{"modules_to_save": ["head"]}] * 2)
    for folder in folders:
        BAD["no LoRA at all"][0](folder)
    done = fedlora("aggregate", "--out", tiny.folder / "out", *folders)
    assert done.err.startswith(f"error: {folders[0] / TENSORS}: no LoRA layer; expected tensors named lora_A and")
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--out", "out"], ["client-0"], ["--rank", "0", "--out", "out", "client-0"]])
def test_a_wrong_use_is_a_usage_error(arguments: list[str], fedlora: Any) -> None:
    done = fedlora("aggregate", *arguments)
    assert done.code == 2
    assert done.err.startswith("Usage: ")
