"""`palisade profile`: the profile of the training data: built, looked at, switched on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import typer
from rich.table import Table

from detectors.profile import QUANTILE_LEVELS, Profile
from palisade.cli.kill import KeyOption, operator_of
from palisade.cli.options import ConfigOption, console, settings_of
from palisade.operate import activate_profile
from schemas.errors import ConfigError, PalisadeError

app = typer.Typer(help="The profile of the training data, which live inputs are compared with.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """The profile of the training data, which live inputs are compared with."""


@app.command()
def build(
    table: Annotated[Path, typer.Argument(help="the training table, .parquet or .csv, rows in the order of time")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="default: beside the table, .profile.json")] = None,
    order_by: Annotated[str | None, typer.Option(help="the column of time, when rows are in another order")] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="a column that the model does not see, such as the target")
    ] = None,
    seed: int = 0,
) -> None:
    """Builds a profile: quantiles, categories, missing rates, and how much they vary in the order of the table."""
    from detectors.profile_build import build_profile  # river alone takes a second to import: only who builds pays

    with console.status("building"):
        profile = build_profile(read_table(table), order_by=order_by, exclude=exclude or (), seed=seed)
    path = out or table.with_suffix(".profile.json")
    path.write_bytes(profile.to_bytes())
    order = f"the order of {order_by}" if order_by else "the table's own row order"
    console.print(f"[green]{path}[/]: {profile.rows:,} rows, {len(profile.order)} features, thresholds from {order}")
    console.print(
        f"hash {profile.hash}; switch it on with `palisade profile activate {path} --endpoint NAME --version VERSION`"
    )


@app.command()
def show(path: Annotated[Path, typer.Argument(help="a profile")]) -> None:
    """Shows the features of a profile."""
    profile = read_profile(path)
    table = Table("feature", "kind", "missing", "mean", "sd", "5 %", "median", "95 %", "categories")
    for feature in profile.numeric:
        low, middle, high = (feature.quantiles[QUANTILE_LEVELS.index(level)] for level in (0.05, 0.5, 0.95))
        numbers = (feature.mean, feature.sd, low, middle, high)
        table.add_row(
            feature.name, "number", f"{feature.missing_rate:.1%}", *(f"{number:.4g}" for number in numbers), ""
        )
    for category in profile.categorical:
        heaviest = ", ".join(category.categories[:4])
        more = f" and {len(category.categories) - 4} more" if len(category.categories) > 4 else ""
        table.add_row(category.name, "category", f"{category.missing_rate:.1%}", "", "", "", "", "", heaviest + more)
    console.print(table)
    console.print(f"{profile.rows:,} rows, ordered by {profile.order_by or 'row'}, hash {profile.hash}")


@app.command()
def activate(
    path: Annotated[Path, typer.Argument(help="a profile")],
    endpoint: Annotated[str, typer.Option(help="whose")],
    version: Annotated[str, typer.Option(help="of the model")] = "default",
    key: KeyOption = None,
    config: ConfigOption = None,
) -> None:
    """Publishes a profile and switches it on, from here in the log, for a version of an endpoint. Signed."""
    settings = settings_of(config)
    if settings.config.endpoint(endpoint) is None:
        raise ConfigError(f"there is no endpoint {endpoint!r} in the configuration")
    content = read_profile(path).to_bytes()
    name = activate_profile(settings.connection, operator_of(settings.home, key), content, endpoint, version)
    console.print(f"[green]active[/] for {endpoint}@{version}: {name}")


def read_table(path: Path) -> pa.Table:
    """A Parquet or CSV file. Raises PalisadeError."""
    try:
        if path.suffix in (".parquet", ".pq"):
            return pq.read_table(path)
        if path.suffix == ".csv":
            return pacsv.read_csv(path)
    except (pa.ArrowException, OSError) as error:
        raise PalisadeError(f"{path} cannot be read: {error}") from error
    raise PalisadeError(f"{path}: the name must end in .parquet or .csv to say what it is")


def read_profile(path: Path) -> Profile:
    """A profile file. Raises ConfigError."""
    try:
        return Profile.from_bytes(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", str(path)) from error
