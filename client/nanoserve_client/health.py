"""Whether a process serves, by grpc.health.v1."""

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nanoserve_client.connection import channel_options


def is_serving(address: str, timeout: float = 2.0) -> bool:
    """Whether the server at `address`, which has no TLS, answers SERVING within `timeout` seconds."""
    with grpc.insecure_channel(address, options=channel_options()) as channel:
        return serving_status(channel, timeout) == "SERVING"


def serving_status(channel: grpc.Channel, timeout: float) -> str | None:
    """The status that the server answers within `timeout` seconds, such as "NOT_SERVING"; None where it does not."""
    stub = health_pb2_grpc.HealthStub(channel)
    try:
        response = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout)
    except grpc.RpcError:
        return None
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))
