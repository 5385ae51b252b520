"""The table of diagnostics: it fits, it is aligned, and of many layers it shows the worst."""

import math
from dataclasses import replace

import pytest
from rich.console import Console

from fedlora.cli.aggregation_view import diagnostics_table, explanations, short_paths
from fedlora.common.aggregation_report import AggregationReport, LayerReport

LAYER = LayerReport(
    update_norm=2.0, error_before=0.5, error_after=0.4, floor=0.3, reach_B=0.1, reach_A=0.2, reach_both=0.4,
    moved_B=0.05, moved_A=0.0, cosine_B=0.999, cosine_A=1.0, effective_rank=7.5,
)  # fmt: skip
LLAMA = [
    f"model.layers.{place}.{name}"
    for place in range(32)
    for name in (
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    )
]  # fmt: skip
BERT = ["bert.embeddings.word_embeddings"] + [
    f"bert.encoder.layer.{place}.{name}"
    for place in range(5)
    for name in ("attention.self.query", "attention.output.dense", "output.dense")
]


def report(layers: dict[str, LayerReport], **overall: float) -> AggregationReport:
    return AggregationReport(
        "lora_fair", **({"error_before": 0.5, "error_after": 0.4, "moved_B": 0.05} | overall), layers=layers
    )


def lines(shown: AggregationReport, width: int = 100) -> list[str]:
    console = Console(width=width, no_color=True)
    with console.capture() as captured:
        console.print(diagnostics_table(shown, width=width))
    return captured.get().splitlines()


@pytest.mark.parametrize("width", [40, 60, 72, 80, 100, 160])
@pytest.mark.parametrize("paths", [LLAMA, BERT, ["q"], ["a.0.b", "a.0.c"]], ids=["llama", "bert", "one", "two"])
def test_the_table_fits_its_width_with_one_line_for_each_layer(paths: list[str], width: int) -> None:
    moved = report(dict.fromkeys(paths, replace(LAYER, moved_A=1e-9, error_after=1e-12)), moved_A=1e-9)
    shown = lines(moved, width)
    assert max(map(len, shown)) <= width
    num_layers = len(paths) if len(paths) <= 24 else 12
    assert len(shown) == 3 + num_layers + 2
    assert shown[-1].startswith("all layers")


def test_numbers_of_a_column_end_below_each_other() -> None:
    shown = lines(report({"q": replace(LAYER, error_before=1e-9, floor=math.inf), "v": LAYER}))
    ends = [
        [place for place, (one, two) in enumerate(zip(f"{line} ", f"{line} "[1:], strict=False)) if one != " " == two]
        for line in shown[3:5]
    ]
    assert ends[0][1:] == ends[1][1:]
    assert "1.0e-09" in shown[3]
    assert "infinite" in shown[3]


def test_of_many_layers_the_worst_are_shown_and_the_others_counted() -> None:
    layers = {path: replace(LAYER, error_after=place / 1000) for place, path in enumerate(LLAMA)}
    layers[LLAMA[3]] = replace(LAYER, error_after=math.inf)
    shown = lines(report(layers))
    assert shown[1].startswith("model.layers ")
    assert [line.split()[0] for line in shown[3:6]] == ["0.self_attn.o_proj", "31.mlp.down_proj", "31.mlp.up_proj"]
    assert next(explanations(report(layers))).startswith("the worst layers; 212 better ones left out")


def test_layers_without_an_error_of_their_own_are_ranked_by_the_error_that_was_removed() -> None:
    layers = {
        path: replace(LAYER, error_after=1e-8 / (place + 1), error_before=place) for place, path in enumerate(LLAMA)
    }
    assert lines(report(layers))[3].split()[0] == "31.mlp.down_proj"


def test_layers_stand_in_the_order_of_their_numbers() -> None:
    paths = [f"layer.{place}.q" for place in (0, 1, 10, 2)]
    assert [line.split()[0] for line in lines(report(dict.fromkeys(paths, LAYER)))[3:7]] == [
        "0.q",
        "1.q",
        "2.q",
        "10.q",
    ]


def test_only_sides_that_moved_have_a_column() -> None:
    assert "moved" not in lines(report({"q": replace(LAYER, moved_B=0.0)}, moved_B=0.0))[0]
    assert lines(report({"q": LAYER}))[0].count("moved") == 1
    assert lines(report({"q": replace(LAYER, moved_A=0.1)}, moved_A=0.1))[0].count("moved") == 2


def test_notes_are_printed_once_with_their_layers() -> None:
    layers = {"q": replace(LAYER, note="the plain mean"), "k": LAYER, "v": replace(LAYER, note="the plain mean")}
    assert list(explanations(report(layers)))[-1] == "q and v: the plain mean"
    alike = dict.fromkeys("qkv", replace(LAYER, note="without DoRA's magnitudes"))
    assert list(explanations(report(alike)))[-1] == "all layers: without DoRA's magnitudes"


@pytest.mark.parametrize(
    ("paths", "width", "prefix", "short"),
    [
        (["model.layers.0.mlp.up", "model.layers.1.mlp.up"], 20, "model.layers", ["0.mlp.up", "1.mlp.up"]),
        (["encoder.layer.10.attention.query", "embed"], 20, "", ["e.l.10.a.query", "embed"]),
        (["encoder.layer.10.attention.query"], 30, "", ["e.layer.10.attention.query"]),
        (["encoder.layer.10.attention.query"], 5, "", ["encoder.layer.10.attention.query"]),
        (["encoder.self.q", "encoder.some.q"], 5, "encoder", ["self.q", "some.q"]),
        (["query"], 3, "", ["query"]),
        (["layers.3.q", "layers.3.v"], 20, "layers", ["3.q", "3.v"]),
        ([], 20, "", []),
    ],
)
def test_long_paths_lose_their_first_words_and_never_what_tells_them_apart(
    paths: list[str], width: int, prefix: str, short: list[str]
) -> None:
    assert short_paths(paths, width=width) == (prefix, short)
