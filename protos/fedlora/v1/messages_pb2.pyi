from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor
LOCAL_FIELD_NUMBER: _ClassVar[int]
local: _descriptor.FieldDescriptor

class Blob(_message.Message):
    __slots__ = ("sha256", "size_bytes")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    size_bytes: int
    def __init__(self, sha256: _Optional[bytes] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class OfferedAdapter(_message.Message):
    __slots__ = ("whole", "difference", "reference")
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    whole: Blob
    difference: Blob
    reference: Blob
    def __init__(self, whole: _Optional[_Union[Blob, _Mapping]] = ..., difference: _Optional[_Union[Blob, _Mapping]] = ..., reference: _Optional[_Union[Blob, _Mapping]] = ...) -> None: ...

class SentAdapter(_message.Message):
    __slots__ = ("encoded",)
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    encoded: Blob
    def __init__(self, encoded: _Optional[_Union[Blob, _Mapping]] = ...) -> None: ...

class Score(_message.Message):
    __slots__ = ("num_examples", "loss", "metric", "num_tokens")
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    num_examples: int
    loss: float
    metric: float
    num_tokens: int
    def __init__(self, num_examples: _Optional[int] = ..., loss: _Optional[float] = ..., metric: _Optional[float] = ..., num_tokens: _Optional[int] = ...) -> None: ...

class Generated(_message.Message):
    __slots__ = ("num_examples", "exact_match", "rouge_l")
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    EXACT_MATCH_FIELD_NUMBER: _ClassVar[int]
    ROUGE_L_FIELD_NUMBER: _ClassVar[int]
    num_examples: int
    exact_match: float
    rouge_l: float
    def __init__(self, num_examples: _Optional[int] = ..., exact_match: _Optional[float] = ..., rouge_l: _Optional[float] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ("rehearse",)
    REHEARSE_FIELD_NUMBER: _ClassVar[int]
    rehearse: bool
    def __init__(self, rehearse: _Optional[bool] = ...) -> None: ...

class SiteDescription(_message.Message):
    __slots__ = ("num_examples", "num_validation", "num_held_out", "metric_name", "base_model_fingerprint", "data_fingerprint", "version", "lora_rank", "fingerprints", "fates", "client", "has_own_held_out", "labels", "base_model", "notes", "adapter_bytes", "adapted_bytes", "step_examples")
    class FingerprintsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class FatesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: FatesOfPart
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[FatesOfPart, _Mapping]] = ...) -> None: ...
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    NUM_VALIDATION_FIELD_NUMBER: _ClassVar[int]
    NUM_HELD_OUT_FIELD_NUMBER: _ClassVar[int]
    METRIC_NAME_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    DATA_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LORA_RANK_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINTS_FIELD_NUMBER: _ClassVar[int]
    FATES_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    HAS_OWN_HELD_OUT_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_BYTES_FIELD_NUMBER: _ClassVar[int]
    ADAPTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    STEP_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    num_examples: int
    num_validation: int
    num_held_out: int
    metric_name: str
    base_model_fingerprint: str
    data_fingerprint: str
    version: str
    lora_rank: int
    fingerprints: _containers.ScalarMap[str, str]
    fates: _containers.MessageMap[str, FatesOfPart]
    client: str
    has_own_held_out: bool
    labels: _containers.RepeatedScalarFieldContainer[str]
    base_model: str
    notes: _containers.RepeatedScalarFieldContainer[str]
    adapter_bytes: int
    adapted_bytes: int
    step_examples: int
    def __init__(self, num_examples: _Optional[int] = ..., num_validation: _Optional[int] = ..., num_held_out: _Optional[int] = ..., metric_name: _Optional[str] = ..., base_model_fingerprint: _Optional[str] = ..., data_fingerprint: _Optional[str] = ..., version: _Optional[str] = ..., lora_rank: _Optional[int] = ..., fingerprints: _Optional[_Mapping[str, str]] = ..., fates: _Optional[_Mapping[str, FatesOfPart]] = ..., client: _Optional[str] = ..., has_own_held_out: _Optional[bool] = ..., labels: _Optional[_Iterable[str]] = ..., base_model: _Optional[str] = ..., notes: _Optional[_Iterable[str]] = ..., adapter_bytes: _Optional[int] = ..., adapted_bytes: _Optional[int] = ..., step_examples: _Optional[int] = ...) -> None: ...

class FatesOfPart(_message.Message):
    __slots__ = ("num_examples",)
    class NumExamplesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    num_examples: _containers.ScalarMap[str, int]
    def __init__(self, num_examples: _Optional[_Mapping[str, int]] = ...) -> None: ...

