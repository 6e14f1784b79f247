"""The blocking client."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from nanoserve.profiles import Profile, decode_profile
from nanoserve.v1 import admin_pb2
from nanoserve_client import requests, responses
from nanoserve_client.connection import (
    DEFAULT_ADDRESS,
    DEFAULT_CONNECT_TIMEOUT,
    Connector,
    Deadline,
    Over,
    checked_address,
)
from nanoserve_client.credentials import Credentials
from nanoserve_client.errors import ApiError, ConnectionFailed, NanoserveError, stream_given_up
from nanoserve_client.events import CompletionBuilder
from nanoserve_client.lanes import Lanes
from nanoserve_client.options import GenerateOptions, GenerateParams, Messages, Prompt, merge_options
from nanoserve_client.results import Completion, Event, Load, ModelInfo
from nanoserve_client.resume import DEFAULT_RESUME_TIMEOUT, Resumption, checked_resume_timeout

_Response = TypeVar("_Response")


class Stream(Iterator[Event]):
    """The events of one generation. Leaving it early, by `break`, `with` or `close`, cancels the generation.

    The call is made when the stream is first read. Where it breaks, the generation goes on over another one.
    """

    def __init__(
        self,
        call: Callable[[Any, Over], Any],
        connector: Connector,
        builder: CompletionBuilder,
        resumption: Resumption,
    ) -> None:
        self._start = call
        self._call: Any = None
        self._over = threading.Event()
        self._connector = connector
        self._builder = builder
        self._resumption = resumption

    def __next__(self) -> Event:
        """The next event; ApiError where the call failed, ProtocolError where the server broke the contract."""
        while not self._over.is_set():
            event = self._read()
            if event is not None:
                self._resumption.advanced()
                return event
        raise StopIteration

    def _read(self) -> Event | None:
        """Reads a message; None where it is no news, or the call broke and another one is to be made."""
        try:
            if self._call is None:
                self._call = self._start(self._resumption.request(), self._over)
                if self._over.is_set():  # closed while the call was made
                    self._call.cancel()
            return self._builder.read(next(self._call))
        except StopIteration:
            self._over.set()
            self._builder.end()
            raise
        except grpc.RpcError as error:
            if self._builder.is_complete:  # only the call's status was lost
                self._over.set()
            if self._over.is_set():  # or closed by another thread or a signal handler
                raise StopIteration from None
            self._await_next_call(self._connector.failure(error), error)
        except ConnectionFailed as failure:
            self._await_next_call(failure, failure)
        except NanoserveError:
            if self._over.is_set():  # closed while it connected
                raise StopIteration from None
            self.close()
            raise
        except ValueError:  # as grpc says that its channel is closed
            self.close()
            self._connector.check_open()
            raise
        return None

    def _await_next_call(self, failure: ApiError, cause: Exception) -> None:
        try:
            pause = self._resumption.pause(failure, cause)
        except ApiError:
            self._over.set()
            raise
        self._call = None
        self._over.wait(pause)

    def result(self) -> Completion:
        """Reads what is left and returns the whole; NanoserveError where the stream was given up before its end."""
        for _ in self:
            pass
        if not self._builder.is_complete:
            raise stream_given_up()
        return self._builder.completion()

    def close(self) -> None:
        """Cancels the generation if it runs; the stream is over. Any thread may call it, any number of times."""
        self._over.set()
        if self._call is not None:
            self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class Client:
    """A blocking client of one server. Threads may share it. AsyncClient has the same methods.

    `address` is host:port or unix:PATH. A connection is made at the first call, within `connect_timeout` seconds;
    one that is refused raises ConnectionFailed at once, unless `wait_for_ready` says to try again until then. Every
    `timeout` is the call's deadline in seconds, connecting included; None is no deadline. Generations are spread over
    `connections`: one is enough unless the server has `--api-workers`, see docs/adr/0006-api-workers.md.

    A generation whose stream breaks goes on where it was, at most `resume_timeout` seconds later, on whatever scheduler
    answers then; 0 raises the error instead. See docs/reliability.md.

    `api_key` is shown with every call. `tls_ca` names a PEM file of the roots that the server's certificate must come
    from, and turns TLS on; `tls_cert` and `tls_key` the files of a certificate to show. `insecure` allows a key to be
    sent to another machine without TLS. See docs/security.md. `prefix_key` names what the prompts begin with, or
    who sends them: a gateway sends one key's calls to one server. See docs/deployment.md.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        connect_timeout: float = DEFAULT_CONNECT_TIMEOUT,
        wait_for_ready: bool = False,
        connections: int = 1,
        resume_timeout: float = DEFAULT_RESUME_TIMEOUT,
        api_key: str | None = None,
        tls_ca: str | None = None,
        tls_cert: str | None = None,
        tls_key: str | None = None,
        insecure: bool = False,
        prefix_key: str | None = None,
    ) -> None:
        self.address = checked_address(address)
        credentials = Credentials(self.address, api_key, tls_ca, tls_cert, tls_key, insecure, prefix_key)
        self._connector = Connector(address, connect_timeout, wait_for_ready)
        self._resume_timeout = checked_resume_timeout(resume_timeout)
        self._lanes = Lanes(credentials.channel, connections, credentials.metadata)

    def stream(
        self,
        prompt: Prompt,
        *,
        options: GenerateOptions | None = None,
        timeout: float | None = None,
        **params: Unpack[GenerateParams],
    ) -> Stream:
        """Generates, and yields events as they come. `params` go before `options`."""
        merged = merge_options(options, params)
        builder = CompletionBuilder.for_options(merged)
        request = requests.generate_request(prompt, merged)
        trace = requests.trace_metadata(merged.trace_headers)
        deadline = Deadline(timeout)

        def call(request: Any, over: Over) -> Any:
            self._connector.connect(deadline, over)
            return self._lanes.generate(request, deadline.remaining(), trace)

        resumption = Resumption(request, builder, self._resume_timeout, deadline)
        return Stream(call, self._connector, builder, resumption)

    def generate(
        self,
        prompt: Prompt,
        *,
        options: GenerateOptions | None = None,
        timeout: float | None = None,
        **params: Unpack[GenerateParams],
    ) -> Completion:
        """Generates, and returns all outputs when they have ended."""
        with self.stream(prompt, options=options, timeout=timeout, **params) as stream:
            return stream.result()

    def chat(
        self,
        messages: Messages,
        *,
        options: GenerateOptions | None = None,
        timeout: float | None = None,
        **params: Unpack[GenerateParams],
    ) -> Completion:
        """Generates the next message of a conversation."""
        return self.generate(requests.check_messages(messages), options=options, timeout=timeout, **params)

    def tokenize(
        self,
        prompt: str | Messages,
        *,
        template_options: Mapping[str, Any] | None = None,
        add_generation_prompt: bool | None = None,
        model: str = "",
        timeout: float | None = None,
    ) -> tuple[int, ...]:
        """Token ids of a text or a chat, as `generate` would make them."""
        request = requests.tokenize_request(prompt, template_options, add_generation_prompt, model)
        return tuple(self._unary(self._lanes.first.inference.Tokenize, request, timeout).token_ids)

    def detokenize(
        self,
        token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = False,
        model: str = "",
        timeout: float | None = None,
    ) -> str:
        """Text of token ids; bytes that are no UTF-8 show as U+FFFD."""
        request = requests.detokenize_request(token_ids, skip_special_tokens, model)
        text: str = self._unary(self._lanes.first.inference.Detokenize, request, timeout).text
        return text

    def model_info(self, *, model: str = "", timeout: float | None = None) -> ModelInfo:
        """What is served: limits, defaults, fingerprints."""
        request = requests.get_model_request(model)
        return responses.model_info(self._unary(self._lanes.first.inference.GetModel, request, timeout))

    def get_load(self, *, timeout: float | None = None) -> Load:
        """The server's load of this moment."""
        return responses.load(
            self._unary(self._lanes.first.admin.GetLoad, admin_pb2.GetLoadRequest(), timeout)
        )

    def switch_executor(self, executor: str, *, timeout: float | None = None) -> int:
        """Moves what runs to the executor at that address, between two steps; returns its session's epoch."""
        request = requests.switch_executor_request(executor)
        response = self._unary(self._lanes.first.admin.SwitchExecutor, request, timeout)
        return int(response.epoch)

    def start_profile(self, num_steps: int = 0, *, timeout: float | None = None) -> None:
        """Begins to record `num_steps` forward passes of both services, 0: as many as may be; see docs/profiling.md."""
        request = admin_pb2.StartProfileRequest(num_steps=num_steps)
        self._unary(self._lanes.first.admin.StartProfile, request, timeout)

    def stop_profile(self, *, timeout: float | None = None) -> Profile:
        """Ends the recording, unless it has ended by itself, and returns it."""
        request = admin_pb2.StopProfileRequest()
        return decode_profile(self._unary(self._lanes.first.admin.StopProfile, request, timeout))

    def close(self) -> None:
        """Closes the connection; streams still open end."""
        self._connector.close()
        for channel in self._lanes.close():
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _unary(self, method: Callable[..., _Response], request: Any, timeout: float | None) -> _Response:
        deadline = Deadline(timeout)
        self._connector.connect(deadline)
        try:
            return method(request, timeout=deadline.remaining(), metadata=self._lanes.metadata)
        except grpc.RpcError as error:
            raise self._connector.failure(error) from error
        except ValueError:  # as grpc says that its channel is closed
            self._connector.check_open()
            raise
