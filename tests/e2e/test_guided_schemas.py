"""JSON of random schemas from the shipped model, through both services."""

import asyncio
import sys
from pathlib import Path

from nanoserve_client import Client, Guided
from nanoserve_client.supervisor import LocalServer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
from guided_schemas import try_schemas


def test_json_that_ends_by_itself_conforms_to_its_schema(demo_server: LocalServer):
    asked, stopped, wrong = asyncio.run(try_schemas(demo_server.address, 40, max_tokens=96))
    assert wrong == []
    assert asked.total() == 40
    assert stopped.total() >= 10


def test_guided_and_greedy_answers_fit_together(demo_server: LocalServer):
    with Client(demo_server.address) as client:
        for seed in range(6):
            answer = client.generate(
                "x", guided=Guided(choice=["red", "green", "blue"]), temperature=1.0, seed=seed
            )
            assert answer.text in ("red", "green", "blue")
