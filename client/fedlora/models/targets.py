"""Which layers of a model get LoRA: from the run's `target_modules` and `exclude_modules` to what PEFT is given."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from fedlora.adapters.targets import is_named
from fedlora.common.config import LoraSection
from fedlora.common.errors import ModelError
from fedlora.models.reach import is_linear

# The query and value projections, as the families of transformers name them.
_QUERY_VALUE = (
    ("q_proj", "v_proj"), ("query", "value"), ("q_lin", "v_lin"), ("q", "v"), ("query_proj", "value_proj"),
    ("query_key_value",), ("qkv",), ("qkv_proj",), ("c_attn",), ("Wqkv",),
)  # fmt: skip

Layers = Mapping[str, nn.Module]
# As PEFT has them: names for the end of a path, or an expression for the whole of it.
Modules = str | tuple[str, ...]


@dataclass(frozen=True)
class Targets:
    """What gets LoRA.

    Attributes:
        modules: PEFT's `target_modules`.
        excluded: PEFT's `exclude_modules`, () for none.
        paths: of the layers that get LoRA.
        notes: sentences on what was left out or stays frozen, and that nobody has asked for.
    """

    modules: Modules
    excluded: Modules
    paths: tuple[str, ...]
    notes: tuple[str, ...]


def targets_of(
    module: nn.Module,
    settings: LoraSection,
    whole: tuple[str, ...],
    name: str,
    *,
    unreached: Collection[str],
    is_rewritten: Callable[[Modules], bool],
) -> Targets:
    """Return which layers of `module` get LoRA.

    Args:
        module: the base model.
        settings: the run's.
        whole: paths of what is trained whole, and never gets LoRA.
        name: the base model's, for errors.
        unreached: paths of layers that would get no gradient.
        is_rewritten: whether PEFT takes names, or an expression, for something else than they are in this model.

    Raises:
        ModelError: names or expressions match nothing, too much, or layers that share their weights; or the rank is
            larger than a layer allows.
    """
    layers = {
        path: layer
        for path, layer in module.named_modules()
        if path and not any(path == head or path.startswith(f"{head}.") for head in whole)
    }
    linear = {path: layer for path, layer in layers.items() if is_linear(layer)}
    modules, notes = _modules(module, settings.target_modules, linear, name, is_rewritten=is_rewritten)
    excluded = settings.exclude_modules
    matched = [path for path in layers if is_named(path, modules)]
    kept = [path for path in matched if not is_named(path, excluded)]
    _require_exclusions(excluded, matched, name)
    if settings.target_modules == "all-linear" and (output := _output_layer(module)) is not None:
        # Another layer may be called as it is.
        outputs = [path for path in kept if layers[path] is output]
        excluded, kept = _also(excluded, outputs, kept), [path for path in kept if path not in outputs]
    _require_fit(modules, {path: layers[path] for path in kept}, settings, linear, name)
    _require_own_weights(module, kept, name)
    if lost := [path for path in kept if path in unreached]:
        reached = [path for path in kept if path not in unreached]
        pattern = expression_for(lost, kept)
        if not reached:
            raise ModelError(
                f"lora.target_modules: all {len(kept)} layers of {name} that it matches get no gradient from this "
                f"task's inputs, such as {lost[0]}; name others"
            )
        notes += (
            f"lora.target_modules matches {len(kept)} layers of {name}, of which {len(lost)} get no gradient from this "
            f"task's inputs and are left out, as by lora.exclude_modules = '{pattern}'",
        )
        excluded, kept = _also(excluded, lost, kept), reached
    if isinstance(modules, str) and is_rewritten(modules):
        modules = tuple(kept)
    _require_not_experts(modules, name, is_rewritten=is_rewritten)
    _require_patterns(settings, kept, name)
    return Targets(modules, excluded, tuple(kept), notes)


def expression_for(paths: Collection[str], among: Collection[str]) -> str:
    """Return a short regular expression that matches all of `paths` whole, and nothing else of `among`."""
    others = [path for path in among if path not in paths]
    found: list[str] = []
    for path in paths:
        if any(re.fullmatch(pattern, path) for pattern in found):
            continue
        found.append(next(pattern for pattern in _patterns(path) if not any(re.fullmatch(pattern, o) for o in others)))
    return "|".join(found)


def _patterns(path: str) -> Iterator[str]:
    """Yield expressions for a path, from all that lies in its outermost module to itself alone."""
    parts = [re.escape(part) for part in path.split(".")]
    numbered = [r"\d+" if part.isdecimal() else part for part in parts]
    for size in range(1, len(parts)):
        yield r"\.".join([*numbered[:size], ".*"])
    yield r"\.".join(numbered)
    yield r"\.".join(parts)


def _also(excluded: Modules, paths: Collection[str], among: Collection[str]) -> Modules:
    """Return what excludes the same as before, and the paths."""
    if not paths:
        return excluded
    more = expression_for(paths, among)
    if not excluded:
        return more
    given = excluded if isinstance(excluded, str) else "|".join(rf"(.*\.)?{re.escape(one)}" for one in excluded)
    return f"{given}|{more}"


def _modules(
    module: nn.Module, given: Modules, linear: Layers, name: str, *, is_rewritten: Callable[[Modules], bool]
) -> tuple[Modules, tuple[str, ...]]:
    """Return the names or the expression that `target_modules` stands for, and what they leave frozen."""
    has = _what_there_is(linear)
    leaves = sorted({path.rpartition(".")[2] for path in linear})
    if given == "all-linear":
        output = _output_layer(module)
        names = sorted({path.rpartition(".")[2] for path, layer in linear.items() if layer is not output})
        if not names:
            raise ModelError(f'lora.target_modules: "all-linear" finds none in {name}; {has}')
        taken = [leaf for leaf in names if is_rewritten((leaf,))]
        return tuple(leaf for leaf in names if leaf not in taken), tuple(_experts_notes(module, taken, linear))
    if given == "auto":
        found = next((family for family in _QUERY_VALUE if set(family) <= set(leaves)), None)
        if found is None:
            raise ModelError(
                f'lora.target_modules: "auto" finds no query and value projections in {name}; name linear layers: {has}'
            )
        return found, ()
    return given, ()


def _require_fit(modules: Modules, matched: Layers, settings: LoraSection, linear: Layers, name: str) -> None:
    """Refuse what matches nothing, or something that is no linear layer; and ranks that are too large."""
    has = _what_there_is(linear)
    for target in (modules,) if isinstance(modules, str) else modules:
        one: Modules = target if isinstance(modules, str) else (target,)
        paths = [path for path in matched if is_named(path, one)]
        if other := [path for path in paths if path not in linear]:
            kind = type(matched[other[0]]).__name__
            raise ModelError(f"lora.target_modules: {target!r} matches {other[0]}, a {kind}, not a linear layer; {has}")
        if not paths:
            held = ""
            if isinstance(modules, str):
                example = next(iter(linear), "")
                held = (
                    f", as an expression for a layer's whole path, such as {example}; give names as a list"
                    if example
                    else ""
                )
            raise ModelError(f"lora.target_modules: {target!r} matches no linear layer of {name}{held}; {has}")
        smallest = min(min(_sides(matched[path])) for path in paths)
        if settings.rank > smallest:
            small = next(path for path in paths if min(_sides(matched[path])) == smallest)
            raise ModelError(
                f"lora.rank is {settings.rank}, more than {target} of {name} allows; expected at most {smallest}, or "
                f'without it: lora.exclude_modules = ["{small.rpartition(".")[2]}"]'
            )


def _require_exclusions(excluded: Modules, matched: Collection[str], name: str) -> None:
    for one in (excluded,) if isinstance(excluded, str) else excluded:
        asked: Modules = one if isinstance(excluded, str) else (one,)
        if matched and not any(is_named(path, asked) for path in matched):
            raise ModelError(
                f"lora.exclude_modules: {one!r} excludes none of the {len(matched)} layers of {name} that "
                f"lora.target_modules matches, such as {next(iter(matched))}; a name in a list is how a path ends, an "
                f"expression is for the whole path: lora.exclude_modules = '.*vision_tower.*'"
            )
    if matched and excluded and all(is_named(path, excluded) for path in matched):
        raise ModelError(
            f"lora.exclude_modules: leaves none of the {len(matched)} layers of {name} that lora.target_modules matches"
        )


def _require_own_weights(module: nn.Module, paths: Collection[str], name: str) -> None:
    """Refuse LoRA in a layer whose weight is another module's too: it trains, but cannot be merged into one of them."""
    owners: dict[int, list[str]] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        for parameter in part.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(path)
    for path in paths:
        weight = id(cast(Tensor, module.get_submodule(path).weight))
        if others := [other for other in owners[weight] if other != path]:
            raise ModelError(
                f"lora.target_modules: {path} of {name} shares its weights with {others[0]}, and LoRA in it could not "
                f'be merged; leave it out, if need be by lora.exclude_modules = ["{path}"]'
            )


