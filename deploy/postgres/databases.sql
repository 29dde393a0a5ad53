-- Run once, by the image's entry point, in a cluster that is new: the databases, each with an owner of its own.
\set airflow_password `cat /run/secrets/airflow_db_password`
\set leadsync_password `cat /run/secrets/leadsync_db_password`

CREATE ROLE airflow LOGIN PASSWORD :'airflow_password';
CREATE ROLE leadsync LOGIN PASSWORD :'leadsync_password';
CREATE DATABASE airflow OWNER airflow;
CREATE DATABASE leadsync OWNER leadsync;
REVOKE CONNECT ON DATABASE airflow, leadsync FROM PUBLIC;
