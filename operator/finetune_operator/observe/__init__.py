# SPDX-License-Identifier: Apache-2.0
"""Pure diagnosis of Jobs, pods and Deployments as reasons, messages and times."""
