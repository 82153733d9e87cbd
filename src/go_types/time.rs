//! Times as Go reads and writes them. One rule for configs, for records of stores, and for the helper.

/// Seconds of a day.
const DAY: i64 = 24 * 60 * 60;
/// Days from 0000-03-01 to 1970-01-01.
const DAYS_TO_EPOCH: i64 = 719_468;
/// Days in 400 years.
const DAYS_OF_ERA: i64 = 146_097;
/// 9999-12-31T23:59:59Z, the last second that Go writes, in seconds since 1970.
const LAST: i64 = 253_402_300_799;
/// 0000-01-01T00:00:00Z, the first second that Go writes, in seconds since 1970.
const FIRST: i64 = -62_167_219_200;

/// A time of RFC 3339, taken apart.
struct Parts<'a> {
    year: i64,
    month: i64,
    day: i64,
    /// Second of the day.
    second: i64,
    /// Digits after the point, none of it if there is no point.
    fraction: &'a str,
    /// `Z`, or the offset.
    zone: &'a str,
    /// Offset from UTC, in seconds.
    offset: i64,
}

/// Returns whether Go's `time.Time` takes this from JSON: RFC 3339 without leap seconds, with `T` and `Z` in upper case,
/// any number of digits after a point, years 0000 to 9999 (`time/format_rfc3339.go`, `parseStrictRFC3339`).
///
/// Go also writes each of these times again (`appendStrictRFC3339`: the year in its own zone has four digits), so a record with
/// one stays readable. A record or config with another time is refused by skopeo, podman and CRI-O.
#[must_use]
pub fn is_time(text: &str) -> bool {
    parse(text).is_some()
}

/// Returns a time as Go writes it again: the zone kept, at most nine digits of the fraction, trailing zeros cut. `None` if
/// Go cannot read it.
#[must_use]
pub fn go_time(text: &str) -> Option<String> {
    let Parts { fraction, zone, offset, .. } = parse(text)?;
    let date = text.get(..19)?;
    let fraction = fraction.get(..fraction.len().min(9))?.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    let zone = if offset == 0 { "Z" } else { zone };
    Some(format!("{date}{point}{fraction}{zone}"))
}

/// Returns a time in seconds since 1970, rounded down. `None` if Go cannot read it.
#[must_use]
pub fn seconds_since_epoch(text: &str) -> Option<i64> {
    let Parts { year, month, day, second, offset, .. } = parse(text)?;
    // Years begin in March here, so that a leap day is the last of its year.
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * DAYS_OF_ERA + of_era * 365 + of_era / 4 - of_era / 100 + day_of_year - DAYS_TO_EPOCH;
    Some(days * DAY + second - offset)
}

