"""The embedded stack of `make up`: PostgreSQL, Valkey, Airflow and the demo world under supervisor, all local."""
