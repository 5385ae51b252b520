"""A server, or a member, that lies: no vector of one member is had, and what is given is not believed."""

import sys
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))

from sums import Signers, gathered, introduced, members_of, names, plan_of, vectors_of

from fedlora.secure_sums.gathering import Gathering, SumLost
from fedlora.secure_sums.keys import PublicKeys, RoundKeys, agreed, names_digest
from fedlora.secure_sums.masks import add_mask
from fedlora.secure_sums.member import Member, Revealed, Sealed, SumRefused
from fedlora.secure_sums.roster import Roster
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

    def consents(self, index: int, there: tuple[str, ...]) -> dict[str, bytes]:
        """Return what each of these members signs that takes them for there."""
        return {name: self.members[name].consented(index, there) for name in there}

    def vouchers(self, index: int) -> dict[str, bytes]:
        """Return what all members sign of their vectors."""
        return {name: member.voucher(index) for name, member in self.members.items() if index in member.memory.masked}


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
            sums.members[name].revealed(0, consents, sums.vouchers(0))


def test_consents_of_another_sum_or_of_strangers_confirm_nothing(sums: Sums) -> None:
    for name in names(5):
        sums.members[name].masked(1, sums.vectors[1][name])
    of_the_second = {name: sums.members[name].consented(1, names(5)) for name in names(5)}
    sums.members["site-000"].consented(0, names(5))
    with pytest.raises(SumRefused, match="0 have signed"):
        sums.members["site-000"].revealed(0, of_the_second, sums.vouchers(0))
    forged = Signers(names(5))
    roster = Roster(PLAN, {keys.member: keys for keys in sums.roster})
    signed = {name: forged.sign(name)(roster.consent_bytes(0, names(5))) for name in names(5)}
    with pytest.raises(SumRefused, match="0 have signed"):
        sums.members["site-000"].revealed(0, signed, sums.vouchers(0))


@pytest.mark.parametrize("one_told_otherwise", ["site-000", "site-003"])
def test_nobody_tells_anything_for_a_sum_of_vectors_that_come_from_different_things(
    sums: Sums, one_told_otherwise: str
) -> None:
    """A server that told the others something from which nothing follows would have one member's vector.

    It does not need that member for it: all the others would tell, each other's lists being the same.
    """
    for name in names(5):
        basis = b"what it is told" if name == one_told_otherwise else b"what the others are told"
        sums.members[name].masked(1, sums.vectors[1][name], basis=basis)
    consents, vouchers = sums.consents(1, names(5)), sums.vouchers(1)
    for name in names(5):
        with pytest.raises(SumRefused, match="come from something else"):
            sums.members[name].revealed(1, consents, vouchers)


@pytest.mark.parametrize(("count", "hidden_with"), [(3, 1), (4, 1), (5, 1), (9, 3), (60, 20)])
def test_a_member_that_was_given_few_shares_is_not_bared_by_saying_that_these_have_left(
    count: int, hidden_with: int
) -> None:
    """What masks it has in common with those that have left is told, and its own seed too, by all the others."""
    plan = plan_of(count, num_sums=1)
    signers = Signers(plan.members)
    members = members_of(plan, signers)
    roster = [member.public() for member in members.values()]
    sealed = {name: member.sealed(roster) for name, member in members.items()}
    victim, *others = plan.members

    def given(name: str, among: Sequence[str]) -> tuple[dict[str, bytes], dict[str, bytes]]:
        senders = [sender for sender in among if name in sealed[sender].shares]
        shares = {sender: sealed[sender].shares[name] for sender in senders}
        return shares, {sender: sealed[sender].digests[name] for sender in senders}

    gone = [name for name in others if victim in sealed[name].shares][:hidden_with]
    for name in others:
        members[name].take(*given(name, plan.members), plan.members)
    try:
        members[victim].take(*given(victim, gone), (victim, *gone))
    except SumRefused:
        return
    vector = np.arange(5, dtype=np.uint32)
    for member in members.values():
        member.masked(0, vector)
    there = tuple(name for name in plan.members if name not in gone)
    with pytest.raises(SumRefused):
        members[victim].consented(0, there)
    consents = {name: members[name].consented(0, there) for name in there if name != victim}
    vouchers = {name: members[name].voucher(0) for name in there}
    for name in there[1:]:
        with pytest.raises(SumRefused):
            members[name].revealed(0, consents, vouchers)


