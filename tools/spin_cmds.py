"""The commands of `tools/spin`, on top of spin's own for meson projects."""

import functools
import os
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

import click
import spin
from spin.cmds import meson
from spin.cmds.util import run

sys.path.insert(0, str(Path(__file__).parent))

from deferred_tools import check, ecosystem, openblas, sdist, series, worktree
from deferred_tools.project import HERE, SUFFIX, ToolError, say

ROOT = HERE.root
PASS_ON = {"ignore_unknown_options": True, "help_option_names": ["--help"]}

# A sanitizer takes GCC many minutes over NumPy's SIMD code. Without it the loops
# are others than those of a release, which matters little here: what calls them,
# our code above all, is the same.
SANITIZED = [
    "-Dbuildtype=debug",
    "-Doptimization=1",
    "-Db_lundef=false",
    "-Dcpu-baseline=none",
    "-Dcpu-dispatch=none",
    "-Ddisable-optimization=true",
    "-Ddisable-highway=true",
    "-Ddisable-intel-sort=true",
    "-Ddisable-svml=true",
]

# What a build directory holds is told by its name.
VARIANTS = {
    "build": ["-Dbuildtype=release"],
    "build-debug": ["-Dbuildtype=debug"],
    "build-sanitize": [*SANITIZED, "-Db_sanitize=address,undefined"],
    "build-tsan": [*SANITIZED, "-Db_sanitize=thread"],
}
SUPPRESSIONS = ROOT / "tools" / "sanitizers"
# What has to be set for Python to load such a build.
SANITIZERS = {
    "build-sanitize": {
        "LD_PRELOAD": "libasan.so",
        # Python itself leaves memory behind; our tests ask for too much of it, and
        # end by SIGSEGV; tests/test_faults.py preloads another library before this.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:abort_on_error=1"
        ":handle_segv=0:verify_asan_link_order=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:abort_on_error=1"
        f":suppressions={SUPPRESSIONS / 'undefined.txt'}",
        "PYTHONMALLOC": "malloc",
    },
    "build-tsan": {
        "LD_PRELOAD": "libtsan.so",
        # The fault handler calculates, which needs malloc; guard.c says when.
        "TSAN_OPTIONS": "halt_on_error=1:allocator_may_return_null=1"
        ":second_deadlock_stack=1:report_signal_unsafe=0:handle_segv=0"
        ":die_after_fork=0"
        f":suppressions={SUPPRESSIONS / 'thread.txt'}",
        "PYTHONMALLOC": "malloc",
    },
}
BUILD = f"build{SUFFIX}"
STOCK = ROOT / f"build-stock{SUFFIX}"
INTEROP = ROOT / f".venv-interop{SUFFIX}"
PEERS = ROOT / f".venv-bench{SUFFIX}"


def readable_errors(function):
    """Show a ToolError as a message, not as a traceback."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except ToolError as error:
            raise click.ClickException(str(error)) from error

    return wrapper


def variant_options(function):
    """--debug and the sanitizers, which choose the build directory."""
    for option, text in [
        ("tsan", "With ThreadSanitizer, in build-tsan/."),
        ("sanitize", "With AddressSanitizer and UBSan, in build-sanitize/."),
        ("debug", "Without optimization, with assertions, in build-debug/."),
    ]:
        function = click.option(
            f"--{option}",
            "variant",
            flag_value=f"build-{option}{SUFFIX}",
            help=text,
        )(function)
    return function


def setup_arguments(build_dir):
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    arguments = pyproject["tool"]["meson-python"]["args"]["setup"]
    variant = build_dir.removesuffix(SUFFIX)
    return [*arguments, *VARIANTS.get(variant, VARIANTS["build"])]


def compile_arguments():
    """ninja's progress is one line on a terminal, a thousand lines in a file."""
    if sys.stdout.isatty():
        return []
    say("compiling; shows nothing but warnings until it is done")
    return ["--ninja-args=--quiet"]


def prepare():
    """What every build needs: a patched upstream/ and OpenBLAS."""
    worktree.ensure(HERE)
    openblas.set_environment()


def use_build(ctx, build_dir=BUILD, no_build=False):
    """Build, and put the result on the PYTHONPATH of what runs next."""
    if not no_build:
        ctx.invoke(build, build_dir=build_dir)
    environment = dict(SANITIZERS.get(build_dir.removesuffix(SUFFIX), {}))
    if environment:
        command = ["gcc", f"-print-file-name={environment['LD_PRELOAD']}"]
        library = subprocess.check_output(command, text=True)
        os.environ.update(environment, LD_PRELOAD=library.strip())
    return meson._set_pythonpath(build_dir, quiet=True)


