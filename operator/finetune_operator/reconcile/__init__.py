"""Pure: one file a kind, `(resource, world) -> Plan`."""
