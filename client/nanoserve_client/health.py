"""Whether a process serves, by grpc.health.v1."""

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nanoserve_client.connection import channel_options


def is_serving(address: str, timeout: float = 2.0) -> bool:
    """Whether the server at `address` answers SERVING within `timeout` seconds."""
    with grpc.insecure_channel(address, options=channel_options()) as channel:
        try:
            response = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=timeout
            )
        except grpc.RpcError:
            return False
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)
