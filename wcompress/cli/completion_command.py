"""`wcompress completion`."""

from __future__ import annotations

import click

from wcompress.cli.common import Output, common_options

_EPILOG = """Examples:

\b
  eval "$(wcompress completion bash)"          in ~/.bashrc
  eval "$(wcompress completion zsh)"           in ~/.zshrc
  wcompress completion fish > ~/.config/fish/completions/wcompress.fish
"""


@click.command("completion", epilog=_EPILOG)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@common_options
def command(out: Output, shell: str) -> None:
    """Print the script that makes SHELL complete wcompress's commands, options and their values."""
    from click.shell_completion import get_completion_class

    from wcompress.cli import COMPLETE_VARIABLE, cli

    completion = get_completion_class(shell)
    assert completion is not None  # click has these three
    script = completion(cli, {}, "wcompress", COMPLETE_VARIABLE).source().rstrip() + "\n"
    if out.as_json:
        out.result({"shell": shell, "script": script})
    else:
        click.echo(script, nl=False)
