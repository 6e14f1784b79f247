"""`nanoserve generate`: one prompt, its continuation on stdout."""

import argparse
import contextlib
import dataclasses
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from nanoserve_client.commands.shared import add_option_arguments, add_server_argument, connect, options_from
from nanoserve_client.options import GenerateOptions, Guided, Message, Prompt
from nanoserve_client.results import Completion, Delta
from nanoserve_client.sync_client import Client


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's flags."""
    parser.add_argument("prompt", metavar="PROMPT", help="text to continue; - reads it from stdin")
    add_server_argument(parser)
    parser.add_argument(
        "--chat", action="store_true", help="send PROMPT as a user's message, not as plain text"
    )
    parser.add_argument("--system", metavar="TEXT", help="a system message before it; implies --chat")
    parser.add_argument("--n", type=int, metavar="N", help="how many outputs; several are not streamed")
    parser.add_argument(
        "--logprobs", type=int, metavar="N", help="only with --json: log-probabilities, N alternatives"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    add_option_arguments(parser)
    _add_guide_arguments(parser)


def _add_guide_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what the output must look like").add_mutually_exclusive_group()
    group.add_argument("--json-schema", metavar="FILE", help="JSON of the schema in this file; - is stdin")
    group.add_argument("--regex", metavar="REGEX", help="text that this matches as a whole")
    group.add_argument(
        "--choice", action="append", metavar="TEXT", help="one of these texts; given once for each"
    )
    group.add_argument("--grammar", metavar="FILE", help="text of the Lark grammar in this file; - is stdin")


def _guide(arguments: argparse.Namespace) -> Guided | None:
    """What the flags say of the output's form; a file that cannot be read ends the process."""
    given = {name: getattr(arguments, name) for name in ("json_schema", "regex", "choice", "grammar")}
    given = {name: value for name, value in given.items() if value is not None}
    for name in given.keys() & {"json_schema", "grammar"}:
        try:
            given[name] = sys.stdin.read() if given[name] == "-" else Path(given[name]).read_text()
        except (OSError, UnicodeDecodeError) as error:
            arguments.parser.error(f"--{name.replace('_', '-')}: {error}")
    return Guided(**given) if given else None


def run(arguments: argparse.Namespace) -> int:
    """Prints the text as it comes; several outputs, and JSON, when they are whole."""
    if arguments.logprobs is not None and not arguments.json:
        arguments.parser.error("--logprobs: only --json prints them")
    options = dataclasses.replace(
        options_from(arguments), n=arguments.n, logprobs=arguments.logprobs, guided=_guide(arguments)
    )
    with _interrupted_once(), connect(arguments) as client:
        if arguments.json or (arguments.n or 1) > 1:
            completion = client.generate(_prompt(arguments), options=options, timeout=arguments.timeout)
            _print_whole(completion, as_json=arguments.json)
        else:
            _print_stream(client, _prompt(arguments), options, arguments.timeout)
    return 0


@contextlib.contextmanager
def _interrupted_once() -> Iterator[None]:
    """Within it a second Ctrl-C ends the process: amidst the clean-up after the first it could leave grpc waiting."""
    before = signal.getsignal(signal.SIGINT)

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    if before is not signal.default_int_handler:  # ignored, as in the background, or somebody else's
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, before)


def _prompt(arguments: argparse.Namespace) -> Prompt:
    text: str = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    if not arguments.chat and arguments.system is None:
        return text
    system = [] if arguments.system is None else [Message("system", arguments.system)]
    return [*system, Message("user", text)]


def _print_stream(client: Client, prompt: Prompt, options: GenerateOptions, timeout: float | None) -> None:
    begun = False
    try:
        with client.stream(prompt, options=options, timeout=timeout) as stream:
            for event in stream:
                if isinstance(event, Delta):
                    begun = True
                    print(event.text, end="", flush=True)
    finally:
        if begun:  # an error's message begins a line of its own
            print(flush=True)


def _print_whole(completion: Completion, *, as_json: bool) -> None:
    if as_json:
        record = dataclasses.asdict(completion)
        record["prompt_digest"] = completion.prompt_digest.hex()
        print(json.dumps(record, ensure_ascii=False))
        return
    for output in completion.outputs:
        print(f"[{output.index}] {output.text}")
