"""The tests; a package so that ranks of the pool can import test functions by name."""
