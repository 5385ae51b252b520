"""A client's part in secure sums, over real adapters: what it tells, keeps, and refuses to a server that lies."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedlora.adapters import Adapter, LoraLayer, pack
from fedlora.client.worker.sums.own_part import OwnSums
from fedlora.client.worker.sums.signer import SimulatedSigners, SumsRefused
from fedlora.common.config import RunConfig
from fedlora.common.errors import StoreError
from fedlora.common.messages import LOSS_NOT_FINITE, OK, SumReceipt, SumRequest, SumTerms, TrainReceipt, TrainRequest
from fedlora.methods import default_method
from fedlora.secure_sums.adapter_sums import AdapterSums
from fedlora.secure_sums.gathering import Gathering
from fedlora.secure_sums.keys import PublicKeys
from fedlora.secure_sums.member import Revealed, Sealed
from fedlora.secure_sums.round_terms import packed_vector, plan_of, read, unpacked_vector, written

NAMES = ("ann", "bob", "cyd")
CONFIG = {"r": 2, "lora_alpha": 4, "peft_type": "LORA"}
RUN = RunConfig.model_validate({"run": {"seed": 7}, "privacy": {"secure_sums": True}})
TERMS = SumTerms(NAMES, threshold=2, repetition=0, most_examples=10, most_change=0.0, clips=(64.0, 64.0))
SIZE = 2 * 5 + 4 * 2 + 1


def adapter(seed: int) -> Adapter:
    random = torch.Generator().manual_seed(seed)
    return Adapter(
        {"q": LoraLayer(torch.randn(2, 5, generator=random), torch.randn(4, 2, generator=random), 2.0)}, {}, CONFIG
    )


START = adapter(0)
UPDATES = {name: adapter(number) for number, name in enumerate(NAMES, start=1)}
REQUEST = TrainRequest("run", 1, 0, 7, 3, 0, adapter=pack(START), sums=TERMS)


def pair(of: Adapter) -> tuple[torch.Tensor, torch.Tensor]:
    return of.layers["q"].A, of.layers["q"].B


def receipt_of(client: str, request: TrainRequest, **changed: object) -> TrainReceipt:
    receipt = TrainReceipt(request.run, request.round, request.attempt, client, OK, num_examples=5, loss=1.0)
    return replace(receipt, **{"adapter": pack(UPDATES[client]), **changed})


class Clients:
    """Three clients, each with a folder of its own, and what they have answered."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seeds: list[int] = []
        self.own = {name: self.client(name) for name in NAMES}
        self.receipts: dict[str, TrainReceipt] = {}

    def client(self, name: str) -> OwnSums:
        """Return a client, as a new process has it."""
        return OwnSums(RUN, self.folder / name, SimulatedSigners(0))

    def train(self, name: str, request: TrainRequest = REQUEST) -> TrainReceipt:
        def train(asked: TrainRequest) -> TrainReceipt:
            self.seeds.append(asked.seed)
            return receipt_of(name, asked)

        self.receipts[name] = self.own[name].trained(name, request, train)
        return self.receipts[name]

    def ask(self, name: str, step: str, index: int = 0, **parts: object) -> SumReceipt:
        request = SumRequest("run", 1, 0, step, index, num_numbers=SIZE, **parts)  # type: ignore[arg-type]
        return self.own[name].answer(name, request)

    def sealed(self) -> Gathering:
        """Return the server's part, when all have trained and sealed."""
        gathering = Gathering(plan_of("run", 1, TERMS))
        for name in NAMES:
            keys = self.train(name).keys
            assert keys is not None
            gathering.add_keys(PublicKeys(name, keys.sealing, keys.masking, keys.own_seeds, keys.signature))
        gathering.roster()
        for name in NAMES:
            answer = self.ask(name, "seal", keys=self.keys())
            gathering.add_sealed(name, Sealed(answer.sealed, answer.digests))
        return gathering

    def mask(self, gathering: Gathering, name: str, index: int = 0, **changed: object) -> SumReceipt:
        """Return a client's answer, from whom its shares are as the server has them."""
        sealed, digests = gathering.sealed_for(name)
        parts = {"sealed": sealed, "digests": digests, "sealers": gathering.sealers(), **changed}
        return self.ask(name, "mask", index, **parts)

    def keys(self) -> Mapping[str, object]:
        return {name: receipt.keys for name, receipt in self.receipts.items()}

    def total(self, gathering: Gathering, index: int, former: bytes = b"", size: int = SIZE) -> bytes:
        """Return a sum's total."""
        vouchers = {}
        for name in NAMES:
            answer = self.mask(gathering, name, index, adapter=former)
            assert isinstance(answer.adapter, bytes)
            gathering.add_masked(index, name, unpacked_vector(answer.adapter, size))
            vouchers[name] = answer.voucher
        consents = {name: self.ask(name, "consent", index, there=NAMES).consent for name in NAMES}
        for name in NAMES:
            told = self.ask(name, "reveal", index, consents=consents, vouchers=vouchers)
            gathering.add_revealed(index, name, Revealed(told.own_seeds, told.masking))
        return packed_vector(gathering.total(index))


