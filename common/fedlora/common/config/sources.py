"""What is trained, for what, on which data, and who holds them: [model] [task] [data] [partition]."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator
from pydantic_core import PydanticCustomError

from fedlora.common.section import Count, Finite, Fraction, Positive, Section
from fedlora.common.spelling import checked_names

EMBEDDED_ENCODER = "package:fedlora.embedded/dinov2-small"
EMBEDDED_DIGITS = "package:fedlora.embedded/digits5.npz"


Digest = Annotated[str, Field(pattern=r"^(sha256:)?[0-9a-f]{64}$")]


class ModelSection(Section):
    name: str = Field(
        EMBEDDED_ENCODER,
        min_length=1,
        description="a folder, a hub id, or package:MODULE/FOLDER of an installed package",
    )
    revision: str | None = Field(None, description="the commit or tag of a hub model")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of the frozen base weights; what is trained is float32"
    )
    quantization: Literal["none", "8bit", "4bit"] = Field(
        "none", description="of the frozen base weights, by bitsandbytes, on CUDA (QLoRA: 4bit)"
    )
    head: Literal["linear", "auto"] = Field(
        "linear", description='"linear": on pooled features; "auto": the checkpoint\'s own classification class'
    )
    pooling: Literal["auto", "mean", "cls", "cls_mean"] = Field(
        "auto", description='of features for the linear head: mean, cls, cls_mean; "auto" fits the model'
    )
    fingerprint: Digest | None = Field(
        None, description="of the base weights that all must have, as doctor prints it; left out: the sites' majority"
    )
    fingerprints: dict[str, Digest] = Field(
        {}, description="of what goes with them: tokenizer, added_tokens, chat_template"
    )


_KINDS = "image_classification, sequence_classification, causal_lm, or own"
_PIXEL_RANGE = 'of pictures deeper than 8 bits: the values of black and white, [0, 4095]; "auto" only in a simulation'


def _rising(ends: tuple[float, float]) -> tuple[float, float]:
    if not ends[0] < ends[1]:
        raise PydanticCustomError("rising", "Expected the values of black and white, the first below the second")
    return ends


PixelRange = Literal["auto"] | Annotated[tuple[Finite, Finite], Field(strict=False), AfterValidator(_rising)]


class ImageClassification(Section):
    kind: Literal["image_classification"] = Field("image_classification", description=_KINDS)
    image_size: int = Field(224, ge=8, description="pixels; pictures are resized to a square of it")
    pixel_range: PixelRange = Field("auto", description=_PIXEL_RANGE)


class SequenceClassification(Section):
    kind: Literal["sequence_classification"] = Field("sequence_classification", description=_KINDS)
    max_length: int = Field(128, ge=2, description="tokens; longer texts are cut")


class CausalLm(Section):
    kind: Literal["causal_lm"] = Field("causal_lm", description=_KINDS)
    max_length: int = Field(1024, ge=8, description="tokens of an example, prompt and answer together")
    too_long: Literal["drop", "cut"] = Field("drop", description="what becomes of longer examples")
    chat_template: str | None = Field(None, min_length=1, description="Jinja, in place of the tokenizer's own")
    system: Literal["template", "merge"] = Field(
        "template", description='a system turn: as the chat template puts it, or "merge"d into the next user turn'
    )
    special_tokens: Literal["text", "control"] = Field(
        "text", description='special tokens that the data write out; "control": of data rendered before'
    )

    @field_validator("chat_template")
    @classmethod
    def _is_jinja(cls, given: str | None) -> str | None:
        if given is not None and "{{" not in given and "{%" not in given:
            raise ValueError(
                f"{given[:80]!r} has no Jinja in it (neither {{{{ nor {{%); expected the template itself: if this is "
                "the path of a file, put the file's text here, between three quotes"
            )
        return given


class OwnTask(Section):
    kind: Literal["own"] = Field("own", description=_KINDS)
    name: str = Field("my_task", min_length=1, description='of an entry point in the group "fedlora.tasks"')
    settings: dict[str, str | int | float | bool] = Field({}, description="what the task is made with")
    pixel_range: PixelRange = Field("auto", description=_PIXEL_RANGE)


TaskSection = Annotated[ImageClassification | SequenceClassification | CausalLm | OwnTask, Field(discriminator="kind")]

# How rows become texts to learn from; "auto" goes by the columns.
TextFormat = Literal["auto", "text", "prompt_completion", "alpaca", "sharegpt", "messages"]

Splits = Literal["auto", "off"]
SPLITS = 'folders and files named train, test, validation: "auto" takes them for that, "off" as any other'


class DataSection(Section):
    path: str = Field(
        EMBEDDED_DIGITS,
        min_length=1,
        description="image folder, .npz, .csv, .tsv, .jsonl, .json, .parquet, package:MODULE/FILE, datasets:NAME/SPLIT",
    )
    test: Fraction | str = Field(
        0.2, description="share of each group held out for the test; or the path of a test set"
    )
    validation: Fraction = Field(0.1, description="share of each client's examples kept for its own validation")
    splits: Splits = Field("auto", description=SPLITS)
    format: TextFormat = Field(
        "auto", description="of causal_lm: text, prompt_completion, alpaca, sharegpt, messages, or auto"
    )
    text: str = Field("text", description="the text's column (text data)")
    prompt: str = Field("prompt", description="the prompt's column (prompt_completion)")
    completion: str = Field("completion", description="the answer's column (prompt_completion)")
    image: str = Field("image", description="the picture's column (tables of pictures)")
    ignore: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="of causal_lm: columns and message keys that are left aside on purpose"
    )
    label: str = Field("label", description="the label's column (text data, tables of pictures)")
    labels: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="the vocabulary, which a deployment must name; empty: the labels that the data have"
    )
    group: str | None = Field(None, description="column of the natural group, such as a hospital (tables)")
    split_by: str | None = Field(
        None, description="rows with one value of this column stay on one side of every split (tables)"
    )

    @field_validator("labels")
    @classmethod
    def _are_several(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(labels) == 1:
            raise ValueError(f"has one label, {labels[0]!r}; expected two at least, or none to take those of the data")
        return checked_names(labels)


_PARTITIONS = "group, iid, dirichlet, label_shards or size: who holds which examples"


class _Draws(Section):
    seed: int | None = Field(
        None, ge=0, description="of the draws of data: what is held out, who holds what; run.seed if left out"
    )


class ByGroup(_Draws):
    by: Literal["group"] = Field("group", description=_PARTITIONS)


class Iid(_Draws):
    by: Literal["iid"] = Field("iid", description=_PARTITIONS)
    num_clients: Count = Field(5, description="the examples are dealt out evenly among so many")


class Dirichlet(_Draws):
    by: Literal["dirichlet"] = Field("dirichlet", description=_PARTITIONS)
    num_clients: Count = Field(5, description="clients")
    alpha: Positive = Field(0.3, description="small: each client sees few labels; large: all see the same mixture")


class LabelShards(_Draws):
    by: Literal["label_shards"] = Field("label_shards", description=_PARTITIONS)
    num_clients: Count = Field(5, description="clients")
    shards_per_client: Count = Field(2, description="the examples sorted by label are cut into num_clients x this many")


class BySize(_Draws):
    by: Literal["size"] = Field("size", description=_PARTITIONS)
    num_clients: Count = Field(5, description="clients")
    alpha: Positive = Field(1.0, description="small: a few clients hold most examples; large: all hold as many")


PartitionSection = Annotated[ByGroup | Iid | Dirichlet | LabelShards | BySize, Field(discriminator="by")]
