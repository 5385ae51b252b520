"""The Python in a model card that loads an exported model and runs it once, with PEFT and transformers alone."""

import json
from dataclasses import dataclass

_FAMILIES = {
    "causal_lm": "AutoModelForCausalLM",
    "sequence_classification": "AutoModelForSequenceClassification",
    "image_classification": "AutoModelForImageClassification",
}


@dataclass(frozen=True)
class OwnHead:
    """Our own head on pooled features.

    Attributes:
        place: the encoder's path in what AutoModel gives, "" where it is that.
        recipe: Python from `encoder` and `inputs` to `features`.
    """

    place: str
    recipe: str


@dataclass(frozen=True)
class Loading:
    """What is to be loaded.

    Attributes:
        kind: of the run's task.
        base_model, revision, dtype: of the base that an adapter is loaded onto.
        is_merged: whether the folder is the whole model.
        num_labels: of a classification.
        own_head: None where the model has one of transformers'.
        has_template: whether the tokenizer has a chat template.
    """

    kind: str
    base_model: str
    revision: str | None
    dtype: str
    is_merged: bool
    num_labels: int
    own_head: OwnHead | None
    has_template: bool


def loading_lines(loading: Loading) -> str:
    """Return the lines."""
    own, kind, is_text = loading.own_head, loading.kind, loading.kind != "image_classification"
    family = "AutoModel" if own else _FAMILIES.get(kind, "AutoModel")
    generates = ["GenerationConfig"] if kind == "causal_lm" else []
    names = sorted([family, "AutoTokenizer" if is_text else "AutoImageProcessor", *generates])
    imports = ["import torch"] if own or not loading.is_merged else []
    imports += [] if loading.is_merged else ["from peft import PeftModel"]
    imports += [] if is_text else ["from PIL import Image"]
    imports += ["from safetensors.torch import load_file"] if own else []
    imports += [f"from transformers import {', '.join(names)}"]
    model = "encoder" if own else "model"
    lines = [*imports, "", 'folder = "."  # this one', f"{model} = {_model(loading, family)}"]
    if not loading.is_merged:
        lines.append(f"{model} = PeftModel.from_pretrained({model}, folder).eval()")
    lines += _inputs(loading, is_text=is_text)
    if own:
        lines += ['head = load_file(f"{folder}/head.safetensors")', own.recipe]
        lines += ['logits = features @ head["weight"].T + head["bias"]']
    elif kind == "causal_lm":
        lines += ["settings = GenerationConfig.from_pretrained(folder, max_new_tokens=64)  # what ends an answer"]
        lines += ["generated = model.generate(**inputs, generation_config=settings)[0]"]
        lines += ["print(tokenizer.decode(generated))"]
    elif kind in _FAMILIES:
        lines += ["logits = model(**inputs).logits"]
    return "\n".join(lines)


def _model(loading: Loading, family: str) -> str:
    options = [] if loading.is_merged else [f"dtype=torch.{loading.dtype}"]
    if loading.revision is not None and not loading.is_merged:
        options.append(f"revision={json.dumps(loading.revision)}")
    if loading.kind.endswith("_classification") and not loading.is_merged and loading.own_head is None:
        options += [f"num_labels={loading.num_labels}", "ignore_mismatched_sizes=True"]
    where = "folder" if loading.is_merged else json.dumps(loading.base_model)
    place = (
        f".get_submodule({json.dumps(loading.own_head.place)})" if loading.own_head and loading.own_head.place else ""
    )
    return f"{family}.from_pretrained({', '.join([where, *options])}){place}"


def _inputs(loading: Loading, *, is_text: bool) -> list[str]:
    if not is_text:
        return [
            "processor = AutoImageProcessor.from_pretrained(folder)",
            'inputs = processor([Image.open("picture.png")], return_tensors="pt")',
        ]
    lines = ["tokenizer = AutoTokenizer.from_pretrained(folder)"]
    if loading.has_template and loading.kind == "causal_lm":
        return [
            *lines,
            'messages = [{"role": "user", "content": "a question"}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ")",
        ]
    return [*lines, 'inputs = tokenizer(["a text"], return_tensors="pt")']