def run_command(*arguments):
    """Show and run a command; exit when it fails."""
    run([str(argument) for argument in arguments])


def run_python(*arguments, cwd=None, python=sys.executable):
    """Run Python, without the current directory on its path, and exit with it."""
    result = subprocess.run([python, "-P", *map(str, arguments)], cwd=cwd)
    raise SystemExit(result.returncode)


@variant_options
@spin.util.extend_command(meson.build, doc="", remove_args=("gcov",))
@readable_errors
def build(*, parent_callback, variant, build_dir, meson_args=(), **kwargs):
    """🔧 Fetch and patch NumPy where needed, build, install

    Into build/ and build-install/; other directories with -C, --debug,
    --sanitize and --tsan. MESON_ARGS go to `meson setup`:
    spin build -- -Db_coverage=true
    """
    build_dir = variant or build_dir
    prepare()
    try:
        parent_callback(
            build_dir=build_dir,
            meson_args=(*setup_arguments(build_dir), *meson_args),
            meson_compile_args=compile_arguments(),
            **kwargs,
        )
    except RuntimeError as error:
        raise click.ClickException(str(error)) from error


@click.command(context_settings=PASS_ON)
@click.argument("pytest_args", nargs=-1, type=click.UNPROCESSED)
@variant_options
@meson.build_dir_option
@click.option("--no-build", is_flag=True, help="Use the build as it is.")
@click.pass_context
def test(ctx, pytest_args, variant, build_dir, no_build):
    """🧪 Run our tests, tests/

    PYTEST_ARGS go to pytest: spin test tests/tools -k series -x
    """
    use_build(ctx, variant or build_dir, no_build)
    if (STOCK / HERE.pin["sha256"]).exists():
        os.environ["NUMPY_STOCK"] = str(stock_site_packages())
    run_python("-m", "pytest", *pytest_args, cwd=ROOT)


@click.command(context_settings=PASS_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--default-size", is_flag=True, help="Tiny arrays run at once.")
@click.option("--habits", is_flag=True, help="Learn from lines, of tiny arrays too.")
@variant_options
@meson.build_dir_option
@click.option("--no-build", is_flag=True, help="Use the build as it is.")
@click.pass_context
def fuzz(ctx, arguments, default_size, habits, variant, build_dir, no_build):
    """🎲 Run random programs eagerly and deferred

    --minutes N (1), --seed N, --failures N to go on after the first;
    `spin fuzz -- --help` tells the rest. What fails is shrunk to a script
    that stands alone, fuzz-failure-SEED.py.
    """
    use_build(ctx, variant or build_dir, no_build)
    os.environ.pop("NUMPY_DEFERRED_MIN_BYTES", None)
    if not default_size:
        os.environ["NUMPY_DEFERRED_MIN_BYTES"] = "0"
        os.environ["NUMPY_DEFERRED_HABITS"] = str(int(habits))
    os.environ["PYTHONPATH"] += os.pathsep + str(ROOT / "tests")
    large = ["--large", "0.7"] if default_size else []
    run_python("-m", "fuzz", *large, *arguments)


@click.command(context_settings=PASS_ON)
@click.argument("pytest_args", nargs=-1, type=click.UNPROCESSED)
@click.option("--deferred", is_flag=True, help="With deferral on, also of tiny arrays.")
@click.option("--stock", "on_stock", is_flag=True, help="On stock NumPy (spin stock).")
@variant_options
@meson.build_dir_option
@click.option("--no-build", is_flag=True, help="Use the build as it is.")
@click.option("-j", "jobs", default="2", show_default=True, help="Parallel jobs.")
@click.pass_context
def upstream_tests(
    ctx, pytest_args, deferred, on_stock, variant, build_dir, no_build, jobs
):
    """🧪 Run NumPy's own tests

    Without the slow ones, but those of f2py; deferral is off, but with --deferred.
    Then a path that reads an array without a hook ends the process and says where,
    unless NUMPY_DEFERRED_GUARD asks for something else. Fails when a test fails that
    tests/upstream/expected-failures.toml does not list, and when one that it lists
    passes. The last lines say how many of f2py's were left out when there is no
    Fortran compiler.
    """
    if on_stock:
        ctx.invoke(stock)
        site_packages = stock_site_packages()
        os.environ["PYTHONPATH"] = str(site_packages)
    else:
        site_packages = Path(use_build(ctx, variant or build_dir, no_build))
    os.environ["NUMPY_DEFERRED"] = "1" if deferred else "0"
    if deferred:
        os.environ["NUMPY_DEFERRED_MIN_BYTES"] = "0"
        os.environ.setdefault("NUMPY_DEFERRED_GUARD", "trap")
    os.environ["PYTHONPATH"] += os.pathsep + str(ROOT / "tests" / "upstream")
    options = [
        *("-c", ROOT / "upstream" / "pytest.ini", f"--rootdir={site_packages}"),
        *("-p", "expected_failures", "--deferral", "on" if deferred else "off"),
        *("-p", "no:cacheprovider", "-q", "-rfE", "-n", jobs),
        # Tests of a class of f2py's share what they compile.
        *("-m", "not slow or f2py", "--dist", "loadscope"),
        # xdist waits for ever for what a worker that ended had to do in its scopes.
        "--max-worker-restart=0",
        # What C writes before it ends the process is seen.
        "--capture=sys",
    ]
    tests = pytest_args or ["--pyargs", "numpy"]
    with tempfile.TemporaryDirectory() as directory:
        run_python("-m", "pytest", *options, *tests, cwd=directory)


@click.command()
@readable_errors
def stock():
    """🔧 Build stock NumPy

    With the same options, into build-stock/.
    For comparisons: `spin bench overhead`, `spin upstream-tests --stock`.
    """
    prepare()
    pin = HERE.pin
    if (STOCK / pin["sha256"]).exists():
        return
    archive = sdist.get(HERE)
    source = STOCK / pin["sdist"].removesuffix(".tar.gz")
    if not source.exists():
        STOCK.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=STOCK) as directory:
            sdist.unpack(archive, Path(directory, "numpy")).rename(source)
    vendored = source / "vendored-meson" / "meson" / "meson.py"
    run_meson = functools.partial(run_command, sys.executable, vendored)
    build_dir = STOCK / "build"
    if not (build_dir / "build.ninja").exists():
        # GCC's warnings of its own headers are half a million lines.
        quiet = "-Dwarning_level=0"
        arguments = ["--prefix=/usr", quiet, *setup_arguments("build")]
        run_meson("setup", build_dir, source, *arguments)
    run_meson("compile", "-C", build_dir, *compile_arguments())
    destination = f"--destdir={build_dir}-install"
    run_meson("install", "--quiet", "--no-rebuild", "-C", build_dir, destination)
    (STOCK / pin["sha256"]).touch()


