#!/usr/bin/env python3
"""Real clients against the real binary: curl, swaks, msmtp, Postfix, Python's smtplib, Perl's Net::SMTP,
nodemailer and raw sockets.

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
    ran = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, **kwargs)
    if ran.returncode:
        raise AssertionError(f"{command[0]} ended with {ran.returncode}\n{ran.stdout}{ran.stderr}")
    return ran


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
    nodemailer = "(not installed)"

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
            "encrypted": f'tls = "required"\n{tls}',
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

    def test_curl_mime_form(self):
        run("curl", "-sS", "--max-time", str(DEADLINE), f"smtp://127.0.0.1:{self.port['plain']}",
            "--mail-from", SENDER, "--mail-rcpt", self.to,
            "-F", "=Hello.;type=text/plain", "-F", f"=@{self.attachment};encoder=base64",
            "-H", f"From: {SENDER}", "-H", f"To: {self.to}", "-H", f"Subject: {self.subject}")
        self.arrived()

    def test_curl_auth_login_implicit(self):
        self.curl("-k", "--login-options", "AUTH=LOGIN", "-u", f"scanner:{PASSWORD}",
                  f"smtps://127.0.0.1:{self.port['implicit']}")

    def swaks(self, *options):
        run("swaks", "--from", SENDER, "--to", self.to, "--data", f"@{self.eml()}", "--timeout", f"{DEADLINE}s", *options)
        self.arrived()

    def test_swaks_pipeline(self):
        self.swaks("--server", f"127.0.0.1:{self.port['plain']}", "--pipeline")

    def test_swaks_auth_plain(self):
        self.swaks("--server", f"127.0.0.1:{self.port['login']}", "--auth", "PLAIN",
                   "--auth-user", "scanner", "--auth-password", PASSWORD)

    def test_swaks_own_attachment(self):
        run("swaks", "--from", SENDER, "--to", self.to, "--server", f"127.0.0.1:{self.port['plain']}",
            "--attach-name", "scan 1.bin", "--attach", f"@{self.attachment}", "--header", "Subject: plain")
        self.assertEqual(self.arrived(attachment=False)["subject"], "plain")

    # ---- the matrix: each client without a login, with one, with STARTTLS, and with both ------------

    def server(self, login, tls):
        """The listener for a cell of the matrix."""
        return self.port[{(False, False): "plain", (True, False): "login", (False, True): "encrypted", (True, True): "starttls"}[login, tls]]

    def every_cell(self, client):
        for login in (False, True):
            for tls in (False, True):
                cell = ("login" if login else "no login", "STARTTLS" if tls else "no TLS")
                with self.subTest(cell=cell):
                    self.to = f"{self._testMethodName}.{login}.{tls}@example.org"
                    client(self.server(login, tls), login, tls)
                    self.arrived()

    def test_every_curl(self):
        def client(port, login, tls):
            options = ["-u", f"scanner:{PASSWORD}"] if login else []
            options += ["--ssl-reqd", "--cacert", str(self.dir / "tls.crt")] if tls else []
            run("curl", "-sS", "--max-time", str(DEADLINE), "--mail-from", SENDER, "--mail-rcpt", self.to,
                "-T", self.eml(), *options, f"smtp://localhost:{port}")
        self.every_cell(client)

    def test_every_swaks(self):
        def client(port, login, tls):
            options = ["--auth", "LOGIN", "--auth-user", "scanner", "--auth-password", PASSWORD] if login else []
            options += ["-tls"] if tls else []
            run("swaks", "--from", SENDER, "--to", self.to, "--data", f"@{self.eml()}", "--timeout", f"{DEADLINE}s",
                "--server", f"127.0.0.1:{port}", *options)
        self.every_cell(client)

    def test_every_msmtp(self):
        def client(port, login, tls):
            # Without TLS msmtp sends a password only where the mechanism is named.
            options = ["--auth=on" if tls else "--auth=plain", "--user=scanner", f"--passwordeval=printf %s '{PASSWORD}'"] if login else []
            options += ["--tls=on", f"--tls-trust-file={self.dir / 'tls.crt'}"] if tls else ["--tls=off"]
            run("msmtp", "-f", SENDER, "--host=localhost", f"--port={port}", f"--timeout={DEADLINE}", *options, self.to,
                input=self.raw().replace(b"\r\n", b"\n").decode())
        self.every_cell(client)

    def test_every_python(self):
        def client(port, login, tls):
            with smtplib.SMTP("localhost", port, timeout=DEADLINE) as smtp:
                if tls:
                    smtp.starttls(context=ssl.create_default_context(cafile=str(self.dir / "tls.crt")))
                if login:
                    smtp.login("scanner", PASSWORD)
                smtp.send_message(self.message())
        self.every_cell(client)

    def test_every_perl(self):
        """Net::SMTP, with IO::Socket::SSL for STARTTLS and Authen::SASL for the login."""
        script = self.dir / "client.pl"
        script.write_text(
            """
