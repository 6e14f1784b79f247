"""The `guided` field of a request: checked here for size and company; what it says is the compiler's to judge."""

import json

from nanoserve.v1 import inference_pb2 as pb
from scheduler_svc.core.request import Guide
from scheduler_svc.errors import InvalidRequest, ServiceError
from scheduler_svc.grammars import EXTRA, is_available
from scheduler_svc.messages import Code, Problem

MAX_GUIDE_BYTES = 64 * 1024
_MAX_CHOICES = 1024
_IS_AVAILABLE = is_available()


def resolve_guide(request: pb.GenerateRequest, end_token_ids: tuple[int, ...]) -> Guide | None:
    """What the outputs must look like; None for anything. ServiceError names the field at fault."""
    kind = request.guided.WhichOneof("guide")
    if kind is None:
        return None
    path = f"guided.{kind}"
    if not _IS_AVAILABLE:
        description = f"is served only where the scheduler is installed with the extra nanoserve[{EXTRA}]"
        raise ServiceError(Problem(Code.UNIMPLEMENTED, description, path))
    if request.stop.ignore_eos:
        raise InvalidRequest("stop.ignore_eos", f"cannot be set with {path}, which says when an output ends")
    if not end_token_ids:
        raise InvalidRequest(path, "the model has no end token")
    text = _choices(request.guided.choice) if kind == "choice" else getattr(request.guided, kind)
    if not 1 <= len(text.encode()) <= MAX_GUIDE_BYTES:
        raise InvalidRequest(path, f"must have 1 to {MAX_GUIDE_BYTES} bytes")
    return Guide(kind, text)


def _choices(choice: pb.GuidedChoice) -> str:
    if not 1 <= len(choice.texts) <= _MAX_CHOICES:
        raise InvalidRequest("guided.choice", f"must have 1 to {_MAX_CHOICES} texts")
    for index, text in enumerate(choice.texts):
        if not text:
            raise InvalidRequest(f"guided.choice.texts[{index}]", "must not be empty")
    return json.dumps(list(choice.texts), ensure_ascii=False)
