"""Commands of the Makefile: generated documents, test environments, checks of documents."""
