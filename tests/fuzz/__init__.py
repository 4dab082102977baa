"""A fuzzer: random programs run eagerly and deferred, see README in __main__.py."""