@pytest.fixture
def clients(tmp_path: Path) -> Clients:
    return Clients(tmp_path)


def test_the_total_is_the_sum_of_the_weighted_changes(clients: Clients) -> None:
    total = read(unpacked_vector(clients.total(clients.sealed(), 0), SIZE), TERMS, index=0)
    changes = [
        torch.cat([(ours - theirs).reshape(-1) for ours, theirs in zip(pair(update), pair(START), strict=True)])
        for update in UPDATES.values()
    ]
    # Each weighs by 5 examples of 10, a third of that.
    torch.testing.assert_close(total[:-1], sum(changes, torch.zeros(())) / 6, atol=1e-6, rtol=0)
    assert float(total[-1]) == pytest.approx(0.5, abs=1e-6)


def test_the_receipt_has_keys_and_no_update_and_is_the_same_in_another_process(
    clients: Clients,
) -> None:
    first = clients.train("ann")
    assert first.adapter == b""
    assert first.keys is not None
    clients.own["ann"] = clients.client("ann")
    assert clients.train("ann", replace(REQUEST, attempt=1)) == replace(first, attempt=1)
    assert clients.seeds == [7]


def test_a_training_without_an_update_has_no_part(clients: Clients) -> None:
    failed = receipt_of("ann", REQUEST, status=LOSS_NOT_FINITE, adapter=b"")
    assert clients.own["ann"].trained("ann", REQUEST, lambda _request: failed) == failed
    with pytest.raises(SumsRefused, match="no part"):
        clients.ask("ann", "seal", keys={})


def test_the_update_itself_is_not_given(clients: Clients) -> None:
    with pytest.raises(SumsRefused, match="asks for the update by itself"):
        clients.train("ann", replace(REQUEST, sums=None))
    assert clients.seeds == []


OTHER_SUMS = pytest.mark.parametrize(
    ("terms", "run"),
    [
        (replace(TERMS, members=("ann", "bob")), "run"),
        (replace(TERMS, threshold=3), "run"),
        (replace(TERMS, most_examples=100), "run"),
        (replace(TERMS, clips=(64.0, 32.0)), "run"),
        (replace(TERMS, repetition=1), "run"),
        (TERMS, "another"),
    ],
    ids=["members", "threshold", "weights", "clips", "anew", "another run"],
)


@OTHER_SUMS
def test_what_has_gone_into_sums_does_not_go_into_others(clients: Clients, terms: SumTerms, run: str) -> None:
    """The difference of two sums over the same updates would be what the one has and the other has not."""
    clients.mask(clients.sealed(), "ann")
    clients.seeds.clear()
    clients.train("ann", replace(REQUEST, sums=terms, run=run))
    assert clients.seeds == [RUN.run.seed + (1 << 32)]


@OTHER_SUMS
def test_what_has_gone_into_none_is_not_trained_again_in_its_run(clients: Clients, terms: SumTerms, run: str) -> None:
    clients.sealed()
    clients.seeds.clear()
    keys = clients.receipts["ann"].keys
    assert clients.train("ann", replace(REQUEST, sums=terms, run=run)).keys != keys
    assert clients.seeds == ([7] if run == "another" else [])


def test_nor_after_other_rounds_or_with_a_part_that_is_damaged(clients: Clients) -> None:
    clients.mask(clients.sealed(), "ann")
    clients.train("ann", replace(REQUEST, round=2))
    clients.train("ann", REQUEST)
    (part,) = clients.folder.rglob("ann*/**/part.json")
    part.write_text("{")
    clients.train("ann", REQUEST)
    assert clients.seeds[3:] == [7, *2 * [7 + (1 << 32)]]
    next(clients.folder.rglob("summed-ann*")).write_text("{")
    with pytest.raises(StoreError, match="restore it"):
        clients.train("ann", replace(REQUEST, round=3))


def test_a_seed_that_is_not_the_runs_is_refused(clients: Clients) -> None:
    """It would be that of a training that has been summed up, under another name."""
    with pytest.raises(SumsRefused, match="the run's is 7"):
        clients.train("ann", replace(REQUEST, seed=7 + (1 << 32)))


def test_a_run_that_has_had_secure_sums_has_them_for_ever(clients: Clients) -> None:
    clients.mask(clients.sealed(), "ann")
    open_run = RunConfig.model_validate({"run": {"seed": 7}})
    opened = OwnSums(open_run, clients.folder / "ann", SimulatedSigners(0))
    for of_the_run in (replace(REQUEST, sums=None, round=2), replace(REQUEST, sums=None, run="other")):
        with pytest.raises(SumsRefused, match="has gone into secure sums"):
            opened.trained("ann", of_the_run, lambda asked: receipt_of("ann", asked))
    another = replace(REQUEST, sums=None, run="other", round=2)
    assert opened.trained("ann", another, lambda asked: receipt_of("ann", asked)).adapter


