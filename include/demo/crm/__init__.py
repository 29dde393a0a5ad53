"""CRM simulators: each speaks its vendor's API strictly, keeps its records, and breaks on demand. One file each."""
