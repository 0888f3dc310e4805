"""Route the requests of an endpoint to its revisions."""
