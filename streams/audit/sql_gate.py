"""The gate in front of a reader's SQL: one SELECT over the audit, parsed and written out again, or a named refusal.

chdb's own `readonly` leaks: it lets `INTO OUTFILE` write files and runs every statement of `a; b`. So the text a person
sent never reaches the engine. Two layers, each refusing what it does not know: the syntax tree (every node, every part
of a node, every table and function by name), then the regenerated text, read again word by word as ClickHouse reads it.
The second layer does not trust the first, nor sqlglot: a bare word outside the vocabulary cannot leave this function.
"""

from __future__ import annotations

import math
import re
import unicodedata
from typing import ClassVar, Literal

from sqlglot import ErrorLevel, Token, TokenType, exp
from sqlglot.dialects.clickhouse import ClickHouse
from sqlglot.errors import ParseError
from sqlglot.parsers.clickhouse import ClickHouseParser

from streams.audit.sql_vocabulary import (
    AGGREGATES,
    COMBINATORS,
    FORMATS,
    KEYWORDS,
    PATTERN_AT,
    SCALARS,
    SEARCHES,
    SHAPES,
    TYPES,
)

DATABASE = "palisade"
SYSTEM_TABLES = frozenset({"settings"})  # clickhouse-connect reads it on opening

# Parsing and writing costs about 0.5 s per 100,000 characters: these bounds keep one query at 0.1 s here.
MAX_CHARS = 20_000
MAX_TOKENS = 5_000
MAX_STEPS = 25_000  # words read, counting again those read again: people need 2 a word
MAX_DEPTH = 24  # brackets in brackets; people write 6
MAX_PATTERN = 2_000  # characters times all counts in braces: matching takes as many steps a character at worst

Reason = Literal[
    "empty",
    "too_long",
    "too_deep",
    "too_complex",
    "character",
    "syntax",
    "several_statements",
    "not_a_select",
    "output_file",
    "settings",
    "format",
    "table",
    "function",
    "parameter",
    "pattern",
    "construct",
]

ALLOWED = (
    "Allowed: one SELECT (WITH, UNION, joins, subqueries, windows) over tables and views of `palisade` and over "
    "`system.settings`, ordinary functions, {name:Type} parameters, and FORMAT with a common format."
)


class SqlRefused(Exception):
    """The SQL was not admitted. `reason` is the stable name, `explanation` says which part and what is allowed."""

    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason: Reason = reason
        self.explanation = f"{detail} {ALLOWED}"
        super().__init__(f"{reason}: {self.explanation}")


def admit(sql: str) -> str:
    """The same query written out again, safe to hand to the engine as a reader; raises `SqlRefused` and nothing else.

    Names without a database mean `palisade`. The result is one line without comments or `;`.
    """
    try:
        root = _parsed(_bounded(sql), sql)
        chosen_format = _take_format(root)
        for node in list(root.walk()):
            _check_node(node)
        text = root.sql(dialect=_Dialect, comments=False, unsupported_level=ErrorLevel.RAISE)
    except ParseError as failure:
        raise SqlRefused("syntax", _where(failure)) from failure
    except SqlRefused:
        raise
    except RecursionError as failure:
        raise SqlRefused("too_deep", "The query nests too deeply.") from failure
    except Exception as failure:  # a parser that stumbles over hostile text refuses it, whatever it stumbled over
        raise SqlRefused("syntax", "This is no ClickHouse SQL that can be read.") from failure
    check_written(text)
    return f"{text} FORMAT {chosen_format}" if chosen_format else text


class _Parser(ClickHouseParser):
    """Knows no functions: each stays a name with arguments, checked by name and written out as it came."""

    FUNCTIONS: ClassVar = {}
    FUNCTION_PARSERS: ClassVar = {
        k: v for k, v in ClickHouseParser.FUNCTION_PARSERS.items() if k in ("CAST", "EXTRACT")
    }
    NO_PAREN_FUNCTION_PARSERS: ClassVar = {"CASE": ClickHouseParser.NO_PAREN_FUNCTION_PARSERS["CASE"]}
    NO_PAREN_FUNCTIONS: ClassVar = {}
    steps = 0

    def _advance(self, times: int = 1) -> None:
        # The parser goes back and tries again where SQL is ambiguous, which hostile text makes exponential.
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise SqlRefused("too_complex", "The query takes too long to read.")
        super()._advance(times)


class _Dialect(ClickHouse):
    Parser = _Parser


# ------------------------------------------------------------------------------------------------ before parsing