class InitialiseRequest(_message.Message):
    __slots__ = ("seed",)
    SEED_FIELD_NUMBER: _ClassVar[int]
    seed: int
    def __init__(self, seed: _Optional[int] = ...) -> None: ...

class InitialiseReceipt(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TrainRequest(_message.Message):
    __slots__ = ("run", "round", "attempt", "seed", "num_rounds", "validation_examples", "trains", "sums")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    NUM_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    TRAINS_FIELD_NUMBER: _ClassVar[int]
    SUMS_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    attempt: int
    seed: int
    num_rounds: int
    validation_examples: int
    trains: _containers.RepeatedScalarFieldContainer[str]
    sums: SumTerms
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., attempt: _Optional[int] = ..., seed: _Optional[int] = ..., num_rounds: _Optional[int] = ..., validation_examples: _Optional[int] = ..., trains: _Optional[_Iterable[str]] = ..., sums: _Optional[_Union[SumTerms, _Mapping]] = ...) -> None: ...

class SumTerms(_message.Message):
    __slots__ = ("members", "threshold", "repetition", "most_examples", "most_change", "clips")
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    REPETITION_FIELD_NUMBER: _ClassVar[int]
    MOST_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    MOST_CHANGE_FIELD_NUMBER: _ClassVar[int]
    CLIPS_FIELD_NUMBER: _ClassVar[int]
    members: _containers.RepeatedScalarFieldContainer[str]
    threshold: int
    repetition: int
    most_examples: int
    most_change: float
    clips: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, members: _Optional[_Iterable[str]] = ..., threshold: _Optional[int] = ..., repetition: _Optional[int] = ..., most_examples: _Optional[int] = ..., most_change: _Optional[float] = ..., clips: _Optional[_Iterable[float]] = ...) -> None: ...

class SumKeys(_message.Message):
    __slots__ = ("sealing", "masking", "own_seeds", "signature", "identity")
    SEALING_FIELD_NUMBER: _ClassVar[int]
    MASKING_FIELD_NUMBER: _ClassVar[int]
    OWN_SEEDS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    sealing: bytes
    masking: _containers.RepeatedScalarFieldContainer[bytes]
    own_seeds: _containers.RepeatedScalarFieldContainer[bytes]
    signature: bytes
    identity: bytes
    def __init__(self, sealing: _Optional[bytes] = ..., masking: _Optional[_Iterable[bytes]] = ..., own_seeds: _Optional[_Iterable[bytes]] = ..., signature: _Optional[bytes] = ..., identity: _Optional[bytes] = ...) -> None: ...

class SumRequest(_message.Message):
    __slots__ = ("run", "round", "repetition", "step", "index", "keys", "sealed", "there", "consents", "num_numbers", "digests", "sealers", "vouchers")
    class KeysEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: SumKeys
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[SumKeys, _Mapping]] = ...) -> None: ...
    class SealedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    class ConsentsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    class DigestsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    class VouchersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    REPETITION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    THERE_FIELD_NUMBER: _ClassVar[int]
    CONSENTS_FIELD_NUMBER: _ClassVar[int]
    NUM_NUMBERS_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    SEALERS_FIELD_NUMBER: _ClassVar[int]
    VOUCHERS_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    repetition: int
    step: str
    index: int
    keys: _containers.MessageMap[str, SumKeys]
    sealed: _containers.ScalarMap[str, bytes]
    there: _containers.RepeatedScalarFieldContainer[str]
    consents: _containers.ScalarMap[str, bytes]
    num_numbers: int
    digests: _containers.ScalarMap[str, bytes]
    sealers: _containers.RepeatedScalarFieldContainer[str]
    vouchers: _containers.ScalarMap[str, bytes]
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., repetition: _Optional[int] = ..., step: _Optional[str] = ..., index: _Optional[int] = ..., keys: _Optional[_Mapping[str, SumKeys]] = ..., sealed: _Optional[_Mapping[str, bytes]] = ..., there: _Optional[_Iterable[str]] = ..., consents: _Optional[_Mapping[str, bytes]] = ..., num_numbers: _Optional[int] = ..., digests: _Optional[_Mapping[str, bytes]] = ..., sealers: _Optional[_Iterable[str]] = ..., vouchers: _Optional[_Mapping[str, bytes]] = ...) -> None: ...

