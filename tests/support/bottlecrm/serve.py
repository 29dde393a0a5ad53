"""Run by BottleCRM's own Python: its WSGI application, with all that the first request would load.

Else each worker loads that by itself, while the first ones to ask wait: some seconds, or many on a busy machine.
"""

from crm.wsgi import application
from django.urls import get_resolver

__all__ = ["application"]

assert get_resolver().url_patterns
