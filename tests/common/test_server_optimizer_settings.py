"""[federation] server_optimizer: what a run file may say of it, and with which methods it goes."""

import pytest

from fedlora.aggregation import ServerOptimizer
from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError
from fedlora.common.run_file import parse_run, parse_toml, to_toml
from fedlora.methods import METHODS, RoundPlan
from fedlora.server.run_optimizer import server_optimizer_of


def test_every_setting_of_it_can_be_set_in_a_run_file() -> None:
    typed = "server_optimizer=yogi server_acts_on=product server_learning_rate=0.2 server_momentum=0.1 "
    typed += "server_beta_1=0.3 server_beta_2=0.4 server_tau=0.5"
    config = parse_run({}, [f"federation.{setting}" for setting in typed.split()])
    expected = ServerOptimizer("yogi", "product", learning_rate=0.2, momentum=0.1, beta_1=0.3, beta_2=0.4, tau=0.5)
    assert server_optimizer_of(parse_toml(to_toml(config), origin="again").federation) == expected


def test_without_it_there_is_none_and_its_defaults_are_the_librarys() -> None:
    assert server_optimizer_of(RunConfig().federation) is None
    config = parse_run({}, ["federation.server_optimizer=adam"])
    assert server_optimizer_of(config.federation) == ServerOptimizer("adam")


@pytest.mark.parametrize("setting", ["server_momentum=1.0", "server_tau=0.0", "server_learning_rate=-1.0"])
def test_a_value_out_of_its_range_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"federation\.{setting.partition('=')[0]} is "):
        parse_run({}, [f"federation.{setting}"])


@pytest.mark.parametrize("name", METHODS)
def test_methods_whose_rounds_are_no_step_of_the_pair_are_refused_in_a_line(name: str) -> None:
    method = METHODS[name]()
    settings = [f"aggregation.method={name}", "federation.server_optimizer=momentum"]
    if method.changes_base or method.plan(1).starts_fresh:
        with pytest.raises(ConfigError, match=rf"aggregation\.method = {name} moves .*; use \"none\", or take fedit, "):
            parse_run({}, settings)
        return
    assert parse_run({}, settings).federation.server_optimizer == "momentum"
    settings.append("federation.server_acts_on=product")
    if method.plan(1) == RoundPlan():
        assert parse_run({}, settings).federation.server_acts_on == "product"
    else:
        with pytest.raises(ConfigError, match=rf"under aggregation\.method = {name} clients share .*; use \"factors\""):
            parse_run({}, settings)
