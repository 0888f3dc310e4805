# SPDX-License-Identifier: Apache-2.0
"""The API `finetune.dev/v1alpha1`: frozen pydantic models, one module per kind, CEL rules next to
the fields."""