use strict; use warnings; use Net::SMTP;
my ($port, $from, $to, $file, $account, $password, $ca) = @ARGV;
my $smtp = Net::SMTP->new('localhost', Port => $port, Timeout => 60) or die "no connection: $@";
if ($ca) { $smtp->starttls(SSL_ca_file => $ca) or die 'STARTTLS: ' . $smtp->message . $@ }
if ($account) { $smtp->auth($account, $password) or die 'AUTH: ' . $smtp->message }
open(my $content, '<:raw', $file) or die $!;
my $message = do { local $/; <$content> };
$message =~ s/\\r\\n/\\n/g;
$smtp->mail($from) or die $smtp->message;
$smtp->to($to) or die $smtp->message;
$smtp->data($message) or die $smtp->message;
$smtp->quit;
"""
        )
        def client(port, login, tls):
            run("perl", str(script), str(port), SENDER, self.to, self.eml(),
                *(("scanner", PASSWORD) if login else ("", "")), str(self.dir / "tls.crt") if tls else "")
        self.every_cell(client)

    def test_every_nodemailer(self):
        modules = self.dir / "node"
        modules.mkdir()
        run("npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(modules), "nodemailer@6")
        package = json.loads((modules / "node_modules/nodemailer/package.json").read_text())
        type(self).nodemailer = package["version"]
        script = modules / "client.cjs"
        script.write_text(
            """
const fs = require('fs'), nodemailer = require('nodemailer');
const [port, from, to, subject, file, account, password, ca] = process.argv.slice(2);
const transport = nodemailer.createTransport({
  host: 'localhost', port: Number(port), secure: false,
  requireTLS: ca !== '', ignoreTLS: ca === '', tls: ca === '' ? {} : { ca: fs.readFileSync(ca) },
  auth: account === '' ? undefined : { user: account, pass: password },
});
transport.sendMail({ from, to, subject, text: 'Grüße.\\n.\\n..two dots\\n',
  attachments: [{ filename: 'scan 1.bin', path: file }] })
  .then(() => process.exit(0), (error) => { console.error(error); process.exit(1); });
