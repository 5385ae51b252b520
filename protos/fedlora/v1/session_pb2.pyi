from fedlora.v1 import messages_pb2 as _messages_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ConnectRequest(_message.Message):
    __slots__ = ("hello", "readiness", "answer")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    READINESS_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    readiness: Readiness
    answer: Answer
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., readiness: _Optional[_Union[Readiness, _Mapping]] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ...) -> None: ...

class ConnectResponse(_message.Message):
    __slots__ = ("welcome", "request", "cancellation", "acknowledgement", "drain", "turned_away", "no_run")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    CANCELLATION_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGEMENT_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    TURNED_AWAY_FIELD_NUMBER: _ClassVar[int]
    NO_RUN_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    request: Request
    cancellation: Cancellation
    acknowledgement: Acknowledgement
    drain: Drain
    turned_away: TurnedAway
    no_run: NoRun
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., request: _Optional[_Union[Request, _Mapping]] = ..., cancellation: _Optional[_Union[Cancellation, _Mapping]] = ..., acknowledgement: _Optional[_Union[Acknowledgement, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ..., turned_away: _Optional[_Union[TurnedAway, _Mapping]] = ..., no_run: _Optional[_Union[NoRun, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "version")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    version: str
    def __init__(self, protocol: _Optional[int] = ..., version: _Optional[str] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol", "version", "run_toml", "num_ready", "num_expected", "unix_seconds")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RUN_TOML_FIELD_NUMBER: _ClassVar[int]
    NUM_READY_FIELD_NUMBER: _ClassVar[int]
    NUM_EXPECTED_FIELD_NUMBER: _ClassVar[int]
    UNIX_SECONDS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    version: str
    run_toml: str
    num_ready: int
    num_expected: int
    unix_seconds: int
    def __init__(self, protocol: _Optional[int] = ..., version: _Optional[str] = ..., run_toml: _Optional[str] = ..., num_ready: _Optional[int] = ..., num_expected: _Optional[int] = ..., unix_seconds: _Optional[int] = ...) -> None: ...

class Readiness(_message.Message):
    __slots__ = ("description", "reason")
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    description: _messages_pb2.SiteDescription
    reason: str
    def __init__(self, description: _Optional[_Union[_messages_pb2.SiteDescription, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class Request(_message.Message):
    __slots__ = ("request_id", "adapter", "ticket", "precision", "initialise", "train", "evaluate", "sum", "former", "moments", "traceparent")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    INITIALISE_FIELD_NUMBER: _ClassVar[int]
    TRAIN_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_FIELD_NUMBER: _ClassVar[int]
    SUM_FIELD_NUMBER: _ClassVar[int]
    FORMER_FIELD_NUMBER: _ClassVar[int]
    MOMENTS_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    adapter: _messages_pb2.OfferedAdapter
    ticket: bytes
    precision: str
    initialise: _messages_pb2.InitialiseRequest
    train: _messages_pb2.TrainRequest
    evaluate: _messages_pb2.EvaluateRequest
    sum: _messages_pb2.SumRequest
    former: _messages_pb2.OfferedAdapter
    moments: _messages_pb2.OfferedAdapter
    traceparent: str
    def __init__(self, request_id: _Optional[str] = ..., adapter: _Optional[_Union[_messages_pb2.OfferedAdapter, _Mapping]] = ..., ticket: _Optional[bytes] = ..., precision: _Optional[str] = ..., initialise: _Optional[_Union[_messages_pb2.InitialiseRequest, _Mapping]] = ..., train: _Optional[_Union[_messages_pb2.TrainRequest, _Mapping]] = ..., evaluate: _Optional[_Union[_messages_pb2.EvaluateRequest, _Mapping]] = ..., sum: _Optional[_Union[_messages_pb2.SumRequest, _Mapping]] = ..., former: _Optional[_Union[_messages_pb2.OfferedAdapter, _Mapping]] = ..., moments: _Optional[_Union[_messages_pb2.OfferedAdapter, _Mapping]] = ..., traceparent: _Optional[str] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("request_id", "adapter", "initialise", "train", "evaluate", "failure", "sum")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    INITIALISE_FIELD_NUMBER: _ClassVar[int]
    TRAIN_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    SUM_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    adapter: _messages_pb2.SentAdapter
    initialise: _messages_pb2.InitialiseReceipt
    train: _messages_pb2.TrainReceipt
    evaluate: _messages_pb2.EvaluateReceipt
    failure: _messages_pb2.Failure
    sum: _messages_pb2.SumReceipt
    def __init__(self, request_id: _Optional[str] = ..., adapter: _Optional[_Union[_messages_pb2.SentAdapter, _Mapping]] = ..., initialise: _Optional[_Union[_messages_pb2.InitialiseReceipt, _Mapping]] = ..., train: _Optional[_Union[_messages_pb2.TrainReceipt, _Mapping]] = ..., evaluate: _Optional[_Union[_messages_pb2.EvaluateReceipt, _Mapping]] = ..., failure: _Optional[_Union[_messages_pb2.Failure, _Mapping]] = ..., sum: _Optional[_Union[_messages_pb2.SumReceipt, _Mapping]] = ...) -> None: ...

class FinishedRound(_message.Message):
    __slots__ = ("started_from", "answer")
    STARTED_FROM_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    started_from: str
    answer: Answer
    def __init__(self, started_from: _Optional[str] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ...) -> None: ...

class Cancellation(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class Acknowledgement(_message.Message):
    __slots__ = ("request_id", "refusal", "taken_back_round")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    TAKEN_BACK_ROUND_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    refusal: str
    taken_back_round: int
    def __init__(self, request_id: _Optional[str] = ..., refusal: _Optional[str] = ..., taken_back_round: _Optional[int] = ...) -> None: ...

class TurnedAway(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ("is_finished", "more_to_come")
    IS_FINISHED_FIELD_NUMBER: _ClassVar[int]
    MORE_TO_COME_FIELD_NUMBER: _ClassVar[int]
    is_finished: bool
    more_to_come: bool
    def __init__(self, is_finished: _Optional[bool] = ..., more_to_come: _Optional[bool] = ...) -> None: ...

class NoRun(_message.Message):
    __slots__ = ("unix_seconds",)
    UNIX_SECONDS_FIELD_NUMBER: _ClassVar[int]
    unix_seconds: int
    def __init__(self, unix_seconds: _Optional[int] = ...) -> None: ...
