"""What the package offers: names, equal clients, light imports."""

import inspect
import subprocess
import sys

import nanoserve_client as ns

NAMES = """
AlreadyExists ApiError AsyncClient AsyncStream Cancelled Client Completed Completion CompletionOutput
ConnectionFailed DeadlineExceeded Delta Event FieldViolation FinishReason Finished GenerateOptions
GenerateParams Guided Internal InvalidArgument InvalidRequest Load Message Messages ModelInfo NanoserveError
NotFound PermissionDenied Profile Prompt PromptLogprobs ProtocolError ResourceExhausted SamplingDefaults
ServerStartError Span Started StepStats Stream Timing TokenAlternative TokenLogprob Unauthenticated
Unavailable Unimplemented Usage
"""


def test_the_exported_names_are_these() -> None:
    assert sorted(ns.__all__) == sorted(NAMES.split())
    assert all(hasattr(ns, name) for name in ns.__all__)


def test_both_clients_have_the_same_methods_and_parameters() -> None:
    def surface(client: type) -> dict[str, list[tuple[str, object, object]]]:
        return {
            name: [(p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()]
            for name, method in inspect.getmembers(client, inspect.isfunction)
            if not name.startswith("_") or name == "__init__"
        }

    assert surface(ns.Client) == surface(ns.AsyncClient)
    assert surface(ns.Stream) == surface(ns.AsyncStream)


def test_every_error_is_in_one_tree() -> None:
    exported = [getattr(ns, name) for name in ns.__all__]
    errors = [e for e in exported if isinstance(e, type) and issubclass(e, BaseException)]
    assert len(errors) > 10
    assert all(issubclass(error, ns.NanoserveError) for error in errors)
    assert issubclass(ns.ConnectionFailed, ns.Unavailable)


def test_neither_library_nor_command_imports_a_service_a_model_framework_or_the_chaos_kit() -> None:
    code = (
        "import sys, nanoserve_client.cli, nanoserve_client.supervisor\n"
        "nanoserve_client.cli.main(['serve', '--help'])\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'scheduler_svc', 'executor_svc', 'huggingface_hub'}\n"
        "heavy |= {'numpy', 'nanoserve_client.chaos'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "heavy: []"
