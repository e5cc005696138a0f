"""`palisade feedback`: what came of predictions, from a file, however late."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palisade.cli.options import ConfigOption, console, endpoint_of, reached, say_error, site_of

app = typer.Typer(help="Labels of predictions, weeks later or at once.", no_args_is_help=True)


@app.command("publish")
def publish_file(
    file: Annotated[Path, typer.Argument(help=".parquet, .csv, .jsonl or .arrow; one row a label")],
    endpoint: Annotated[str, typer.Option(help="whose predictions the labels are of")],
    request_id_column: Annotated[str, typer.Option(help="the column with the predictions' request ids")],
    label_column: Annotated[str, typer.Option(help="the column of labels; rows without one are left out")],
    time_column: Annotated[str | None, typer.Option(help="when each label became known; default: now")] = None,
    source: Annotated[str, typer.Option(help="who knows the labels")] = "file",
    config: ConfigOption = None,
) -> None:
    """Publishes labels. The audit joins each with the prediction of its request id, and concept drift judges them."""
    from palisade.feedback_file import LabelColumns, publish_labels, read_labels
    from responders.signing import SigningKey

    site = site_of(config)
    endpoint_of(site, endpoint)
    labels = read_labels(file, LabelColumns(request_id_column, label_column, time_column))
    producer_key = site.home / "keys" / "producer.pem"
    signer = SigningKey.load(producer_key) if producer_key.exists() else None
    error = publish_labels(labels, endpoint, source, reached(site.connection), signer)
    if error:
        say_error(f"the broker did not confirm all labels ({error}): send the file again, a repeated label is one more")
        raise typer.Exit(1)
    left_out = f"; {labels.unlabelled:,} rows without a label left out" if labels.unlabelled else ""
    console.print(f"{labels.table.num_rows:,} labels sent{left_out}")
    if signer is None:
        console.print("[yellow]no producer key: this feedback is unsigned, so its source counts as claimed[/]")