def stock_site_packages():
    return Path(meson._get_site_packages(str(STOCK / "build")))


def newest_wheel():
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    wheels = list(ROOT.glob(f"dist/numpy-*-{tag}-*.whl"))
    if not wheels:
        raise ToolError(f"there is no wheel for {tag} in dist/; `spin wheel` builds it")
    return max(wheels, key=lambda path: path.stat().st_mtime)


@click.command()
@readable_errors
def wheel():
    """📦 Build the wheel and prove it

    It lands in dist/, and is imported in an empty environment.
    """
    options = ["--no-isolation", f"-Cbuild-dir=build-wheel{SUFFIX}", "--outdir=dist"]
    run_command(sys.executable, "-m", "build", "--wheel", *options)
    newest = newest_wheel()
    say(f"importing {newest.relative_to(ROOT)} in an empty environment")
    with tempfile.TemporaryDirectory() as directory:
        venv.create(directory, with_pip=True)
        python = Path(directory, "bin", "python")
        os.environ.pop("PYTHONPATH", None)
        run_command(python, "-m", "pip", "install", "--quiet", "--no-index", newest)
        code = "import numpy; numpy.show_config(); print(numpy.__version__)"
        run_command(python, "-I", "-c", code)


def interop_python(ctx, no_build):
    """The Python of an environment of our wheel and those of other projects.

    It also holds stock NumPy, which is not imported, in the folder that is the
    second result: extensions are compiled against it, as wheels are.
    """
    if not no_build:
        ctx.invoke(wheel)
    python = INTEROP / "bin" / "python"
    if not python.exists():
        venv.create(INTEROP, with_pip=True)
    for name in ("PYTHONPATH", "VIRTUAL_ENV"):
        os.environ.pop(name, None)
    os.environ["PATH"] = os.pathsep.join([str(python.parent), os.environ["PATH"]])
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    requirements = ROOT / "requirements" / "interop.txt"
    ours = newest_wheel()
    # The version of our wheels does not change from build to build.
    reinstall = ["--force-reinstall", "--no-deps"]
    run_command(*pip, "install", "--quiet", ours, "--requirement", requirements)
    run_command(*pip, "install", "--quiet", *reinstall, ours)
    run_command(*pip, "check")
    stock_numpy = INTEROP / "stock" / HERE.pin["version"]
    if not stock_numpy.exists():
        target = ["--target", stock_numpy, f"numpy=={HERE.pin['version']}"]
        run_command(*pip, "install", "--quiet", "--no-deps", *target)
    return python, stock_numpy


