# SPDX-License-Identifier: Apache-2.0
"""A release: images and charts in a registry, with bills of materials, provenance and signatures."""