def _bounded(sql: str) -> list[Token]:
    if len(sql) > MAX_CHARS:
        raise SqlRefused("too_long", f"The query has {len(sql)} characters; at most {MAX_CHARS} are read.")
    for character in sql:
        # Invisible and look-alike blanks are read differently by different parsers.
        if character not in " \t\r\n" and unicodedata.category(character) in (
            "Cc",
            "Cf",
            "Cs",
            "Co",
            "Cn",
            "Zs",
            "Zl",
            "Zp",
        ):
            raise SqlRefused(
                "character", f"U+{ord(character):04X} may not stand in a query; hand such text in as a parameter."
            )
    if _HIGH_BYTE.search(sql):
        raise SqlRefused("character", "\\x80 and above in a string name bytes, not characters: write unhex('..').")
    tokens = _Dialect().tokenize(sql)
    if len(tokens) > MAX_TOKENS:
        raise SqlRefused("too_long", f"The query has {len(tokens)} words; at most {MAX_TOKENS} are read.")
    while tokens and tokens[-1].token_type == TokenType.SEMICOLON:
        tokens.pop()
    if not tokens:
        raise SqlRefused("empty", "There is no statement.")
    _check_tokens(tokens)
    return tokens


_HIGH_BYTE = re.compile(r"\\x[89a-fA-F]")  # sqlglot would turn the byte into a character of two


def _check_tokens(tokens: list[Token]) -> None:
    depth = 0
    for token in tokens:
        kind = token.token_type
        if kind == TokenType.SEMICOLON:
            raise SqlRefused("several_statements", "Only one statement at a time.")
        if kind == TokenType.INTO:
            raise SqlRefused("output_file", "INTO writes files or tables.")
        depth += (kind in _OPENING) - (kind in _CLOSING)
        if depth > MAX_DEPTH:
            raise SqlRefused("too_deep", f"Brackets nest deeper than {MAX_DEPTH}.")
    if tokens[0].token_type not in (TokenType.SELECT, TokenType.WITH, TokenType.FROM, TokenType.L_PAREN):
        raise SqlRefused("not_a_select", f"{tokens[0].text[:40]!r} does not start a SELECT.")


_OPENING = (TokenType.L_PAREN, TokenType.L_BRACKET, TokenType.L_BRACE)
_CLOSING = (TokenType.R_PAREN, TokenType.R_BRACKET, TokenType.R_BRACE)


def _parsed(tokens: list[Token], sql: str) -> exp.Query:
    statements = _Dialect().parser(error_level=ErrorLevel.IMMEDIATE).parse(tokens, sql)
    if len(statements) != 1:
        raise SqlRefused("several_statements", "Only one statement at a time.")
    root = statements[0]
    if not isinstance(root, exp.Select | exp.SetOperation | exp.Subquery):
        raise SqlRefused("not_a_select", "Only a SELECT is answered.")
    return root


def _where(failure: ParseError) -> str:
    first = failure.errors[0] if failure.errors else {}
    return (
        f"Line {first.get('line', '?')}, column {first.get('col', '?')}: {first.get('description', 'cannot be read')}."
    )


# ------------------------------------------------------------------------------------------- layer 1: the tree


def _take_format(root: exp.Query) -> str | None:
    if root.args.get("settings"):
        raise SqlRefused("settings", "A SETTINGS clause may not come from a reader.")
    chosen = root.args.get("format")
    if chosen is None:
        return None
    root.set("format", None)
    if chosen.name not in FORMATS:
        raise SqlRefused("format", f"FORMAT {chosen.name[:40]!r} is not among the answers given here.")
    return str(chosen.name)


def _check_node(node: exp.Expr) -> None:
    shape = SHAPES.get(type(node))
    filled = {key for key, value in node.args.items() if value not in (None, False, [])}
    if shape is None or not filled <= shape:
        extra = "" if shape is None else f" with {', '.join(sorted(filled - shape))}"
        raise SqlRefused(
            "settings" if "settings" in filled else "construct", f"{type(node).__name__}{extra} is not allowed."
        )
    if isinstance(node, exp.Table):
        _check_table(node)
    elif isinstance(node, _CALLS):
        _check_function(node.args["this"])
        at = PATTERN_AT.get(str(node.args["this"]).lower())
        if at is not None and at < len(node.expressions):
            _check_pattern(node.expressions[at])
        if str(node.args["this"]).lower() in SEARCHES and node.find_ancestor(exp.Lambda) is not None:
            raise SqlRefused("function", "An array may not be searched for each element of another: use a join.")
    elif isinstance(node, exp.Like | exp.ILike):
        _check_pattern(node.expression)
    elif isinstance(node, exp.In):
        _check_in(node)
    elif isinstance(node, exp.Identifier):
        if not _IDENTIFIER.fullmatch(node.name):
            raise SqlRefused("character", f"The name {node.name[:40]!r} has characters that names may not have here.")
        # Every name is quoted, so that only keywords, types and functions are left as bare words for the second layer.
        node.set("quoted", True)
    elif isinstance(node, exp.Placeholder) and not (isinstance(node.args.get("kind"), exp.DataType) and node.this):
        raise SqlRefused("parameter", "A parameter is a value, {name:Type}: it cannot stand for a table or a column.")


