# SPDX-License-Identifier: Apache-2.0
"""Queue, caches, API calls, lease and worker loop; knows nothing about fine-tuning."""
