"""What the shells are told, and what they make of it."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from pyterrier_mechir.commands.cli import main


@pytest.fixture
def printed(capsys):
    def of(shell: str) -> str:
        assert main(["completion", shell]) == 0
        return capsys.readouterr().out

    return of


def _run(shell: str, program: str) -> list[str]:
    if sys.platform == "win32" or shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    done = subprocess.run([shell, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    return [line.split("\t")[0] for line in done.stdout.splitlines()]


LINES = {
    ("",): ["demo", "run", "report", "verify", "explain", "recipe", "recipes", "perturbations", "completion"],
    ("ve",): ["verify"],
    ("demo", "--ty"): ["--type"],
    ("demo", "--type", ""): ["bi", "cross"],
    ("demo", "--type", "cross", "--direction", "no"): ["noise"],
    ("completion", ""): ["bash", "zsh", "fish"],
    ("verify", "--js"): ["--json"],
    ("explain", "--ranker", "--"): [],
}
"""Words after the command, the last of which is being written, and what may stand there."""


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_bash_completes(words, printed):
    quoted = " ".join(f"'{word}'" for word in ("pyterrier-mechir", *words))
    ask = f'COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; _pyterrier_mechir; printf "%s\\n" "${{COMPREPLY[@]}}"'
    assert [line for line in _run("bash", f"{printed('bash')}{ask}") if line] == LINES[words]


@pytest.mark.parametrize("words", [words for words, found in LINES.items() if found], ids=" ".join)
def test_fish_completes(words, printed):
    line = " ".join(["pyterrier-mechir", *words])
    assert {*_run("fish", f"{printed('fish')}complete -C '{line}'")} >= {*LINES[words]}


def test_zsh_reads_its_script(printed):
    _run("zsh", f"{printed('zsh').replace('compinit &&', 'compinit -u -D &&')}whence -w _pyterrier_mechir >/dev/null")


def test_the_help_has_an_example_of_each_command_and_the_exit_codes(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    told = capsys.readouterr().out
    assert all(f"pyterrier-mechir {command}" in told for command in LINES[("",)])
    assert all(f"{code} " in told.partition("exit codes:")[2] for code in (0, 1, 2, 130))


@pytest.mark.parametrize("command", LINES[("",)])
def test_the_help_of_a_command_has_its_example(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert f"pyterrier-mechir {command}" in " ".join(capsys.readouterr().out.partition("example:")[2].split())
