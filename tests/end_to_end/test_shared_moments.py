"""Runs whose clients go on with the federation's moments: against numpy, over methods, ranks, workers, kills, wires."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from deployment import deployed
from ended_runs import Killed, adapter_sha256, killed_after
from test_deployment import site_file

from fedlora.adapters import Adapter, pack, unpack
from fedlora.adapters.moments import Sharing, unpack_moments
from fedlora.aggregation.shared_moments import moments_in
from fedlora.client.worker.workbench import Workbench
from fedlora.common.config import RunConfig
from fedlora.common.errors import AdapterError, RunError
from fedlora.common.messages import InitialiseRequest, TrainReceipt, TrainRequest
from fedlora.common.run_file import to_toml
from fedlora.methods import Method, MethodState
from fedlora.server.disk.store import RunFolder
from fedlora.server.rounds.admission import Admitted, admit
from fedlora.server.rounds.completion import complete
from fedlora.server.rounds.starts import SharedMoments, Starts
from fedlora.simulation import SimulationResult, simulate
from fedlora.training.data import load_federated_data

MakeRun = Callable[..., RunConfig]

NAMES = ("chalk", "pencil", "print")


@dataclass
class Rounds:
    """The rounds of a run in this process, over one workbench: the same requests, admission and aggregation.

    Attributes:
        receipts: of the last round, by client.
    """

    config: RunConfig
    bench: Workbench
    adapter: Adapter
    state: MethodState = field(default_factory=dict)
    number: int = 0
    receipts: dict[str, TrainReceipt] = field(default_factory=dict)

    def starts(self) -> Starts:
        train, method = self.config.train, self.method
        number, trains = self.number + 1, method.plan(self.number + 1).trains
        request = TrainRequest("run", number, 0, 0, self.config.federation.rounds, 0, trains=trains)
        moments = SharedMoments(moments_in(self.state), train.shared_moments) if number > 1 else None
        return Starts(self.adapter, pack(self.adapter), request, method=method, moments=moments)

    def do(self, clients: tuple[str, ...] = NAMES) -> Mapping[str, torch.Tensor]:
        """Do a round of some clients, and return the shared moments after it."""
        train, starts = self.config.train, self.starts()
        admitted: dict[str, Admitted] = {}
        self.receipts = {}
        for client in clients:
            start = starts.for_rank(self.config.lora.rank_of(client))
            self.receipts[client] = receipt = self.bench.train(client, start.request)
            found = admit(
                receipt,
                request=start.request,
                client=client,
                num_examples=receipt.num_examples,
                reference=start.adapter,
                sharing=Sharing(train.shared_moments, train.most_steps(receipt.num_examples)),
            )
            assert isinstance(found, Admitted), str(found)
            admitted[client] = found
        result = complete(
            {client: found.update for client, found in admitted.items()},
            start=starts.for_rank(99).adapter,
            weights={client: self.receipts[client].num_examples for client in clients},
            method=self.method,
            state=self.state,
            moments={client: found.moments for client, found in admitted.items()},
            form=train.shared_moments,
        )
        self.adapter, self.state, self.number = result.adapter, result.state, self.number + 1
        return moments_in(self.state)

    @property
    def method(self) -> Method:
        assert isinstance(self.config.aggregation, Method)
        return self.config.aggregation


@pytest.fixture
def make(vision_run: MakeRun) -> Callable[..., Rounds]:
    """Return a function that gives the rounds of a run that shares moments, with changed sections."""

    def rounds(*, train: Mapping[str, object] = {}, **sections: Mapping[str, object]) -> Rounds:
        config = vision_run(train={"optimizer_state": "shared", **train}, **sections)
        bench = Workbench(config, load_federated_data(config))
        return Rounds(config, bench, unpack(bench.initialise(InitialiseRequest(0)).adapter))  # type: ignore[arg-type]

    return rounds


def sent(receipt: TrainReceipt) -> dict[str, np.ndarray]:
    assert isinstance(receipt.adapter, bytes)
    return {key: tensor.numpy() for key, tensor in unpack_moments(receipt.adapter).items()}


def test_each_round_goes_on_with_the_mean_that_numpy_computes(make: Callable[..., Rounds]) -> None:
    rounds = make()
    for number in range(1, 4):
        shared = rounds.do(NAMES if number != 2 else NAMES[:2])
        sizes = {client: receipt.num_examples for client, receipt in rounds.receipts.items()}
        total = sum(sizes.values())
        every = {client: sent(receipt) for client, receipt in rounds.receipts.items()}
        assert shared.keys() == every["chalk"].keys()
        for key, tensor in shared.items():
            expected = sum(sizes[client] / total * each[key].astype(np.float64) for client, each in every.items())
            np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-6, err_msg=key)
        # Steps of all rounds, whoever took part in them.
        assert {float(tensor) for key, tensor in shared.items() if key.endswith("/step")} == {3.0 * number}


def test_its_steps_are_others_than_those_of_optimisers_that_begin_afresh(make: Callable[..., Rounds]) -> None:
    rounds = make()
    rounds.do()
    afresh = replace(rounds, state={})
    rounds.do()
    afresh.do()
    assert pack(rounds.adapter) != pack(afresh.adapter)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_single_client_goes_on_as_with_moments_of_its_own(make: Callable[..., Rounds], optimizer: str) -> None:
    """Two rounds of three steps on all examples at once are one of six."""
    train = {"optimizer": optimizer, "batch_size": 100}
    rounds = make(train=train)
    rounds.do(("chalk",))
    rounds.do(("chalk",))
    six = make(train={**train, "steps": 6})
    six.do(("chalk",))
    found, expected = (result.receipts["chalk"].adapter for result in (rounds, six))
    assert isinstance(found, bytes)
    assert isinstance(expected, bytes)
    ours, theirs = unpack(found, beside_moments=True), unpack(expected, beside_moments=True)
    for path, layer in ours.layers.items():
        torch.testing.assert_close(layer.A, theirs.layers[path].A, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(layer.B, theirs.layers[path].B, rtol=1e-4, atol=1e-6)
    moments, whole = unpack_moments(found), unpack_moments(expected)
    for key, tensor in moments.items():
        torch.testing.assert_close(tensor, whole[key], rtol=1e-3, atol=1e-7, msg=key)


def test_second_moments_may_be_one_number_a_tensor(make: Callable[..., Rounds]) -> None:
    whole, scalar = make(), make(train={"shared_second_moments": "scalar"})
    every, numbers = whole.do(), scalar.do()
    for key, tensor in every.items():
        expected = tensor.double().mean() if key.endswith("exp_avg_sq") else tensor.double()
        np.testing.assert_allclose(numbers[key].double().numpy(), expected.numpy(), rtol=1e-5)
    first = len(pack(scalar.adapter))
    assert len(scalar.receipts["chalk"].adapter) < 2.5 * first < len(whole.receipts["chalk"].adapter)  # type: ignore[arg-type]
    # The second round begins with that number in each element.
    assert isinstance(scalar.do(), dict)
    assert pack(whole.adapter) != pack(scalar.adapter)


@pytest.mark.parametrize(
    "sections",
    [
        {"aggregation": {"method": "ffa_lora"}},
        {"aggregation": {"method": "rolora"}},
        {"aggregation": {"method": "fedex_lora"}},
        {"aggregation": {"method": "flex_lora"}},
        {"aggregation": {"method": "lora_fair"}, "lora": {"client_ranks": {"chalk": 1, "print": 2}}},
        {"aggregation": {"method": "rolora"}, "lora": {"client_ranks": {"pencil": 2}}},
        {"aggregation": {"method": "fedit"}, "lora": {"use_dora": True}},
        {"aggregation": {"method": "fedit"}, "lora": {"client_ranks": {"chalk": 1}}, "train": {"optimizer": "sgd"}},
    ],
    ids=str,
)
@pytest.mark.parametrize("second", ["whole", "scalar"])
def test_it_goes_with_methods_ranks_and_optimisers(
    make: Callable[..., Rounds], sections: dict[str, dict[str, object]], second: str
) -> None:
    train = {"steps": 2, "shared_second_moments": second, **sections.get("train", {})}
    rounds = make(**{**sections, "train": train})
    after: list[Mapping[str, torch.Tensor]] = []
    for number in range(1, 5):
        clients = NAMES if number != 3 else NAMES[:2]
        after.append(rounds.do(clients))
        for client in clients:
            rank = rounds.config.lora.rank_of(client)
            for key, moment in sent(rounds.receipts[client]).items():
                if moment.ndim == 2:
                    assert moment.shape["lora_A" not in key] == rank or ".lora_" not in key
    name = rounds.method.name
    factors = {key.rpartition(".lora_")[2][0] for key in after[0] if ".lora_" in key} - {"m"}
    assert factors == set(rounds.method.plan(1).trains)
    if name == "rolora":
        frozen = "AB".replace(rounds.method.plan(4).trains[0], "")
        kept = [key for key in after[2] if f".lora_{frozen}." in key]
        assert kept
        # What a round did not train is what it was, and waits for its turn.
        assert all(torch.equal(after[2][key], after[3][key]) for key in kept)


def test_a_request_without_them_or_with_others_is_refused_in_a_line(make: Callable[..., Rounds]) -> None:
    rounds = make()
    rounds.do()
    request = rounds.starts().for_rank(4).request
    with pytest.raises(RunError, match=r"round 2 came without the federation's moments, which train\.optimizer_state"):
        rounds.bench.train("chalk", replace(request, moments=b""))
    first = rounds.receipts["chalk"].adapter
    assert isinstance(first, bytes)
    with pytest.raises(AdapterError, match="that are not a safetensors file"):
        rounds.bench.train("chalk", replace(request, moments=first[:-1]))
    rounds.state = {path: {**kept, "exp_avg_sq": -kept["exp_avg_sq"]} for path, kept in rounds.state.items()}
    with pytest.raises(AdapterError, match=r"the federation's moments do not fit: moments: .*expected 0 or more"):
        rounds.do()


@pytest.fixture(scope="module")
def config(vision_run: MakeRun) -> RunConfig:
    """Return the run of the tests with workers: two of three clients take part in each of three rounds."""
    return vision_run(
        run={"name": "tiny"},
        data={"labels": ["0", "1", "2"]},
        lora={"dropout": 0.1},
        train={"optimizer_state": "shared"},
        federation={"rounds": 3, "cohort": 2, "sites": 3},
        evaluation={"round_examples": 12, "client_examples": 4},
        exchange={"precision": "float32"},
    )


@pytest.fixture(scope="module")
def uninterrupted(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> SimulationResult:
    return simulate(config, out=tmp_path_factory.mktemp("shared") / "out", num_workers=1)


def test_workers_and_a_kill_change_nothing(config: RunConfig, uninterrupted: SimulationResult, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        simulate(config, out=tmp_path, num_workers=3, listener=killed_after(2))
    resumed = simulate(config, out=tmp_path, num_workers=3, resume=True)
    assert adapter_sha256(resumed.folder) == adapter_sha256(uninterrupted.folder)
    states = [[report.state_sha256 for report in result.reports] for result in (resumed, uninterrupted)]
    assert states[0] == states[1]
    assert all(states[0][1:])
    # They are counted, down from the second round on, and are no part of what others load.
    sizes = [report.bytes_up / report.bytes_down for report in uninterrupted.reports[1:]]
    assert sizes[0] > 2.5 > sizes[1] > 0.9
    checkpoint = RunFolder(uninterrupted.folder).latest()
    assert checkpoint is not None
    assert moments_in(checkpoint.state)
    assert not any("/" in key for key in unpack_moments(checkpoint.stored.packed.path.read_bytes()))


@pytest.mark.slow
def test_a_deployment_ends_in_the_adapter_of_the_simulation(
    config: RunConfig, uninterrupted: SimulationResult, tmp_path: Path, tiny_digits: Path
) -> None:
    (tmp_path / "run.toml").write_text(to_toml(config))
    sites = {name: site_file(tmp_path, name, tiny_digits) for name in NAMES}
    with deployed(tmp_path, tmp_path / "run.toml", sites, is_insecure=True) as deployment:
        assert deployment.server.wait(600) == 0, deployment.server.text
    assert adapter_sha256(deployment.out) == adapter_sha256(uninterrupted.folder)


@pytest.mark.slow
def test_flowers_engine_on_ray_gives_the_same_adapter(
    config: RunConfig, uninterrupted: SimulationResult, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    simulate(config, out=tmp_path / "ray", engine="ray", num_workers=2)
    assert adapter_sha256(tmp_path / "ray") == adapter_sha256(uninterrupted.folder)
