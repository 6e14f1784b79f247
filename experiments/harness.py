"""What the experiments of the study share: cases, the services they are measured on, resuming, and the command line.

A case has a name, the parameters that define it and the flags of the services that it wants. Cases that follow one
another with equal flags share the services. Each measured case is written at once to `--out`, so a run that is cut
short (`--minutes` does it cleanly) goes on where it was when the same command is given again.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.load import LoadClients, add_load_arguments, load_clients
from benchmarks.measure import scheduler_flags
from benchmarks.report import environment, print_table
from benchmarks.server import Server, add_start_arguments, serving
from benchmarks.shapes import Shape, shape_of
from experiments.progress import Progress
from experiments.sizes import Sizes, sizes_of
from experiments.store import Row, Store, StudyError, opened

UNFINISHED = 3
"""Exit status where `--minutes` were over before the last case: the same command again goes on."""
_MOST_COLUMNS = 10
_DEFAULT_OUT = Path(".run") / "study"


@dataclass(frozen=True, slots=True)
class Bench:
    """What a case is measured on."""

    server: Server
    clients: LoadClients
    arguments: argparse.Namespace

    @property
    def shape(self) -> Shape:
        """Of the model that is served."""
        return shape_of(self.arguments.model_shape)


@dataclass(frozen=True, slots=True)
class Case:
    """One row of an experiment."""

    name: str
    parameters: Mapping[str, Any]
    """With the flags, all that the figures depend on: where it changes, the case is measured again."""
    measure: Callable[[Bench], Row] | None
    """None for a case that wants no services."""
    executor_flags: tuple[str, ...] = ()
    scheduler_flags: tuple[str, ...] = ()
    alone: Callable[[argparse.Namespace], Row] | None = None
    """What such a case has instead."""

    @property
    def defined_by(self) -> dict[str, Any]:
        """The parameters and the flags."""
        flags = {"executor_flags": self.executor_flags, "scheduler_flags": self.scheduler_flags}
        return {**self.parameters, **(flags if self.measure else {})}


Experiment = Callable[[Sizes, argparse.Namespace], list[Case]]
"""The cases of an experiment, for these sizes and arguments."""


@dataclass(slots=True)
class Services:
    """The services of the last case, kept for as long as the flags stay the same."""

    arguments: argparse.Namespace
    _flags: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    _bench: Bench | None = None
    _stack: ExitStack = field(default_factory=ExitStack)

    def measure(self, case: Case) -> Row:
        """The case's figures, on services that are started where those at hand will not do.

        BenchmarkError where one of them ended meanwhile.
        """
        if case.measure is None:
            assert case.alone is not None
            self.close()  # so that nothing else runs, nor holds memory
            return case.alone(self.arguments)
        flags = case.executor_flags, case.scheduler_flags
        if self._bench is None or self._flags != flags:
            self.close()
            self._bench, self._flags = self._start(case), flags
        row = case.measure(self._bench)
        self._bench.server.check()
        return row

    def close(self) -> None:
        """Ends the services; BenchmarkError where one had ended before."""
        self._bench = None
        stack, self._stack = self._stack, ExitStack()
        stack.close()

    def _start(self, case: Case) -> Bench:
        device = f"--device={self.arguments.device}"
        flags = [device, *case.executor_flags], [*scheduler_flags("W5"), *case.scheduler_flags]
        server = self._stack.enter_context(serving(self.arguments, *flags))
        clients = self._stack.enter_context(load_clients(server.address, self.arguments))
        return Bench(server, clients, self.arguments)


def run(experiments: Mapping[str, Experiment], arguments: argparse.Namespace) -> int:
    """Measures what is not measured yet; 1 where a case failed, UNFINISHED where the time was over."""
    stores, left = _planned(experiments, arguments)
    num_cases = sum(len(cases) for _, cases in stores)
    progress = Progress(num_cases, num_cases - len(left))
    services = Services(arguments)
    begun = time.monotonic()
    try:
        for number, (store, case) in enumerate(left):
            if arguments.minutes is not None and time.monotonic() - begun > 60 * arguments.minutes:
                progress.tell(f"{len(left) - number} cases are left: the same command again goes on")
                return UNFINISHED
            progress.show(f"{store.experiment}: {case.name}")
            _measure(services, store, case, progress)
            progress.done()
    finally:
        _close(services, progress)
    progress.show("done")
    progress.tell("")
    for store, _ in stores:
        print_rows(store)
    return 1 if any(store.failures for store, _ in stores) else 0


def _planned(
    experiments: Mapping[str, Experiment], arguments: argparse.Namespace
) -> tuple[list[tuple[Store, list[Case]]], list[tuple[Store, Case]]]:
    """Every experiment's file and cases, and the cases that have no row yet."""
    here, shape = environment(), arguments.model_shape
    sizes = sizes_of("quick" if arguments.quick else shape, shape)
    sizes = replace(sizes, runs=arguments.runs or sizes.runs)
    stores = []
    for name, experiment in experiments.items():
        store = opened(arguments.out, name, shape, here, fresh=arguments.fresh)
        stores.append((store, experiment(sizes, arguments)))
    left = [
        (store, case)
        for store, cases in stores
        for case in cases
        if store.row(case.name, _parameters(case, arguments)) is None
    ]
    return stores, left


