"""Every check of the project. `nox` alone runs what a change must pass; `nox -l` lists the rest."""

import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False
nox.options.stop_on_first_error = False

PYPROJECT = nox.project.load_toml("pyproject.toml")
SUPPORTED = ["3.11", "3.12", "3.13", "3.14"]


def runs(interpreter: str) -> bool:
    """Whether it can be started; pyenv's shims exist for versions that are not active, too."""
    return shutil.which(interpreter) is not None and not subprocess.call(
        [interpreter, "-c", ""], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def found() -> list[str]:
    """The supported Pythons of this machine, on the PATH or among pyenv's."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for version in SUPPORTED:
        homes = sorted(versions.glob(f"{version}.*/bin"))
        if homes and not runs(f"python{version}"):
            os.environ["PATH"] = f"{homes[-1]}{os.pathsep}{os.environ['PATH']}"
    return [version for version in SUPPORTED if runs(f"python{version}")]


FOUND = found() or SUPPORTED[:1]
LOWEST = ["--resolution", "lowest-direct"]  # of uv
CHECKED = ["onellm_async", "tests", "benchmarks", "examples", "noxfile.py"]
ON_THE_LAST_PYTHON = [f"tests/{part}" for part in ("unit", "batch", "server", "faults", "test_public_api.py")]
ON_THE_LAST_PYTHON += ["tests/simulation/test_clock.py"]
ON_THE_LAST_PYTHON += sorted(map(str, Path("tests/limits").glob("test_limiter*.py")))  # the rest is arithmetic
BETWEEN = ["tests/unit", "tests/test_public_api.py"]

nox.options.sessions = ["lint", "types", "imports", "tests", "wheel"]


def group(name: str) -> list[str]:
    """The packages of a dependency group."""
    return nox.project.dependency_groups(PYPROJECT, name)


@nox.session(python=FOUND[0])
def lint(session: nox.Session) -> None:
    """Style and likely mistakes."""
    session.install(*group("lint"))
    session.run("ruff", "check", *CHECKED)
    session.run("ruff", "format", "--check", *CHECKED)


@nox.session(python=FOUND[0])
def types(session: nox.Session) -> None:
    """The package is strictly typed, and its public face completely."""
    session.install(*group("lint"), "fastapi", "pytest", ".[cli,report,redis,prometheus,otel,langchain,pydantic-ai]")
    session.run("mypy")
    session.run("pyright", "--verifytypes", "onellm_async", "--ignoreexternal")


@nox.session(python=FOUND[0])
def imports(session: nox.Session) -> None:
    """Imports point strictly downwards."""
    session.install(*group("lint"), "-e", ".[cli,report]")
    session.run("lint-imports")


@nox.session(python=FOUND)
def tests(session: nox.Session) -> None:
    """The test suite, where every warning is an error.

    On the first Python everything; on the last what depends on the Python, which takes a third of the time; between
    them the unit tests. Only on these in development mode, which takes a third longer. Some tests wait for other
    processes rather than compute, so there is one worker more than cores. Arguments go to pytest:
    ``nox -s tests-3.13 -- tests`` runs everything there.
    """
    session.install(*group("tests"), "-e", ".[cli,report]")
    first = session.python == FOUND[0]
    mode = [] if first and FOUND[1:] else ["-X", "dev"]
    chosen = session.posargs or ([] if first else ON_THE_LAST_PYTHON if session.python == FOUND[-1] else BETWEEN)
    workers = ["-n", str((os.cpu_count() or 1) + 1), "--dist", "worksteal"]
    session.run("python", *mode, "-m", "pytest", "-q", *workers, *chosen)


@nox.session(python=FOUND[0])
def coverage(session: nox.Session) -> None:
    """What the tests miss, processes included; it takes twice as long as the tests."""
    session.install(*group("tests"), "-e", ".[cli,report]")
    session.run("coverage", "erase")
    session.run("python", "-X", "dev", "-m", "coverage", "run", "-m", "pytest", "-q")
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session(python=FOUND[-1])
def wheel(session: nox.Session) -> None:
    """What is published works: the wheel alone, without the checkout, answers the example prompts."""
    session.install("build")
    built = Path(session.create_tmp()).resolve() / "wheel"
    shutil.rmtree(built, ignore_errors=True)
    session.run("python", "-m", "build", "--wheel", "--outdir", str(built), silent=True)
    (package,) = built.glob("*.whl")
    session.install("--force-reinstall", f"{package}[cli]")
    prompts = Path("examples/prompts.txt").resolve()
    session.chdir(built)
    session.run("onellm-async", "run", str(prompts), "--local", "--rpm", "12000", "-o", "answers.jsonl")
    answered = len((built / "answers.jsonl").read_bytes().splitlines())
    asked = sum(1 for line in prompts.read_text(encoding="utf-8").splitlines() if line.strip())
    if answered != asked:
        session.error(f"{answered} answers for {asked} prompts")


@nox.session(python=FOUND)
def sdist(session: nox.Session) -> None:
    """The published archives pass the tests outside of the checkout. Takes as long as the tests, for each Python.

    The wheel is built from the sdist. Each is installed into an environment of its own, and the tests are those of the
    sdist, where it was unpacked. Arguments go to pytest.
    """
    session.install("build")
    with tempfile.TemporaryDirectory(prefix="onellm-async-") as folder:
        place = Path(folder)
        session.run("python", "-m", "build", "--outdir", folder, silent=True)
        (source,), (package,) = place.glob("*.tar.gz"), place.glob("*.whl")
        for number, archive in enumerate([source, package]):
            python = place / f"empty-{number}" / ("Scripts" if os.name == "nt" else "bin") / "python"
            session.run("python", "-m", "venv", str(python.parents[1]))
            session.run(str(python), "-m", "pip", "install", "-q", str(archive), external=True)
            session.chdir(folder)
            session.run(str(python), "-c", "from onellm_async import AsyncOneLLM", external=True)
        with tarfile.open(source) as files:
            files.extractall(folder, filter="data")
        session.chdir(place / source.name.removesuffix(".tar.gz"))
        session.install(*group("tests"), f"{package}[cli,report]")
        workers = ["-n", str(os.cpu_count() or 1), "--dist", "worksteal"]
        session.run("python", "-m", "pytest", "-q", *workers, *session.posargs)


@nox.session(python=FOUND[0], venv_backend="uv")
def lowest(session: nox.Session) -> None:
    """The test suite with the oldest version of each direct dependency that pyproject.toml allows."""
    extras = "cli,report,redis,prometheus,structured,otel"
    session.install(*LOWEST, *group("tests"), "-e", f".[{extras}]")
    session.run("python", "-m", "pytest", "-q", "-n", "auto", "--dist", "worksteal", *session.posargs)


@nox.session(python=FOUND[0])
@nox.parametrize("versions", ["newest", "lowest"])
def integrations(session: nox.Session, versions: str) -> None:
    """Adapters against the contract of their library, and bots on their platform; arguments go to pytest.

    With the newest versions of the libraries, and with the oldest that pyproject.toml allows.
    """
    oldest = LOWEST if versions == "lowest" else []
    extras = "cli,structured,prometheus,otel,langchain,pydantic-ai"
    session.install(*oldest, *group("integrations"), "-e", f".[{extras}]")
    if versions == "newest":
        session.run("mypy", "-p", "onellm_async.integrations")
    # Neither the settings nor the fixtures of the other tests: the contracts have their own.
    options = ["-c", os.devnull, "--rootdir", ".", "--confcutdir", "tests/integrations", "-o", "asyncio_mode=auto"]
    checks = sorted(map(str, Path("tests/integrations").glob("check_*.py")))
    session.run("pytest", "-q", *options, *(session.posargs or checks))


@nox.session(python=FOUND[0])
def tables(session: nox.Session) -> None:
    """DataFrames, relations and datasets as prompts, with the newest versions of their libraries."""
    session.install(*group("tests"), *group("tables"), "-e", ".[cli]")
    session.run("pytest", "-q", "-rs", *(session.posargs or ["tests/batch/test_tables_in_memory.py"]))


@nox.session(python=FOUND[0])
def openapi(session: nox.Session) -> None:
    """The local server does what its OpenAPI document says."""
    session.install(*group("openapi"), "-e", ".[cli]", "pytest-timeout", "pytest-asyncio")
    session.run("python", "tests/server/check_document.py", *session.posargs)


@nox.session(python=FOUND[0])
def gateway_clients(session: nox.Session) -> None:
    """Unchanged clients get all their answers from the gateway under a tight limit. Names of packages choose some."""
    session.install(
        *("-e", ".[cli]", "openai>=3", "langchain-openai>=1.7", "litellm>=1.100"),
        *("pydantic-ai-slim[openai]>=2", "instructor>=1.17"),
    )
    session.run("python", "tests/gateway/check_clients.py", *session.posargs)


@nox.session(python=FOUND[0])
def ray(session: nox.Session) -> None:
    """The Ray example answers every prompt once although actors are killed. Takes seven minutes and 500 MB."""
    session.install("-e", ".[cli]", "ray[data]>=2.51")
    session.run("python", "tests/batch/check_ray.py", *session.posargs)


@nox.session(python=FOUND[0])
def docs(session: nox.Session) -> None:
    """The documentation, built without warnings; search and llms.txt have what people look for."""
    session.install(*group("docs"), *group("tests"), ".[cli,report,redis,langchain,pydantic-ai]")
    for kind in ("html", "text"):
        session.run("sphinx-build", "-W", "-b", kind, "docs", f"docs/_build/{kind}")
    session.run("python", "docs/llms_txt.py", "docs/_build/html", "docs/_build/text")
    session.run("python", "tests/check_site.py", "docs/_build/html")


@nox.session(python=FOUND[0])
def bench(session: nox.Session) -> None:
    """The benchmarks beside the peers; writes benchmarks/RESULTS.md. Takes a while."""
    session.install("-r", "benchmarks/requirements.txt", ".[speed]")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session(python=FOUND[0])
def plots(session: nox.Session) -> None:
    """The plots of the documentation show what the client does; ``nox -s plots -- --draw`` draws them anew."""
    session.install(*group("bench"), "-e", ".")
    session.run(
        "python", "docs/plots.py", *([] if "--draw" in session.posargs else ["--check"]), env={"PYTHONPATH": "."}
    )
