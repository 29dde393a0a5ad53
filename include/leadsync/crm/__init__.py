"""One file per kind of CRM; `base` says what an adapter is, `http` how it talks."""
