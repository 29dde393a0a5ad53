"""The demo landing page: a form that stores a lead in the lead store."""
