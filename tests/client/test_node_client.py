"""The Node client's own tests, against servers that this starts. `make test-node` installs what they need."""

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import Authorities

from nanoserve_client import Client
from nanoserve_client.supervisor import LocalServer

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "client" / "node"
NODE = shutil.which("node")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(NODE is None, reason="node is not installed"),
    pytest.mark.skipif(
        not (FOLDER / "node_modules").is_dir(), reason="`make test-node` installs what it needs"
    ),
]
KEY = "nsk-of-the-node-client"
QUESTION = [{"role": "user", "content": "Count from 3 to 60."}]
# As the Node client sends it, and as the Python client does.
ASKED: list[tuple[dict[str, Any], Any]] = [
    ({"chat": {"messages": QUESTION}, "sampling": {"temperature": 0}}, QUESTION),
    ({"text": "one, two,", "sampling": {"temperature": 0}, "stop": {"maxTokens": 30}}, "one, two,"),
]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, authorities: Authorities) -> Iterator[dict[str, Any]]:
    """Where an open and a secured server are, and what the Python client gets from the open one."""
    keys = tmp_path_factory.mktemp("keys") / "keys.toml"
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys.write_text(f'[[keys]]\nsha256 = "{digest}"\ntenant = "node"\nmax_concurrency = 1\n')
    tls = [f"--tls-cert={authorities.ours.good.cert}", f"--tls-key={authorities.ours.good.key}"]
    with (
        LocalServer(executor_flags=["--verify", "--num-kv-blocks=200"]) as server,
        LocalServer(
            executor_flags=["--virtual", "--virtual-vocab-size=768"],
            scheduler_flags=[f"--api-key-file={keys}", *tls],
        ) as secured,
        Client(server.address) as client,
    ):
        answers = []
        for request, prompt in ASKED:
            answer = client.generate(
                prompt, temperature=0, max_tokens=request.get("stop", {}).get("maxTokens")
            )
            answers.append({"request": request, "text": answer.text, "tokenIds": list(answer.token_ids)})
        yield {
            "address": server.address,
            "secured": {
                "address": secured.address.replace("127.0.0.1", "localhost"),
                "apiKey": KEY,
                "tlsCa": authorities.ours.ca,
            },
            "answers": answers,
        }


def node(*words: str, folder: Path, text: str = "", **variables: str) -> str:
    """What a program prints that ends well."""
    assert NODE is not None
    done = subprocess.run(
        [NODE, *words],
        cwd=folder,
        input=text,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout


def test_the_node_client_passes_its_tests(servers: dict[str, Any]) -> None:
    told = node("--test", "--test-reporter=tap", folder=FOLDER, NANOSERVE_TEST=json.dumps(servers))
    assert told.count("\nok ") == told.count("# Subtest: ") > 10


@pytest.mark.parametrize(
    ("page", "answer"), [("client/node/README.md", "168"), ("docs/clients.md", " 4, 5, 6, 7, 8")]
)
def test_what_a_page_shows_runs(servers: dict[str, Any], page: str, answer: str) -> None:
    path = ROOT / page
    (code,) = re.findall(r"```js\n(.*?)```", path.read_text(), re.DOTALL)
    folder = FOLDER if FOLDER in path.parents else ROOT
    code = code.replace("127.0.0.1:50051", servers["address"])
    assert node("--input-type=module", folder=folder, text=code).startswith(answer)
