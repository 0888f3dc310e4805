# SPDX-License-Identifier: Apache-2.0
"""Answers of an evaluation by a serving engine, in a container of its own before the trainer's.

`prompts` writes what to answer, in the trainer image. `engineanswers` starts the engine and sends it the
prompts, in the engine's image, which has other versions of libraries: it and what it imports use the standard
library, httpx and pydantic only. `recordedanswers` reads the answers, in the trainer image again. `exchange`
has their files.
"""
