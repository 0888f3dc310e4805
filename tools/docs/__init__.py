"""The documentation as a site: Sphinx builds `docs`, README and CONTRIBUTING into `build/docs/html`."""
