-- The roles of Leadsync's own database. Run in it, as a superuser, as often as you like, before the first migration:
--     psql -d leadsync -f leadsync.sql
-- then give each a password (\password leadsync_owner, \password leadsync_user).
--   leadsync_owner  owns the schema and migrates it: LEADSYNC_DB_DSN of `python -m leadsync migrate`, nowhere else
--   leadsync_user   reads and writes rows: the Airflow connection `leadsync_db`
-- Tables that another role made before: REASSIGN OWNED BY <that role> TO leadsync_owner, then run this once more.
\set ON_ERROR_STOP on
BEGIN;
SELECT format('CREATE ROLE %I LOGIN', name)
  FROM unnest(ARRAY['leadsync_owner', 'leadsync_user']) AS name
 WHERE to_regrole(name) IS NULL \gexec

-- A load compares through temporary tables.
REVOKE ALL ON DATABASE :"DBNAME" FROM PUBLIC;
GRANT CONNECT ON DATABASE :"DBNAME" TO leadsync_owner, leadsync_user;
GRANT TEMPORARY ON DATABASE :"DBNAME" TO leadsync_user;

CREATE SCHEMA IF NOT EXISTS leadsync;
ALTER SCHEMA leadsync OWNER TO leadsync_owner;
GRANT USAGE ON SCHEMA leadsync TO leadsync_user;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA leadsync TO leadsync_user;
GRANT SELECT, USAGE ON ALL SEQUENCES IN SCHEMA leadsync TO leadsync_user;
-- What a later migration makes.
ALTER DEFAULT PRIVILEGES FOR ROLE leadsync_owner IN SCHEMA leadsync
      GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO leadsync_user;
ALTER DEFAULT PRIVILEGES FOR ROLE leadsync_owner IN SCHEMA leadsync
      GRANT SELECT, USAGE ON SEQUENCES TO leadsync_user;

-- The daily VACUUM. PostgreSQL 16 and older let only the owner do it: there `leadsync_maintenance` reports each table as
-- skipped, and autovacuum does the work. What an erasure removed then stays in the files until autovacuum comes, or until
-- the owner runs VACUUM after it.
SELECT unnest(ARRAY[
       'GRANT MAINTAIN ON ALL TABLES IN SCHEMA leadsync TO leadsync_user',
       'ALTER DEFAULT PRIVILEGES FOR ROLE leadsync_owner IN SCHEMA leadsync GRANT MAINTAIN ON TABLES TO leadsync_user'])
 WHERE current_setting('server_version_num')::int >= 170000 \gexec
COMMIT;