def test_one_member_that_signs_every_list_does_not_have_two_confirmed() -> None:
    """Two in three must sign: of five, four."""
    plan = plan_of(5, num_sums=1)
    signers = Signers(plan.members)
    sums = members_of(plan, signers)
    gathering = introduced(plan, sums)
    for member in sums.values():
        member.masked(0, np.zeros(3, np.uint32))
    roster = Roster(plan, {keys.member: keys for keys in gathering.roster()})
    lists = {"site-000": names(5), "site-001": names(5), "site-002": names(4), "site-003": names(4)}
    with_a_traitor = {
        listed: {
            **{name: sums[name].consented(0, listed) for name, own in lists.items() if own == listed},
            "site-004": signers.sign("site-004")(roster.consent_bytes(0, listed)),
        }
        for listed in (names(5), names(4))
    }
    vouchers = {name: member.voucher(0) for name, member in sums.items()}
    for name, listed in lists.items():
        with pytest.raises(SumRefused, match="expected 4 or more"):
            sums[name].revealed(0, with_a_traitor[listed], vouchers)


def test_a_member_that_takes_anothers_key_for_its_own_takes_no_mask_out(sums: Sums) -> None:
    """Else the masks that a third one has with both would be the same, and cancel."""
    roster = Roster(PLAN, {keys.member: keys for keys in sums.roster})
    keys = {**roster.keys, "site-004": replace(roster.keys["site-000"], member="site-004")}
    copied = Roster(PLAN, keys)
    own = sums.secrets["site-002"].masking[0]
    first, second = (copied.mask_seed(own, other, 0, name="site-002") for other in ("site-000", "site-004"))
    assert first != second


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
    assert again.revealed(0, consents, sums.vouchers(0)) == member.revealed(0, consents, sums.vouchers(0))


def test_nothing_is_revealed_before_a_list_is_signed(sums: Sums) -> None:
    with pytest.raises(SumRefused, match="no list"):
        sums.members["site-000"].revealed(0, {}, {})


@pytest.mark.parametrize("there", [names(3), (), names(5)[1:], (*names(4), "stranger")])
def test_a_list_is_not_signed_that_is_too_short_or_without_the_member_or_with_strangers(
    sums: Sums, there: tuple[str, ...]
) -> None:
    with pytest.raises(SumRefused):
        sums.members["site-000"].consented(0, there)


def test_never_are_both_secrets_of_one_member_told(sums: Sums) -> None:
    consents = sums.consents(0, names(4))
    for name in names(4):
        told = sums.members[name].revealed(0, consents, sums.vouchers(0))
        assert set(told.own_seeds) == set(names(4))
        assert set(told.masking) == {"site-004"}


def test_a_second_vector_is_not_hidden_by_the_same_masks(sums: Sums) -> None:
    member = sums.members["site-000"]
    assert np.array_equal(member.masked(0, sums.vectors[0]["site-000"]), sums.hidden["site-000"])
    with pytest.raises(SumRefused, match="another vector"):
        member.masked(0, sums.vectors[0]["site-001"])


def test_what_is_told_of_who_leaves_in_the_second_sum_does_not_open_the_first(sums: Sums) -> None:
    """The server has the member's own seed of the first sum by then: one key of both would leave it bare."""
    everybody = sums.consents(0, names(5))
    first = [sums.members[name].revealed(0, everybody, sums.vouchers(0)) for name in names(5)]
    for name in names(4):
        sums.members[name].masked(1, sums.vectors[1][name])
    left = sums.consents(1, names(4))
    second = [sums.members[name].revealed(1, left, sums.vouchers(1)) for name in names(4)]

    def secret(told: list[Revealed], kind: Callable[[Revealed], bytes]) -> bytes:
        return joined({number: kind(each) for number, each in enumerate(told, start=1)}, threshold=4)

    own_seed = secret(first, lambda each: each.own_seeds["site-004"])
    masking = secret(second, lambda each: each.masking["site-004"])
    assert own_seed == sums.secrets["site-004"].own_seeds[0]
    assert masking == sums.secrets["site-004"].masking[1]
    bare = sums.hidden["site-004"].copy()
    add_mask(bare, own_seed, subtracts=True)
    context = sums.gathering._known_roster().context
    for keys in sums.roster[:4]:
        seed = agreed(masking, keys.masking[0], b"mask", bytes(4), names_digest((keys.member, "site-004")), context)
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


