//! How are figures written for people?

/// How to write bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Units {
    /// In the largest IEC unit that leaves something before the point: `12.0 MiB`.
    #[default]
    Iec,
    /// As the number: `12582912`.
    Exact,
}

const PREFIXES: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

impl Units {
    /// A number of bytes.
    pub fn bytes(self, bytes: u64) -> String {
        match self {
            Self::Exact => bytes.to_string(),
            Self::Iec => iec(bytes as f64),
        }
    }

    /// Bytes per second, with their sign.
    pub fn rate(self, per_second: f64) -> String {
        let sign = if per_second < 0.0 { "-" } else { "+" };
        let size = match self {
            Self::Exact => format!("{:.0}", per_second.abs()),
            Self::Iec => iec(per_second.abs()),
        };
        // Not `-0 B/s`.
        let zero = size.starts_with('0') && per_second.abs() < 0.5;
        if zero { "0 B/s".into() } else { format!("{sign}{size}{}", if self == Self::Iec { "/s" } else { "" }) }
    }

    /// The change from `before` to `after`, with its sign.
    pub fn change(self, before: u64, after: u64) -> String {
        let sign = if after < before { "-" } else { "+" };
        format!("{sign}{}", self.bytes(after.abs_diff(before)))
    }
}

fn iec(bytes: f64) -> String {
    if bytes < 1024.0 {
        return format!("{bytes:.0} B");
    }
    let mut scaled = bytes;
    let mut unit = "B";
    for prefix in PREFIXES {
        // 1023.95 would be written as 1024.0.
        if scaled < 1023.95 {
            break;
        }
        scaled /= 1024.0;
        unit = prefix;
    }
    format!("{scaled:.1} {unit}")
}

/// A number with its thousands set apart: `19,200,000`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len().saturating_mul(2));
    for (left, digit) in (0..digits.len()).rev().zip(digits.chars()) {
        text.push(digit);
        if left > 0 && left.is_multiple_of(3) {
            text.push(',');
        }
    }
    text
}

/// A time span: `0.2 s`, `59.5 s`, `12 min`, `3.5 h`.
pub fn seconds(seconds: f64) -> String {
    match seconds {
        short if short < 120.0 => format!("{short:.1} s"),
        medium if medium < 7200.0 => format!("{:.0} min", medium / 60.0),
        long => format!("{:.1} h", long / 3600.0),
    }
}

/// A moment, given in seconds since 1970: `2026-01-01 00:00:00 UTC`.
pub fn moment(unix: u64) -> String {
    let (days, second) = (unix / 86_400, unix % 86_400);
    // Days in years that begin with March, so that the day that is added comes last (H. Hinnant, "chrono-Compatible
    // Low-Level Date Algorithms", `civil_from_days`).
    let shifted = days.saturating_add(719_468);
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_bytes() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (1 << 40, "1.0 TiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(Units::Iec.bytes(bytes), expected, "{bytes}");
        }
        assert_eq!(Units::Exact.bytes(u64::MAX), "18446744073709551615");
    }

    #[test]
    fn writes_rates_and_changes() {
        assert_eq!(Units::Iec.rate(1536.0), "+1.5 KiB/s");
        assert_eq!(Units::Iec.rate(-1536.0), "-1.5 KiB/s");
        assert_eq!(Units::Iec.rate(-0.2), "0 B/s");
        assert_eq!(Units::Exact.rate(1536.4), "+1536");
        assert_eq!(Units::Iec.change(2048, 1024), "-1.0 KiB");
        assert_eq!(Units::Exact.change(1, 3), "+2");
    }

    #[test]
    fn writes_counts_and_times() {
        assert_eq!([0, 999, 1000, 19_200_000].map(count), ["0", "999", "1,000", "19,200,000"]);
        assert_eq!([0.25, 119.0, 720.0, 9000.0].map(seconds), ["0.2 s", "119.0 s", "12 min", "2.5 h"]);
    }

    #[test]
    fn writes_moments() {
        assert_eq!(moment(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(moment(951_782_399), "2000-02-28 23:59:59 UTC");
        assert_eq!(moment(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(moment(1_767_225_600), "2026-01-01 00:00:00 UTC");
        // Hostile, and no panic.
        assert!(moment(u64::MAX).ends_with(" UTC"));
    }
}
