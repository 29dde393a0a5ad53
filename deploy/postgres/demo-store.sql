-- Run once in the demo's new lead store: the role that Leadsync reads with, as docs/running.md asks for.
\set reader_password `cat /run/secrets/demo_store_reader_password`

CREATE ROLE leadsync_reader LOGIN PASSWORD :'reader_password';
GRANT pg_read_all_stats TO leadsync_reader;
