"""Scripts that let a shell complete the command line, made of its parsers."""

from __future__ import annotations

from argparse import Action, ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from shlex import quote

SHELLS = ("bash", "zsh", "fish")


def script(parser: ArgumentParser, shell: str) -> str:
    """What a shell reads to complete a command.

    Args:
        parser: of the command, with commands of its own.
        shell: one of :data:`SHELLS`.
    """
    (commands,) = (action for action in parser._actions if isinstance(action, _SubParsersAction))
    helps = {action.dest: action.help or "" for action in commands._choices_actions}
    actions = {name: [*_shown(of_command)] for name, of_command in commands.choices.items()}
    if shell == "fish":
        return _fish(parser.prog, helps, actions)
    of_bash = _bash(parser.prog, actions)
    if shell == "bash":
        return of_bash
    return f"autoload -Uz compinit bashcompinit && compinit && bashcompinit\n{of_bash}"


def _shown(parser: ArgumentParser) -> Iterator[Action]:
    return (action for action in parser._actions if action.dest != "help")


def _flag(action: Action) -> str:
    """The long name of an option; empty for what is given by its place."""
    return next((name for name in action.option_strings if name.startswith("--")), "")


def _values(action: Action) -> str:
    return " ".join(map(str, action.choices or ()))


def _bash(prog: str, actions: dict[str, list[Action]]) -> str:
    function = f"_{prog.replace('-', '_')}"
    cases = [f'        1:*) words="{" ".join(actions)}" ;;']
    for name, of_command in actions.items():
        taking = [action for action in of_command if _flag(action) and action.nargs != 0]
        cases += [f'        *:{name}:{_flag(one)}) words="{_values(one)}" ;;' for one in taking if one.choices]
        if free := "|".join(f"*:{name}:{_flag(one)}" for one in taking if not one.choices):
            cases.append(f"        {free}) ;;")
        words = " ".join(_flag(action) or _values(action) for action in of_command)
        cases.append(f'        *:{name}:*) words="{" ".join(words.split())}" ;;')
    return "\n".join(
        [
            f"{function}() {{",
            '    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" words=""',
            '    case "$COMP_CWORD:${COMP_WORDS[1]}:$before" in',
            *cases,
            "    esac",
            '    COMPREPLY=($(compgen -W "$words" -- "$word"))',
            "}",
            f"complete -o default -F {function} {prog}",
            "",
        ]
    )


def _fish(prog: str, helps: dict[str, str], actions: dict[str, list[Action]]) -> str:
    lines = [f"complete -c {prog} -f"]
    for name, of_command in actions.items():
        lines.append(f"complete -c {prog} -n __fish_use_subcommand -a {name} -d {quote(helps[name])}")
        start = f"complete -c {prog} -n '__fish_seen_subcommand_from {name}'"
        for action in of_command:
            takes = "" if action.nargs == 0 else f"-a {quote(_values(action))}" if action.choices else "-F"
            needs = "" if action.nargs == 0 or not _flag(action) else "-x" if action.choices else "-r"
            named = f"-l {_flag(action)[2:]}" if _flag(action) else ""
            told = f"-d {quote(action.help)}" if action.help else ""
            lines.append(" ".join(filter(None, [start, named, needs, takes, told])))
    return "\n".join([*lines, ""])