def _require_not_experts(modules: Modules, name: str, *, is_rewritten: Callable[[Modules], bool]) -> None:
    for target in () if isinstance(modules, str) else modules:
        if is_rewritten((target,)):
            raise ModelError(
                f"lora.target_modules: {target!r} of {name} is what PEFT calls the experts of its mixture, which are "
                "fused into one tensor, and LoRA is trained in linear layers only; leave it out"
            )


def _require_patterns(settings: LoraSection, paths: Sequence[str], name: str) -> None:
    """Refuse ranks and alphas for layers that are not there: they would be left without a word."""
    for key, pattern in (("rank_pattern", settings.rank_pattern), ("alpha_pattern", settings.alpha_pattern)):
        for end in pattern:
            try:
                is_there = any(re.match(rf"(.*\.)?({end})$", path) for path in paths)
            except (re.error, RecursionError, OverflowError) as error:
                raise ModelError(f"lora.{key}: {end!r} is no regular expression ({error})") from error
            if not is_there:
                raise ModelError(
                    f"lora.{key}: {end!r} matches none of the {len(paths)} layers of {name} that get LoRA, such as "
                    f"{paths[0]}; expected the end of a layer's path"
                )


def _experts_notes(module: nn.Module, taken: Collection[str], linear: Layers) -> Iterator[str]:
    """Yield what "all-linear" leaves frozen of a mixture of experts."""
    experts = {
        path: [parameter for parameter in part.parameters(recurse=False) if parameter.ndim > 1]
        for path, part in module.named_modules()
        if not is_linear(part) and re.search("expert", f"{path} {type(part).__name__}", re.IGNORECASE)
    }
    experts = {path: stacks for path, stacks in experts.items() if stacks}
    if experts:
        size = sum(parameter.numel() for stacks in experts.values() for parameter in stacks)
        whole = sum(parameter.numel() for parameter in module.parameters())
        yield (
            f'"all-linear" leaves the experts frozen: {len(experts)} modules with {size:,} of {whole:,} parameters '
            f"({size / whole:.0%}), such as {next(iter(experts))}; they are fused into one tensor, and LoRA is trained "
            "in linear layers only"
        )
    if namesakes := [path for path in linear if path.rpartition(".")[2] in taken]:
        yield (
            f'"all-linear" leaves {len(namesakes)} linear layers out, such as {namesakes[0]}: PEFT takes '
            f"{', '.join(taken)} for the names of the experts"
        )


def _what_there_is(linear: Layers) -> str:
    leaves = sorted({path.rpartition(".")[2] for path in linear})
    return f"it has {', '.join(leaves)}" if leaves else "it has no linear layers outside its head, and LoRA needs some"


def _output_layer(module: nn.Module) -> nn.Module | None:
    return cast(nn.Module | None, getattr(module, "get_output_embeddings", lambda: None)())


def _sides(layer: nn.Module) -> tuple[int, ...]:
    """Return in_features and out_features; a quantised weight's own shape says nothing."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return tuple(cast(Tensor, layer.weight).shape)
