#!/bin/sh
# Make docker/secrets: random passwords and tokens, and a certificate of an authority of its own for a host name.
# What is there already stays, so a real certificate can be put there first. Needs root: each file belongs to the one
# user of its container.
#   sudo sh docker/make-secrets.sh fleet.example.org
set -eu
host="${1:?usage: make-secrets.sh HOST_NAME [FOLDER]}"
folder="${2:-$(dirname "$0")/secrets}"
[ "$(id -u)" -eq 0 ] || { echo "error: run it as root (sudo): the files get other owners" >&2; exit 2; }
umask 077
mkdir -p "$folder"
chmod 711 "$folder"
cd "$folder"

random() { openssl rand -hex 32; }

# keep NAME OWNER: takes stdin, unless NAME is there.
keep() {
    if [ -e "$1" ]; then cat >/dev/null; else cat >".$1.new" && mv ".$1.new" "$1"; fi
    chown "$2" "$1"
    chmod 600 "$1"
}

segfleet=10001 postgres=999 proxy=101 s3=0
random | keep ray-token "$segfleet"
random | keep db-admin-password "$postgres"
if [ ! -e db-roles.sql ]; then
    fleet_password=$(random) mlflow_password=$(random)
    keep db-roles.sql "$postgres" <<SQL
CREATE ROLE segfleet LOGIN PASSWORD '$fleet_password';
CREATE DATABASE segfleet OWNER segfleet;
CREATE ROLE mlflow LOGIN PASSWORD '$mlflow_password';
CREATE DATABASE mlflow OWNER mlflow;
SQL
    rm -f segfleet.pgpass mlflow.pgpass
    echo "database:5432:segfleet:segfleet:$fleet_password" | keep segfleet.pgpass "$segfleet"
    echo "database:5432:mlflow:mlflow:$mlflow_password" | keep mlflow.pgpass "$segfleet"
fi
if [ ! -e s3.json ]; then
    access=$(openssl rand -hex 10) secret=$(random)
    rm -f aws-credentials
    printf '[default]\naws_access_key_id=%s\naws_secret_access_key=%s\n' "$access" "$secret" | keep aws-credentials "$segfleet"
    printf '{"identities": [{"name": "mlflow", "credentials": [{"accessKey": "%s", "secretKey": "%s"}], "actions": ["Admin", "Read", "Write", "List"]}]}\n' \
        "$access" "$secret" | keep s3.json "$s3"
fi
if [ ! -e tls.crt ]; then
    openssl req -x509 -newkey rsa:3072 -nodes -days 3650 -subj "/CN=segfleet authority" -keyout ca.key -out ca.crt \
        -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign" 2>/dev/null
    openssl req -newkey rsa:3072 -nodes -subj "/CN=$host" -keyout tls.key -out tls.csr 2>/dev/null
    printf 'subjectAltName=DNS:%s\nextendedKeyUsage=serverAuth\n' "$host" >tls.ext
    openssl x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 365 -extfile tls.ext -out tls.crt \
        2>/dev/null
    rm -f tls.csr tls.ext ca.srl
fi
chown "$proxy" tls.crt tls.key
chmod 600 tls.key
# A certificate of a public authority needs no file of its own.
[ -e ca.crt ] || cp /etc/ssl/certs/ca-certificates.crt ca.crt
chmod 644 tls.crt ca.crt
echo "secrets for $host are in $(pwd)"
