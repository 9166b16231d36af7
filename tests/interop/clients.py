#!/usr/bin/env python3
"""Real clients against the real binary: curl, swaks, msmtp, Python's smtplib and raw sockets.

Starts `graphpost cloud` and `graphpost serve` on free loopback ports, lets each client hand over one
message with an attachment, and asks the stand-in cloud what it delivered, and to whom.

    python3 tests/interop/clients.py target/debug/graphpost
"""

import base64
import email.message
import email.policy
import hashlib
import json
import os
import re
import shutil
import smtplib
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.request
from pathlib import Path

GRAPHPOST = str(Path(sys.argv.pop(1) if len(sys.argv) > 1 else "target/debug/graphpost").resolve())
SENDER, PASSWORD = "erp@contoso.com", "pass word:1"
ATTACHMENT = bytes(range(256)) * 300
DEADLINE = 60  # seconds for any one thing to happen; nothing waits that long when all is well


def run(*command, **kwargs):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=DEADLINE, **kwargs)


class Process:
    """A child whose standard output names the addresses it listens on."""

    def __init__(self, *command):
        self.lines = []
        self.seen = threading.Condition()
        self.child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for stream in (self.child.stdout, self.child.stderr):
            threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def _read(self, stream):
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


class Clients(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = Path(tempfile.mkdtemp(prefix="graphpost-interop-"))
        (cls.dir / "app").mkdir()
        run(GRAPHPOST, "cert", "new", "--out", str(cls.dir / "app"))
        run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
            "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
            "-keyout", str(cls.dir / "tls.key"), "-out", str(cls.dir / "tls.crt"))
        certificate = next((cls.dir / "app").glob("*.pem"))
        cls.cloud = Process(GRAPHPOST, "cloud", "--http", "127.0.0.1:0", "--certificate", str(certificate))
        cls.http = cls.cloud.wait_for(r"http://127\.0\.0\.1:\d+").group()
        (cls.dir / "accounts").touch(mode=0o600)
        config = cls.dir / "graphpost.toml"
        tls = 'certificate = "tls.crt"\nprivate_key = "tls.key"'
        listeners = {
            "plain": 'auth = "none"',
            "login": 'auth = "required"',
            "starttls": f'tls = "required"\nauth = "required"\n{tls}',
            "implicit": f'tls = "implicit"\nauth = "optional"\n{tls}',
        }
        config.write_text(
            f"""
[tenant]
id = "contoso.onmicrosoft.com"
client_id = "11111111-1111-1111-1111-111111111111"
authority = "{cls.http}"
graph = "{cls.http}"

[tenant.credential]
certificate = "{certificate}"
private_key = "{certificate.with_suffix('.key')}"

[accounts]
file = "accounts"

[[sender]]
address = ["{SENDER}"]
mailbox = "service@contoso.com"

[spool]
directory = "spool"

[delivery]
messages_per_minute = 10000

[admin]
address = "127.0.0.1:0"
"""
            + "".join(
                f'\n[[listener]]\nname = "{name}"\naddress = "127.0.0.1:0"\n{keys}\n' for name, keys in listeners.items()
            )
        )
        run(GRAPHPOST, "user", "add", "scanner", "--config", str(config), input=PASSWORD + "\n")
        cls.gateway = Process(GRAPHPOST, "serve", "--config", str(config))
        cls.port = {
            name: int(cls.gateway.wait_for(rf"\b{name}\b.*127\.0\.0\.1:(\d+)|127\.0\.0\.1:(\d+).*\b{name}\b").expand(r"\1\2"))
            for name in listeners
        }
        cls.attachment = cls.dir / "scan 1.bin"
        cls.attachment.write_bytes(ATTACHMENT)

    @classmethod
    def tearDownClass(cls):
        cls.gateway.stop()
        cls.cloud.stop()
        shutil.rmtree(cls.dir)

    def setUp(self):
        self.to = f"{self._testMethodName}@example.org"
        self.subject = f"Grüße von {self._testMethodName}"

    def message(self):
        message = email.message.EmailMessage()
        message["From"], message["To"], message["Subject"] = SENDER, self.to, self.subject
        message.set_content("Grüße.\n.\n..two dots\n")
        message.add_attachment(ATTACHMENT, maintype="application", subtype="octet-stream", filename="scan 1.bin")
        return message

    def raw(self):
        return self.message().as_bytes(policy=email.policy.SMTP)

    def eml(self):
        file = self.dir / f"{self._testMethodName}.eml"
        file.write_bytes(self.raw())
        return str(file)

    def arrived(self, attachment=True):
        """Waits until the stand-in cloud has delivered this test's message, and checks it is whole."""
        until = time.monotonic() + DEADLINE
        while time.monotonic() < until:
            with urllib.request.urlopen(self.http + "/sandbox/messages", timeout=DEADLINE) as answer:
                found = [it for it in json.load(answer) if self.to in json.dumps(it)]
            if found:
                break
            time.sleep(0.05)
        self.assertEqual(len(found), 1, f"{self.to}: {found}")
        message = found[0]
        self.assertEqual(message["mailbox"], "service@contoso.com")
        self.assertEqual(message["recipients"], [self.to])
        if attachment:
            [it] = message["attachments"]
            self.assertEqual(it["name"], "scan 1.bin")
            self.assertEqual(it["sha256"], hashlib.sha256(ATTACHMENT).hexdigest())
            self.assertEqual(message["subject"], self.subject)
        return message

    def test_python_plain(self):
        with smtplib.SMTP("127.0.0.1", self.port["plain"], timeout=DEADLINE) as smtp:
            smtp.send_message(self.message())
        self.arrived()

    def test_python_auth_starttls(self):
        with smtplib.SMTP("127.0.0.1", self.port["starttls"], timeout=DEADLINE) as smtp:
            smtp.starttls(context=ssl._create_unverified_context())
            smtp.login("scanner", PASSWORD)
            smtp.send_message(self.message())
        self.arrived()

    def test_python_implicit(self):
        context = ssl._create_unverified_context()
        with smtplib.SMTP_SSL("127.0.0.1", self.port["implicit"], context=context, timeout=DEADLINE) as smtp:
            smtp.send_message(self.message())
        self.arrived()

    def test_python_three_on_one_connection(self):
        with smtplib.SMTP("127.0.0.1", self.port["login"], timeout=DEADLINE) as smtp:
            smtp.login("scanner", PASSWORD)
            for number in range(3):
                message = self.message()
                to = f"{number}.{self.to}"
                message.replace_header("To", to)
                smtp.send_message(message)
        to = self.to
        for number in range(3):
            self.to = f"{number}.{to}"
            self.arrived()

    def curl(self, *options):
        run("curl", "-sS", "--max-time", str(DEADLINE), "--mail-from", SENDER, "--mail-rcpt", self.to,
            "-T", self.eml(), *options)
        self.arrived()

    def test_curl_plain(self):
        self.curl(f"smtp://127.0.0.1:{self.port['plain']}/device.contoso.com")

    def test_curl_mime_form(self):
        run("curl", "-sS", "--max-time", str(DEADLINE), f"smtp://127.0.0.1:{self.port['plain']}",
            "--mail-from", SENDER, "--mail-rcpt", self.to,
            "-F", "=Hello.;type=text/plain", "-F", f"=@{self.attachment};encoder=base64",
            "-H", f"From: {SENDER}", "-H", f"To: {self.to}", "-H", f"Subject: {self.subject}")
        self.arrived()

    def test_curl_auth_starttls(self):
        self.curl("--ssl-reqd", "-k", "-u", f"scanner:{PASSWORD}", f"smtp://127.0.0.1:{self.port['starttls']}")

    def test_curl_auth_login_implicit(self):
        self.curl("-k", "--login-options", "AUTH=LOGIN", "-u", f"scanner:{PASSWORD}",
                  f"smtps://127.0.0.1:{self.port['implicit']}")

    def swaks(self, *options):
        run("swaks", "--from", SENDER, "--to", self.to, "--data", f"@{self.eml()}", "--timeout", f"{DEADLINE}s", *options)
        self.arrived()

    def test_swaks_plain(self):
        self.swaks("--server", f"127.0.0.1:{self.port['plain']}")

    def test_swaks_pipeline(self):
        self.swaks("--server", f"127.0.0.1:{self.port['plain']}", "--pipeline")

    def test_swaks_auth_plain(self):
        self.swaks("--server", f"127.0.0.1:{self.port['login']}", "--auth", "PLAIN",
                   "--auth-user", "scanner", "--auth-password", PASSWORD)

    def test_swaks_auth_login_starttls(self):
        self.swaks("--server", f"127.0.0.1:{self.port['starttls']}", "-tls", "--auth", "LOGIN",
                   "--auth-user", "scanner", "--auth-password", PASSWORD)

    def test_swaks_own_attachment(self):
        run("swaks", "--from", SENDER, "--to", self.to, "--server", f"127.0.0.1:{self.port['plain']}",
            "--attach-name", "scan 1.bin", "--attach", f"@{self.attachment}", "--header", "Subject: plain")
        self.assertEqual(self.arrived(attachment=False)["subject"], "plain")

    def msmtp(self, *options):
        run("msmtp", "-f", SENDER, "--host=127.0.0.1", f"--timeout={DEADLINE}", *options, self.to,
            input=self.raw().replace(b"\r\n", b"\n").decode())
        self.arrived()

    def test_msmtp_plain(self):
        self.msmtp(f"--port={self.port['plain']}")

    def test_msmtp_auth_starttls(self):
        self.msmtp(f"--port={self.port['starttls']}", "--tls=on", "--tls-starttls=on", "--tls-certcheck=off",
                   "--auth=on", "--user=scanner", f"--passwordeval=printf %s '{PASSWORD}'")

    def dialogue(self, port, *lines):
        """A raw dialogue: each line is sent after the reply to the one before."""
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as connection:
            stream = connection.makefile("rwb")

            def reply():
                while (line := stream.readline())[3:4] == b"-":
                    pass
                return line.decode()

            replies = [reply()]
            for line in lines:
                stream.write(line if isinstance(line, bytes) else line.encode() + b"\r\n")
                stream.flush()
                replies.append(reply())
            return replies

    def data(self):
        raw = re.sub(rb"(?m)^\.", b"..", self.raw())
        return raw + b".\r\n"

    def test_raw_helo(self):
        replies = self.dialogue(self.port["plain"], "HELO RICOH-IMC2000", f"MAIL FROM: <{SENDER}>", f"RCPT TO:{self.to}",
                                "DATA", self.data(), "QUIT")
        self.assertEqual([it[:3] for it in replies], ["220", "250", "250", "250", "354", "250", "221"])
        self.arrived()

    def test_raw_dotnet(self):
        """System.Net.Mail.SmtpClient: `AUTH login` in lower case with an initial response."""
        replies = self.dialogue(
            self.port["login"], "EHLO desktop", "AUTH login " + base64.b64encode(b"scanner").decode(),
            base64.b64encode(PASSWORD.encode()).decode(), f"MAIL FROM:<{SENDER}>", f"RCPT TO:<{self.to}>", "DATA",
            self.data(), "QUIT")
        self.assertEqual([it[:3] for it in replies], ["220", "250", "334", "235", "250", "250", "354", "250", "221"])
        self.assertEqual(replies[2].strip(), "334 UGFzc3dvcmQ6")
        self.arrived()

    def test_wrong_password_is_refused(self):
        with smtplib.SMTP("127.0.0.1", self.port["login"], timeout=DEADLINE) as smtp:
            with self.assertRaises(smtplib.SMTPAuthenticationError) as refusal:
                smtp.login("scanner", "wrong")
        self.assertEqual(refusal.exception.smtp_code, 535)

    def test_other_sender_is_refused(self):
        with smtplib.SMTP("127.0.0.1", self.port["plain"], timeout=DEADLINE) as smtp:
            with self.assertRaises(smtplib.SMTPSenderRefused) as refusal:
                smtp.sendmail("ceo@contoso.com", [self.to], self.raw())
        self.assertEqual(refusal.exception.smtp_code, 550)
        self.assertIn(b"5.7.1", refusal.exception.smtp_error)

    def test_other_from_is_refused(self):
        raw = self.raw().replace(b"From: " + SENDER.encode(), b"From: ceo@contoso.com")
        with smtplib.SMTP("127.0.0.1", self.port["plain"], timeout=DEADLINE) as smtp:
            with self.assertRaises(smtplib.SMTPDataError) as refusal:
                smtp.sendmail(SENDER, [self.to], raw)
        self.assertEqual(refusal.exception.smtp_code, 550)

    def test_bcc_reaches_its_recipient_and_nobody_sees_it(self):
        with smtplib.SMTP("127.0.0.1", self.port["plain"], timeout=DEADLINE) as smtp:
            hidden = "hidden-" + self.to
            smtp.sendmail(SENDER, [self.to, hidden], self.raw())
        until = time.monotonic() + DEADLINE
        while time.monotonic() < until:
            with urllib.request.urlopen(self.http + "/sandbox/messages", timeout=DEADLINE) as answer:
                found = [it for it in json.load(answer) if hidden in json.dumps(it)]
            if found:
                break
            time.sleep(0.05)
        [message] = found
        self.assertEqual(sorted(message["recipients"]), sorted([self.to, hidden]))
        self.assertEqual(len(message["to"]), 1)
        self.assertIn(hidden, json.dumps(message["bcc"]))


if __name__ == "__main__":
    unittest.main(verbosity=2)
