use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Milliseconds since 1970 as RFC 3339 in UTC; the number itself when no calendar has it.
pub(crate) fn rfc3339(unix_ms: u64) -> String {
    // Whole seconds line up in a table; nobody reads the rest.
    let seconds = i64::try_from(unix_ms / 1_000).ok();
    seconds
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{unix_ms} ms"))
}

/// A span of time with the unit that suits it.
pub(crate) fn seconds(span: std::time::Duration) -> String {
    let micros = span.as_micros();
    match micros {
        0 => "0 s".into(),
        1..1_000 => format!("{micros} us"),
        1_000..1_000_000 => format!("{} ms", micros / 1_000),
        1_000_000..100_000_000 => format!("{:.1} s", span.as_secs_f64()),
        _ => format!("{} s", span.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_the_unit_that_suits_it() {
        use std::time::Duration;
        for (micros, shown) in [
            (0, "0 s"),
            (17, "17 us"),
            (4_200, "4 ms"),
            (4_200_000, "4.2 s"),
            (120_000_000, "120 s"),
        ] {
            assert_eq!(seconds(Duration::from_micros(micros)), shown);
        }
    }

    #[test]
    fn times_are_utc_and_no_number_panics() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_795_492_800_999), "2026-11-24T04:00:00Z");
        assert_eq!(rfc3339(u64::MAX), "18446744073709551615 ms");
    }
}
