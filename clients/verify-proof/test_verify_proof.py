#!/usr/bin/env python3
"""The verifier accepts a proof that the database made, and nothing that differs from it."""

import copy
import json
import pathlib
import subprocess
import sys
import unittest

import verify_proof

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "crates/log/tests/golden/proof-1.json"


def changes(value):
    """Every copy of a JSON tree in which one leaf differs."""
    if isinstance(value, dict):
        for key, inner in value.items():
            for changed in changes(inner):
                yield dict(value, **{key: changed})
            yield {k: v for k, v in value.items() if k != key}
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            for changed in changes(inner):
                yield value[:i] + [changed] + value[i + 1:]
            yield value[:i] + value[i + 1:]
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield value + 1
        yield value - 1
        yield str(value)
    elif value in ("left", "right"):
        yield {"left": "right", "right": "left"}[value]
    else:
        middle = len(value) // 2
        yield value[:middle] + ("2" if value[middle] == "1" else "1") + value[middle + 1:]
        yield ""
        yield None


class VerifyProof(unittest.TestCase):
    def setUp(self):
        self.proof = json.loads(GOLDEN.read_text())

    def test_a_proof_of_the_database_holds(self):
        result = verify_proof.verify(self.proof)
        self.assertEqual(result["sequence"], 8)
        self.assertEqual(result["chain"], self.proof["chain"])
        self.assertEqual(result["event"]["stream"], "stream-4")

    def test_no_changed_proof_holds(self):
        count = 0
        for changed in changes(copy.deepcopy(self.proof)):
            count += 1
            with self.assertRaises(Exception, msg=json.dumps(changed)):
                verify_proof.verify(changed)
        self.assertGreater(count, 50)

    def run_tool(self, *arguments, text=None):
        command = [sys.executable, verify_proof.__file__, *arguments]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False)

    def test_exit_statuses(self):
        chain = self.proof["chain"]
        self.assertEqual(self.run_tool(str(GOLDEN), "--chain", chain).returncode, 0)
        self.assertEqual(self.run_tool("-", text=json.dumps(self.proof)).returncode, 0)
        self.assertEqual(self.run_tool(str(GOLDEN), "--chain", "00" * 32).returncode, 1)
        self.assertEqual(self.run_tool("-", text="{}").returncode, 1)
        self.assertEqual(self.run_tool("-", text="not json").returncode, 2)
        self.assertEqual(self.run_tool("/does/not/exist").returncode, 2)


if __name__ == "__main__":
    unittest.main()
