#!/usr/bin/env python3
"""Microsoft's own library, msal, beside ours: the same assertions, and the same stand-in cloud.

A TLS front stands before `graphpost cloud` and writes down every token request. Through it go
`graphpost serve` and msal, each with the same certificate, and what each of them signed is compared.
Then msal obtains tokens from the stand-in cloud in every way that both know.

    pip install msal
    python3 tests/interop/tokens.py target/debug/graphpost
"""

import base64
import http.client
import http.server
import json
import os
import re
import shutil
import smtplib
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import unittest.mock
import urllib.parse
import urllib.request
from pathlib import Path

import msal
import requests

GRAPHPOST = str(Path(sys.argv.pop(1) if len(sys.argv) > 1 else "target/debug/graphpost").resolve())
TENANT, CLIENT = "contoso.onmicrosoft.com", "11111111-1111-1111-1111-111111111111"
SCOPE = ["https://graph.microsoft.com/.default"]
SENDER = "erp@contoso.com"
# requests, which msal uses, prefers these to what it is told.
for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
    os.environ.pop(name, None)
os.environ["NO_PROXY"] = "localhost,127.0.0.1"
DEADLINE = 60  # seconds for any one thing to happen; nothing waits that long when all is well


def run(*command, **kwargs):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=DEADLINE, **kwargs)


class Process:
    """A child that names the addresses it listens on."""

    def __init__(self, *command):
        self.lines = []
        self.seen = threading.Condition()
        self.child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.readers = [threading.Thread(target=self._read, args=(it,)) for it in (self.child.stdout, self.child.stderr)]
        for reader in self.readers:
            reader.start()

    def _read(self, stream):
        with stream:
            for line in stream:
                with self.seen:
                    self.lines.append(line.rstrip())
                    self.seen.notify_all()

    def wait_for(self, pattern):
        """The first match of `pattern` in anything the child writes."""
        until = time.monotonic() + DEADLINE
        with self.seen:
            while True:
                for line in self.lines:
                    if match := re.search(pattern, line):
                        return match
                if self.child.poll() is not None or not self.seen.wait(until - time.monotonic()):
                    raise AssertionError(f"no {pattern!r} in:\n" + "\n".join(self.lines))

    def stop(self):
        self.child.terminate()
        self.child.wait(DEADLINE)
        for reader in self.readers:
            reader.join(DEADLINE)


class Front(http.server.ThreadingHTTPServer):
    """TLS before the stand-in cloud, as a reverse proxy would be. Every token request is kept."""

    def __init__(self, cloud, certificate, key):
        super().__init__(("127.0.0.1", 0), Pass)
        self.cloud = cloud
        self.requests = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"https://localhost:{self.server_port}"


