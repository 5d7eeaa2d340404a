"""Workflows and forms: they parse, and their commands are those that the package tells everybody to run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

import pyterrier_mechir

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _jobs(workflow: Path | str) -> dict:
    path = workflow if isinstance(workflow, Path) else ROOT / ".github" / "workflows" / workflow
    return yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]


def _commands(job: dict) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_parses_and_pins_its_actions_by_major_version(workflow):
    said = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    assert {"name", True, "jobs"} <= said.keys() and said["name"] == workflow.stem  # YAML reads "on" as True
    for job in said["jobs"].values():
        assert all(re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", s["uses"]) for s in job["steps"] if "uses" in s)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_installs_extras_that_there_are(workflow):
    for job in _jobs(workflow).values():
        for extras in re.findall(r"\.\[([\w,]+)\]", " ".join(_commands(job))):
            assert {*extras.split(",")} <= PROJECT["optional-dependencies"].keys()


def test_the_tests_of_a_workflow_are_those_of_the_readme():
    assert "pytest\n```" in _text("README.md") and "&& pytest;" in _text(".ci/run")
    of_tests = _jobs("test.yml")
    assert all(_commands(of_tests[job])[-1] == "pytest" for job in ("newest", "oldest"))
    assert _commands(_jobs("upstream.yml")["newest"])[-1] == "pytest"
    assert _commands(of_tests["checks"]) == [".ci/run"]


def test_every_version_of_python_that_is_promised_is_tested():
    promised = {name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)}
    of_tests = _jobs("test.yml")
    assert {*of_tests["newest"]["strategy"]["matrix"]["python"]} == promised
    oldest = {case["os"] for case in of_tests["oldest"]["strategy"]["matrix"]["include"]}
    assert oldest == {*of_tests["newest"]["strategy"]["matrix"]["os"]}


def test_contributors_and_hooks_are_told_the_checks_that_run():
    checks = _text(".ci/run").split("exit 1\n")[1].split()
    told = _text("CONTRIBUTING.md").split("## Check\n\n```shell\npytest\n")[1].split("```")[0].split()
    assert told[: len(told)] == checks[: len(told)]
    hooks = yaml.safe_load(_text(".pre-commit-config.yaml"))["repos"][0]["hooks"]
    entries = [hook["entry"].replace(" --fix", "").split()[0] for hook in hooks]
    assert entries == ["ruff", "ruff", "mypy", "lint-imports"] and {*entries} <= {*checks}


def test_a_release_checks_what_it_builds():
    commands = _commands(_jobs("release.yml")["build"])
    steps = re.search(r"`(python -m build && [^`]+)`", _text("CONTRIBUTING.md"))[1].split(" && ")
    assert [command for command in commands if command in steps] == steps


@pytest.mark.parametrize("form", ["bug_report", "question", "feature_request"])
def test_a_form_asks_for_the_check_of_the_ranker(form):
    text = _text(f".github/ISSUE_TEMPLATE/{form}.md")
    head = yaml.safe_load(text.split("---\n")[1])
    assert {"name", "about", "labels"} == head.keys()
    assert "`pyterrier-mechir verify ID_OR_DIRECTORY --json`" in text.replace("\n", " ")


def test_the_citation_is_of_this_version_and_licence():
    said = yaml.safe_load(_text("CITATION.cff"))
    version = pyterrier_mechir.__version__
    assert (said["version"], said["license"]) == (version, PROJECT["license"])
