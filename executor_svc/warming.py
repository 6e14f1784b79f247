"""The executor's gRPC face from its first moment on: until it is warm, Describe says so and nothing else is served."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

import grpc

from executor_svc.wire import Identity
from nanoserve.executor.v1 import executor_pb2 as pb
from nanoserve.executor.v1 import executor_pb2_grpc

if TYPE_CHECKING:
    from executor_svc.service import ExecutorService


class WarmingService(executor_pb2_grpc.ExecutorServiceServicer):
    """Hands calls on to the service once there is one."""

    def __init__(self, identity: Identity) -> None:
        self.ready: ExecutorService | None = None
        self._description = pb.ExecutorDescription(
            instance_id=identity.instance_id,
            model_fingerprint=identity.model_fingerprint,
            weights_fingerprint=identity.weights_fingerprint,
            version=identity.version,
        )

    def Describe(self, request: pb.DescribeRequest, context: grpc.ServicerContext) -> pb.DescribeResponse:
        """Says what the executor is, or is going to be."""
        if self.ready is None:
            return pb.DescribeResponse(description=self._description, warming_up=True)
        return self.ready.Describe(request, context)

    def Execute(
        self, request_iterator: Iterator[pb.ExecuteRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.ExecuteResponse]:
        """Runs a session."""
        yield from (self.ready or _refuse(context)).Execute(request_iterator, context)

    def StartProfile(
        self, request: pb.StartProfileRequest, context: grpc.ServicerContext
    ) -> pb.StartProfileResponse:
        """Begins a profile."""
        return (self.ready or _refuse(context)).StartProfile(request, context)

    def StopProfile(
        self, request: pb.StopProfileRequest, context: grpc.ServicerContext
    ) -> pb.StopProfileResponse:
        """Ends the profile and returns it."""
        return (self.ready or _refuse(context)).StopProfile(request, context)


def _refuse(context: grpc.ServicerContext) -> NoReturn:
    context.abort(grpc.StatusCode.UNAVAILABLE, "the executor is warming up")