def test_a_round_that_begins_anew_leaves_the_former_behind(clients: Clients) -> None:
    clients.sealed()
    clients.train("ann", replace(REQUEST, sums=replace(TERMS, repetition=1)))
    with pytest.raises(SumsRefused, match="no part"):
        clients.ask("ann", "consent", there=NAMES)


@pytest.mark.parametrize(
    ("terms", "why"),
    [
        (replace(TERMS, most_examples=0), "weights that are not the run file's"),
        (replace(TERMS, clips=(2.0**20, 64.0)), "clips of"),
        (replace(TERMS, clips=(1e-6, 64.0)), "clips of"),
        (replace(TERMS, most_change=float("nan")), "expected finite numbers"),
        (replace(TERMS, repetition=101), "begun the round too often"),
    ],
)
def test_terms_that_no_honest_server_has_are_refused_before_anything_is_trained(
    clients: Clients, terms: SumTerms, why: str
) -> None:
    with pytest.raises(SumsRefused, match=why):
        clients.train("ann", replace(REQUEST, sums=terms))
    assert clients.seeds == []


def test_a_change_that_would_be_rounded_away_is_not_summed_up(clients: Clients) -> None:
    """Others alone would be in the sum; the one with the most examples, for instance."""
    terms = replace(TERMS, most_examples=10**9)
    clients.train("ann", replace(REQUEST, sums=terms))
    for name in ("bob", "cyd"):
        clients.train(name, replace(REQUEST, sums=terms))
    gathering = Gathering(plan_of("run", 1, terms))
    for name, receipt in clients.receipts.items():
        keys = receipt.keys
        assert keys is not None
        gathering.add_keys(PublicKeys(name, keys.sealing, keys.masking, keys.own_seeds, keys.signature))
    gathering.roster()
    for name in NAMES:
        answer = clients.ask(name, "seal", keys=clients.keys())
        gathering.add_sealed(name, Sealed(answer.sealed, answer.digests))
    with pytest.raises(SumsRefused, match="next to nothing in the sum"):
        clients.mask(gathering, "ann")


@pytest.mark.parametrize("clips", [(64.0,), (64.0, 64.0, 64.0)])
def test_another_number_of_sums_than_the_method_has_is_refused(clients: Clients, clips: tuple[float, ...]) -> None:
    with pytest.raises(SumsRefused, match="lora_fair has 2"):
        clients.train("ann", replace(REQUEST, sums=replace(TERMS, clips=clips)))


def test_a_round_of_others_or_of_half_of_them_is_refused(clients: Clients) -> None:
    with pytest.raises(SumsRefused, match="other members"):
        clients.train("ann", replace(REQUEST, sums=replace(TERMS, members=("bob", "cyd"))))
    with pytest.raises(SumsRefused, match="two in three"):
        clients.train("ann", replace(REQUEST, sums=replace(TERMS, threshold=1)))


def test_a_sum_of_fewer_than_its_site_wants_is_refused(clients: Clients) -> None:
    clients.own["ann"] = OwnSums(RUN, clients.folder / "ann", SimulatedSigners(0), least_members=4)
    with pytest.raises(SumsRefused, match=r"a sum of 3 clients; expected limits[.]least_cohort = 4 or more"):
        clients.train("ann")
    assert clients.seeds == []


def test_keys_that_another_has_signed_are_told_of_and_by_name(clients: Clients) -> None:
    for name in NAMES:
        clients.train(name)
    keys = dict(clients.keys())
    mallory = SimulatedSigners(1)("bob")
    forged = replace(keys["bob"], identity=mallory.identity(), signature=mallory.sign(b"keys"))  # type: ignore[type-var]
    answer = clients.ask("ann", "seal", keys=keys | {"bob": forged})
    assert answer.accused == ("bob",)
    assert not answer.sealed
    own = replace(keys["bob"], signature=bytes(64))  # type: ignore[type-var]
    assert clients.ask("ann", "seal", keys=keys | {"bob": own}).accused == ("bob",)
    assert clients.ask("ann", "seal", keys=keys).sealed.keys() == {"bob", "cyd"}


def test_shares_that_do_not_open_are_told_of_by_name(clients: Clients) -> None:
    gathering = clients.sealed()
    sealed, _ = gathering.sealed_for("ann")
    answer = clients.mask(gathering, "ann", sealed=sealed | {"bob": sealed["bob"][::-1]})
    assert answer.accused == ("bob",)
    assert answer.adapter == b""


