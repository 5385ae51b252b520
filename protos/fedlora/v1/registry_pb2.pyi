from fedlora.v1 import messages_pb2 as _messages_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PublishedFile(_message.Message):
    __slots__ = ("name", "blob")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    name: str
    blob: _messages_pb2.Blob
    def __init__(self, name: _Optional[str] = ..., blob: _Optional[_Union[_messages_pb2.Blob, _Mapping]] = ...) -> None: ...

class PublishedAdapter(_message.Message):
    __slots__ = ("name", "version", "run", "round", "published_seconds", "metric_name", "metric", "base_model", "files")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    METRIC_NAME_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    run: str
    round: int
    published_seconds: int
    metric_name: str
    metric: float
    base_model: str
    files: _containers.RepeatedCompositeFieldContainer[PublishedFile]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., run: _Optional[str] = ..., round: _Optional[int] = ..., published_seconds: _Optional[int] = ..., metric_name: _Optional[str] = ..., metric: _Optional[float] = ..., base_model: _Optional[str] = ..., files: _Optional[_Iterable[_Union[PublishedFile, _Mapping]]] = ...) -> None: ...

class ListAdaptersRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "run")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    run: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., run: _Optional[str] = ...) -> None: ...

class ListAdaptersResponse(_message.Message):
    __slots__ = ("adapters", "next_page_token")
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    adapters: _containers.RepeatedCompositeFieldContainer[PublishedAdapter]
    next_page_token: str
    def __init__(self, adapters: _Optional[_Iterable[_Union[PublishedAdapter, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ReadFileRequest(_message.Message):
    __slots__ = ("version", "file", "offset", "run")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    version: int
    file: str
    offset: int
    run: str
    def __init__(self, version: _Optional[int] = ..., file: _Optional[str] = ..., offset: _Optional[int] = ..., run: _Optional[str] = ...) -> None: ...

class ReadFileResponse(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class WatchAdaptersRequest(_message.Message):
    __slots__ = ("after_version", "run")
    AFTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    after_version: int
    run: str
    def __init__(self, after_version: _Optional[int] = ..., run: _Optional[str] = ...) -> None: ...

class WatchAdaptersResponse(_message.Message):
    __slots__ = ("adapter", "is_over")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    IS_OVER_FIELD_NUMBER: _ClassVar[int]
    adapter: PublishedAdapter
    is_over: bool
    def __init__(self, adapter: _Optional[_Union[PublishedAdapter, _Mapping]] = ..., is_over: _Optional[bool] = ...) -> None: ...
