"""The gate as JUnit XML, one test a limit, for whatever shows the tests of a pipeline.

Source of the form: https://github.com/testmoapp/junitxml
"""

from xml.etree import ElementTree

from hoyer_export.report.stage_records import GateRecord
from hoyer_export.report.summary import gate_words


def junit(gate: GateRecord, file: str) -> str:
    """Return the XML of the limits of ``file``."""
    failed = sum(not limit.passed for limit in gate.limits)
    counts = {"tests": str(len(gate.limits)), "failures": str(failed)}
    suites = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(suites, "testsuite", {"name": "hoyer-export check", **counts})
    for limit, words in zip(gate.limits, gate_words(gate), strict=True):
        case = ElementTree.SubElement(suite, "testcase", {"classname": file, "name": limit.name})
        if limit.passed:
            ElementTree.SubElement(case, "system-out").text = words
        else:
            ElementTree.SubElement(case, "failure", {"message": words})
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"
