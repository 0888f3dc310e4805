"""Rows as a team has them in; validated, cleaned, divided rows and what was found in them out.

The same code prepares a Dataset in the cluster and checks a file on a laptop: it knows no model, no store
and no operator. `preparation.prepare` is the whole of it:

    files -> containers (bytes to records) -> formats (records to rows) -> checks, cleaning, split -> result
"""
