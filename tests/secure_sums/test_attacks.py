"""A server, or a member, that lies: no vector of one member is had, and what is given is not believed."""

import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))

from sums import Signers, gathered, introduced, members_of, names, plan_of, vectors_of

from fedlora.secure_sums.gathering import Gathering, SumLost
from fedlora.secure_sums.keys import PublicKeys, RoundKeys, agreed
from fedlora.secure_sums.masks import add_mask
from fedlora.secure_sums.member import Member, Revealed, SumRefused, consent_bytes
from fedlora.secure_sums.shares import joined

PLAN = plan_of(5)


class Sums:
    """A round of five up to the vectors of its first sum."""

    def __init__(self) -> None:
        self.signers = Signers(PLAN.members)
        self.secrets = {name: RoundKeys.made(PLAN.num_sums) for name in PLAN.members}
        self.members = {
            name: Member(PLAN, name, self.secrets[name], sign=self.signers.sign(name), verify=self.signers.verify)
            for name in PLAN.members
        }
        self.gathering = introduced(PLAN, self.members)
        self.roster = self.gathering.roster()
        self.vectors = vectors_of(PLAN)
        self.hidden = {name: member.masked(0, self.vectors[0][name]) for name, member in self.members.items()}


@pytest.fixture
def sums() -> Sums:
    return Sums()


def test_no_member_signs_two_lists_of_who_is_there(sums: Sums) -> None:
    """With both lists a server would have the own mask of one member taken out, and those with others."""
    member = sums.members["site-000"]
    member.consented(0, names(5))
    with pytest.raises(SumRefused, match="another list"):
        member.consented(0, names(4))
    assert member.consented(0, tuple(reversed(names(5)))) == member.consented(0, names(5))


def test_a_server_that_tells_different_lists_has_neither_confirmed(sums: Sums) -> None:
    there = {name: names(5) if name in names(2) else names(4) for name in names(4)}
    consents = {name: sums.members[name].consented(0, there[name]) for name in names(4)}
    for name in names(4):
        with pytest.raises(SumRefused, match="2 have signed the same list"):
            sums.members[name].revealed(0, consents)


def test_consents_of_another_sum_or_of_strangers_confirm_nothing(sums: Sums) -> None:
    for name in names(5):
        sums.members[name].masked(1, sums.vectors[1][name])
    of_the_second = {name: sums.members[name].consented(1, names(5)) for name in names(5)}
    sums.members["site-000"].consented(0, names(5))
    with pytest.raises(SumRefused, match="0 have signed"):
        sums.members["site-000"].revealed(0, of_the_second)
    forged = Signers(names(5))
    signed = {name: forged.sign(name)(consent_bytes(b"x", 0, names(5))) for name in names(5)}
    with pytest.raises(SumRefused, match="0 have signed"):
        sums.members["site-000"].revealed(0, signed)


def test_members_whose_vectors_come_from_other_things_confirm_nothing_to_each_other(sums: Sums) -> None:
    """A server that told the others something from which nothing follows would have one member's vector."""
    for name in names(5):
        basis = b"what it is told" if name == "site-000" else b"what the others are told"
        sums.members[name].masked(1, sums.vectors[1][name], basis=basis)
    consents = {name: sums.members[name].consented(1, names(5)) for name in names(5)}
    with pytest.raises(SumRefused, match="1 have signed"):
        sums.members["site-000"].revealed(1, consents)
    assert sums.members["site-001"].revealed(1, consents).own_seeds.keys() == set(names(5))


def test_a_member_keeps_its_word_in_another_process(sums: Sums) -> None:
    member = sums.members["site-000"]
    consent = member.consented(0, names(5))
    again = Member(
        PLAN,
        "site-000",
        sums.secrets["site-000"],
        sign=sums.signers.sign("site-000"),
        verify=sums.signers.verify,
        memory=deepcopy(member.memory),
    )
    assert again.sealed(sums.roster) == member.sealed(sums.roster)
    assert np.array_equal(again.masked(0, sums.vectors[0]["site-000"]), sums.hidden["site-000"])
    with pytest.raises(SumRefused, match="another vector"):
        again.masked(0, sums.vectors[0]["site-001"])
    with pytest.raises(SumRefused, match="another list"):
        again.consented(0, names(4))
    consents = {name: sums.members[name].consented(0, names(5)) for name in names(5)[1:]} | {"site-000": consent}
    assert again.revealed(0, consents) == member.revealed(0, consents)


def test_nothing_is_revealed_before_a_list_is_signed(sums: Sums) -> None:
    with pytest.raises(SumRefused, match="no list"):
        sums.members["site-000"].revealed(0, {})


@pytest.mark.parametrize("there", [names(2), (), ("site-001", "site-002", "site-003"), (*names(4), "stranger")])
def test_a_list_is_not_signed_that_is_too_short_or_without_the_member_or_with_strangers(
    sums: Sums, there: tuple[str, ...]
) -> None:
    with pytest.raises(SumRefused):
        sums.members["site-000"].consented(0, there)


def test_never_are_both_secrets_of_one_member_told(sums: Sums) -> None:
    consents = {name: sums.members[name].consented(0, names(4)) for name in names(4)}
    for name in names(4):
        told = sums.members[name].revealed(0, consents)
        assert set(told.own_seeds) == set(names(4))
        assert set(told.masking) == {"site-004"}