"""
        )
        def client(port, login, tls):
            run("node", str(script), str(port), SENDER, self.to, self.subject, str(self.attachment),
                *(("scanner", PASSWORD) if login else ("", "")), str(self.dir / "tls.crt") if tls else "")
        self.every_cell(client)

    def test_every_postfix(self):
        """A null client: everything goes to the relay, and nothing is received but from this machine."""
        home = self.dir / "postfix"
        config, queue, data = home / "etc", home / "queue", home / "lib"
        for directory in (config, queue, data):
            directory.mkdir(parents=True)
        for directory in (self.dir, home):
            directory.chmod(0o755)
        shutil.copy("/etc/postfix/master.cf" if Path("/etc/postfix/master.cf").exists()
                    else "/usr/share/postfix/master.cf.dist", config / "master.cf")
        # No port of its own; and no chroot, in which no resolver is set up.
        lines = (config / "master.cf").read_text().splitlines()
        services = [re.sub(r"^(\S+\s+\S+\s+\S+\s+\S+\s+)y", r"\1n", it) for it in lines if not re.match(r"(smtp|smtps|submission|465)\s+inet", it)]
        (config / "master.cf").write_text("\n".join(services) + "\n")
        shutil.chown(data, "postfix")

        def client(port, login, tls):
            (config / "main.cf").write_text(
                f"compatibility_level = 3.6\nqueue_directory = {queue}\ndata_directory = {data}\n"
                f"mail_owner = postfix\nsetgid_group = postdrop\nmyhostname = null.contoso.com\nmyorigin = contoso.com\n"
                f"mydestination =\nlocal_transport = error:no local delivery\ninet_interfaces = loopback-only\n"
                f"inet_protocols = ipv4\nmaillog_file = /dev/stdout\nmaillog_file_prefixes = /dev, /tmp, /var\n"
                f"relayhost = [localhost]:{port}\nsmtp_host_lookup = native\nalias_maps =\nalias_database =\n"
                f"smtp_tls_security_level = {'secure' if tls else 'none'}\nsmtp_tls_CAfile = {self.dir / 'tls.crt'}\n"
                f"smtp_tls_secure_cert_match = localhost\n"
                + (f"smtp_sasl_auth_enable = yes\nsmtp_sasl_security_options =\nsmtp_sasl_tls_security_options =\n"
                   f"smtp_sasl_password_maps = inline:{{{{[localhost]:{port} = scanner:{PASSWORD}}}}}\n" if login else "")
            )
            run("postfix", "-c", str(config), "check")
            log = home / f"log.{login}.{tls}"
            with log.open("w") as out:
                master = subprocess.Popen(["postfix", "-c", str(config), "start-fg"], stdout=out, stderr=out)
            try:
                run("sendmail", "-C", str(config), "-f", SENDER, "-i", self.to,
                    input=self.raw().replace(b"\r\n", b"\n").decode())
                try:
                    self.arrived()
                except AssertionError as error:
                    raise AssertionError(f"{error}\n{log.read_text()}") from None
            finally:
                subprocess.run(["postfix", "-c", str(config), "stop"], capture_output=True, timeout=DEADLINE)
                master.wait(DEADLINE)
        self.every_cell(client)

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


def versions():
    """The clients of the matrix, as they call themselves."""
    def first_line(*command):
        return run(*command).stdout.splitlines()[0]
    yield "curl", "curl " + first_line("curl", "--version").split()[1]
    yield "swaks", "swaks " + first_line("swaks", "--version").split()[-1]
    yield "msmtp", "msmtp " + first_line("msmtp", "--version").split()[-1]
    yield "postfix", "Postfix " + first_line("postconf", "-d", "-h", "mail_version") + " as a null client"
    yield "python", f"Python {sys.version.split()[0]} smtplib"
    yield "perl", "Perl Net::SMTP " + first_line("perl", "-MNet::SMTP", "-e", "print Net::SMTP->VERSION")
    yield "nodemailer", "nodemailer " + Clients.nodemailer


def table(result):
    """The matrix, as docs/devices.md has it."""
    failed = {}
    for test, _ in result.failures + result.errors:
        whole = getattr(test, "test_case", test)._testMethodName
        failed.setdefault(whole, set()).add(getattr(test, "params", {}).get("cell"))
    yield "| client | plain | AUTH | STARTTLS | STARTTLS and AUTH |"
    yield "|---|---|---|---|---|"
    for name, called in versions():
        bad = failed.get(f"test_every_{name}", set())
        cells = [("no login", "no TLS"), ("login", "no TLS"), ("no login", "STARTTLS"), ("login", "STARTTLS")]
        yield f"| {called} | " + " | ".join("**no**" if it in bad or None in bad else "yes" for it in cells) + " |"


if __name__ == "__main__":
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(Clients)
    outcome = unittest.TextTestRunner(verbosity=2).run(suite)
    print("\n".join(table(outcome)))
    sys.exit(not outcome.wasSuccessful())
