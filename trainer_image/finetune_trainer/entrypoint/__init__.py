"""From the config of a pod to the exit code of its process; the only package that knows every stage."""