/// Returns `seconds` since 1970 as Go writes a time in UTC. Years before 0000 and after 9999 become the first and the last
/// second that Go can write.
#[must_use]
pub fn utc(seconds: i64) -> String {
    let seconds = seconds.clamp(FIRST, LAST);
    let (days, second) = (seconds.div_euclid(DAY) + DAYS_TO_EPOCH, seconds.rem_euclid(DAY));
    let (era, day) = (days.div_euclid(DAYS_OF_ERA), days.rem_euclid(DAYS_OF_ERA));
    let of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * of_era + of_era / 4 - of_era / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let year = era * 400 + of_era + i64::from(month >= 10);
    let month = if month < 10 { month + 3 } else { month - 9 };
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

fn parse(text: &str) -> Option<Parts<'_>> {
    let bytes = text.as_bytes();
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = text.get(from..to)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let in_range = |from, low, high| number(from, from + 2).filter(|number| (low..=high).contains(number));
    let (year, month) = (number(0, 4)?, in_range(5, 1, 12)?);
    let days = match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if !separators.iter().all(|(at, separator)| bytes.get(*at) == Some(separator)) {
        return None;
    }
    let (hour, minute) = (in_range(11, 0, 23)?, in_range(14, 0, 59)?);
    let second = (hour * 60 + minute) * 60 + in_range(17, 0, 59)?;
    let rest = text.get(19..)?;
    let (fraction, zone) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(rest.bytes().take_while(u8::is_ascii_digit).count()),
        None => ("", rest),
    };
    if rest.starts_with('.') && fraction.is_empty() {
        return None;
    }
    let offset = match zone.as_bytes() {
        b"Z" => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let at = text.len() - zone.len();
            let minutes = in_range(at + 1, 0, 23)? * 60 + in_range(at + 4, 0, 59)?;
            if *sign == b'-' { -minutes * 60 } else { minutes * 60 }
        }
        _ => return None,
    };
    Some(Parts { year, month, day: in_range(8, 1, days)?, second, fraction, zone, offset })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_that_go_reads() {
        for (good, written, seconds) in [
            ("2024-01-02T03:04:05Z", "2024-01-02T03:04:05Z", 1_704_164_645),
            ("2024-01-02T03:04:05.120Z", "2024-01-02T03:04:05.12Z", 1_704_164_645),
            ("2024-01-02T03:04:05.1234567891Z", "2024-01-02T03:04:05.123456789Z", 1_704_164_645),
            ("2024-01-02T03:04:05.000000000Z", "2024-01-02T03:04:05Z", 1_704_164_645),
            ("2024-01-02T03:04:05+02:00", "2024-01-02T03:04:05+02:00", 1_704_157_445),
            ("2024-01-02T03:04:05.5+00:00", "2024-01-02T03:04:05.5Z", 1_704_164_645),
            ("2024-01-02T03:04:05-00:00", "2024-01-02T03:04:05Z", 1_704_164_645),
            ("2024-02-29T23:59:59.123456789+02:00", "2024-02-29T23:59:59.123456789+02:00", 1_709_243_999),
            ("2024-12-31T00:00:00-23:59", "2024-12-31T00:00:00-23:59", 1_735_689_540),
            ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z", 0),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z", -62_135_596_800),
            ("0000-01-01T00:00:00Z", "0000-01-01T00:00:00Z", FIRST),
            ("0000-01-01T00:00:00+01:00", "0000-01-01T00:00:00+01:00", FIRST - 3600),
            ("0000-02-29T00:00:00Z", "0000-02-29T00:00:00Z", FIRST + 59 * DAY),
            ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59Z", LAST),
            ("9999-12-31T23:59:59-23:59", "9999-12-31T23:59:59-23:59", LAST + 86_340),
        ] {
            assert!(is_time(good), "{good}");
            assert_eq!(go_time(good).as_deref(), Some(written), "{good}");
            assert_eq!(seconds_since_epoch(good), Some(seconds), "{good}");
        }
        for bad in [
            "",
            "now",
            "yesterday",
            "2024-01-02",
            "2024-01-02T03:04:05",
            "2024-01-02 03:04:05Z",
            "2024-01-02t03:04:05z",
            "2023-02-29T00:00:00Z",
            "2024-13-01T00:00:00Z",
            "2024-00-01T00:00:00Z",
            "2024-01-00T00:00:00Z",
            "2024-01-02T24:00:00Z",
            "2024-01-02T3:04:05Z",
            "2024-01-02T03:04:60Z",
            "2024-01-02T03:04:05.Z",
            "2024-01-02T03:04:05,1Z",
            "2024-01-02T03:04:05Zx",
            "2024-01-02T03:04:05+0200",
            "2024-01-02T03:04:05+24:00",
            "2024-01-02T03:04:05+02:60",
            "2024-01-02T03:04:05+02:0\u{e9}",
            "+024-01-02T03:04:05Z",
            "-001-01-02T03:04:05Z",
            "10000-01-01T00:00:00Z",
        ] {
            assert!(!is_time(bad), "{bad}");
            assert_eq!((go_time(bad), seconds_since_epoch(bad)), (None, None), "{bad}");
        }
    }

    #[test]
    fn seconds_are_written_in_utc() {
        for (seconds, text) in [
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (0, "1970-01-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (i64::MIN, "0000-01-01T00:00:00Z"),
            (i64::MAX, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(utc(seconds), text);
        }
    }

    #[cfg(feature = "front")]
    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(20_000))]
        #[test]
        fn times_agree_with_another_library(seconds in FIRST..253_402_207_200) {
            let text = utc(seconds);
            proptest::prop_assert_eq!(&text, &jiff::Timestamp::from_second(seconds).unwrap().to_string());
            proptest::prop_assert_eq!(seconds_since_epoch(&text), Some(seconds));
        }

        #[test]
        fn any_text_is_read_without_a_panic(
            text in "[0-9]{3,4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9]([.,][0-9]{0,9})?(Z|[+-][0-2][0-9]:[0-6]?[0-9])",
        ) {
            proptest::prop_assert_eq!(is_time(&text), go_time(&text).is_some());
            if let Some(written) = go_time(&text) {
                proptest::prop_assert_eq!(seconds_since_epoch(&written), seconds_since_epoch(&text));
                proptest::prop_assert!(text.parse::<jiff::Timestamp>().is_ok() || text.as_str() > "9999-12-30");
            }
        }
    }
}