class SumReceipt(_message.Message):
    __slots__ = ("run", "round", "repetition", "step", "index", "client", "sealed", "consent", "own_seeds", "masking", "num_clipped", "accused", "digests", "voucher", "is_scaled")
    class SealedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    class OwnSeedsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    class MaskingEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    class DigestsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    REPETITION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    CONSENT_FIELD_NUMBER: _ClassVar[int]
    OWN_SEEDS_FIELD_NUMBER: _ClassVar[int]
    MASKING_FIELD_NUMBER: _ClassVar[int]
    NUM_CLIPPED_FIELD_NUMBER: _ClassVar[int]
    ACCUSED_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    VOUCHER_FIELD_NUMBER: _ClassVar[int]
    IS_SCALED_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    repetition: int
    step: str
    index: int
    client: str
    sealed: _containers.ScalarMap[str, bytes]
    consent: bytes
    own_seeds: _containers.ScalarMap[str, bytes]
    masking: _containers.ScalarMap[str, bytes]
    num_clipped: int
    accused: _containers.RepeatedScalarFieldContainer[str]
    digests: _containers.ScalarMap[str, bytes]
    voucher: bytes
    is_scaled: bool
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., repetition: _Optional[int] = ..., step: _Optional[str] = ..., index: _Optional[int] = ..., client: _Optional[str] = ..., sealed: _Optional[_Mapping[str, bytes]] = ..., consent: _Optional[bytes] = ..., own_seeds: _Optional[_Mapping[str, bytes]] = ..., masking: _Optional[_Mapping[str, bytes]] = ..., num_clipped: _Optional[int] = ..., accused: _Optional[_Iterable[str]] = ..., digests: _Optional[_Mapping[str, bytes]] = ..., voucher: _Optional[bytes] = ..., is_scaled: _Optional[bool] = ...) -> None: ...

class TrainReceipt(_message.Message):
    __slots__ = ("run", "round", "attempt", "client", "status", "num_examples", "num_steps", "loss", "before", "after", "seconds", "withheld", "num_tokens", "micro_batch_size", "wire_bytes", "wire_sha256", "keys")
    class SecondsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    WITHHELD_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    WIRE_BYTES_FIELD_NUMBER: _ClassVar[int]
    WIRE_SHA256_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    attempt: int
    client: str
    status: str
    num_examples: int
    num_steps: int
    loss: float
    before: Score
    after: Score
    seconds: _containers.ScalarMap[str, float]
    withheld: _containers.RepeatedScalarFieldContainer[str]
    num_tokens: int
    micro_batch_size: int
    wire_bytes: int
    wire_sha256: str
    keys: SumKeys
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., attempt: _Optional[int] = ..., client: _Optional[str] = ..., status: _Optional[str] = ..., num_examples: _Optional[int] = ..., num_steps: _Optional[int] = ..., loss: _Optional[float] = ..., before: _Optional[_Union[Score, _Mapping]] = ..., after: _Optional[_Union[Score, _Mapping]] = ..., seconds: _Optional[_Mapping[str, float]] = ..., withheld: _Optional[_Iterable[str]] = ..., num_tokens: _Optional[int] = ..., micro_batch_size: _Optional[int] = ..., wire_bytes: _Optional[int] = ..., wire_sha256: _Optional[str] = ..., keys: _Optional[_Union[SumKeys, _Mapping]] = ...) -> None: ...

class EvaluateRequest(_message.Message):
    __slots__ = ("run", "round", "num_examples", "shard", "num_shards", "with_predictions", "num_generated", "of_validation")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    NUM_SHARDS_FIELD_NUMBER: _ClassVar[int]
    WITH_PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_GENERATED_FIELD_NUMBER: _ClassVar[int]
    OF_VALIDATION_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    num_examples: int
    shard: int
    num_shards: int
    with_predictions: bool
    num_generated: int
    of_validation: bool
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., num_examples: _Optional[int] = ..., shard: _Optional[int] = ..., num_shards: _Optional[int] = ..., with_predictions: _Optional[bool] = ..., num_generated: _Optional[int] = ..., of_validation: _Optional[bool] = ...) -> None: ...

class EvaluateReceipt(_message.Message):
    __slots__ = ("run", "round", "shard", "groups", "predictions", "generated", "answers")
    class GroupsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Score
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Score, _Mapping]] = ...) -> None: ...
    class PredictionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    class GeneratedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Generated
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Generated, _Mapping]] = ...) -> None: ...
    class AnswersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: str
        def __init__(self, key: _Optional[int] = ..., value: _Optional[str] = ...) -> None: ...
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    shard: int
    groups: _containers.MessageMap[str, Score]
    predictions: _containers.ScalarMap[int, int]
    generated: _containers.MessageMap[str, Generated]
    answers: _containers.ScalarMap[int, str]
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., shard: _Optional[int] = ..., groups: _Optional[_Mapping[str, Score]] = ..., predictions: _Optional[_Mapping[int, int]] = ..., generated: _Optional[_Mapping[str, Generated]] = ..., answers: _Optional[_Mapping[int, str]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "text")
    CODE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    code: str
    text: str
    def __init__(self, code: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...
