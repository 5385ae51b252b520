"""What Flower's own strategies ask and expect, in the words of this project's sites, and back.

A strategy such as FedAvg sends the arrays of an adapter under PEFT's key names and a config, and expects arrays and
metrics. A site knows the requests of `messages` alone: so any such strategy runs over sites as they are. The config
says what the arrays do not:

    adapter-config    adapter_config.json of PEFT, as text
    server-round      the round; Flower's strategies write it
    num-rounds, seed, validation-examples, lora-trains    as in a TrainRequest; not needed
"""

from typing import Any, cast

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict

from fedlora.adapters import pack, unpack
from fedlora.adapters.keys import to_state_dict
from fedlora.adapters.peft_format import from_state_dict, json_object
from fedlora.common.errors import AdapterError, RunError
from fedlora.common.messages import (
    OK,
    EvaluateReceipt,
    EvaluateRequest,
    Failure,
    TrainReceipt,
    TrainRequest,
    merge_scores,
)
from fedlora.common.packed_file import packed_bytes
from fedlora.common.parsing import json_in
from fedlora.common.records import reply_from_record, to_record

ADAPTER_CONFIG_KEY = "adapter-config"
_FAILED = 0  # Flower's code for what it has none for.


def request_in(message: Message) -> RecordDict:
    """Return the records of the request that a strategy's message is.

    Raises:
        RunError: it is neither of training nor of evaluation, or not one record of arrays and one config.
        AdapterError: the arrays are no adapter of that configuration.
    """
    content, kind = message.content, message.metadata.message_type
    if kind not in (MessageType.TRAIN, MessageType.EVALUATE):
        raise RunError(f"a message of the type {kind}; expected {MessageType.TRAIN} or {MessageType.EVALUATE}")
    if len(content.array_records) != 1 or len(content.config_records) != 1:
        num_arrays, num_configs = len(content.array_records), len(content.config_records)
        raise RunError(f"{num_arrays} ArrayRecords and {num_configs} ConfigRecords; expected one of each")
    (arrays,), (config,) = content.array_records.values(), content.config_records.values()
    packed = _packed(arrays, config)
    run, round = f"flower-{message.metadata.run_id}", _whole(config, "server-round", 1)
    num_examples = _whole(config, "validation-examples", 0)
    if kind == MessageType.EVALUATE:
        return to_record(
            EvaluateRequest(
                run=run,
                round=round,
                num_examples=num_examples or None,
                shard=0,
                num_shards=1,
                with_predictions=False,
                adapter=packed,
                of_validation=True,
            )
        )
    return to_record(
        TrainRequest(
            run=run,
            round=round,
            attempt=0,
            seed=_whole(config, "seed", 0),
            num_rounds=max(round, _whole(config, "num-rounds", 0)),
            validation_examples=num_examples,
            adapter=packed,
            trains=cast(Any, tuple(str(config.get("lora-trains", "A,B")).split(","))),
        )
    )


def reply_to(message: Message, content: RecordDict) -> Message:
    """Return a site's receipt as the reply that the strategy expects."""
    is_training = message.metadata.message_type == MessageType.TRAIN
    expected: type[object] = TrainReceipt if is_training else EvaluateReceipt
    try:
        return Message(_told(reply_from_record(content, expected, with_files=True)), reply_to=message)
    except (AdapterError, RunError) as error:
        return Message(Error(_FAILED, str(error)), reply_to=message)


def _packed(arrays: ArrayRecord, config: ConfigRecord) -> bytes:
    try:
        adapter_config = json_object(json_in(str(config[ADAPTER_CONFIG_KEY])), origin=ADAPTER_CONFIG_KEY)
        tensors = arrays.to_torch_state_dict()
    except (KeyError, ValueError, TypeError) as error:
        expected = f"expected {ADAPTER_CONFIG_KEY} in the config, and arrays under PEFT's key names"
        raise RunError(f"no adapter ({error}); {expected}") from error
    adapter = from_state_dict(tensors, adapter_config, origin="the strategy's arrays")
    if not adapter.layers:
        raise AdapterError(f"no LoRA layer among {len(tensors)} arrays; expected them under PEFT's key names")
    return pack(adapter)


def _told(receipt: object) -> RecordDict:
    """Return a receipt as arrays and metrics.

    Raises:
        RunError: it is of something that failed.
    """
    match receipt:
        case TrainReceipt(status=status) if status == OK:
            tensors = to_state_dict(unpack(packed_bytes(receipt.adapter)))
            arrays = ArrayRecord({key: Array(tensor) for key, tensor in tensors.items()})
            metrics = MetricRecord({"num-examples": receipt.num_examples, "loss": receipt.loss})
            return RecordDict({"arrays": arrays, "metrics": metrics})
        case EvaluateReceipt(groups=groups) if groups:
            score = merge_scores(list(groups.values()))
            metrics = MetricRecord({"num-examples": score.num_examples, "loss": score.loss, "metric": score.metric})
            return RecordDict({"metrics": metrics})
        case TrainReceipt(status=code) | Failure(code=code):
            raise RunError(code)
    raise RunError("the site has judged no example")


def _whole(config: ConfigRecord, key: str, default: int) -> int:
    value = config.get(key, default)
    if not isinstance(value, int) or value < 0:
        raise RunError(f"{key} is {value!r}; expected a whole number")
    return value
