"""Who calls: each call to the API is let in by the key that it shows, before anything of it is read."""

from contextvars import ContextVar
from typing import Any

import grpc

from nanoserve.bearer import OPEN_METHODS, bearer_token
from nanoserve.v1 import admin_pb2
from scheduler_svc.api_keys import find_key
from scheduler_svc.errors import abort
from scheduler_svc.frontend import Frontend
from scheduler_svc.messages import ApiKey, Code, Problem

_ADMIN_METHODS = f"/{admin_pb2.DESCRIPTOR.services_by_name['AdminService'].full_name}/"
# A call is a task of its own, and so has a context of its own.
_caller: ContextVar[ApiKey | None] = ContextVar("caller", default=None)


def caller_tenant() -> str:
    """Whose call this is; empty where keys are not asked for."""
    key = _caller.get()
    return "" if key is None else key.tenant


def caller_salt(cache_salt: str) -> bytes:
    """The salt of a request of this call: a tenant's are its own, unless its prefixes are shared on purpose."""
    key, salt = _caller.get(), cache_salt.encode()
    if key is None:
        return salt
    # Neither can be the other, nor another tenant's, whatever the request says: no tenant's name has a zero byte.
    return b"\0" + salt if key.shares_prefix_cache else key.tenant.encode() + b"\0" + salt


class KeyInterceptor(grpc.aio.ServerInterceptor):
    """Lets in who shows a good key: to AdminService if the key allows it, to health without any."""

    def __init__(self, frontend: Frontend) -> None:
        """`frontend` knows the keys of the moment."""
        self._frontend = frontend

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """The handler of a call, or one that refuses it."""
        method = handler_call_details.method
        if method.startswith(OPEN_METHODS):
            return await continuation(handler_call_details)
        keys = self._frontend.keys
        if keys is None:
            return _refusing(Problem(Code.UNAVAILABLE, "the server is starting"))
        token = bearer_token(handler_call_details.invocation_metadata)
        key = find_key(keys, token) if token is not None else None
        if key is None:
            return _refusing(Problem(Code.UNAUTHENTICATED, ""))
        if method.startswith(_ADMIN_METHODS) and not key.is_admin:
            return _refusing(Problem(Code.PERMISSION_DENIED, "this key is not one of an administrator"))
        _caller.set(key)
        return await continuation(handler_call_details)


def _refusing(problem: Problem) -> "grpc.RpcMethodHandler[Any, Any]":
    """It reads nothing, so it ends calls of every kind at once."""

    async def refuse(requests: Any, context: Any) -> None:
        await abort(context, problem)

    return grpc.stream_stream_rpc_method_handler(refuse)
