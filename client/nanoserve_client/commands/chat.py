"""`nanoserve chat`: a conversation on the terminal."""

import argparse
import contextlib
import sys

from nanoserve_client.commands.shared import add_option_arguments, add_server_argument, connect, options_from
from nanoserve_client.errors import ApiError, ConnectionFailed, InvalidRequest, NanoserveError
from nanoserve_client.options import GenerateOptions, Message
from nanoserve_client.results import Delta, Finished, FinishReason
from nanoserve_client.sync_client import Client

_HELP = "/exit leaves, /reset forgets the conversation, /system TEXT sets the system message; Ctrl-C stops an answer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's flags."""
    parser.epilog = f"Within the conversation: {_HELP}."
    add_server_argument(parser)
    parser.add_argument("--system", metavar="TEXT", help="a system message to begin with")
    add_option_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Reads messages from stdin until its end or /exit."""
    interactive = sys.stdin.isatty()
    if interactive:
        with contextlib.suppress(ImportError):  # Python can be built without it
            import readline  # noqa: F401  (gives input() line editing and a history)
    with connect(arguments) as client:
        info = client.model_info(timeout=10)
        if not info.has_chat_template:
            raise NanoserveError(f"{info.model} has no chat template: use `nanoserve generate`")
        if interactive:
            print(f"{info.model}. {_HELP}.", file=sys.stderr)
        conversation = Conversation(client, options_from(arguments), arguments.timeout, arguments.system)
        while (line := _read_line(interactive)) is not None and line != "/exit":
            conversation.take(line)
    return 0


def _read_line(interactive: bool) -> str | None:
    """The next line, stripped; None at the end of the input."""
    while True:
        try:
            return input("> " if interactive else "").strip()
        except EOFError:
            return None
        except KeyboardInterrupt:  # forgets the line, as a shell does
            print(file=sys.stderr)


class Conversation:
    """The messages so far, and what a line of input does to them."""

    def __init__(
        self, client: Client, options: GenerateOptions, timeout: float | None, system: str | None
    ) -> None:
        self._client = client
        self._options = options
        self._timeout = timeout
        self._system = [] if system is None else [Message("system", system)]
        self._turns: list[Message] = []

    def take(self, line: str) -> None:
        """Carries out a command, or answers a message on stdout; ConnectionFailed where the server is gone."""
        command, _, rest = line.partition(" ")
        if command == "/reset":
            self._turns = []
        elif command == "/system":
            self._system = [Message("system", rest)] if rest else []
        elif command.startswith("/"):
            print(f"{command}: no such command; {_HELP}", file=sys.stderr)
        elif line:
            self._answer(Message("user", line))

    def _answer(self, question: Message) -> None:
        texts: list[str] = []
        reason = None
        messages = [*self._system, *self._turns, question]
        try:
            stream = self._client.stream(messages, options=self._options, timeout=self._timeout)
        except InvalidRequest as error:
            print(f"nanoserve: {error}", file=sys.stderr)
            return
        try:
            for event in stream:
                if isinstance(event, Delta):
                    texts.append(event.text)
                    print(event.text, end="", flush=True)
                elif isinstance(event, Finished):
                    reason = event.finish_reason
        except KeyboardInterrupt:
            print(" (stopped)", end="", file=sys.stderr)
        except ConnectionFailed:
            raise
        except ApiError as error:
            print(f"nanoserve: {error}", file=sys.stderr)
            return
        finally:
            stream.close()
            if texts:
                print(flush=True)
        if reason is FinishReason.LENGTH:
            print("(cut off: the limit of tokens is reached)", file=sys.stderr)
        if texts:  # a part of an answer is part of the conversation
            self._turns += [question, Message("assistant", "".join(texts))]
