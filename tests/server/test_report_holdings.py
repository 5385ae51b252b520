"""Who holds what, in the report: pictures of partitions of any size, and the words beside them."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))

from report_pages import Page, finished, render, start

from fedlora.common.config import ByGroup, BySize, Dirichlet, Iid, LabelShards, PartitionSection, RunConfig
from fedlora.server.report import Holding, Holdings
from fedlora.server.report.run_line import summary
from fedlora.server.run_report import load_code
from fedlora.simulation.holdings import holdings_of
from fedlora.training.data import ClientData, Examples, FederatedData


def holdings(num_clients: int, num_labels: int) -> Holdings:
    clients = [
        Holding(f"client-{place}", 10 * (place + 1), place, tuple((place + label) % 7 for label in range(num_labels)))
        for place in range(num_clients)
    ]
    return Holdings(clients, [f"label {place}" for place in range(num_labels)], 100, "Dealt out by hand.")


def page_of(shown: Holdings) -> Page:
    return Page(render(start(), holdings=shown))


def test_the_section_says_how_many_examples_there_are_and_how_they_came_there() -> None:
    text = page_of(holdings(3, 4)).text
    assert "Dealt out by hand. 3 clients hold 60 examples for training, from 10 to 30, and keep 3 of their own" in text
    assert "100 are held out for the test." in text
    assert "Training examples by client and label" in text
    assert "client-2 30 2 2 3 4 5" in text


@pytest.mark.parametrize(
    ("num_clients", "num_labels"), [(1, 0), (1, 1), (30, 5), (1, 6), (30, 40), (3, 41), (31, 41), (300, 0), (300, 1)]
)
def test_any_number_of_clients_and_labels_can_be_drawn(num_clients: int, num_labels: int) -> None:
    drawn = [svg for svg in page_of(holdings(num_clients, num_labels)).named("svg") if "hold" in svg["aria-label"]]
    assert len(drawn) == 1


def test_of_many_clients_the_distribution_is_drawn() -> None:
    text = page_of(holdings(31, 10)).text
    assert "Clients by number of training examples" in text
    assert "labels held, of 10" in text


def test_few_labels_are_named_by_their_colours_and_many_at_the_axis() -> None:
    assert "label 0 label 1 label 2" in page_of(holdings(3, 3)).text
    assert "the largest bubble is 6 examples" in page_of(holdings(3, 12)).text


def test_sites_of_a_deployment_are_called_so() -> None:
    sites = Holdings([Holding("north", 5, 1), Holding("south", 5, 1)], noun="site")
    assert "2 sites hold 10 examples for training, 5 each, and keep 2 of their own" in page_of(sites).text


def test_a_page_without_holdings_has_no_such_section() -> None:
    assert "Who holds what" in render(start(), finished(1), holdings=holdings(3, 3))
    assert "Who holds what" not in render(start(), finished(1))


def examples(labels: list[int], group: str) -> Examples:
    return Examples(["text"] * len(labels), np.array(labels, dtype=np.int64), np.array([group] * len(labels)))


def data(names: dict[str, list[int]], *, labels: tuple[str, ...] = ("a", "b", "c")) -> FederatedData:
    clients = {name: ClientData(examples(held, name), examples(held[:1], name)) for name, held in names.items()}
    return FederatedData(labels, clients, examples([0, 1], "test"), "f")


DEALT = {"client-1": [0, 0, 2], "client-2": [1]}


def test_the_examples_of_a_simulation_are_counted_by_client_and_label() -> None:
    found = holdings_of(data(DEALT), RunConfig(partition=Iid(num_clients=2)))
    assert list(found.clients) == [Holding("client-1", 3, 1, (2, 0, 1)), Holding("client-2", 1, 1, (0, 1, 0))]
    assert (found.labels, found.num_test) == (("a", "b", "c"), 2)


def test_without_labels_only_the_numbers_are_counted() -> None:
    found = holdings_of(data({"client-1": [0, 0], "client-2": [0]}, labels=()), RunConfig(partition=Iid(num_clients=2)))
    assert [(each.num_training, each.by_label) for each in found.clients] == [(2, ()), (1, ())]


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (Iid(num_clients=2), "at random (iid)"),
        (Dirichlet(num_clients=2, alpha=0.3), "Dirichlet distribution with alpha 0.3"),
        (LabelShards(num_clients=2, shards_per_client=3), "each client holds 3 of them"),
        (BySize(num_clients=2, alpha=0.5), "sizes are drawn from a Dirichlet distribution with alpha 0.5"),
        (ByGroup(), "by their natural group"),
    ],
)
def test_the_partition_is_named(section: PartitionSection, words: str) -> None:
    names = {"en": [0], "fr": [1]} if isinstance(section, ByGroup) else DEALT
    assert words in holdings_of(data(names), RunConfig(partition=section)).partition


def test_data_sets_given_in_place_of_the_partition_are_not_called_so() -> None:
    found = holdings_of(data({"mine": [0], "yours": [1]}), RunConfig(partition=Iid(num_clients=2)))
    assert "those that were given" in found.partition


def test_the_summary_names_what_is_out_of_the_ordinary() -> None:
    plain = RunConfig()
    assert summary(plain, num_clients=5) == "5 clients, dinov2-small, rank 8, lora_fair, seed 0"
    changed = plain.model_copy(
        update={
            "model": plain.model.model_copy(update={"name": "hub/small", "quantization": "4bit"}),
            "lora": plain.lora.model_copy(update={"use_dora": True}),
            "train": plain.train.model_copy(update={"proximal_mu": 0.01, "packing": True}),
            "federation": plain.federation.model_copy(update={"weighting": "tokens"}),
        }
    )
    assert summary(changed, num_clients=1) == (
        "1 client, small in 4 bits, DoRA of rank 8, lora_fair, weighted by answer tokens, FedProx with mu 0.01, "
        "packed examples, seed 0"
    )


def test_a_language_model_is_loaded_to_generate(tmp_path: Path) -> None:
    run = RunConfig.model_validate(
        {"model": {"name": "hub/small"}, "task": {"kind": "causal_lm"}, "partition": {"by": "iid"}}
    )
    assert 'trained.generate(["a question"])' in load_code(tmp_path, run)
    assert "best" not in load_code(tmp_path, run)
    (tmp_path / "best").mkdir()
    assert 'adapter="best"' in load_code(tmp_path, run)
