"""`fedlora aggregate`: what PEFT makes of the folder it writes is what the method promises, by dense formulas."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedlora.adapters import load_adapter
from fedlora.aggregation import METHODS

pytestmark = pytest.mark.filterwarnings(
    "ignore:Could not identify embedding layer",
    "ignore:Setting `save_embedding_layers` to `True`",
    "ignore:.* LoRA tensor.* invalid shape",  # PEFT's own check takes the bias of B for a cut matrix.
)

WEIGHTS = (3.0, 1.0, 2.0)
P = tuple(weight / sum(WEIGHTS) for weight in WEIGHTS)

Client = tuple[Tensor, Tensor, float]

CLIENTS: dict[str, list[dict[str, Any]]] = {
    "one rank": [{}] * 3,
    "mixed ranks": [{"r": 4, "lora_alpha": 6}, {"r": 2, "lora_alpha": 8}, {"r": 3, "lora_alpha": 1}],
    "patterns and a head": [
        {"rank_pattern": {"blocks.1.query": 2, "value": 5}, "alpha_pattern": {"value": 3}, "modules_to_save": ["head"]},
        {"rank_pattern": {"query": 1}, "use_rslora": True, "modules_to_save": ["head"]},
        {"r": 6, "alpha_pattern": {"blocks.0.query": 20}, "modules_to_save": ["head"]},
    ],
    "rslora": [{"use_rslora": True, "r": 4}, {"use_rslora": True, "r": 8}, {"use_rslora": True, "r": 2}],
    "an embedding": [{"target_modules": ["embed", "query"]}] * 2 + [{"target_modules": ["embed", "query"], "r": 2}],
}


def pairs_of(model: PeftModel) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Return PEFT's own A, B and scaling by module path, in float64."""
    pairs = {}
    for name, module in model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        if "default" in module.lora_A:
            A, B = module.lora_A["default"].weight, module.lora_B["default"].weight
        else:
            A, B = module.lora_embedding_A["default"], module.lora_embedding_B["default"]
        path = name.removeprefix("base_model.model.")
        pairs[path] = (A.detach().double(), B.detach().double(), module.scaling["default"])
    return pairs


def ideal(clients: Sequence[Client]) -> Tensor:
    return sum((p * s * B @ A for p, (A, B, s) in zip(P, clients, strict=True)), torch.zeros(()))


def means(clients: Sequence[Client]) -> tuple[Tensor, Tensor, float]:
    """Return mean A over the clients that have the row, the sum of p B padded with zeros, and the scaling of both."""
    largest = max(clients, key=lambda client: client[0].shape[0])
    rank, s = largest[0].shape[0], largest[2]
    mean_A, mean_B = torch.zeros_like(largest[0]), torch.zeros_like(largest[1])
    mass = torch.zeros(rank, 1, dtype=torch.float64)
    for p, (A, B, scaling) in zip(P, clients, strict=True):
        mean_A[: len(A)] += p * A
        mean_B[:, : len(A)] += p * B * scaling / s
        mass[: len(A)] += p
    return mean_A / mass, mean_B, s


def averaged(clients: Sequence[Client]) -> Tensor:
    A, B, s = means(clients)
    return s * B @ A


def fair(clients: Sequence[Client]) -> Tensor:
    A, B, s = means(clients)
    return s * (B + ridge_solution(ideal(clients) / s - B @ A, A)) @ A


def fair_by_its_other_side(clients: Sequence[Client]) -> Tensor:
    A, B, s = means(clients)
    return s * B @ (A + ridge_solution((ideal(clients) / s - B @ A).T, B.T).T)


def two_sided(clients: Sequence[Client]) -> Tensor:
    mean_A, mean_B, s = means(clients)
    M, A, B = ideal(clients) / s, mean_A, mean_B
    for _ in range(2):
        B = mean_B + ridge_solution(M - mean_B @ A, A, like=mean_A)
        A = mean_A + ridge_solution((M - B @ mean_A).T, B.T, like=mean_B.T).T
    return s * B @ A


