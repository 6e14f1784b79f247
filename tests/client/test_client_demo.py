"""The demo's verdict: it must not say that all is well when it is not."""

import asyncio
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import fake_server
import grpc
import pytest

from nanoserve.v1 import admin_pb2
from nanoserve.v1 import inference_pb2 as pb

EMPTY = admin_pb2.Load(num_total_blocks=9, num_free_blocks=9, num_prefix_query_tokens=10)
HELD = admin_pb2.Load(num_total_blocks=9, num_free_blocks=8, num_held_blocks=1)


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "experiments"))
    module = importlib.import_module("demo")
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.1)
    return module


@pytest.mark.parametrize(
    ("wrong", "load", "verdict"),
    [(None, EMPTY, True), ("Count", EMPTY, False), (None, HELD, False)],
)
def test_all_is_well_only_if_every_answer_is_right_and_no_block_held(
    demo: ModuleType,
    wrong: str | None,
    load: admin_pb2.Load,
    verdict: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers = {question.text: question.expected for question in demo.questions()}

    def script(request: pb.GenerateRequest, context: grpc.ServicerContext) -> Iterator[pb.GenerateResponse]:
        asked = request.chat.messages[-1].content
        text = answers[asked]
        yield from fake_server.answer(text[:2], text[2:], "!" if wrong and asked.startswith(wrong) else "")

    servicer = fake_server.FakeServicer(script)
    servicer.load = load
    with fake_server.running(servicer) as address:
        assert asyncio.run(demo.run(address)) is verdict
    told = capsys.readouterr()
    assert ("wrong answer" in told.err) == (wrong is not None)
    assert ("1 blocks are still held" in told.err) == (load is HELD)
    assert all(f"  {answer}" in told.out for answer in answers.values())


def test_the_demo_asks_a_dozen_different_things_and_shares_a_long_prompt(demo: ModuleType) -> None:
    asked = demo.questions()
    assert len({question.text for question in asked}) == len(asked) >= 12
    assert sum(question.system == demo.LONG_SYSTEM for question in asked) >= 4
    assert len(demo.LONG_SYSTEM) > 500
