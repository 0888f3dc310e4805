"""Roll out a revision of an endpoint by its strategy."""
