"""`palisade keys`: Ed25519 key pairs for directives, operators and producers; pseudonyms under the redaction key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palisade.cli.options import ConfigOption, console, site_of
from schemas.errors import ConfigError

app = typer.Typer(help="Key pairs that sign directives, commands and reports.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Key pairs that sign directives, commands and reports."""


@app.command()
def create(
    path: Annotated[Path, typer.Argument(help="file of the private key; the public one goes to PATH.pub")],
) -> None:
    """Makes a key pair. The private file is readable by its owner alone, and is never overwritten."""
    from responders.signing import SigningKey

    key = SigningKey.generate()
    path.parent.mkdir(parents=True, exist_ok=True)
    key.save(path)
    public = path.with_name(path.name + ".pub")
    public.write_text(key.public_base64 + "\n")
    console.print(f"private key  {path}  (keep it where only its service can read it)")
    console.print(f"public key   {public}  key id {key.key_id}")
    console.print(f"             {key.public_base64}")


@app.command()
def pseudonym(
    value: Annotated[str, typer.Argument(help="a caller or a text, as the service knows it")],
    config: ConfigOption = None,
) -> None:
    """Says what a caller or a text is called where `sensitive` hashes it: for the allowlist, orders and forensics."""
    from streams.redaction import Pseudonyms

    key = site_of(config).redaction_key()
    if key is None:
        raise ConfigError(
            "there is no redaction key: name its file as redaction_key_file, or set PALISADE_REDACTION_KEY"
        )
    print(Pseudonyms(key).of(value))
