import ast
import inspect
import subprocess
import sys
from importlib.metadata import packages_distributions, requires

import pytest
from packaging.requirements import Requirement

import onellm_async
from onellm_async import errors

PUBLIC = """
APIConnectionError APIError APIStatusError APITimeoutError ApiKey AsyncOneLLM AuthenticationError BadRequestError
BatchError BudgetExceededError CatalogEntry ChatOutcome ChatRequest ChatResponse CircuitOpenError ClientClosedError
ConfigurationError Conversation DeadlineExceededError Dialect Event FailureKind FanoutProgress Billing Hook
InsufficientBalanceError
InternalServerError InvalidRequestError Lane Limits Message MethodNotAllowedError Model NotFoundError OneLLMError
PermissionDeniedError Prompt QueueFullError Rate RateLimitError RateState ResponseDecodeError RetryPolicy Snapshot
OneLLM Attempt AttemptHooks RequestGroup BottleneckAnalysis Timeout UnprocessableEntityError Usage
RequestCancelledError StructureError __version__
analyze_bottlenecks
""".split()  # noqa: SIM905


def test_the_public_names_are_these_and_no_others() -> None:
    assert sorted(onellm_async.__all__) == sorted(PUBLIC)
    assert all(hasattr(onellm_async, name) for name in PUBLIC)


def test_every_error_is_public() -> None:
    assert set(errors.__all__) <= set(onellm_async.__all__)


def test_every_public_class_and_method_is_described() -> None:
    for name in PUBLIC:
        thing = getattr(onellm_async, name)
        if inspect.isclass(thing):
            assert inspect.getdoc(thing), name
            for member, value in vars(thing).items():
                if inspect.isfunction(value) and not member.startswith("_") and value.__module__.startswith("onellm"):
                    assert inspect.getdoc(getattr(thing, member)), f"{name}.{member}"


def imported_by(statement: str) -> set[str]:
    script = f"import sys; before = set(sys.modules); {statement}; print('\\n'.join(set(sys.modules) - before))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return set(run.stdout.split())


def test_the_package_itself_imports_nothing_until_a_name_is_used() -> None:
    assert not imported_by("import onellm_async") & {"aiohttp", "attrs", "cattrs", "onellm_async.client"}
    assert "onellm_async.client" in imported_by("from onellm_async import AsyncOneLLM")
    assert "onellm_async.catalog" in imported_by("import onellm_async; onellm_async.catalog.entries()")


def test_type_checkers_and_the_interpreter_import_the_same_names() -> None:
    tree = ast.parse(inspect.getsource(onellm_async))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {name.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert seen == {name: f"onellm_async.{room}" for name, room in onellm_async._HOMES.items()}
    assert {*seen, "__version__"} == set(PUBLIC) <= set(dir(onellm_async))


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'AsyncOneLM'"):
        onellm_async.AsyncOneLM  # type: ignore[attr-defined]  # noqa: B018


def test_importing_the_package_imports_only_what_a_chat_needs() -> None:
    modules = imported_by("from onellm_async import *")
    rooms = {name.split(".")[1] for name in modules if name.startswith("onellm_async.")}
    assert not rooms & {"server", "cli", "batch", "simulation", "quota", "testing", "integrations", "__main__"}
    assert "gateway" not in rooms
    assert not modules & {
        "tenacity",
        "cyclopts",
        "rich",
        "sqlite3",
        "pytest",
        "aiohttp.web",
        "uvloop",
        "fastapi",
        "redis",
    }


DIRECT = {"aiohttp", "attrs", "cattrs", "orjson", "tenacity"}
NEEDS_AN_EXTRA = ("cli", "integrations", "report", "testing.pytest_plugin", "__main__")
WITHOUT_EXTRAS = """
import asyncio, importlib, pkgutil, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import onellm_async
for module in pkgutil.walk_packages(onellm_async.__path__, "onellm_async."):
    if not module.name.removeprefix("onellm_async.").startswith({skipped!r}):
        try:
            importlib.import_module(module.name)
        except onellm_async.OneLLMError as error:
            assert "pip install 'onellm-async[" in str(error)

async def main():
    from onellm_async.testing import FakeTransport
    async with onellm_async.AsyncOneLLM(transport=FakeTransport()) as client:
        print((await client.chat("Hello", model="GPT-5-Nano")).content)

asyncio.run(main())
"""


def test_the_package_needs_five_others_and_works_without_any_extra() -> None:
    wanted = [Requirement(text) for text in requires("onellm-async") or []]
    extras = {wanted.name for wanted in wanted if wanted.marker is not None}
    assert {wanted.name for wanted in wanted if wanted.marker is None} == DIRECT
    owners = packages_distributions()
    absent = {name for name, owner in owners.items() if extras & {one.lower() for one in owner}} - DIRECT
    assert {"cyclopts", "rich"} <= absent
    script = WITHOUT_EXTRAS.format(absent=absent, skipped=NEEDS_AN_EXTRA)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.stdout == "Hello\n", run.stderr


def test_the_signature_of_the_client_is_stable() -> None:
    parameters = list(inspect.signature(onellm_async.AsyncOneLLM).parameters)
    assert parameters == [
        "api_key",
        "base_url",
        "limits",
        "rate_state",
        "retry",
        "timeout",
        "dialect",
        "endpoints",
        "session",
        "proxy",
        "ssl",
        "trust_env",
        "headers",
        "hooks",
        "telemetry",
        "allow_insecure",
        "transport",
        "random",
        "quota",
        "prices",
    ]