class Pass(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _pass(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/oauth2/v2.0/token"):
            self.server.requests.append((self.headers, dict(urllib.parse.parse_qsl(body.decode()))))
        headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
        headers["X-Forwarded-Proto"] = "https"
        upstream = http.client.HTTPConnection(self.server.cloud, timeout=DEADLINE)
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("date", "server", "transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _pass

    def log_message(self, *_):
        pass


def decode(part):
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def opened(assertion):
    """The header and the claims of a JWT, and the length of its signature."""
    header, claims, signature = assertion.split(".")
    return decode(header), decode(claims), len(signature)


# What differs from one assertion to the next: RFC 7519 §4.1.4 to §4.1.7.
TIMES_AND_IDS = {"exp", "nbf", "iat", "jti"}


class Tokens(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.dir = Path(tempfile.mkdtemp(prefix="graphpost-tokens-"))
        cls._make_certificates()
        cls.cloud = Process(GRAPHPOST, "cloud", "--http", "127.0.0.1:0", "--certificate", str(cls.dir / "app.pem"))
        cls.http = cls.cloud.wait_for(r"http://127\.0\.0\.1:\d+").group()
        # Only what is registered is taken.
        cls.put("/sandbox/tenant", {
            "names": [TENANT],
            "clients": [CLIENT],
            "secrets": ["the value of a secret"],
            "identity_header": "the header of the platform",
            "trust_presented_certificates": False,
        })
        cls.front = Front(cls.http.removeprefix("http://"), cls.dir / "tls.pem", cls.dir / "tls.key")
        cls.authority = f"{cls.front.url}/{TENANT}"

    @classmethod
    def tearDownClass(cls):
        cls.front.shutdown()
        cls.front.server_close()
        cls.cloud.stop()
        shutil.rmtree(cls.dir)

    @classmethod
    def _make_certificates(cls):
        at = lambda name: str(cls.dir / name)
        for name, extensions in {
            "ca": ["basicConstraints=critical,CA:TRUE"],
            "tls": ["subjectAltName=DNS:localhost", "basicConstraints=critical,CA:FALSE"],
            "app": ["basicConstraints=critical,CA:FALSE"],
        }.items():
            signed_by = [] if name == "ca" else ["-CA", at("ca.pem"), "-CAkey", at("ca.key")]
            added = [it for extension in extensions for it in ("-addext", extension)]
            run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
                *added, *signed_by, "-keyout", at(f"{name}.key"), "-out", at(f"{name}.pem"))
            os.chmod(at(f"{name}.key"), 0o600)
        run("openssl", "pkcs12", "-export", "-in", at("app.pem"), "-inkey", at("app.key"), "-certfile", at("ca.pem"),
            "-passout", "pass:grüße", "-out", at("app.pfx"))
        os.chmod(at("app.pfx"), 0o600)
        (cls.dir / "app.password").touch(mode=0o600)
        (cls.dir / "app.password").write_text("grüße\n")
        (cls.dir / "chain.pem").write_text((cls.dir / "app.pem").read_text() + (cls.dir / "ca.pem").read_text())

    @classmethod
    def put(cls, path, value):
        request = urllib.request.Request(cls.http + path, json.dumps(value).encode(), method="PUT",
                                         headers={"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=DEADLINE).close()

    def setUp(self):
        self.front.requests.clear()

    def msal(self, credential):
        # The stand-in is no cloud that Microsoft knows, so none is asked for.
        return msal.ConfidentialClientApplication(
            CLIENT, credential, authority=self.authority, instance_discovery=False, verify=str(self.dir / "ca.pem"))

    def msals_request(self, credential):
        answer = self.msal(credential).acquire_token_for_client(SCOPE)
        self.assertIn("access_token", answer, answer)
        [request] = self.front.requests
        self.front.requests.clear()
        return request

    def our_request(self, tenant, credential):
        """What `graphpost serve` asks for when it has a message to send."""
        directory = Path(tempfile.mkdtemp(dir=self.dir))
        config = directory / "graphpost.toml"
        config.write_text(f"""
[tenant]
id = "{TENANT}"
client_id = "{CLIENT}"
authority = "{self.front.url}"
graph = "{self.http}"
ca_file = "{self.dir}/ca.pem"
{tenant}
[tenant.credential]
{credential}
[[listener]]
address = "127.0.0.1:0"
[[sender]]
address = ["{SENDER}"]
mailbox = "service@contoso.com"
[spool]
directory = "spool"
[admin]
address = "127.0.0.1:0"
""")
        gateway = Process(GRAPHPOST, "serve", "--config", str(config))
        port = int(gateway.wait_for(r"listening smtp 127\.0\.0\.1:(\d+)").group(1))
        with smtplib.SMTP("127.0.0.1", port, timeout=DEADLINE) as smtp:
            smtp.sendmail(SENDER, ["ann@example.org"], f"From: {SENDER}\r\nSubject: x\r\n\r\nx\r\n")
        # The cloud has taken it, so it has taken the token and the assertion.
        gateway.wait_for(r"msg=sent ")
        gateway.stop()
        [request] = self.front.requests
        self.front.requests.clear()
        return request

    def compare(self, ours, theirs):
        """The two requests are the same but for what must differ."""
        (our_headers, our_form), (their_headers, their_form) = ours, theirs
        self.assertEqual(our_headers["Content-Type"], their_headers["Content-Type"])
        for name in ("client_id", "grant_type", "client_assertion_type"):
            self.assertEqual(our_form[name], their_form[name], name)
        our_header, our_claims, our_signature = opened(our_form["client_assertion"])
        their_header, their_claims, their_signature = opened(their_form["client_assertion"])
        # msal pads the thumbprints with "=", which base64url in a JWT does not have (RFC 7515 §2), and
        # leaves the line breaks of PEM in the chain, which is base64 without any (§4.1.6).
        for name in ("x5t", "x5t#S256"):
            if name in their_header:
                their_header[name] = their_header[name].rstrip("=")
        if "x5c" in their_header:
            their_header["x5c"] = ["".join(it.split()) for it in their_header["x5c"]]
        self.assertEqual(our_header, their_header)
        fixed = lambda claims: {name: value for name, value in claims.items() if name not in TIMES_AND_IDS}
        self.assertEqual(fixed(our_claims), fixed(their_claims))
        self.assertEqual(fixed(our_claims)["aud"], self.authority + "/oauth2/v2.0/token")
        self.assertLessEqual(set(their_claims), set(our_claims))
        # Both live for ten minutes.
        self.assertAlmostEqual(their_claims["exp"] - their_claims["iat"], 600, delta=1)
        self.assertEqual(our_claims["exp"] - our_claims["iat"], 600)
        self.assertEqual(our_claims["nbf"], our_claims["iat"])
        for name in ("exp", "nbf", "iat"):
            self.assertIsInstance(our_claims[name], int, name)
        self.assertRegex(our_claims["jti"], r"^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")
        self.assertEqual(our_signature, their_signature)

    def test_ps256_from_a_pfx(self):
        pfx = {"private_key_pfx_path": str(self.dir / "app.pfx"), "passphrase": "grüße"}
        credential = f'certificate = "{self.dir}/app.pfx"\npassword_file = "{self.dir}/app.password"'
        self.compare(self.our_request("", credential), self.msals_request(pfx))

    def test_ps256_from_a_pfx_with_the_certificate_sent_along(self):
        pfx = {"private_key_pfx_path": str(self.dir / "app.pfx"), "passphrase": "grüße", "public_certificate": True}
        credential = f'certificate = "{self.dir}/app.pem"\nprivate_key = "{self.dir}/app.key"'
        ours = self.our_request("send_certificate_chain = true", credential)
        self.compare(ours, self.msals_request(pfx))

    def test_rs256_from_pem(self):
        shown = json.loads(run(GRAPHPOST, "cert", "show", "--json", str(self.dir / "app.pem")).stdout)
        pem = {
            "private_key": (self.dir / "app.key").read_text(),
            "thumbprint": shown["sha1_thumbprint"],
        }
        credential = f'certificate = "{self.dir}/app.pem"\nprivate_key = "{self.dir}/app.key"'
        self.compare(self.our_request('assertion = "RS256"', credential), self.msals_request(pem))

    def test_rs256_from_pem_with_the_chain_sent_along(self):
        shown = json.loads(run(GRAPHPOST, "cert", "show", "--json", str(self.dir / "app.pem")).stdout)
        pem = {
            "private_key": (self.dir / "app.key").read_text(),
            "thumbprint": shown["sha1_thumbprint"],
            "public_certificate": (self.dir / "chain.pem").read_text(),
        }
        credential = f'certificate = "{self.dir}/chain.pem"\nprivate_key = "{self.dir}/app.key"'
        ours = self.our_request('assertion = "RS256"\nsend_certificate_chain = true', credential)
        self.compare(ours, self.msals_request(pem))

    def test_a_client_secret(self):
        secret = "the value of a secret"
        (self.dir / "secret").touch(mode=0o600)
        (self.dir / "secret").write_text(secret)
        _, theirs = self.msals_request(secret)
        _, ours = self.our_request("", f'secret_file = "{self.dir}/secret"')
        for name in ("client_id", "grant_type", "client_secret"):
            self.assertEqual(ours[name], theirs[name], name)

    def test_msal_uses_its_token_again_and_the_cloud_takes_it(self):
        application = self.msal({"private_key_pfx_path": str(self.dir / "app.pfx"), "passphrase": "grüße"})
        token = application.acquire_token_for_client(SCOPE)
        self.assertEqual(application.acquire_token_for_client(SCOPE)["access_token"], token["access_token"])
        self.assertEqual(len(self.front.requests), 1)
        message = {"message": {"subject": "x", "body": {"contentType": "Text", "content": "x"},
                               "toRecipients": [{"emailAddress": {"address": "ann@example.org"}}]}}
        answer = requests.post(self.front.url + "/v1.0/users/service@contoso.com/sendMail", json=message,
                               headers={"Authorization": "Bearer " + token["access_token"]},
                               verify=str(self.dir / "ca.pem"), timeout=DEADLINE)
        self.assertEqual(answer.status_code, 202, answer.text)

    def test_msal_understands_refusals(self):
        key = {"private_key": (self.dir / "tls.key").read_text(), "thumbprint": "00" * 20}
        answer = self.msal(key).acquire_token_for_client(SCOPE)
        self.assertEqual((answer["error"], answer["error_codes"]), ("invalid_client", [700027]), answer)
        self.assertIn("AADSTS700027", answer["error_description"])

    def managed_identity(self, environment):
        with unittest.mock.patch.dict(os.environ, environment), requests.Session() as session:
            client = msal.ManagedIdentityClient(msal.SystemAssignedManagedIdentity(), http_client=session)
            answer = client.acquire_token_for_client(resource="https://graph.microsoft.com")
        self.assertIn("access_token", answer, answer)

    def test_a_virtual_machine(self):
        self.managed_identity({"AZURE_POD_IDENTITY_AUTHORITY_HOST": self.http})

    def test_an_app_service(self):
        self.managed_identity({
            "IDENTITY_ENDPOINT": self.http + "/msi/token",
            "IDENTITY_HEADER": "the header of the platform",
        })


if __name__ == "__main__":
    unittest.main(verbosity=2)
