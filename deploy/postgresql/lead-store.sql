-- The role that reads the lead store. Run in the lead store's database, as a superuser, as often as you like:
--     psql -d hive -v schema=public -v table=customer -f lead-store.sql
-- then give it a password (\password leadsync_reader) and put both into the Airflow connection `lead_store`.
\set ON_ERROR_STOP on
BEGIN;
SELECT 'CREATE ROLE leadsync_reader LOGIN' WHERE to_regrole('leadsync_reader') IS NULL \gexec

GRANT USAGE ON SCHEMA :"schema" TO leadsync_reader;
GRANT SELECT ON :"schema".:"table" TO leadsync_reader;

-- The safe bound is the start of the oldest transaction of any role. Who lacks this right sees NULL in its place, and
-- then Leadsync refuses to run. With `bound: lag` in the pipeline file it is not needed.
GRANT pg_read_all_stats TO leadsync_reader;

-- The grants are what keeps it from writing; this only makes an accident plain.
ALTER ROLE leadsync_reader SET default_transaction_read_only = on;
COMMIT;
