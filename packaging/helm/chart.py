"""Lints or renders a chart with Helm itself: chart.py lint|template CHART [VALUES.yaml]."""

import sys

import helm_python as helm

verb, path, *files = sys.argv[1:]
values = {}
for file in files:
    with open(file, encoding="utf-8") as text:
        values = helm.values_from_yaml(text.read())

if verb == "lint":
    report = helm.lint(path, values, strict=True, namespace="perjoule")
    # 2 and 3 are warnings and errors; 1 is taste.
    findings = [m for m in report["messages"] if m["severity"] >= 2]
    for finding in findings:
        print(finding["path"], finding["error"], file=sys.stderr)
    sys.exit(bool(findings or report["errors"]))

with helm.Chart.load(path) as chart:
    chart.validate_schema(values)
    rendered = chart.render(values, name="perjoule", namespace="perjoule")
for source, text in sorted(rendered.items(), key=lambda item: ("namespace" not in item[0], item[0])):
    if source.endswith(".yaml") and text.strip():
        print(f"---\n# Source: {source}\n{text.strip()}")