@click.command(context_settings=PASS_ON)
@click.argument("pytest_args", nargs=-1, type=click.UNPROCESSED)
@click.option("--no-build", is_flag=True, help="Use the newest wheel in dist/.")
@click.option("-j", "jobs", default="2", show_default=True, help="Parallel jobs.")
@click.pass_context
@readable_errors
def interop(ctx, pytest_args, no_build, jobs):
    """🤝 Run tests/interop with other projects' wheels

    In .venv-interop, with our wheel and what requirements/interop.txt pins;
    everything is deferred and protected in the first run, what is by default in
    the second.
    """
    python, stock_numpy = interop_python(ctx, no_build)
    os.environ["NUMPY_STOCK"] = str(stock_numpy)
    tests = ROOT / "tests" / "interop"
    command = [
        *(python, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", jobs),
        # tests/conftest.py is for small arrays only.
        f"--confcutdir={tests}",
    ]
    if not any(Path(arg.partition("::")[0]).exists() for arg in pytest_args):
        command.append(tests)
    failed = False
    variables = ("NUMPY_DEFERRED_MIN_BYTES", "NUMPY_DEFERRED_PROTECT_BYTES")
    for size in ("0", None):
        for name in variables:
            os.environ.pop(name, None)
            if size is not None:
                os.environ[name] = size
        say(f"tests/interop with {' and '.join(variables)} = {size or 'default'}")
        done = subprocess.run([*map(str, command), *pytest_args], cwd=ROOT)
        failed |= done.returncode != 0
    raise SystemExit(int(failed))


@click.command("ecosystem", context_settings=PASS_ON)
@click.argument("pytest_args", nargs=-1, type=click.UNPROCESSED)
@click.option("--project", "only", multiple=True, help="Only this one's suite.")
@click.option("--default-size", is_flag=True, help="Tiny arrays run at once.")
@click.option("--no-build", is_flag=True, help="Use the newest wheel in dist/.")
@click.option("-j", "jobs", default="2", show_default=True, help="Parallel jobs.")
@click.pass_context
@readable_errors
def ecosystem_(ctx, pytest_args, only, default_size, no_build, jobs):
    """🌍 Run other projects' test suites eagerly and deferred

    The parts of them that tests/ecosystem/suites.toml lists, in the environment
    of `spin interop`. Fails when a test has another outcome with deferral on and
    expected-differences.toml does not list it. Reports are in build-ecosystem/.
    """
    python, _ = interop_python(ctx, no_build)
    directory = ROOT / "tests" / "ecosystem"
    reasons = ecosystem.expected(directory)
    reports = ROOT / f"build-ecosystem{SUFFIX}"
    reports.mkdir(exist_ok=True)
    min_bytes = {} if default_size else {"NUMPY_DEFERRED_MIN_BYTES": "0"}
    os.environ.pop("NUMPY_DEFERRED_MIN_BYTES", None)
    used, seen, bad = set(), set(), []
    for name, modules in ecosystem.suites(directory).items():
        if only and name not in only:
            continue
        found = {}
        for mode, deferral in (("eager", "0"), ("deferred", "1")):
            environment = {"NUMPY_DEFERRED": deferral, **min_bytes}
            report = reports / f"{name}-{mode}.xml"
            found[mode] = ecosystem.run(
                python, modules, report, jobs, environment, pytest_args
            )
            say(f"{name}, {mode}: {ecosystem.count(found[mode])}")
        lines, matched = ecosystem.compare(found["eager"], found["deferred"], reasons)
        used |= matched
        seen |= found["eager"].keys() | found["deferred"].keys()
        bad += lines
    bad += [
        f"{entry}: listed, and the outcome is the same"
        for entry in ecosystem.unused(reasons, used, seen)
    ]
    for line in bad:
        click.secho(line, fg="red")
    if bad:
        raise click.ClickException(f"{len(bad)} differences")
    print(f"no difference but {len(used)} that are listed")


@click.command(context_settings=PASS_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def demo(ctx, arguments):
    """🎬 Run the main job, benchmarks/demo.py"""
    run_benchmark(ctx, ROOT / "benchmarks" / "demo.py", arguments)


@click.command(context_settings=PASS_ON)
@click.argument("name", required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--no-build", is_flag=True, help="Use the build as it is.")
@click.pass_context
@readable_errors
def bench(ctx, name, arguments, no_build):
    """🚀 Run benchmarks/bench_NAME.py

    Without NAME, list them; `spin bench NAME -- --help` tells its options.

    NUMPY_STOCK is set to where stock NumPy lies for those that compare with it.
    `peers` runs in .venv-bench, with what requirements/bench.txt pins.
    """
    if name is None:
        for path in sorted(ROOT.glob("benchmarks/bench_*.py")):
            print(path.stem.removeprefix("bench_"))
        return
    if name == "overhead":
        ctx.invoke(stock)
        os.environ["NUMPY_STOCK"] = str(stock_site_packages())
    path = ROOT / "benchmarks" / f"bench_{name}.py"
    python = peers_python() if name == "peers" else sys.executable
    run_benchmark(ctx, path, arguments, no_build, python)


def peers_python():
    """The Python of an environment with the peers that we are compared with.

    They bring a NumPy, which is not imported: ours is on PYTHONPATH.
    """
    python = PEERS / "bin" / "python"
    if not python.exists():
        venv.create(PEERS, with_pip=True)
    requirements = ROOT / "requirements" / "bench.txt"
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    run_command(*pip, "install", "--quiet", "--requirement", requirements)
    return python


def run_benchmark(ctx, path, arguments, no_build=False, python=sys.executable):
    if not path.exists():
        raise click.ClickException(f"there is no {path.relative_to(ROOT)} yet")
    use_build(ctx, no_build=no_build)
    # What the benchmarks share; -P keeps their folder off the path.
    os.environ["PYTHONPATH"] += os.pathsep + str(path.parent)
    run_python(path, *arguments, python=python)


@click.command(context_settings=PASS_ON)
@click.argument("sphinx_args", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def docs(ctx, sphinx_args):
    """📖 Build the documentation

    From doc/ into build-docs/; warnings are errors.
    """
    use_build(ctx)
    run_python("-m", "sphinx", "-W", "--keep-going", *sphinx_args, "doc", "build-docs")


@click.command()
@click.option("--fix", is_flag=True, help="Put right what can be, instead.")
@readable_errors
def lint(fix):
    """🧹 Run ruff, clang-format and the patch check

    clang-format with NumPy's own style, on our C only.
    """
    worktree.ensure(HERE)
    folders = ["numpy_deferred/src", "numpy_deferred/include/numpy", "tests/capi"]
    sources = [
        str(path)
        for folder in folders
        for path in sorted((ROOT / folder).glob("*.[ch]*"))
        if path.suffix != ".src"  # templates: not C yet
    ]
    style = f"--style=file:{HERE.upstream / '.clang-format'}"
    c_options = ["-i"] if fix else ["--dry-run", "-Werror"]
    commands = [
        ["ruff", "check", *(["--fix"] if fix else [])],
        ["ruff", "format", *([] if fix else ["--check"])],
        ["clang-format", style, *c_options, *sources],
    ]
    bad = [cmd for cmd in commands if run(cmd, sys_exit=False, echo=False).returncode]
    found = check.problems(HERE)
    for problem in found:
        click.secho(problem, fg="red")
    if bad or found:
        raise click.ClickException("not clean; `spin lint --fix` puts formatting right")
    print("ruff, clang-format and the patches are fine")


@click.group()
def patches():
    """🩹 Import, export, check the patches

    patches/README.md says how to work with them.
    """


@patches.command("import")
@readable_errors
def import_():
    """Make upstream/ hold NumPy with patches/ applied."""
    if not worktree.ensure(HERE):
        print("upstream/ holds these patches already")


@patches.command()
@readable_errors
def export():
    """Write the commits of upstream/ to patches/."""
    for patch in worktree.export(HERE):
        print(patch.name)


@patches.command()
@click.argument("name")
@readable_errors
def fold(name):
    """Make upstream/'s uncommitted edits part of the patch NAME, and export.

    What is staged in upstream/ is taken; every edit, when nothing is.
    """
    worktree.fold(HERE, Path(name).name)
    worktree.export(HERE)


@patches.command("check")
@readable_errors
def check_():
    """Check every patch and that the series applies; print its size."""
    found = check.problems(HERE)
    for problem in found:
        click.secho(problem, fg="red")
    if found:
        raise click.ClickException(f"{len(found)} problem(s) in patches/")
    counts = check.line_counts(HERE, series.read(HERE))
    for file, (added, removed) in sorted(counts.items()):
        print(f"{added:+6d} {-removed:+6d}  {file}")
    added, removed = map(sum, zip(*counts.values(), strict=True))
    print(f"{added:+6d} {-removed:+6d}  in {len(counts)} files")
