# SPDX-License-Identifier: Apache-2.0
"""Stage `prepare`: turn the rows of a source into a validated dataset with splits. No model is involved."""
