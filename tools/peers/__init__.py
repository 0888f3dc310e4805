"""Suites that need programs of peers, which no other suite installs."""
