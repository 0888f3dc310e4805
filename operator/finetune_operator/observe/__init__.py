"""Pure diagnosis of Jobs, pods and Deployments as reasons, messages and times."""
