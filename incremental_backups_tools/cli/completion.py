"""``ibt completion``: what makes a shell complete the command's arguments."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.options import IbtCommand, Settings, common_options
from incremental_backups_tools.cli.output import write_output

_PROGRAM: Final = "ibt"
_VARIABLE: Final = "_IBT_COMPLETE"

# bash breaks words at '@' and ':' (COMP_WORDBREAKS): the pieces are put together by their places in the line. It
# replaces what stands behind the last ':', or the last '@' and what stands behind that (to readline '@' may begin a
# word); what it keeps is taken off the answers.
_BASH: Final = """\
%(complete_func)s() {
    local line=${COMP_LINE:0:COMP_POINT} word rest item kept i
    local words=()
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        rest=${line#"${line%%%%[![:space:]]*}"}
        if ((i > 0)) && [[ -n $word && $rest == "$line" ]]; then
            words[${#words[@]} - 1]+=$word
        else
            words+=("$word")
        fi
        line=${rest#"$word"}
    done
    local current=${words[${#words[@]} - 1]}
    kept=${current%%"${current##*[@:]}"}
    kept=${kept%%@}
    COMPREPLY=()
    while IFS=, read -r word item; do
        case $word in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("${item#"$kept"}") ;;
        esac
    done < <(COMP_WORDS=$(printf '%%q ' "${words[@]}") COMP_CWORD=$((${#words[@]} - 1)) \\
        %(complete_var)s=bash_complete "$1")
    return 0
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class _Bash(BashComplete):
    source_template = _BASH


_SHELLS: Final[dict[str, type[ShellComplete]]] = {"bash": _Bash, "zsh": ZshComplete, "fish": FishComplete}


@click.command("completion", cls=IbtCommand)
@click.argument("shell", metavar="SHELL", type=click.Choice(tuple(_SHELLS)))
@common_options
@click.pass_obj
def completion(settings: Settings, shell: str) -> ExitStatus:
    """Print a script for SHELL: bash, zsh or fish. With it, the Tab key completes commands, options, directories, the
    keys and backups of the repository, snapshots, and the names of disks.

    \b
      bash  ibt completion bash >~/.local/share/bash-completion/completions/ibt
      zsh   ibt completion zsh >"${fpath[1]}/_ibt"
      fish  ibt completion fish >~/.config/fish/completions/ibt.fish
    """
    root = click.get_current_context().find_root().command
    write_output(_SHELLS[shell](root, {}, _PROGRAM, _VARIABLE).source() + "\n")
    return ExitStatus.DONE


commands = [completion]
