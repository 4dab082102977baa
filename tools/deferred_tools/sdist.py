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
DEFAULT_INDEX = "https://pypi.org/simple/"


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
    pin = project.pin
    config = pip_config()
    link = find(f"numpy=={pin['version']}", pin["sdist"], config)
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with (
            make_session(config) as session,
            session.get_stream(link.normalized) as response,
            part.open("wb") as file,
        ):
            response.raise_for_status()
            copy_with_progress(response, file, pin["sdist"])
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ToolError(f"cannot download {link.redacted}: {error}") from error
    try:
        verify(project, part, origin=link.redacted)
    except ToolError:
        part.unlink()
        raise
    part.rename(path)


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


def find(requirement, filename, config):
    """The link to `filename` on the configured indexes and find-links."""
    import unearth

    indexes, find_links = sources(config)
    say(f"looking for {filename}")
    with make_session(config) as session:
        matches = []
        if indexes or find_links:
            finder = unearth.PackageFinder(
                session,
                index_urls=indexes,
                find_links=find_links,
                no_binary=["numpy"],
                ignore_compatibility=True,
            )
            matches = finder.find_matches(requirement)
    for match in matches:
        if match.link.filename == filename:
            return match.link
    looked = "\n".join(f"  {redact(place)}" for place in indexes + find_links)
    raise ToolError(
        f"cannot find {filename}. Looked in:\n"
        f"{looked or '  nowhere: pip has no index (no-index is set)'}\n"
        "Without a network, do one of these:\n"
        f"  put the file into downloads/ (create it), or\n"
        f"  set {ENVIRONMENT_VARIABLE} to the path of the file, or\n"
        "  configure pip for an index that can be reached (`pip config`, "
        "PIP_INDEX_URL, PIP_FIND_LINKS)"
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
    """Index URLs and find-links, as pip would use them."""
    find_links = config.get("find-links", "").split()
    if config.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        return [], find_links
    indexes = [config.get("index-url", DEFAULT_INDEX)]
    return indexes + config.get("extra-index-url", "").split(), find_links


def pip_config():
    """pip's settings from its files and environment, for `pip download`."""
    command = [sys.executable, "-I", "-m", "pip", "config", "list"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        # pip's isolated build environments hide the outer pip from -I.
        command.remove("-I")
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
