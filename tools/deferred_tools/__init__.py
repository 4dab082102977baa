"""Fetch, patch and build NumPy: what `tools/spin` and the build backend share.

project   where things lie, what upstream.toml pins, errors and progress
sdist     find, download and verify the pinned sdist
git       git with the user's configuration switched off
series    patch files: their one canonical form
worktree  upstream/ as a repository of one commit a patch: make, import, export
check     everything that must hold for patches/
openblas  let meson find the scipy-openblas64 wheel
backend   the PEP 517 hooks
"""