def test_who_is_said_to_be_there_is_signed_once(clients: Clients) -> None:
    gathering = clients.sealed()
    for name in NAMES:
        clients.mask(gathering, name)
    consent = clients.ask("ann", "consent", there=NAMES).consent
    clients.own["ann"] = clients.client("ann")
    with pytest.raises(SumsRefused, match="another list"):
        clients.ask("ann", "consent", there=("ann", "bob"))
    assert clients.ask("ann", "consent", there=NAMES).consent == consent
    with pytest.raises(SumsRefused, match="1 have signed"):
        clients.ask("ann", "reveal", consents={"ann": consent})


@pytest.mark.parametrize("one", NAMES)
def test_a_total_that_only_one_is_told_brings_nothing_to_light(clients: Clients, one: str) -> None:
    """With means of zero the others would add nothing, and the second sum would be one client's."""
    gathering = clients.sealed()
    total = clients.total(gathering, 0)
    zero = packed_vector(np.full(SIZE, 1 << 20, np.uint32))
    vouchers = {
        name: clients.mask(gathering, name, 1, adapter=total if name == one else zero).voucher for name in NAMES
    }
    consents = {name: clients.ask(name, "consent", 1, there=NAMES).consent for name in NAMES}
    answers = {name: clients.ask(name, "reveal", 1, consents=consents, vouchers=vouchers) for name in NAMES}
    assert not any(answer.own_seeds for answer in answers.values())
    assert all(answer.accused == (one,) for name, answer in answers.items() if name != one)


ZEROS = Adapter({"q": LoraLayer(torch.zeros(2, 5), torch.zeros(4, 2), 2.0)}, {}, CONFIG)


@pytest.mark.parametrize(
    "told",
    [{"adapter": pack(ZEROS)}, {"num_rounds": 10**9}, {"former": pack(ZEROS)}],
    ids=["start", "rounds", "former"],
)
def test_what_only_one_is_told_to_train_from_brings_nothing_to_light(
    clients: Clients, told: Mapping[str, object]
) -> None:
    """From an adapter of zeros, say, nothing is learned: the others would add nothing."""
    gathering = Gathering(plan_of("run", 1, TERMS))
    for name in NAMES:
        keys = clients.train(name, REQUEST if name == "cyd" else replace(REQUEST, **told)).keys  # type: ignore[arg-type]
        assert keys is not None
        gathering.add_keys(PublicKeys(name, keys.sealing, keys.masking, keys.own_seeds, keys.signature))
    gathering.roster()
    for name in NAMES:
        answer = clients.ask(name, "seal", keys=clients.keys())
        gathering.add_sealed(name, Sealed(answer.sealed, answer.digests))
    vouchers = {name: clients.mask(gathering, name).voucher for name in NAMES}
    consents = {name: clients.ask(name, "consent", there=NAMES).consent for name in NAMES}
    answers = {name: clients.ask(name, "reveal", consents=consents, vouchers=vouchers) for name in NAMES}
    assert not any(answer.own_seeds for answer in answers.values())
    assert answers["ann"].accused == ("cyd",)


def test_a_second_total_of_one_sum_is_refused_and_one_that_is_none_is_not_kept(clients: Clients) -> None:
    gathering = clients.sealed()
    total = clients.total(gathering, 0)
    with pytest.raises(SumsRefused, match="no vector"):
        clients.mask(gathering, "ann", 1, adapter=b"none")
    with pytest.raises(SumsRefused, match="sum 2 of 2"):
        clients.mask(gathering, "ann", 2, adapter=total)
    clients.mask(gathering, "ann", 1, adapter=total)
    other = packed_vector(unpacked_vector(total, SIZE) + np.uint32(1))
    with pytest.raises(SumsRefused, match="another total"):
        clients.mask(gathering, "ann", 1, adapter=other)


def test_a_change_is_scaled_down_to_what_the_round_allows_and_the_weight_is_not() -> None:
    terms = replace(TERMS, most_change=0.5)
    sums = AdapterSums(default_method(), START)
    made = written(sums.term(UPDATES["ann"]), terms, index=0, weight=1.0)
    told = read(made.vector, terms, index=0)
    assert float(told[:-1].norm()) == pytest.approx(0.5, rel=1e-5)
    assert float(told[-1]) == pytest.approx(1.0, rel=1e-6)
    assert (made.num_clipped, made.is_scaled) == (0, True)


def test_what_is_kept_of_a_round_is_this_users_alone_and_goes_with_the_next(clients: Clients) -> None:
    clients.sealed()
    (part,) = clients.folder.rglob("ann*/**/part.json")
    assert all(path.stat().st_mode & 0o077 == 0 for path in part.parent.iterdir())
    clients.train("ann", replace(REQUEST, round=2))
    assert not part.exists()
    assert len(list(clients.folder.rglob("ann*/**/part.json"))) == 1