_CALLS = (exp.Anonymous, exp.AnonymousAggFunc, exp.CombinedAggFunc, exp.ParameterizedAgg, exp.CombinedParameterizedAgg)
_IDENTIFIER = re.compile(r"[^\\\"`'\x00-\x1f]{1,128}")
_TABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _check_table(table: exp.Table) -> None:
    name, database = table.this, table.args.get("db")
    if isinstance(name, exp.Placeholder):
        raise SqlRefused("parameter", "A parameter is a value, {name:Type}: it cannot stand for a table.")
    if not isinstance(name, exp.Identifier):
        raise SqlRefused("function", f"Table function {_shown(name)} is not allowed.")
    if database is None and _is_cte(table, name.name):
        return
    place = DATABASE if database is None else database.name
    known = _TABLE_NAME.fullmatch(name.name) and (
        place == DATABASE or (place == "system" and name.name in SYSTEM_TABLES)
    )
    if not known:
        raise SqlRefused("table", f"Table {place}.{name.name} is not open to readers.")
    table.set("db", exp.to_identifier(place, quoted=True))


def _is_cte(node: exp.Expr, name: str) -> bool:
    """Whether `name` is defined by a WITH around `node`."""
    above = node.parent if _TABLE_NAME.fullmatch(name) else None
    while above is not None:
        with_ = above.args.get("with_")
        if with_ is not None and any(cte.alias == name for cte in with_.expressions):
            return True
        above = above.parent
    return False


def _check_function(name: str | exp.Identifier) -> None:
    if isinstance(name, str) and is_function(name):
        return
    raise SqlRefused("function", f"Function {_shown(name)} is not among those a reader may call.")


def _shown(name: object) -> str:
    return repr((name.name if isinstance(name, exp.Expr) else str(name))[:40])


def is_function(name: str) -> bool:
    """Whether a reader may call the function, in ClickHouse's spelling or one that differs in case."""
    lowered = name.lower()
    if lowered in _FUNCTIONS:
        return True
    for combinator in _COMBINATORS:
        if lowered.endswith(combinator) and lowered[: -len(combinator)] in _AGGREGATES:
            return True
    return False


_AGGREGATES = frozenset(name.lower() for name in AGGREGATES)
_FUNCTIONS = _AGGREGATES | frozenset(name.lower() for name in SCALARS)
_COMBINATORS = tuple(name.lower() for name in COMBINATORS)


_COUNT = re.compile(r"\{(\d*),?(\d*)\}")


def _check_pattern(node: exp.Expr) -> None:
    """A pattern stands in the SQL and is small: ClickHouse looks at no clock while it matches one value."""
    if not (isinstance(node, exp.Literal) and node.is_string):
        raise SqlRefused("pattern", "A pattern must be written out as a string: no column, parameter or expression.")
    counts = [max((int(number) for number in found if number), default=1) for found in _COUNT.findall(node.name)]
    if len(node.name) * math.prod(counts) > MAX_PATTERN:
        raise SqlRefused("pattern", f"A pattern's length times its counts in braces is at most {MAX_PATTERN}.")


def _check_in(node: exp.In) -> None:
    """ClickHouse reads `x IN name` and `x IN (name)` as a table: only a name defined by WITH may stand there."""
    right = [node.args["field"]] if node.args.get("field") else list(node.expressions)
    while right:
        candidate = right.pop()
        if isinstance(candidate, exp.Paren | exp.Alias):
            right.append(candidate.this)
        elif isinstance(candidate, exp.Tuple):
            right.extend(candidate.expressions)
        elif isinstance(candidate, exp.Column | exp.Dot | exp.Identifier | exp.Table) and not (
            isinstance(candidate, exp.Column) and not candidate.args.get("table") and _is_cte(candidate, candidate.name)
        ):
            raise SqlRefused("table", f"IN {_shown(candidate)} would be read as a table: write a subquery.")


# ------------------------------------------------------------------------------------- layer 2: the written text

_LEXEME = re.compile(
    r"""
      (?P<blank>\ )
    | (?P<string>'(?:[^'\\]|\\.|'')*')
    | (?P<name>"[^"\\`]+"(?!\ *\())                     # a quoted name before a bracket would be a function call
    | (?P<parameter>\{[A-Za-z_][A-Za-z0-9_]*:\ )
    | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<number>[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?(?![A-Za-z0-9_.]))
    | (?P<sign><=|>=|<>|->|\|\||[-+*/%=<>(),.\[\]}])
    """,
    re.VERBOSE | re.DOTALL,
)
_WORDS = KEYWORDS | {name.upper() for name in TYPES}


def check_written(text: str) -> None:
    """The second layer: refuses text with a word, sign or call outside the vocabulary. Names are expected in quotes."""
    position, before = 0, ""
    while position < len(text):
        found = _LEXEME.match(text, position)
        if found is None:
            raise SqlRefused("construct", f"{text[position : position + 20]!r} cannot be written out safely.")
        lexeme = found.group()
        if found.lastgroup == "word" and lexeme.upper() not in _WORDS and not is_function(lexeme):
            raise SqlRefused("construct", f"The word {lexeme[:40]!r} is not allowed.")
        # `--` and `/*` would start a comment for ClickHouse.
        if found.lastgroup == "sign" and before + lexeme in ("--", "/*"):
            raise SqlRefused("construct", "Comments cannot be written out.")
        before = lexeme if found.lastgroup == "sign" else ""
        position = found.end()