def taken(members: Mapping[str, Member], sealed: Mapping[str, Sealed], name: str, *, of: str) -> None:
    """Have a member take the shares that are for another one, or for itself."""
    shares = {sender: each.shares[name if sender == of else of] for sender, each in sealed.items() if sender != name}
    digests = {sender: each.digests[name] for sender, each in sealed.items() if sender != name}
    members[name].take(shares, digests, tuple(sealed))


def test_shares_are_opened_by_whom_they_are_for_alone_and_say_whose_are_wrong(sums: Sums) -> None:
    fresh = members_of(PLAN, sums.signers)
    roster = [fresh[name].public() for name in names(5)]
    sealed = {name: fresh[name].sealed(roster) for name in names(5)}
    with pytest.raises(SumRefused, match="not good") as refused:
        taken(fresh, sealed, "site-000", of="site-001")
    assert refused.value.accused == ("site-002", "site-003", "site-004")
    digests = {**sealed["site-003"].digests, "site-000": bytes(64)}
    with pytest.raises(SumRefused, match="not good") as refused:
        taken(fresh, {**sealed, "site-003": replace(sealed["site-003"], digests=digests)}, "site-000", of="site-000")
    assert refused.value.accused == ("site-003",)
    taken(fresh, sealed, "site-000", of="site-000")


def test_a_key_with_which_everybody_agrees_on_the_same_is_refused() -> None:
    with pytest.raises(ValueError, match="shared key"):
        agreed(RoundKeys.made(1).sealing, bytes(32), b"mask")


def test_holders_that_tell_wrong_shares_do_not_spoil_the_sum_nor_who_names_them_first() -> None:
    plan = plan_of(13)
    vectors = vectors_of(plan)

    def spoil(gathering: Gathering, index: int) -> None:
        for liar in names(2):
            told = gathering._sums[index].told[liar]
            wrong = {name: bytes(33) for name in told.own_seeds}
            gathering._sums[index].told[liar] = Revealed(wrong, {name: bytes(33) for name in told.masking})

    totals = gathered(plan, vectors, {"site-003": ("masked", 1)}, each=spoil)
    for index, (total, there) in enumerate(totals):
        expected = np.sum([vectors[index][name] for name in there], axis=0, dtype=np.uint32)
        np.testing.assert_array_equal(total, expected)


def test_shares_of_which_too_many_are_wrong_give_no_sum_and_say_who_told_them() -> None:
    plan = plan_of(3, num_sums=1)

    def spoil(gathering: Gathering, index: int) -> None:
        for name in names(2):
            told = gathering._sums[index].told[name]
            gathering._sums[index].told[name] = Revealed({each: bytes(33) for each in told.own_seeds}, told.masking)

    with pytest.raises(SumLost, match="1 shares of site-000 are good; it takes 2") as lost:
        gathered(plan, vectors_of(plan), each=spoil)
    assert lost.value.at_fault == names(2)


def test_shares_of_another_secret_than_made_known_say_whose_they_are() -> None:
    plan = plan_of(3, num_sums=1)
    members = members_of(plan)
    honest = members["site-001"]._keys
    roster = [member.public() for member in members.values()]
    known = Roster(plan, {each.member: each for each in roster})
    gathering = Gathering(plan)
    for keys in roster:
        gathering.add_keys(keys)
    gathering.roster()
    for name, member in members.items():
        if name == "site-001":
            member._keys = replace(honest, own_seeds=(bytes(32),))
            member._checked = lambda _public: known  # type: ignore[method-assign,assignment]
        gathering.add_sealed(name, member.sealed(roster))
        member._keys = honest if name == "site-001" else member._keys
    for name, member in members.items():
        member.take(*gathering.sealed_for(name), gathering.sealers())
        gathering.add_masked(0, name, member.masked(0, np.zeros(3, np.uint32)))
    there = gathering.there(0)
    consents = {name: members[name].consented(0, there) for name in there}
    vouchers = {name: members[name].voucher(0) for name in there}
    for name in there:
        gathering.add_revealed(0, name, members[name].revealed(0, consents, vouchers))
    with pytest.raises(SumLost, match="no secret of it") as lost:
        gathering.total(0)
    assert lost.value.at_fault == ("site-001",)


def test_a_plan_in_which_two_lists_could_be_confirmed_is_refused() -> None:
    for count, threshold in ((4, 2), (3, 1), (2, 1), (5, 3), (5, 6)):
        with pytest.raises(ValueError, match="two in three"):
            plan_of(count, threshold=threshold)
