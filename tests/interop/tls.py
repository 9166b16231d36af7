#!/usr/bin/env python3
"""OpenSSL's `s_client`, as clients of every age, against each TLS profile of the real binary.

Starts `graphpost cloud` and `graphpost serve` with a listener for each profile, on each of which
STARTTLS and TLS from the first octet are served, lets `s_client` shake hands and greet, and prints
what came of it as a table.

    python3 tests/interop/tls.py target/debug/graphpost
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from clients import DEADLINE, GRAPHPOST, Process, run

# What s_client offers, and whether each listener serves it.
PROFILES = ["modern", "compat", "legacy", "not named"]
CLIENTS = {
    "TLS 1.0": (["-tls1", "-cipher", "ALL:@SECLEVEL=0"], "TLSv1", "--l-"),
    "TLS 1.1": (["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], "TLSv1.1", "--l-"),
    "TLS 1.2 static RSA": (["-tls1_2", "-cipher", "AES128-SHA:AES256-SHA256:@SECLEVEL=0"], "TLSv1.2", "-ccc"),
    "TLS 1.2 CBC": (["-tls1_2", "-cipher", "ECDHE-RSA-AES128-SHA256:@SECLEVEL=0"], "TLSv1.2", "-ccc"),
    "TLS 1.2 AEAD": (["-tls1_2", "-cipher", "ECDHE+AESGCM"], "TLSv1.2", "mmmm"),
    "TLS 1.3": (["-tls1_3"], "TLSv1.3", "mmmm"),
}


class Tls(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = Path(tempfile.mkdtemp(prefix="graphpost-tls-"))
        run(GRAPHPOST, "cert", "new", "--out", str(cls.dir))
        certificate = cls.dir / "graphpost.pem"
        cls.cloud = Process(GRAPHPOST, "cloud", "--http", "127.0.0.1:0", "--certificate", str(certificate))
        http = cls.cloud.wait_for(r"http://127\.0\.0\.1:\d+").group()
        cls.config = cls.dir / "graphpost.toml"
        listeners = {
            "modern": 'tls_profile = "modern"',
            "compat": 'tls_profile = "compat"',
            "legacy": 'tls_profile = "legacy"\nlegacy_networks = ["127.0.0.1"]',
            "not named": 'tls_profile = "legacy"\nlegacy_networks = ["10.1.9.0/24"]',
        }
        cls.config.write_text(
            f"""
[tenant]
id = "contoso.onmicrosoft.com"
client_id = "11111111-1111-1111-1111-111111111111"
authority = "{http}"
graph = "{http}"

[tenant.credential]
certificate = "graphpost.pem"
private_key = "graphpost.key"

[[sender]]
address = ["erp@contoso.com"]
mailbox = "service@contoso.com"

[spool]
directory = "spool"

[admin]
address = "127.0.0.1:0"
socket = "control.sock"
"""
            + "".join(
                f'\n[[listener]]\nname = "{name.replace(" ", "-")}"\naddress = "127.0.0.1:0"\ntls = "auto"\n'
                f'tls_wait = "100ms"\ncertificate = "self-signed"\n{keys}\n'
                for name, keys in listeners.items()
            )
        )
        cls.gateway = Process(GRAPHPOST, "serve", "--config", str(cls.config))
        cls.port = {
            name: cls.gateway.wait_for(
                rf"\b{name.replace(' ', '-')}\b.*?127\.0\.0\.1:(\d+)|127\.0\.0\.1:(\d+).*\b{name.replace(' ', '-')}\b"
            ).expand(r"\1\2")
            for name in PROFILES
        }

    @classmethod
    def tearDownClass(cls):
        cls.gateway.stop()
        cls.cloud.stop()
        shutil.rmtree(cls.dir)

    def s_client(self, port, options):
        """The version that was agreed upon, or none; and all that was printed."""
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", "localhost", "-crlf", *options]
        done = subprocess.run(command, input="EHLO scanner\nQUIT\n", capture_output=True, text=True, timeout=DEADLINE)
        text = done.stdout + done.stderr
        version = re.search(r"^New, (\S+), Cipher is (?!\(NONE\))", done.stdout, re.M)
        session = re.search(r"^\s*Protocol\s*:\s*(\S+)", done.stdout, re.M)
        return (session or version).group(1) if version else None, text

    def test_every_age_against_every_profile(self):
        rows = []
        for client, (options, version, want) in CLIENTS.items():
            cells = []
            for profile, served in zip(PROFILES, want):
                for starttls in [[], ["-starttls", "smtp"]]:
                    with self.subTest(client=client, profile=profile, starttls=bool(starttls)):
                        agreed, text = self.s_client(self.port[profile], options + starttls)
                        if served == "-":
                            self.assertIsNone(agreed, text)
                            alert = "protocol version" if client in ("TLS 1.0", "TLS 1.1") else "handshake failure"
                            self.assertIn(alert, text)
                        else:
                            self.assertEqual(agreed, version, text)
                cells.append({"-": "refused", "m": "rustls", "c": "OpenSSL", "l": "OpenSSL"}[served])
            rows.append(f"| {client} | " + " | ".join(cells) + " |")
        print("\n| s_client offers | modern | compat | legacy, named | legacy, not named |\n|---|---|---|---|---|")
        print("\n".join(rows))

        devices = json.loads(run(GRAPHPOST, "status", "--tls", "--json", "--config", str(self.config)).stdout)
        found = {(it["listener"], it["version"], it.get("needs"), "refused" in it) for it in devices}
        self.assertIn(("legacy", "TLSv1.0", "legacy", False), found)
        self.assertIn(("legacy", "TLSv1.1", "legacy", False), found)
        self.assertIn(("compat", "TLSv1.2", "compat", False), found)
        self.assertIn(("modern", "TLSv1.0", "legacy", True), found)
        self.assertIn(("not-named", "TLSv1.0", "legacy", True), found)
        self.assertIn(("modern", "TLSv1.2", "compat", True), found)
        print(run(GRAPHPOST, "status", "--tls", "--config", str(self.config)).stdout)
        self.gateway.wait_for(r"old TLS.*version=TLSv1\.0|version=TLSv1\.0.*old TLS")


if __name__ == "__main__":
    unittest.main(verbosity=2)
