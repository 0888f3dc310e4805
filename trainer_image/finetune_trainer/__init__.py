# SPDX-License-Identifier: Apache-2.0
"""The code inside the pods: prepare data, check the model, train, evaluate, serve."""
