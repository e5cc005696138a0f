"""Everything a reader's SQL may contain, by name. What is not written here is refused: nothing is allowed by a pattern.

Functions and formats are spelled as in ClickHouse's reference. A function that reads a file, a table, a dictionary, the
configuration, the network or another user's state must never be added, nor one that waits (sleep) or names the host.
Nor one that compares every part of a value with every part of another (edit distances, hasAny): ClickHouse looks at the
clock between blocks of rows, so a single call on values of a megabyte would hold a reader's place for minutes.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlglot import exp


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


AGGREGATES = _words(
    """
    any anyLast argMax argMin avg avgWeighted corr count covarPop covarSamp entropy first_value groupArray groupBitAnd
    groupBitOr groupBitXor groupUniqArray histogram kolmogorovSmirnovTest kurtPop kurtSamp last_value mannWhitneyUTest
    max maxMap median min minMap quantile quantileDeterministic quantileExact quantileExactHigh quantileExactLow
    quantileExactWeighted quantileTDigest quantileTiming quantiles quantilesExact quantilesTDigest quantilesTiming
    simpleLinearRegression skewPop skewSamp stddevPop stddevSamp studentTTest sum sumCount sumKahan sumMap topK
    topKWeighted uniq uniqCombined uniqCombined64 uniqExact uniqHLL12 uniqTheta varPop varSamp welchTTest windowFunnel
    sequenceCount sequenceMatch retention deltaSum deltaSumTimestamp
    """
)
COMBINATORS = ("If", "Array", "OrNull", "OrDefault", "Distinct", "Merge", "ForEach")

SCALARS = _words(
    """
    row_number rank dense_rank percent_rank cume_dist ntile lag lead lagInFrame leadInFrame nth_value
    plus minus multiply divide intDiv intDivOrZero modulo moduloOrZero negate abs sign gcd lcm
    exp exp2 exp10 log ln log2 log10 log1p sqrt cbrt pow power sin cos tan asin acos atan atan2 sinh cosh tanh pi e
    erf erfc sigmoid floor ceil ceiling round roundBankers trunc truncate roundDown isNaN isFinite isInfinite ifNotFinite
    equals notEquals less greater lessOrEquals greaterOrEquals greatest least
    and or not xor if multiIf coalesce ifNull nullIf isNull isNotNull assumeNotNull toNullable
    bitAnd bitOr bitXor bitNot bitShiftLeft bitShiftRight bitTest bitCount
    length lengthUTF8 char_length empty notEmpty lower upper lowerUTF8 upperUTF8 reverse reverseUTF8 concat concatWithSeparator
    substring substr mid substringUTF8 substringIndex left right leftUTF8 rightUTF8 leftPad rightPad trim trimLeft trimRight
    trimBoth ltrim rtrim startsWith endsWith position positionUTF8 positionCaseInsensitive locate countSubstrings
    like notLike ilike notILike match extract extractAll extractAllGroupsVertical extractGroups regexpExtract countMatches
    replaceAll replaceOne replace replaceRegexpAll replaceRegexpOne translate format splitByChar splitByString
    splitByRegexp splitByWhitespace alphaTokens ngramDistance
    hammingDistance base64Encode base64Decode hex unhex bin char ascii
    formatReadableSize formatReadableQuantity formatReadableTimeDelta toStringCutToZero toFixedString bar
    toString toInt8 toInt16 toInt32 toInt64 toInt128 toUInt8 toUInt16 toUInt32 toUInt64 toUInt128 toFloat32 toFloat64
    toDecimal32 toDecimal64 toDecimal128 toDate toDate32 toDateTime toDateTime64 toUUID toBool toIPv4 toIPv6 toTypeName
    toInt32OrZero toInt64OrZero toUInt32OrZero toUInt64OrZero toFloat32OrZero toFloat64OrZero toDateOrZero toDateTimeOrZero
    toInt32OrNull toInt64OrNull toUInt32OrNull toUInt64OrNull toFloat32OrNull toFloat64OrNull toDateOrNull toDateTimeOrNull
    toDateTime64OrNull toUUIDOrNull toLowCardinality materialize
    now now64 today yesterday timezone version timeZoneOf toTimeZone toTimezone toUnixTimestamp toUnixTimestamp64Milli
    toUnixTimestamp64Micro fromUnixTimestamp fromUnixTimestamp64Milli fromUnixTimestamp64Micro
    toYear toQuarter toMonth toWeek toISOWeek toISOYear toDayOfYear toDayOfMonth toDayOfWeek toHour toMinute toSecond
    toMillisecond toYYYYMM toYYYYMMDD toYYYYMMDDhhmmss toStartOfYear toStartOfQuarter toStartOfMonth toStartOfWeek
    toMonday toStartOfDay toStartOfHour toStartOfMinute toStartOfSecond toStartOfMillisecond toStartOfFiveMinutes
    toStartOfTenMinutes toStartOfFifteenMinutes toStartOfInterval toTime toRelativeHourNum toRelativeMinuteNum
    toIntervalSecond toIntervalMinute toIntervalHour toIntervalDay toIntervalWeek toIntervalMonth toIntervalMillisecond
    date_trunc dateTrunc dateDiff date_diff age dateAdd dateSub addSeconds addMinutes addHours addDays addWeeks addMonths
    addMilliseconds subtractSeconds subtractMinutes subtractHours subtractDays subtractWeeks subtractMonths
    subtractMilliseconds timeSlot formatDateTime dateName parseDateTime parseDateTimeBestEffort
    parseDateTimeBestEffortOrNull parseDateTime64BestEffort parseDateTime64BestEffortOrNull
    array arrayConcat arrayElement has indexOf arrayCount countEqual arrayEnumerate arrayDistinct arrayUniq
    arrayJoin arrayMap arrayFilter arrayExists arrayAll arrayFirst arrayFirstIndex arrayLast arrayLastIndex arraySum
    arrayAvg arrayMin arrayMax arrayProduct arraySort arrayReverseSort arrayReverse arraySlice arrayStringConcat
    arrayPushBack arrayPushFront arrayPopBack arrayPopFront arrayCumSum arrayDifference arrayCompact arrayFlatten
    arrayIntersect arrayZip arrayFill arraySplit arrayResize emptyArrayString range
    tuple tupleElement untuple map mapKeys mapValues mapContains mapFromArrays mapFilter mapApply
    JSONExtractString JSONExtractInt JSONExtractUInt JSONExtractFloat JSONExtractBool JSONExtractRaw JSONExtractArrayRaw
    JSONExtractKeys JSONExtractKeysAndValues JSONHas JSONLength JSONType JSONExtract isValidJSON simpleJSONExtractString
    simpleJSONExtractFloat simpleJSONHas
    cityHash64 sipHash64 sipHash128 xxHash32 xxHash64 murmurHash3_32 murmurHash3_64 murmurHash3_128 farmHash64 MD5 SHA1
    SHA224 SHA256 SHA512 halfMD5 CRC32
    cosineDistance L1Distance L2Distance LinfDistance dotProduct
    widthBucket isNotDistinctFrom isDistinctFrom accurateCastOrNull
    """
)

PATTERN_AT: Mapping[str, int] = {
    **dict.fromkeys(("like", "notlike", "ilike", "notilike", "match", "extract", "extractall"), 1),
    **dict.fromkeys(("extractallgroupsvertical", "extractgroups", "regexpextract", "countmatches"), 1),
    **dict.fromkeys(("replaceregexpall", "replaceregexpone"), 1),
    "splitbyregexp": 0,
}
"""Which argument of a function, in small letters, is a pattern."""

SEARCHES = frozenset({"has", "indexof", "countequal"})
"""Go through an array for each call: none of them for each element of another array, in a lambda."""

FORMATS = _words(
    """
    Native Arrow ArrowStream Parquet RowBinary RowBinaryWithNamesAndTypes JSON JSONCompact JSONEachRow JSONCompactEachRow
    JSONCompactEachRowWithNames JSONCompactEachRowWithNamesAndTypes JSONLines NDJSON JSONColumns JSONStringsEachRow
    TSV TSVWithNames TSVWithNamesAndTypes TSVRaw TabSeparated TabSeparatedWithNames TabSeparatedWithNamesAndTypes
    TabSeparatedRaw CSV CSVWithNames CSVWithNamesAndTypes Pretty PrettyCompact PrettyCompactMonoBlock PrettyNoEscapes
    PrettySpace Vertical Markdown Values Null
    """
)

TYPES = _words(
    """
    Int8 Int16 Int32 Int64 Int128 Int256 UInt8 UInt16 UInt32 UInt64 UInt128 UInt256 Float32 Float64 Decimal Decimal32
    Decimal64 Decimal128 Decimal256 Bool String FixedString UUID IPv4 IPv6 Date Date32 DateTime DateTime64 Nullable
    LowCardinality Array Tuple Map
    """
)

KEYWORDS = _words(
    """
    SELECT DISTINCT FROM FINAL PREWHERE WHERE GROUP BY ROLLUP CUBE GROUPING SETS WITH TOTALS HAVING QUALIFY WINDOW ORDER
    ASC DESC NULLS FIRST LAST FILL TO STEP LIMIT OFFSET TIES UNION ALL EXCEPT INTERSECT AS ON USING JOIN INNER LEFT RIGHT
    FULL OUTER CROSS ANY SEMI ANTI ASOF ARRAY AND OR NOT IN IS NULL TRUE FALSE LIKE ILIKE BETWEEN CASE WHEN THEN ELSE END
    CAST EXTRACT EXISTS INTERVAL FILTER OVER PARTITION ROWS RANGE UNBOUNDED PRECEDING FOLLOWING CURRENT ROW
    MILLISECOND SECOND MINUTE HOUR DAY WEEK MONTH QUARTER YEAR
    """
)

_QUERY = frozenset({"with_", "order", "limit", "offset"})
_BINARY = frozenset({"this", "expression"})

# Each node of the syntax tree, with the parts of it that may be filled. Other nodes and other parts are refused.
SHAPES: Mapping[type[exp.Expr], frozenset[str]] = {
    exp.Select: _QUERY
    | {"expressions", "distinct", "from_", "joins", "prewhere", "where", "group", "having", "qualify", "windows"},
    **dict.fromkeys((exp.Union, exp.Except, exp.Intersect), _QUERY | _BINARY | {"distinct"}),
    exp.Subquery: _QUERY | {"this", "alias", "joins"},
    exp.With: frozenset({"expressions"}),
    exp.CTE: frozenset({"this", "alias", "scalar"}),
    exp.TableAlias: frozenset({"this"}),
    exp.Table: frozenset({"this", "alias", "db", "joins"}),
    exp.Join: frozenset({"this", "on", "side", "kind", "using", "method"}),
    **dict.fromkeys(
        (
            exp.From,
            exp.Final,
            exp.Where,
            exp.PreWhere,
            exp.Having,
            exp.Qualify,
            exp.Not,
            exp.Neg,
            exp.Paren,
            exp.Exists,
        ),
        frozenset({"this"}),
    ),
    exp.Group: frozenset({"expressions", "grouping_sets", "cube", "rollup", "totals", "all"}),
    **dict.fromkeys((exp.Rollup, exp.Cube, exp.GroupingSets, exp.Tuple), frozenset({"expressions"})),
    exp.Order: frozenset({"expressions"}),
    exp.Ordered: frozenset({"this", "desc", "nulls_first", "with_fill"}),
    exp.WithFill: frozenset({"from_", "to", "step"}),
    exp.Limit: frozenset({"expression", "limit_options", "expressions"}),
    exp.Offset: frozenset({"expression", "expressions"}),
    exp.LimitOptions: frozenset({"with_ties"}),
    exp.Distinct: frozenset({"expressions", "on"}),
    exp.Alias: frozenset({"this", "alias"}),
    exp.Column: frozenset({"this", "table", "db"}),
    exp.Identifier: frozenset({"this", "quoted"}),
    exp.Literal: frozenset({"this", "is_string"}),
    exp.Boolean: frozenset({"this"}),
    exp.Null: frozenset(),
    exp.Star: frozenset({"except_"}),
    exp.Array: frozenset({"expressions", "bracket_notation"}),
    exp.Bracket: frozenset({"this", "expressions", "offset"}),
    exp.Dot: _BINARY,
    exp.Lambda: frozenset({"this", "expressions"}),
    exp.Interval: frozenset({"this", "unit"}),
    exp.Var: frozenset({"this"}),
    exp.Placeholder: frozenset({"this", "kind"}),
    exp.DataType: frozenset({"this", "expressions", "nested", "nullable"}),
    exp.DataTypeParam: frozenset({"this"}),
    exp.Cast: frozenset({"this", "to"}),
    exp.Extract: _BINARY,
    exp.Case: frozenset({"this", "ifs", "default"}),
    exp.If: frozenset({"this", "true", "false"}),
    exp.Between: frozenset({"this", "low", "high"}),
    exp.In: frozenset({"this", "expressions", "query", "field"}),
    exp.Is: _BINARY | {"negate"},
    **dict.fromkeys((exp.Like, exp.ILike), _BINARY | {"negate"}),
    **dict.fromkeys((exp.And, exp.Or, exp.Add, exp.Sub, exp.Mul, exp.Mod, exp.Filter), _BINARY),
    **dict.fromkeys((exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE), _BINARY),
    **dict.fromkeys((exp.Div, exp.DPipe), _BINARY | {"typed", "safe"}),
    **dict.fromkeys((exp.Anonymous, exp.AnonymousAggFunc, exp.CombinedAggFunc), frozenset({"this", "expressions"})),
    **dict.fromkeys((exp.ParameterizedAgg, exp.CombinedParameterizedAgg), frozenset({"this", "expressions", "params"})),
    exp.Window: frozenset({"this", "partition_by", "order", "spec", "alias", "over"}),
    exp.WindowSpec: frozenset({"kind", "start", "start_side", "end", "end_side"}),
}
