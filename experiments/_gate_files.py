"""A gate's verdicts in the formats that CI servers read: JUnit XML and SARIF 2.1.0."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from secure_ml.gate import Condition, Verdict

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, escaped or not."""


def junit(verdicts: Sequence[Verdict], version: str, started: datetime) -> bytes:
    """A test suite in UTF-8 with a case for each verdict: the class is task and stack, the name is the condition.

    Valid under the schema of Ant's reports, the strictest of those in use: what a case that passed says stands in the
    output of the suite.
    """
    failures = sum(verdict.failed for verdict in verdicts)
    counts = {"tests": len(verdicts), "failures": failures, "errors": 0}
    about = {"name": "gate", "package": "secure-ml", "id": "0", "hostname": "localhost"}
    about |= {"timestamp": started.strftime("%Y-%m-%dT%H:%M:%S"), "time": _seconds(verdicts)}
    root = Element("testsuites")
    suite = SubElement(root, "testsuite", about | {name: str(count) for name, count in counts.items()})
    SubElement(SubElement(suite, "properties"), "property", {"name": "version", "value": version})
    for verdict in verdicts:
        place = _clean(f"{verdict.task or 'all'}.{verdict.defenses or 'all'}")
        name = {"classname": place, "name": _clean(verdict.condition.text), "time": _seconds([verdict])}
        case = SubElement(suite, "testcase", name)
        if verdict.failed:
            failure = SubElement(case, "failure", {"message": _clean(verdict.why), "type": "gate"})
            failure.text = _clean(_long(verdict))
    SubElement(suite, "system-out").text = _clean("\n".join(map(_long, verdicts)))
    SubElement(suite, "system-err")
    indent(root, " ")
    written: bytes = tostring(root, encoding="utf-8", xml_declaration=True)
    return written + b"\n"


def sarif(verdicts: Sequence[Verdict], rows: Path, version: str) -> dict[str, Any]:
    """A SARIF 2.1.0 log: a rule for each condition, a result for each verdict, which points to the file of rows."""
    rules = list(dict.fromkeys(verdict.condition for verdict in verdicts))
    driver = {"name": "secure-ml", "version": version, "rules": [_rule(rule) for rule in rules]}
    results = [_result(verdict, rules.index(verdict.condition), _uri(rows)) for verdict in verdicts]
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(condition: Condition) -> dict[str, Any]:
    judged = {
        "bound": "the end of the 95 % interval at which the condition holds more easily",
        "point": "the value",
        "both": "both ends of the 95 % interval",
    }[condition.on]
    how = "the verdict of the check" if condition.is_check else judged
    text = (
        f"The run fails where {condition.text}. Judged is {how}, on the worst row of each stack of defenses; what was "
        "not measured, or is n/a, fails too. To pass, change the model or its defenses, or narrow the interval by more "
        "examples and seeds."
    )
    return {
        "id": condition.text,
        "name": re.sub(r"\W", "", condition.wanted.title()),
        "shortDescription": {"text": f"Fail if {condition.text}"},
        "fullDescription": {"text": text},
        "help": {"text": text, "markdown": text.replace(condition.text, f"`{condition.text}`")},
        "defaultConfiguration": {"level": "error"},
    }


def _result(verdict: Verdict, index: int, uri: str) -> dict[str, Any]:
    place = f"{verdict.task or 'all'}/{verdict.defenses or 'all'}"
    key = hashlib.sha256(f"{verdict.condition.text}\0{place}".encode()).hexdigest()[:32]
    physical = {"artifactLocation": {"uri": uri}, "region": {"startLine": 1}}
    logical = [{"fullyQualifiedName": place, "kind": "module"}]
    return {
        "ruleId": verdict.condition.text,
        "ruleIndex": index,
        "kind": "fail" if verdict.failed else "pass",
        "level": "error" if verdict.failed else "none",
        "message": {"text": f"{place}: {verdict.why}"},
        "locations": [{"physicalLocation": physical, "logicalLocations": logical}],
        "partialFingerprints": {"conditionAndStack/v1": key},
    }


def _uri(path: Path) -> str:
    """Relative to where the command runs, which in CI is the repository; a file URI where it lies elsewhere."""
    near = os.path.relpath(path)
    return path.resolve().as_uri() if near.startswith("..") else quote(Path(near).as_posix())


def _long(verdict: Verdict) -> str:
    row = verdict.row
    by = f"\nmeasured by {row.attack or 'the task itself'}, n = {row.n}, seeds {row.seeds}" if row else ""
    return f"{verdict.why}{by}"


def _seconds(verdicts: Sequence[Verdict]) -> str:
    return f"{sum(verdict.row.seconds for verdict in verdicts if verdict.row):.3f}"


def _clean(text: str) -> str:
    return _NO_XML.sub("\ufffd", text)