def _parameters(case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    given = {"executor_flag": arguments.executor_flag, "scheduler_flag": arguments.scheduler_flag}
    return {
        **case.defined_by,
        "device": arguments.device,
        **{name: value for name, value in given.items() if value},
    }


def _measure(services: Services, store: Store, case: Case, progress: Progress) -> None:
    parameters = _parameters(case, services.arguments)
    try:
        store.add(case.name, parameters, services.measure(case))
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200]
        store.fail(case.name, reason)
        progress.tell(f"{store.experiment}: {case.name} failed: {reason}")
        _close(services, progress)


def _close(services: Services, progress: Progress) -> None:
    try:
        services.close()
    except Exception as error:
        progress.tell(f"{type(error).__name__}: {error}")


def print_rows(store: Store) -> None:
    """A table of the first figures of an experiment, those that most cases have before others; the file has all."""
    counts = Counter(name for row in store.rows for name, value in row.items() if _is_figure(name, value))
    columns = [name for name, _ in counts.most_common()]
    print(f"\n{store.experiment} ({store.model})")
    print_table(store.rows, columns[:_MOST_COLUMNS])


def _is_figure(name: str, value: Any) -> bool:
    return name not in ("commit", "date") and not isinstance(value, dict | list)


def parser(description: str | None) -> argparse.ArgumentParser:
    """The command line of every experiment."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_start_arguments(result)
    add_load_arguments(result)
    result.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    result.add_argument(
        "--out",
        type=Path,
        default=_DEFAULT_OUT,
        metavar="DIR",
        help="where the JSON goes (default: %(default)s)",
    )
    result.add_argument(
        "--minutes", type=float, metavar="M", help="begin no case after so many minutes; exit status 3"
    )
    result.add_argument(
        "--runs", type=int, metavar="N", help="equal runs, of which the one in the middle counts"
    )
    result.add_argument("--fresh", action="store_true", help="measure again what --out has")
    result.add_argument(
        "--quick", action="store_true", help="sizes of seconds, to try the command; no figures to keep"
    )
    return result


def main(
    description: str | None, name: str, experiment: Experiment, arguments: Sequence[str] | None = None
) -> int:
    """The command that an experiment is."""
    return checked_run({name: experiment}, parser(description).parse_args(arguments))


def checked_run(experiments: Mapping[str, Experiment], arguments: argparse.Namespace) -> int:
    """Like `run`, with what cannot go on as a line on stderr and status 2."""
    try:
        return run(experiments, arguments)
    except StudyError as error:
        print(error, file=sys.stderr)
        return 2
