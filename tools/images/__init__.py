"""Container images of the operator and the trainer, built from the Dockerfiles that ship."""
