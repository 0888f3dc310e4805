# SPDX-License-Identifier: Apache-2.0
"""A function per verb of `finetune`. What only some verbs need is imported inside of the function."""
