"""How a run protects its clients, worked out from its file before anything is done."""

import sys

import pytest

from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError
from fedlora.privacy.accounting import Release, epsilon_of, most_count
from fedlora.server.record.privacy_record import ClientPrivacy
from fedlora.server.run_method import method_of
from fedlora.server.run_privacy import client_privacy_of


def privacy_of(method: str = "fedit", *, rounds: int = 10, **privacy: object) -> ClientPrivacy | None:
    config = RunConfig.model_validate(
        {
            "federation": {"weighting": "uniform", "rounds": rounds},
            "aggregation": {"method": method},
            "privacy": {"unit": "client", "clip": 1.0, **privacy},
        }
    )
    return client_privacy_of(config, method_of(config))


def test_a_run_without_noise_needs_no_accountant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    config = RunConfig()
    assert client_privacy_of(config, method_of(config)) is None


@pytest.mark.parametrize(
    "given", [{"epsilon": 2.0}, {"noise_multiplier": 2.0}, {"epsilon": 2.0, "noise_multiplier": 9.0}]
)
def test_without_an_accountant_there_is_no_noise(monkeypatch: pytest.MonkeyPatch, given: dict[str, float]) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedlora\[privacy\]'"):
        privacy_of(**given)


def test_a_budget_alone_is_spent_by_all_rounds() -> None:
    found = privacy_of("lora_fair", epsilon=3.0, clip=[1.0, 0.1])
    assert found is not None
    assert 2.99 < found.epsilon <= 3.0
    assert found.epsilon == epsilon_of([Release(found.noise_multiplier, 20)], delta=1e-5)
    assert found.num_rounds == 10


def test_noise_and_a_budget_say_how_many_rounds_there_are() -> None:
    found = privacy_of(epsilon=3.0, noise_multiplier=4.0)
    assert found is not None
    assert found.num_rounds == most_count([Release(4.0)], epsilon=3.0, delta=1e-5) < 10
    more = privacy_of(epsilon=30.0, noise_multiplier=4.0)
    assert more is not None
    assert more.num_rounds == 10


def test_before_a_run_it_is_said_what_it_tells_and_what_noise_does_to_the_product() -> None:
    found = privacy_of(epsilon=3.0, noise_multiplier=4.0)
    assert found is not None
    told, covered, product = found.notes(10)
    assert f"by the adapters of {found.num_rounds} of 10 rounds, after which privacy.epsilon = 3 ends the run" in told
    assert "nothing is gained by sampling" in told
    assert "not of scores" in covered
    assert "not reproducible" in covered
    assert "under ffa_lora, rolora a round noises one of them" in product
    frozen = privacy_of("ffa_lora", epsilon=3.0)
    assert frozen is not None
    assert len(frozen.notes(10)) == 2


def test_a_budget_that_allows_no_round_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"privacy.epsilon = 1 allows no round: one has 4.38 at"):
        privacy_of(epsilon=1.0, noise_multiplier=1.0)


@pytest.mark.parametrize(
    ("method", "clip", "said"),
    [
        ("lora_fair", 1.0, r"has 1 of the 2 norms that it takes: lora_fair .*write 2, such as \[1.0, 0.1\]"),
        ("fedit", [0.5, 0.1], "has 2 of the 1 norms that it takes: fedit .*write 1, such as 0.5"),
    ],
)
def test_each_sum_of_the_method_has_a_clip_of_its_own(method: str, clip: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        privacy_of(method, noise_multiplier=1.0, clip=clip)
