"""Our distribution says of itself what NumPy's own says."""

import ast
import email
import re
import tomllib

import numpy
import pyproject_metadata
import pytest

from deferred_tools import worktree


@pytest.fixture
def ours(real):
    return tomllib.loads((real.root / "pyproject.toml").read_text())


@pytest.fixture
def theirs(real):
    return tomllib.loads((real.upstream / "pyproject.toml").read_text())


def test_metadata_is_that_of_the_stock_sdist(real, ours):
    metadata = pyproject_metadata.StandardMetadata.from_pyproject(
        ours, real.root, metadata_version="2.4"
    ).as_rfc822()
    stock = email.message_from_bytes((real.upstream / "PKG-INFO").read_bytes())
    prefix = "upstream/"
    found = {
        (key.lower(), value.removeprefix(prefix) if key == "License-File" else value)
        for key, value in metadata.items()
    }
    expected = {(key.lower(), value) for key, value in stock.items()}
    assert found - expected == {("version", f"{real.pin['version']}+deferred.1")}
    assert expected - found == {("version", real.pin["version"])}


@pytest.mark.parametrize("table", ["scripts", "entry-points"])
def test_entry_points_are_those_of_stock(ours, theirs, table):
    assert ours["project"][table] == theirs["project"][table]


def test_only_the_distribution_has_our_version(real):
    assert numpy.__version__ == real.pin["version"]
    assert numpy.version.release


def test_installed_parts_are_those_of_stock(ours, theirs):
    install = theirs["tool"]["meson-python"]["args"]["install"]
    assert ours["tool"]["meson-python"]["args"]["install"] == install


def project_call(text):
    """The arguments of meson's project() that are the same in both."""
    call = re.search(r"(?ms)^project\((.*?)^\)", text).group(1)
    options = re.search(r"(?s)default_options: (\[.*?\])", call).group(1)
    license, meson_version = re.findall(r"(?m)^ *(?:license|meson_v.*): ('.*?')", call)
    return ast.literal_eval(options), license, meson_version


def test_meson_project_is_that_of_stock(real, ours):
    text = (real.root / "meson.build").read_text()
    git = worktree.open_repository(real)
    stock = git.text("show", f"{worktree.BASE}:meson.build")
    assert project_call(text) == project_call(stock)
    assert f"version: '{ours['project']['version']}'" in text


def test_meson_options_are_those_of_upstream(real):
    options = real.root / "meson.options"
    assert options.read_bytes() == (real.upstream / "meson.options").read_bytes()