def test_a_second_vector_is_not_hidden_by_the_same_masks(sums: Sums) -> None:
    member = sums.members["site-000"]
    assert np.array_equal(member.masked(0, sums.vectors[0]["site-000"]), sums.hidden["site-000"])
    with pytest.raises(SumRefused, match="another vector"):
        member.masked(0, sums.vectors[0]["site-001"])


def test_what_is_told_of_who_leaves_in_the_second_sum_does_not_open_the_first(sums: Sums) -> None:
    """The server has the member's own seed of the first sum by then: one key of both would leave it bare."""
    everybody = {name: sums.members[name].consented(0, names(5)) for name in names(5)}
    first = [sums.members[name].revealed(0, everybody) for name in names(5)]
    for name in names(4):
        sums.members[name].masked(1, sums.vectors[1][name])
    left = {name: sums.members[name].consented(1, names(4)) for name in names(4)}
    second = [sums.members[name].revealed(1, left) for name in names(4)]

    def secret(told: list[Revealed], kind: Callable[[Revealed], bytes]) -> bytes:
        return joined({number: kind(each) for number, each in enumerate(told, start=1)}, threshold=3)

    own_seed = secret(first, lambda each: each.own_seeds["site-004"])
    masking = secret(second, lambda each: each.masking["site-004"])
    assert own_seed == sums.secrets["site-004"].own_seeds[0]
    assert masking == sums.secrets["site-004"].masking[1]
    bare = sums.hidden["site-004"].copy()
    add_mask(bare, own_seed, subtracts=True)
    context = sums.gathering._known_roster().context
    for keys in sums.roster[:4]:
        seed = agreed(masking, keys.masking[0], b"mask", bytes(4), context)
        add_mask(bare, seed, subtracts=keys.member < "site-004")
    assert not np.any(bare[:100] == sums.vectors[0]["site-004"][:100])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda keys: replace(keys, sealing=RoundKeys.made(1).public("x").sealing), "keys of site-001 are not signed"),
        (lambda keys: replace(keys, masking=(keys.masking[1], keys.masking[0])), "keys of site-001 are not signed"),
        (lambda keys: replace(keys, masking=keys.masking[:1]), "or not for 2 sums"),
        (lambda keys: replace(keys, member="site-002"), "keys of 5 members"),
        (lambda keys: replace(keys, member="stranger"), "keys of 5 members"),
    ],
)
def test_a_server_in_the_middle_is_found_out(sums: Sums, change: Callable[[PublicKeys], PublicKeys], said: str) -> None:
    changed = [change(keys) if keys.member == "site-001" else keys for keys in sums.roster]
    fresh = members_of(PLAN, sums.signers)["site-000"]
    mine = [fresh.public() if keys.member == "site-000" else keys for keys in changed]
    with pytest.raises(SumRefused, match=said):
        fresh.sealed(mine)


def test_keys_signed_in_another_round_are_refused(sums: Sums) -> None:
    other = members_of(replace(PLAN, round=2), sums.signers)
    with pytest.raises(SumRefused, match="not signed"):
        other["site-000"].sealed([other["site-000"].public(), *sums.roster[1:]])


def test_a_members_own_keys_are_not_changed_by_others(sums: Sums) -> None:
    fresh = members_of(PLAN, sums.signers)["site-000"]
    with pytest.raises(SumRefused, match="its own keys"):
        fresh.sealed(sums.roster)


def test_shares_are_opened_by_whom_they_are_for_alone(sums: Sums) -> None:
    fresh = members_of(PLAN, sums.signers)
    roster = [fresh[name].public() for name in names(5)]
    sealed = {name: fresh[name].sealed(roster) for name in names(5)}
    for_another = {name: sealed[name]["site-001"] for name in names(5) if name not in ("site-000", "site-001")}
    with pytest.raises(SumRefused, match="cannot be opened"):
        fresh["site-000"].take(for_another)


def test_a_key_with_which_everybody_agrees_on_the_same_is_refused() -> None:
    with pytest.raises(ValueError, match="shared key"):
        agreed(RoundKeys.made(1).sealing, bytes(32), b"mask")


def test_one_holder_that_tells_wrong_shares_does_not_spoil_the_sum() -> None:
    plan = plan_of(5, threshold=3)
    vectors = vectors_of(plan)

    def spoil(gathering: Gathering, index: int) -> None:
        told = gathering._sums[index].told
        wrong = {name: bytes(33) for name in told["site-000"].own_seeds}
        told["site-000"] = Revealed(wrong, {name: bytes(33) for name in told["site-000"].masking})

    totals = gathered(plan, vectors, {"site-003": ("masked", 1)}, each=spoil)
    for index, (total, there) in enumerate(totals):
        expected = np.sum([vectors[index][name] for name in there], axis=0, dtype=np.uint32)
        np.testing.assert_array_equal(total, expected)


def test_shares_of_which_too_many_are_wrong_give_no_sum_and_no_wrong_one() -> None:
    plan = plan_of(3, num_sums=1)

    def spoil(gathering: Gathering, index: int) -> None:
        for name in names(2):
            told = gathering._sums[index].told[name]
            gathering._sums[index].told[name] = Revealed({each: bytes(33) for each in told.own_seeds}, told.masking)

    with pytest.raises(SumLost, match="have no secret"):
        gathered(plan, vectors_of(plan), each=spoil)


def test_a_plan_in_which_two_lists_could_be_confirmed_is_refused() -> None:
    for count, threshold in ((4, 2), (3, 1), (2, 1), (5, 6)):
        with pytest.raises(ValueError, match="more than half"):
            plan_of(count, threshold=threshold)
