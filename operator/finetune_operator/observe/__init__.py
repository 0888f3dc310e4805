"""Pure: what Jobs, pods and Deployments show, as reasons, messages and times."""
