"""How numbers and clauses are written on page, card and terminal: three digits and a unit, the same everywhere.

A minus is the keyboard's, as in 1e-5 and in JSON: what is copied can be computed with.
"""

ABSENT = "–"


def three_digits(value: float) -> str:
    """Return ``value`` with three significant digits, e.g. 40.6, 2.29, 555, 0.0421."""
    text = f"{value:#.3g}"
    if "e" in text and 1 <= abs(value) < 1e6:
        text = f"{value:.0f}"
    return text.removesuffix(".")


def count(value: float | None) -> str:
    """Return a count with its prefix, e.g. ``40.6 M``, ``2.29 M``, ``272 k``, ``512``."""
    if value is None:
        return ABSENT
    if abs(value) < 1000:
        return f"{value:g}"
    return _prefixed(value, ("k", "M", "G", "T", "P"))


def size(size_bytes: float | None) -> str:
    """Return bytes in powers of 1000, e.g. ``1.09 MB``, ``812 B``."""
    if size_bytes is None:
        return ABSENT
    if size_bytes < 1000:
        return f"{size_bytes:g} B"
    return _prefixed(size_bytes, ("kB", "MB", "GB", "TB"))


def _prefixed(value: float, prefixes: tuple[str, ...]) -> str:
    for prefix in prefixes:
        value /= 1000
        text = three_digits(value)
        # 999,960 rounds to 1000 k, which is written 1.00 M.
        if abs(float(text)) < 1000:
            return f"{text} {prefix}"
    return f"{value:.0f} {prefixes[-1]}"


def exact(value: float | None) -> str:
    """Return a whole number with its thousands marked, e.g. ``40,551,808``."""
    return ABSENT if value is None else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """Return a percentage (0..100) with two decimals, e.g. ``91.73 %``."""
    return ABSENT if value is None else f"{value:.2f} %"


def share(value: float | None) -> str:
    """Return a share (0..1) as a percentage with one decimal, e.g. ``49.7 %``."""
    return ABSENT if value is None else f"{100 * value:.1f} %"


def points(difference: float | None) -> str:
    """Return a difference of two percentages, e.g. ``-0.43 points``."""
    if difference is None:
        return ABSENT
    text = f"{abs(difference):.2f}"
    sign = "±" if float(text) == 0 else "+" if difference > 0 else "-"
    return f"{sign}{text} points"


def score(value: float | None, metric: str | None = None) -> str:
    """Return an accuracy in %, or four digits of what ``metric`` names."""
    return percent(value) if metric is None or value is None else f"{value:#.4g}".removesuffix(".")


def score_change(difference: float | None, metric: str | None = None) -> str:
    """Return the difference of two accuracies in points, or of two values of a metric, e.g. ``-0.012``."""
    if metric is None or difference is None:
        return points(difference)
    text = f"{abs(difference):.3g}"
    return f"{'±' if float(text) == 0 else '+' if difference > 0 else '-'}{text}"


def milliseconds(value: float | None) -> str:
    """Return milliseconds with three digits, e.g. ``1.83 ms``."""
    return ABSENT if value is None else f"{three_digits(value)} ms"


def times(value: float | None) -> str:
    """Return a factor, e.g. ``2.31×``, ``0.91×``, ``12.3×``."""
    return ABSENT if value is None else f"{value:.2f}×" if value < 9.995 else f"{three_digits(value)}×"


def small(value: float | None) -> str:
    """Return an error or tolerance, e.g. ``7.2e-7``, ``0``; ``not finite`` where there is none."""
    if value is None:
        return "not finite"
    if value == 0 or 0.01 <= abs(value) < 10000:
        return f"{value:.3g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def duration(seconds: float | None) -> str:
    """Return a time as people say it, e.g. ``0.42 s``, ``45.1 s``, ``3 min 12 s``, ``1 h 04 min``."""
    if seconds is None:
        return ABSENT
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def sentence(clause: str) -> str:
    """Return a clause with a capital and a full stop."""
    return f"{clause[:1].upper()}{clause[1:]}."


WRITTEN = {
    it.__name__: it
    for it in (
        count,
        exact,
        size,
        percent,
        share,
        points,
        score,
        score_change,
        milliseconds,
        times,
        small,
        duration,
        sentence,
    )
}
"""All of them by name: filters of the templates."""
