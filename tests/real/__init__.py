"""Tests of the engines with a model, on small models; left out where an engine's packages are."""
