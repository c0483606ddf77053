"""Tests of recordings: made, kept, read and replayed."""
