#!/bin/sh
# Makes the certificates and keys of this directory with OpenSSL 3, in every form that tools have
# written them. They protect nothing. The tests only read the files, so this needs to run only when
# a form is added: the values in values.txt are those that openssl itself computes.
set -eu
cd "$(dirname "$0")"
rm -f ./*.pem ./*.pfx ./*.cer ./*.crt ./*.key ./*.der values.txt

P=secret
U='pässwörd-密碼'
quiet() { "$@" 2>/dev/null; }
pfx() { out=$1; shift; openssl pkcs12 -export -out "$out.pfx" -inkey app.key -in app.pem "$@"; }

# The certificate of most tests, and its issuers.
quiet openssl req -x509 -newkey rsa:2048 -nodes -keyout root.key -out root.pem -days 36500 -subj '/CN=Test Root' \
  -addext basicConstraints=critical,CA:TRUE
quiet openssl req -newkey rsa:2048 -nodes -keyout issuing.key -out issuing.csr -subj '/CN=Test Issuing'
printf 'basicConstraints=critical,CA:TRUE\n' > ca.ext
quiet openssl x509 -req -in issuing.csr -CA root.pem -CAkey root.key -days 36500 -extfile ca.ext -out issuing.pem
quiet openssl req -newkey rsa:2048 -nodes -keyout app.key -out app.csr -subj '/O=Contoso Ltd/CN=graphpost'
quiet openssl x509 -req -in app.csr -CA issuing.pem -CAkey issuing.key -days 36500 -out app.pem
openssl x509 -in app.pem -outform DER -out app.cer

# PFX.
pfx aes256-sha256 -passout pass:$P
pfx aes256-sha512-mac -passout pass:$P -macalg SHA512
pfx aes256-sha1-mac -passout pass:$P -macalg SHA1
pfx aes128 -passout pass:$P -keypbe AES-128-CBC -certpbe AES-128-CBC
pfx aes256-600000-rounds -passout pass:$P -iter 600000
pfx windows-aes256-sha256 -passout pass:$P -keypbe AES-256-CBC -certpbe AES-256-CBC -macalg SHA256 -iter 2000 \
  -CSP 'Microsoft Enhanced RSA and AES Cryptographic Provider'
pfx windows-tripledes-sha1 -passout pass:$P -keypbe PBE-SHA1-3DES -certpbe PBE-SHA1-3DES -macalg SHA1 -iter 2000
pfx legacy-rc2-40 -passout pass:$P -legacy
pfx legacy-rc2-128 -passout pass:$P -legacy -certpbe PBE-SHA1-RC2-128 -keypbe PBE-SHA1-RC2-128
pfx legacy-rc4-128 -passout pass:$P -legacy -certpbe PBE-SHA1-RC4-128 -keypbe PBE-SHA1-RC4-128
pfx plain-certificate -passout pass:$P -certpbe NONE -keypbe PBE-SHA1-3DES
pfx no-mac -passout pass:$P -nomac
pfx empty-password -passout pass:
pfx empty-password-legacy -passout pass: -legacy
pfx no-encryption -passout pass: -certpbe NONE -keypbe NONE -nomac
pfx utf8-password -passout "pass:$U"
pfx utf8-password-legacy -passout "pass:$U" -legacy
cat root.pem issuing.pem > issuers.pem
pfx chain -passout pass:$P -certfile issuers.pem
openssl pkcs12 -export -out no-key.pfx -nokeys -in app.pem -passout pass:$P

# Keys in PEM and DER.
openssl rsa -in app.key -traditional -out pkcs1.key 2>/dev/null
openssl rsa -in app.key -traditional -des3 -passout pass:$P -out pkcs1-des3.key 2>/dev/null
openssl rsa -in app.key -traditional -aes128 -passout pass:$P -out pkcs1-aes128.key 2>/dev/null
openssl rsa -in app.key -traditional -des -provider default -provider legacy -passout pass:$P -out pkcs1-des.key 2>/dev/null
openssl pkcs8 -topk8 -in app.key -passout pass:$P -out pkcs8-aes256.key
openssl pkcs8 -topk8 -in app.key -scrypt -passout pass:$P -out pkcs8-scrypt.key
openssl pkcs8 -topk8 -in app.key -v1 PBE-SHA1-3DES -passout pass:$P -out pkcs8-3des.key
openssl pkcs8 -topk8 -in app.key -v1 PBE-SHA1-RC2-40 -provider default -provider legacy -passout pass:$P -out pkcs8-rc2.key
openssl pkcs8 -topk8 -in app.key -v1 PBE-MD5-DES -provider default -provider legacy -passout pass:$P -out pkcs8-md5-des.key
openssl pkcs8 -topk8 -in app.key -nocrypt -outform DER -out pkcs8.der
openssl rsa -in app.key -traditional -outform DER -out pkcs1.der 2>/dev/null
openssl pkcs8 -topk8 -in app.key -passout pass:$P -outform DER -out pkcs8-encrypted.der

# Certificate and key in one PEM, in the orders and dresses that are met with.
cat app.pem app.key > both.pem
cat app.key app.pem > key-first.pem
cat app.pem issuing.pem root.pem app.key > full-chain.pem
cat root.pem issuing.pem app.pem app.key > chain-backwards.pem
cat app.pem pkcs8-aes256.key > both-encrypted.pem
openssl pkcs12 -in aes256-sha256.pfx -passin pass:$P -nodes -out bag-attributes.pem
{ printf '\377\376'; iconv -f ascii -t utf-16le both.pem; } > utf-16.pem
{ printf '\357\273\277'; sed 's/$/\r/' both.pem; } > bom-and-crlf.pem

# What is refused.
quiet openssl req -x509 -newkey rsa:2048 -nodes -keyout other.key -out other.pem -days 36500 -subj '/CN=other'
quiet openssl req -x509 -newkey rsa:1024 -nodes -keyout weak.key -out weak.pem -days 36500 -subj '/CN=weak'
cat weak.key >> weak.pem
quiet openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ec.key -out ec.pem -days 36500 -subj '/CN=curve'
openssl pkcs12 -export -out ec.pfx -inkey ec.key -in ec.pem -passout pass:$P
openssl ec -in ec.key -out ec-sec1.key 2>/dev/null
cat ec-sec1.key >> ec.pem
quiet openssl req -x509 -newkey ed25519 -nodes -keyout ed25519.key -out ed25519.pem -days 36500 -subj '/CN=edwards'
cat ed25519.key >> ed25519.pem
quiet openssl req -x509 -newkey rsa-pss -pkeyopt rsa_keygen_bits:2048 -nodes -keyout pss.key -out rsa-pss.pem -days 36500 -subj '/CN=pss'
cat pss.key >> rsa-pss.pem
# Only "openssl ca" of OpenSSL 3.0 takes dates.
mkdir ca
cat > ca/cnf <<'CNF'
[ca]
default_ca=test
[test]
database=ca/index
serial=ca/serial
new_certs_dir=ca
default_md=sha256
policy=any
[any]
commonName=supplied
organizationName=optional
CNF
dated() {
  : > ca/index; echo 01 > ca/serial
  quiet openssl ca -batch -config ca/cnf -selfsign -keyfile app.key -in app.csr -notext -startdate "$2" -enddate "$3" -out "$1"
}
dated expired.pem 20100101000000Z 20200101000000Z
dated not-yet.pem 20900101000000Z 20990101000000Z
dated no-end.pem 20200101000000Z 99991231235959Z
cat app.key >> expired.pem
cat app.key >> not-yet.pem
cat app.key >> no-end.pem
head -c 500 app.cer > truncated.cer
sed '5,9d' app.pem > truncated.pem
head -c 1200 aes256-sha256.pfx > truncated.pfx
printf 'not a certificate at all\n' > text.crt
: > empty.crt
head -c 3000 /dev/zero > zeros.crt

# What openssl says about app.cer.
sha1=$(openssl x509 -in app.pem -noout -fingerprint -sha1 | sed 's/.*=//; s/://g')
sha256=$(openssl x509 -in app.pem -noout -fingerprint -sha256 | sed 's/.*=//; s/://g')
url() { tr '+/' '-_' | tr -d '='; }
{
  echo "sha1=$sha1"
  echo "sha256=$sha256"
  echo "x5t=$(openssl dgst -sha1 -binary app.cer | openssl base64 -A | url)"
  echo "x5t#S256=$(openssl dgst -sha256 -binary app.cer | openssl base64 -A | url)"
  echo "customKeyIdentifier=$(openssl dgst -sha1 -binary app.cer | openssl base64 -A)"
  echo "notBefore=$(openssl x509 -in app.pem -noout -startdate -dateopt iso_8601 | sed 's/.*=//; s/ /T/')"
  echo "notAfter=$(openssl x509 -in app.pem -noout -enddate -dateopt iso_8601 | sed 's/.*=//; s/ /T/')"
  echo "der=$(openssl base64 -A -in app.cer)"
} > values.txt

rm -rf ca ca.ext ./*.csr root.key issuing.key pss.key weak.key ed25519.key ec.key issuers.pem
