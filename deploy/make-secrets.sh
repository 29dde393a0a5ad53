#!/bin/sh
# deploy/make-secrets.sh [--demo] [FOLDER]: makes the secrets of docker-compose.yaml that are missing, each a file;
# --demo also the connections of the demo world. What is there already stays as it is.
set -eu
demo=
if [ "${1:-}" = --demo ]; then
    demo=yes
    shift
fi
folder=${1:-secrets}

# Docker mounts each file with the mode that it has here, for services that run as different users: so everybody may
# read the files, and the folder lets nobody but its owner in.
umask 022
mkdir -p "$folder/connections"
chmod 700 "$folder"

# put NAME: standard input becomes the file, whole or not at all, unless it is there.
put() {
    if [ -s "$folder/$1" ]; then
        cat > /dev/null
        return
    fi
    cat > "$folder/.new"
    chmod 444 "$folder/.new"
    mv -f "$folder/.new" "$folder/$1"
    echo "made $folder/$1"
}
password() { head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }
key() { head -c 32 /dev/urandom | base64 | tr -d '\n'; }
content() { cat "$folder/$1"; }

for name in postgres_password airflow_db_password leadsync_db_password redis_password \
    airflow_api_secret_key airflow_jwt_secret metrics_token grafana_admin_password; do
    password | put "$name"
done
key | put encryption_key
key | tr '+/' '-_' | put airflow_fernet_key
printf '{"admin": "%s", "viewer": "%s"}' "$(password)" "$(password)" | put ui_passwords.json

[ -n "$demo" ] || exit 0
for name in demo_store_owner_password demo_store_reader_password demo_hubspot_token demo_salesforce_client_id \
    demo_salesforce_client_secret; do
    password | put "$name"
done
printf '{"conn_type": "postgres", "host": "demo-store", "schema": "hive", "login": "leadsync_reader", "password": "%s"}' \
    "$(content demo_store_reader_password)" | put connections/lead_store
printf '{"conn_type": "http", "host": "http://demo-hubspot:8000", "password": "%s"}' \
    "$(content demo_hubspot_token)" | put connections/crm_hubspot
printf '{"conn_type": "http", "host": "http://demo-salesforce:8000", "login": "%s", "password": "%s"}' \
    "$(content demo_salesforce_client_id)" "$(content demo_salesforce_client_secret)" | put connections/crm_salesforce
