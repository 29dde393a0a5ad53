"""A Tryton module: what a party needs to hold a lead, beyond name, contacts and address."""
