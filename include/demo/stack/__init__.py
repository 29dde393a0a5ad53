"""The embedded stack of `make up`: PostgreSQL, Valkey, Airflow and the demo world under one supervisord per checkout.

Read it in this order: `stack` (what up, down and status do), `programs` (what runs), `environment` (what Airflow is
told), `postgres`, `supervisord`, `launch` (how a program begins), `processes` (what was left behind).
"""
