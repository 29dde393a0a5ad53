"""CRM adapters: one module per CRM, found by its name. `base` is what an adapter is, `http` how it talks."""
