"""`palisade profile`: the profile of the training data: built, looked at, switched on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.text import Text

from palisade.cli.kill import KeyOption, operator_of
from palisade.cli.options import ConfigOption, console, endpoint_of, listed_names, reached, shown, site_of, table_of
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from detectors.profile import Profile
    from streams.redaction import Redactor

MOST_FREQUENT = 5

app = typer.Typer(help="The profile of the training data, which live inputs are compared with.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """The profile of the training data, which live inputs are compared with."""


@app.command()
def build(
    table: Annotated[
        Path, typer.Argument(help="the training table, .parquet, .csv, .jsonl or .arrow, rows in the order of time")
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="default: beside the table, .profile.json")] = None,
    order_by: Annotated[str | None, typer.Option(help="the column of time, when rows are in another order")] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(help="columns that the model does not see: target, time; repeated or a,b,c"),
    ] = None,
    prediction: Annotated[
        list[str] | None,
        typer.Option(
            help="what the model answers on these rows: a column of numbers, labels or probabilities by label, or a column "
            "of each label's probability; repeated or a,b,c. Best of rows that it was not trained on"
        ),
    ] = None,
    caller_column: Annotated[
        str | None,
        typer.Option(help="the column that says who asked, no feature: how callers differ sets when one is strange"),
    ] = None,
    outliers: Annotated[
        bool, typer.Option(help="with what judges single rows: it holds some thousand rows of the table")
    ] = True,
    seed: int = 0,
    endpoint: Annotated[
        str | None, typer.Option(help="redact the table first by the `sensitive` rules of this endpoint")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Builds a profile: quantiles, categories, missing rates, and how much they vary in the order of the table.

    Where an endpoint has `sensitive` rules, its events come redacted: name it, so that the profile is built of the same.
    """
    from detectors.profile_build import build_profile
    from palisade.fitting import hardly_features
    from palisade.redacting import redact_training
    from palisade.tables import read_table

    redactor = redactor_of(config, endpoint)
    with console.status("building"):
        rows, left_out, answers = read_table(table), listed_names(exclude), listed_names(prediction)
        if redactor is not None:
            rows = redact_training(rows, redactor, aside={*left_out, *answers, order_by, caller_column})
        profile = build_profile(
            rows,
            order_by=order_by,
            exclude=left_out,
            prediction=answers,
            caller_column=caller_column,
            outliers=outliers,
            seed=seed,
        )
        doubts = hardly_features(rows.sort_by(order_by) if order_by else rows, profile.order)
    path = out or table.with_suffix(".profile.json")
    path.write_bytes(profile.to_bytes())
    _tell(profile, path, redactor, doubts, outliers=outliers)


def _tell(
    profile: Profile, path: Path, redactor: Redactor | None, doubts: Sequence[tuple[str, str]], *, outliers: bool
) -> None:
    """What was built of what, and how it is switched on. doubts: features that hardly are some, and why."""
    order = f"the order of {profile.order_by}" if profile.order_by else "the table's own row order"
    console.print(
        f"[green]{escape(str(path))}[/]: {profile.rows:,} rows, {len(profile.order)} features, thresholds from {order}",
        soft_wrap=True,
    )
    console.print(Text(f"features: {shown(profile.order)}"), soft_wrap=True)
    console.print(Text(f"outputs: {_outputs(profile)}"), soft_wrap=True)
    if redactor is not None:
        console.print(Text(f"redacted: {redactor.described()}"), soft_wrap=True)
    if outliers and profile.outliers is None:
        console.print(Text("warning: ", "yellow").append("so wide a table has no part for outliers", "default"))
    for name, why in doubts:
        warning = Text("warning: ", "yellow").append(f"{name} {why}; if the model does not see it, ", "default")
        console.print(warning.append(f"build again with --exclude {name}", "default"), soft_wrap=True)
    console.print(f"hash {profile.hash}; switch it on with", soft_wrap=True)
    console.print(Text(f"  palisade profile activate {path} --endpoint NAME --version VERSION"), soft_wrap=True)


@app.command()
def show(path: Annotated[Path, typer.Argument(help="a profile")]) -> None:
    """Shows the features of a profile."""
    profile = read_profile(path)
    if profile.numeric:
        console.print(_numbers(profile), "")
    if profile.categorical:
        console.print(_categories(profile), "")
    if profile.outputs is not None and profile.outputs.numeric:
        console.print(_numbers(profile.outputs, "output"), "")
    if profile.outputs is not None and profile.outputs.categorical:
        console.print(_categories(profile.outputs, "output"), "")
    console.print(f"{profile.rows:,} rows, ordered by {profile.order_by or 'row'}, hash {profile.hash}", soft_wrap=True)


def _outputs(profile: Profile) -> str:
    if profile.outputs is None:
        return "none, so that prediction drift stays unknown; give --prediction if the model's answers are in the table"
    return shown(profile.outputs.order)


def _numbers(profile: Profile, what: str = "number") -> Table:
    from detectors.profile import QUANTILE_LEVELS

    names = ("missing", "mean", "sd", "5 %", "median", "95 %")
    table = table_of(what, *names, right=names)
    for feature in profile.numeric:
        quantiles = (feature.quantiles[QUANTILE_LEVELS.index(level)] for level in (0.05, 0.5, 0.95))
        numbers = (f"{number:.4g}" for number in (feature.mean, feature.sd, *quantiles))
        table.add_row(Text(feature.name), f"{feature.missing_rate:.1%}", *numbers)
    return table


def _categories(profile: Profile, what: str = "category") -> Table:
    table = table_of(what, "missing", "values", "most frequent", right=("missing", "values"))
    for feature in profile.categorical:
        heaviest = ", ".join(feature.categories[:MOST_FREQUENT])
        table.add_row(Text(feature.name), f"{feature.missing_rate:.1%}", f"{len(feature.categories):,}", Text(heaviest))
    return table


@app.command()
def activate(
    path: Annotated[Path, typer.Argument(help="a profile")],
    endpoint: Annotated[str, typer.Option(help="whose")],
    version: Annotated[str, typer.Option(help="of the model")] = "default",
    key: KeyOption = None,
    config: ConfigOption = None,
) -> None:
    """Publishes a profile and switches it on, from here in the log, for a version of an endpoint. Signed."""
    from palisade.operate import activate_profile

    site = site_of(config)
    endpoint_of(site, endpoint)
    profile = read_profile(path)
    operator = operator_of(site.home, key)
    name = activate_profile(reached(site.connection), operator, profile.to_bytes(), endpoint, version)
    console.print(f"[green]active[/] for {endpoint}@{version}: {name}")
    console.print(Text(f"each prediction of {endpoint} should have {shown(profile.order)}"), soft_wrap=True)
    if profile.outputs is not None:
        console.print(Text(f"and `prediction` as on the table: {shown(profile.outputs.order)}"), soft_wrap=True)


def redactor_of(config: Path | None, endpoint: str | None) -> Redactor | None:
    """What redacts the events of the endpoint; None where none is named, or it has no rules. Raises ConfigError."""
    if endpoint is None:
        return None
    site = site_of(config)
    return site.redactor(endpoint_of(site, endpoint))


def read_profile(path: Path) -> Profile:
    """A profile file. Raises ConfigError."""
    from detectors.profile import Profile

    try:
        return Profile.from_bytes(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", str(path)) from error