def cosine(clients: Sequence[Client]) -> Tensor:
    A, mean_B, s = means(clients)
    M = ideal(clients) / s
    B = mean_B.clone().requires_grad_()
    solver = torch.optim.LBFGS(
        [B], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        solver.zero_grad()
        X = B @ A
        loss: Tensor = 1 - (M * X).sum() / (M.norm() * X.norm()) + 0.01 * (B - mean_B).square().sum()
        loss.backward()
        return loss

    solver.step(objective)
    return s * B.detach() @ A


def best_of_rank(clients: Sequence[Client], rank: int | None = None) -> Tensor:
    U, S, Vh = torch.linalg.svd(ideal(clients), full_matrices=False)
    rank = rank or max(len(A) for A, _, _ in clients)
    return U[:, :rank] * S[:rank] @ Vh[:rank]


def ridge_solution(E: Tensor, A: Tensor, like: Tensor | None = None) -> Tensor:
    like = A if like is None else like
    penalty = 0.03 * like.square().sum() / len(like)
    return torch.linalg.solve(A @ A.T + penalty * torch.eye(len(A), dtype=A.dtype), A @ E.T).T


DENSE: dict[tuple[str, ...], Callable[[Sequence[Client]], Tensor]] = {
    ("fedit",): averaged,
    ("ffa_lora",): averaged,
    ("rolora",): averaged,
    ("flora",): ideal,
    ("fedex_lora",): ideal,
    ("flex_lora",): best_of_rank,
    ("lora_fair",): fair,
    ("lora_fair", "--set", "corrects=A"): fair_by_its_other_side,
    ("lora_fair_two_sided",): two_sided,
    ("lora_fair_cosine",): cosine,
}


def merged(base: nn.Module, clients: Sequence[PeftModel], formula: Callable[[Sequence[Client]], Tensor]) -> nn.Module:
    """Return the base model in float64, its weights changed by a dense formula and its head the clients' mean."""
    base = base.double()
    pairs = [pairs_of(client) for client in clients]
    with torch.no_grad():
        for path in pairs[0]:
            change = formula([pair[path] for pair in pairs])
            weight = base.get_submodule(path).weight
            weight += change.T if isinstance(base.get_submodule(path), nn.Embedding) else change
        heads = [client.base_model.model.head for client in clients]
        if hasattr(heads[0], "modules_to_save"):
            for name, parameter in base.head.named_parameters():
                trained = [dict(head.modules_to_save["default"].named_parameters())[name].double() for head in heads]
                parameter.copy_(sum(p * tensor for p, tensor in zip(P, trained, strict=True)))
    return base


def test_every_method_is_compared_with_its_dense_formula() -> None:
    assert {name for name, *_ in DENSE} == set(METHODS)


@pytest.mark.parametrize("method", DENSE, ids=" ".join)
@pytest.mark.parametrize("options", CLIENTS.values(), ids=CLIENTS.keys())
def test_peft_gives_the_logits_of_the_exactly_merged_weights(
    options: list[dict[str, Any]], method: tuple[str, ...], tiny: Any, fedlora: Any
) -> None:
    folders = tiny.save_clients(*options)
    done = fedlora("aggregate", "--method", *method, "--weights", "3,1,2", "--out", tiny.folder / "out", *folders)
    assert (done.code, done.err) == (0, "")
    assert sorted(path.name for path in (tiny.folder / "out").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    exact = merged(tiny.base(), [tiny.load(folder) for folder in folders], DENSE[method])
    found, expected = tiny.logits(tiny.load(tiny.folder / "out")).double(), tiny.logits(exact)
    assert (expected - tiny.logits(tiny.base())).norm() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["flora", "lora_fair", "fedit"])
@pytest.mark.parametrize("kind", ["one rank", "mixed ranks", "an embedding"])
def test_a_rank_limit_gives_the_best_product_and_says_what_was_lost(
    method: str, kind: str, tiny: Any, fedlora: Any
) -> None:
    folders = tiny.save_clients(*CLIENTS[kind])
    arguments = ("--json", "--method", method, "--weights", "3,1,2", "--rank", "2")
    done = fedlora("aggregate", *arguments, "--out", tiny.folder / "out", *folders)
    clients = [pairs_of(tiny.load(folder)) for folder in folders]
    lost = total = 0.0
    for path, (A, B, s) in pairs_of(tiny.load(tiny.folder / "out")).items():
        X = DENSE[(method,)]([client[path] for client in clients])
        U, S, Vh = torch.linalg.svd(X, full_matrices=False)
        torch.testing.assert_close(s * B @ A, U[:, :2] * S[:2] @ Vh[:2], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(B.T @ B, A @ A.T, rtol=1e-5, atol=1e-5)
        lost, total = lost + float(S[2:].square().sum()), total + float(S.square().sum())
    outcome = json.loads(done.out)
    assert (outcome["smallest_rank"], outcome["largest_rank"]) == (2, 2)
    assert outcome["rank_limit"]["lost"] == pytest.approx(math.sqrt(lost / total), rel=1e-6)
    assert outcome["rank_limit"]["num_layers"] == len(clients[0])


def test_a_rank_limit_above_all_ranks_changes_nothing_and_says_so(tiny: Any, fedlora: Any) -> None:
    folders = tiny.save_clients({}, {})
    limited = fedlora("aggregate", "--rank", 99, "--out", tiny.folder / "limited", *folders)
    fedlora("aggregate", "--out", tiny.folder / "free", *folders)
    assert "nothing; no layer has a rank above 99" in limited.out
    name = "adapter_model.safetensors"
    assert (tiny.folder / "limited" / name).read_bytes() == (tiny.folder / "free" / name).read_bytes()


def test_a_rank_limit_leaves_smaller_layers_as_they_are(tiny: Any, fedlora: Any) -> None:
    folders = tiny.save_clients(*[{"rank_pattern": {"query": 1}}] * 2)
    done = fedlora("aggregate", "--method", "fedit", "--rank", 2, "--out", tiny.folder / "out", *folders)
    assert "2 layers cut from rank 4 at most" in done.out
    assert "rank    1 to 2" in done.out
    ranks = {path: len(A) for path, (A, _, _) in pairs_of(tiny.load(tiny.folder / "out")).items()}
    assert ranks == {"blocks.0.query": 1, "blocks.0.value": 2, "blocks.1.query": 1, "blocks.1.value": 2}


BESIDE_THE_PAIRS: dict[str, dict[str, Any]] = {
    "DoRA": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "bias of all": {"bias": "all"},
    "trainable tokens": {"trainable_token_indices": {"embed": [1, 4]}},
    "head": {"modules_to_save": ["head"]},
}


@pytest.mark.parametrize("options", BESIDE_THE_PAIRS.values(), ids=BESIDE_THE_PAIRS.keys())
def test_what_is_trained_beside_a_and_b_is_the_weighted_mean_that_peft_loads(
    options: dict[str, Any], tiny: Any, fedlora: Any
) -> None:
    folders = tiny.save_clients(*[options] * 3)
    done = fedlora("aggregate", "--method", "fedit", "--weights", "3,1,2", "--out", tiny.folder / "out", *folders)
    assert (done.code, done.err) == (0, "")
    states = [get_peft_model_state_dict(tiny.load(folder)) for folder in folders]
    mean = {key: sum(p * state[key] for p, state in zip(P, states, strict=True)) for key in states[0]}
    expected = tiny.load(folders[0])
    set_peft_model_state_dict(expected, mean)
    found = tiny.logits(tiny.load(tiny.folder / "out"))
    torch.testing.assert_close(found, tiny.logits(expected), rtol=1e-5, atol=1e-5)
    assert (found - tiny.logits(tiny.load(folders[0]))).norm() > 0.01
    assert ("without DoRA's magnitudes" in done.out) == ("use_dora" in options)


@pytest.mark.parametrize("method", ["flora", "fedex_lora"])
def test_a_scaled_bias_of_b_keeps_its_effect_beside_a_change_of_the_base_weights(
    method: str, tiny: Any, fedlora: Any
) -> None:
    folders = tiny.save_clients(*[{"lora_bias": True, "use_rslora": True}] * 3)
    fedlora("aggregate", "--method", method, "--weights", "3,1,2", "--out", tiny.folder / "out", *folders)
    clients = [tiny.load(folder) for folder in folders]
    exact = merged(tiny.base(), clients, ideal)
    with torch.no_grad():
        for path, (_, _, s) in pairs_of(clients[0]).items():
            biases = [client.base_model.model.get_submodule(path).lora_B["default"].bias for client in clients]
            exact.get_submodule(path).bias += sum(p * s * bias for p, bias in zip(P, biases, strict=True))
    found = tiny.logits(tiny.load(tiny.folder / "out")).double()
    torch.testing.assert_close(found, tiny.logits(exact), rtol=1e-5, atol=1e-5)


def test_the_order_of_the_folders_changes_no_bit_and_the_weights_follow_it(tiny: Any, fedlora: Any) -> None:
    one, two, three = tiny.save_clients({}, {"r": 2}, {})
    fedlora("aggregate", "--weights", "3,1,2", "--out", tiny.folder / "out", one, two, three)
    fedlora("aggregate", "--weights", "2, 3,1", "--out", tiny.folder / "turned", three, one, two)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tiny.folder / "out" / name).read_bytes() == (tiny.folder / "turned" / name).read_bytes()


def test_one_folder_gives_that_adapter_back(tiny: Any, fedlora: Any) -> None:
    (folder,) = tiny.save_clients({"rank_pattern": {"query": 2}})
    assert fedlora("aggregate", "--out", tiny.folder / "out", folder).code == 0
    before, after = (load_file(path / "adapter_model.safetensors") for path in (folder, tiny.folder / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert load_adapter(folder).config == load_adapter(tiny.folder / "out").config


def test_an_empty_folder_and_folders_to_make_are_written_into(tiny: Any, fedlora: Any) -> None:
    folders = tiny.save_clients({}, {})
    (tiny.folder / "empty").mkdir()
    for out in (tiny.folder / "empty", tiny.folder / "to" / "be" / "made"):
        assert fedlora("aggregate", "--out", out, *folders).code == 0
        tiny.load(out)


def test_json_is_all_that_is_printed_and_holds_every_layer(tiny: Any, fedlora: Any) -> None:
    folders = tiny.save_clients(*CLIENTS["one rank"])
    out = tiny.folder / "out"
    done = fedlora("aggregate", "--json", "--set", "ridge=0.1", "--weights", "3,1,2", "--out", out, *folders)
    outcome: Mapping[str, Any] = json.loads(done.out)
    assert done.err == ""
    assert outcome["method"] == "lora_fair"
    assert outcome["settings"] == {"ridge": 0.1, "corrects": "B"}
    assert outcome["adapters"]["client-1"] == {"folder": str(folders[1]), "weight": 1.0}
    assert outcome["size_bytes"] == (out / "adapter_model.safetensors").stat().st_size
    assert outcome["num_tensors"] == len(load_file(out / "adapter_model.safetensors"))
    assert outcome["rank_limit"] is None
    report = outcome["report"]
    assert set(report["layers"]) == set(load_adapter(out).layers)
    clients = [pairs_of(tiny.load(folder)) for folder in folders]
    for path, layer in report["layers"].items():
        own = [client[path] for client in clients]
        norm = float(ideal(own).norm())
        assert layer["error_before"] == pytest.approx(float((averaged(own) - ideal(own)).norm()) / norm, rel=1e-5)
        assert layer["floor"] == pytest.approx(float((best_of_rank(own) - ideal(own)).norm()) / norm, rel=1e-5)


def test_an_infinite_ratio_is_a_word_that_json_allows(tiny: Any, fedlora: Any) -> None:
    one, two = tiny.save_clients({}, {})
    for folder, fill_A, fill_B in ((one, 1.0, 1.0), (two, 2.0, -1.0)):
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        save_file({k: torch.full_like(t, fill_A if "lora_A" in k else fill_B) for k, t in tensors.items()}, path)
    done = fedlora("aggregate", "--json", "--out", tiny.folder / "out", one, two)
    outcome = json.loads(done.out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert outcome["report"]["moved_B"] == "Infinity"


def test_two_folders_of_one_name_are_called_by_their_paths(
    tiny: Any, fedlora: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tiny.save_clients({}, {})
    for folder, site in ((one, "a"), (two, "b")):
        (tiny.folder / site).mkdir()
        folder.rename(tiny.folder / site / "adapter")
    monkeypatch.chdir(tiny.folder)
    done = fedlora("aggregate", "--weights", "3,1", "--out", "out", "a/adapter", "b/adapter/")
    assert done.out.splitlines()[0] == "lora_fair (ridge=0.03, corrects=B) over a/adapter (75 %) and b/adapter (25 %)"
    monkeypatch.chdir(tiny.folder / "a" / "adapter")
    done = fedlora("aggregate", "--out", tiny.folder / "again", ".")
    assert done.out.splitlines()[0] == "lora_fair (ridge=0.03, corrects=B) over adapter (100 %)"


def test_the_installed_command_prints_a_table_of_a_hundred_columns(tiny: Any) -> None:
    folders = tiny.save_clients(*CLIENTS["one rank"])
    command = [str(Path(sys.executable).with_name("fedlora")), "aggregate", "--method", "lora_fair_two_sided"]
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    done = subprocess.run(
        [*command, "--out", "out", *map(str, folders)],
        cwd=tiny.folder, env=environment, capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.stderr == ""
    assert max(map(len, lines)) <= 100
    assert lines[2].split()[:2] == ["layer", "of"]
    assert [line.split()[0] for line in lines if "query" in line] == ["0.query", "1.query"]
    assert "wrote   out" in lines
    assert "rank    4" in lines
    tiny.load(tiny.folder / "out")


def test_help_names_every_method_and_imports_nothing_heavy(fedlora: Any) -> None:
    done = fedlora("aggregate", "--help")
    assert all(name in done.out.split() or f"{name}," in done.out or f"{name}." in done.out for name in METHODS)
    assert all(option in done.out for option in ("--method", "--weights", "--rank", "--json", "--out", "--set"))
    code = (
        "import sys; from fedlora.cli.main import app\n"
        "try: app(['aggregate', '--help'])\n"
        "except SystemExit: print('heavy:', [m for m in ('torch', 'numpy', 'pydantic', 'peft') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert ran.stdout.splitlines()[-1] == "heavy: []"
