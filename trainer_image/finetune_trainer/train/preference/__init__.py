# SPDX-License-Identifier: Apache-2.0
"""DPO, KTO and ORPO: losses over rows, on a model and the model that training starts from."""
