//! The two response headers whose numbers decide what happens next: `Content-Range` and `Retry-After`.

use std::time::{Duration, SystemTime};

/// What a 206 answer says it holds ([RFC 9110, section 14.4]).
///
/// [RFC 9110, section 14.4]: https://www.rfc-editor.org/rfc/rfc9110#section-14.4
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentRange {
    /// Offset of the first byte.
    pub first: u64,
    /// Offset of the last byte, never less than `first`.
    pub last: u64,
    /// The length of the whole, unless it is `*`; always more than `last`.
    pub complete: Option<u64>,
}

impl ContentRange {
    /// Parses `bytes FIRST-LAST/LENGTH`. Another unit, `bytes */LENGTH` and numbers that contradict each other give `None`.
    #[must_use]
    pub fn parse(field: &str) -> Option<Self> {
        let (unit, range) = field.trim().split_once(' ')?;
        let (range, complete) = range.trim().split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last) = (decimal(first)?, decimal(last)?);
        let complete = if complete == "*" { None } else { Some(decimal(complete)?) };
        let holds = first <= last && complete.is_none_or(|complete| last < complete);
        (unit.eq_ignore_ascii_case("bytes") && holds).then_some(Self { first, last, complete })
    }
}

/// Digits only: `parse` alone would take a sign.
fn decimal(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// How long `Retry-After` asks to wait ([RFC 9110, section 10.2.3]): seconds, or a date in any of the three forms.
/// A date that has passed is no wait; nonsense is `None`. The caller bounds it.
///
/// [RFC 9110, section 10.2.3]: https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3
#[must_use]
pub fn retry_after(field: &str, now: SystemTime) -> Option<Duration> {
    let field = field.trim();
    if !field.is_empty() && field.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(field.parse().unwrap_or(u64::MAX)));
    }
    let seconds = http_date(field)?;
    let date = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).ok()?);
    Some(date.duration_since(now).unwrap_or(Duration::ZERO))
}

/// Seconds since 1970 of an IMF-fixdate, an RFC 850 date or an asctime date.
fn http_date(field: &str) -> Option<i64> {
    let forms = ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"];
    let parsed = forms.iter().find_map(|form| jiff::civil::DateTime::strptime(form, field).ok())?;
    Some(parsed.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn content_range_is_read_strictly() {
        let range = |first, last, complete| Some(ContentRange { first, last, complete });
        for (field, expected) in [
            ("bytes 0-9/10", range(0, 9, Some(10))),
            ("Bytes 5-9/*", range(5, 9, None)),
            ("bytes 5-9/9", None),
            ("bytes 9-5/10", None),
            ("bytes */10", None),
            ("bytes 5-/10", None),
            ("bytes +5-9/10", None),
            ("bytes -5/10", None),
            ("bytes 5-9", None),
            ("items 5-9/10", None),
            ("bytes=5-9/10", None),
            ("bytes 5-9/10, 11-12/20", None),
            ("bytes 0-18446744073709551616/*", None),
            ("", None),
        ] {
            assert_eq!(ContentRange::parse(field), expected, "{field}");
        }
    }

    #[test]
    fn retry_after_takes_seconds_and_every_form_of_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777 - 30);
        for (field, expected) in [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("99999999999999999999", Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(30)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(30)),
            ("Sun Nov  6 08:49:37 1994", Some(30)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("-1", None),
            ("1.5", None),
            ("", None),
            ("soon", None),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
        ] {
            assert_eq!(retry_after(field, now), expected.map(Duration::from_secs), "{field}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(field in any::<String>()) {
            let _ = (ContentRange::parse(&field), retry_after(&field, SystemTime::UNIX_EPOCH));
        }

        #[test]
        fn content_range_is_read_back(first: u32, more: u32, rest: u32) {
            let (first, last) = (u64::from(first), u64::from(first) + u64::from(more));
            let complete = last + 1 + u64::from(rest);
            let parsed = ContentRange::parse(&format!("bytes {first}-{last}/{complete}"));
            prop_assert_eq!(parsed, Some(ContentRange { first, last, complete: Some(complete) }));
        }
    }
}
