"""Find, download and verify the sdist that upstream.toml pins.

The index is the one pip is configured for. unearth, which reads indexes, does
not read pip's configuration, so that is asked of pip itself.
"""

import ast
import hashlib
import os
import re
import ssl
import subprocess
import sys
import tarfile
from pathlib import Path

from .project import ToolError, say

ENVIRONMENT_VARIABLE = "NUMPY_DEFERRED_SDIST"
WHAT_TO_DO = f"""\
Without a network, do one of these:
  put the file into downloads/, beside upstream.toml
  set {ENVIRONMENT_VARIABLE} to the path of the file
  set pip to an index that can be reached (pip config, PIP_INDEX_URL, PIP_FIND_LINKS)"""


def get(project):
    """Path of the verified sdist; downloads it when it is not there yet."""
    name = project.pin["sdist"]
    if given := os.environ.get(ENVIRONMENT_VARIABLE):
        path = Path(given)
        if not path.is_file():
            raise ToolError(f"{ENVIRONMENT_VARIABLE} names {path}, which is no file")
    else:
        path = project.downloads / name
        if not path.is_file():
            download(project, path)
    verify(project, path)
    return path


def verify(project, path, origin=None):
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    expected = project.pin["sha256"]
    if found != expected:
        raise ToolError(
            f"{origin or path} is not the NumPy that upstream.toml pins\n"
            f"  sha256 expected: {expected}\n"
            f"  sha256 found:    {found}\n"
            "Nothing was unpacked. Delete the file if the download was damaged; "
            "mistrust its source if that does not help."
        )


def download(project, path):
    import httpx2

    pin = project.pin
    config = pip_config()
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(exist_ok=True)
    with make_session(config) as session:
        link = find(session, f"numpy=={pin['version']}", path.name, config)
        try:
            with (
                session.get_stream(link.normalized) as response,
                part.open("wb") as file,
            ):
                response.raise_for_status()
                copy_with_progress(response, file, path.name)
            verify(project, part, origin=link.redacted)
        except httpx2.HTTPError as error:
            raise ToolError(
                f"cannot download {link.redacted}: {error}\n{WHAT_TO_DO}"
            ) from error
        else:
            part.rename(path)
        finally:
            part.unlink(missing_ok=True)


def unpack(archive, directory):
    """Unpack into `directory`, to be made; the path of the one folder in it."""
    say(f"unpacking {archive.name}")
    with tarfile.open(archive) as tar:
        tar.extractall(directory, filter="data")
    (top,) = directory.iterdir()
    return top


def copy_with_progress(response, file, name):
    total = int(response.headers.get("content-length", 0)) / 1e6
    for chunk in response.iter_bytes(1 << 20):
        file.write(chunk)
        if sys.stderr.isatty():
            done = file.tell() / 1e6
            print(f"\r{name}: {done:.1f} of {total:.1f} MB", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    else:
        say(f"{name}: downloaded {file.tell() / 1e6:.1f} MB")


def find(session, requirement, filename, config):
    """The link to `filename` on the configured indexes and find-links."""
    import httpx2
    import unearth

    say(f"looking for {filename}")
    looked = []
    # One at a time: an index that cannot be reached must not hide the others.
    for kind, place in sources(config):
        finder = unearth.PackageFinder(
            session, **{kind: [place]}, no_binary=["numpy"], ignore_compatibility=True
        )
        try:
            for match in finder.find_matches(requirement):
                if match.link.filename == filename:
                    return match.link
            looked.append(f"  {redact(place)}: it is not there")
        except httpx2.HTTPError as error:
            looked.append(f"  {redact(place)}: {error}")
    raise ToolError(
        f"cannot find {filename}. Looked in:\n"
        + ("\n".join(looked) or "  nowhere: pip is set to no-index")
        + f"\n{WHAT_TO_DO}"
    )


def redact(place):
    """`place` without the user and password that a URL may hold."""
    return re.sub(r"//[^/@]*@", "//", place)


def make_session(config):
    from unearth.fetchers.sync import PyPIClient

    options = {"timeout": float(config.get("timeout", 15)), "follow_redirects": True}
    if "cert" in config:
        options["verify"] = ssl.create_default_context(cafile=config["cert"])
    if "proxy" in config:
        options["proxy"] = config["proxy"]
    return PyPIClient(trusted_hosts=config.get("trusted-host", "").split(), **options)


def sources(config):
    """Where pip would look, in its order: pairs of PackageFinder's argument, place."""
    places = [("find_links", place) for place in config.get("find-links", "").split()]
    # Build requirements, like unearth: not there yet when the backend is loaded.
    from pip._internal.models.index import PyPI

    if config.get("no-index", "").lower() not in ("1", "true", "yes", "on"):
        indexes = [config.get("index-url", PyPI.simple_url)]
        indexes += config.get("extra-index-url", "").split()
        places += [("index_urls", place) for place in indexes]
    return places


def pip_config():
    """pip's settings from its files and environment, for `pip download`."""
    command = [sys.executable, "-P", "-m", "pip", "config", "list"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise ToolError(
            "cannot read pip's configuration to know where to look for NumPy:\n"
            + result.stderr
        )
    config = {}
    for section in ("global", "download", ":env:"):
        for line in result.stdout.splitlines():
            key, _, value = line.partition("=")
            if key.startswith(section + "."):
                config[key.removeprefix(section + ".")] = ast.literal_eval(value)
    return config
