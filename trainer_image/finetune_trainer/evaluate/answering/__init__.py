# SPDX-License-Identifier: Apache-2.0
"""Answers of an evaluation by a serving engine, in a container of its own before the trainer's.

`trainer_side` writes the prompts and reads the answers, in the trainer image. `engine_side` starts the engine
and sends it the prompts, in the engine's image, which has other versions of libraries: it and what it imports
use the standard library, httpx and pydantic only. `exchange` has their files.
"""
