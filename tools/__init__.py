"""Writers of the documents under docs/ that are made from the code: run by ``make docs``."""
