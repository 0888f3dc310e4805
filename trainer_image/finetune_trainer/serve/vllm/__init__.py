# SPDX-License-Identifier: Apache-2.0
"""The part of a serving pod whose engine is vLLM: files, and a middleware.

The init container, which has the trainer image, runs `engine_files`. vLLM's process imports `middleware` from
a copy of this package. It has other versions of libraries, and no PEFT: `middleware` and what it imports use
the standard library, and libraries on which vLLM itself depends.
"""
