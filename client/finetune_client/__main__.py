# SPDX-License-Identifier: Apache-2.0
"""`python -m finetune_client`, the same as `finetune` and `kubectl finetune`."""

from finetune_client.program import main

if __name__ == "__main__":
    main()
