# SPDX-License-Identifier: Apache-2.0
"""The documentation as a site: Sphinx builds `docs`, README and CONTRIBUTING into `build/docs/html`."""
