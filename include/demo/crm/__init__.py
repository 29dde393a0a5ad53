"""Simulated CRMs: each speaks its vendor's API on 127.0.0.1, strictly, and keeps what it was given.

One kind is one file that defines one `Vendor` (see `vendor.py`); its module name is its name on the command line.
"""
