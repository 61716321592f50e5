//! Spans of time, as people write and read them.

use std::time::Duration;

const UNITS: &[(&str, f64)] = &[
    ("ms", 1e-3),
    ("s", 1.0),
    ("sec", 1.0),
    ("seconds", 1.0),
    ("min", 60.0),
    ("h", 3600.0),
];
/// Nobody waits for longer.
const MAX_S: f64 = 86_400.0;

/// Reads `3 s`, `500ms`, `1.5 min`.
///
/// # Errors
/// What is wrong, in words.
pub fn parse(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = unit.trim();
    let Ok(number) = number.parse::<f64>() else {
        return Err(if text.starts_with('-') {
            "a time cannot be negative".into()
        } else {
            "expected a number with a unit, such as \"3 s\" or \"500 ms\"".into()
        });
    };
    if unit.is_empty() {
        return Err(format!(
            "expected a unit: {text} s, {text} ms, {text} min or {text} h"
        ));
    }
    let seconds = UNITS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))
        .map(|&(_, scale)| number * scale)
        .ok_or_else(|| format!("`{unit}` is no unit of time; there are ms, s, min and h"))?;
    if seconds > MAX_S {
        return Err("expected at most 24 h".into());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Shows what [`parse`] reads.
pub fn show(span: Duration) -> String {
    let seconds = span.as_secs_f64();
    if seconds > 0.0 && seconds < 1.0 {
        format!("{} ms", seconds * 1000.0)
    } else {
        format!("{seconds} s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_as_people_write_them() {
        for (text, ms) in [
            ("3 s", 3000),
            ("3s", 3000),
            (" 500 ms ", 500),
            ("1.5 min", 90_000),
            ("0 s", 0),
            ("24 H", 86_400_000),
        ] {
            let span = Duration::from_millis(ms);
            assert_eq!(parse(text), Ok(span), "{text}");
            assert_eq!(parse(&show(span)), Ok(span), "{text}");
        }
    }

    #[test]
    fn what_is_no_span_is_refused_with_a_reason() {
        for (text, reason) in [
            ("", "a number with a unit"),
            ("soon", "a number with a unit"),
            ("-1 s", "cannot be negative"),
            ("3", "expected a unit: 3 s"),
            ("3 x", "`x` is no unit"),
            ("1.2.3 s", "a number with a unit"),
            ("25 h", "at most 24 h"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
