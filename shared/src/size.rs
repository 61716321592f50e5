//! Sizes in bytes, as people write and read them.

use std::fmt;

/// A budget of memory as it is written.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Memory {
    Bytes(u64),
    /// Percent of what the machine or container has.
    Share(f64),
}

const UNITS: &[(&str, u64)] = &[
    ("", 1),
    ("b", 1),
    ("k", 1 << 10),
    ("kib", 1 << 10),
    ("kb", 1_000),
    ("m", 1 << 20),
    ("mib", 1 << 20),
    ("mb", 1_000_000),
    ("g", 1 << 30),
    ("gib", 1 << 30),
    ("gb", 1_000_000_000),
    ("t", 1 << 40),
    ("tib", 1 << 40),
    ("tb", 1_000_000_000_000),
];

/// Reads `4 GiB`, `512MB`, `1.5g`, `1048576`. One letter alone is the power of 1024.
///
/// # Errors
/// What is wrong, in words.
pub fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_'))
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = unit.trim();
    if number.is_empty() {
        return Err(if text.starts_with('-') {
            "a size cannot be negative".into()
        } else {
            "expected a number with a unit, such as \"4 GiB\" or \"512 MB\"".into()
        });
    }
    let scale = UNITS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))
        .map(|&(_, scale)| scale)
        .ok_or_else(|| {
            format!("`{unit}` is no unit of size; there are B, KB, MB, GB, TB (powers of 1000) and KiB, MiB, GiB, TiB (powers of 1024)")
        })?;
    let number = number.replace('_', "");
    if let Ok(whole) = number.parse::<u64>() {
        return whole
            .checked_mul(scale)
            .ok_or_else(|| "more bytes than any machine has".into());
    }
    let real: f64 = number
        .parse()
        .map_err(|_| format!("`{number}` is not a number"))?;
    let bytes = real * scale as f64;
    if bytes >= u64::MAX as f64 {
        return Err("more bytes than any machine has".into());
    }
    Ok(bytes.round() as u64)
}

/// Reads a size or a share such as `50 %`.
///
/// # Errors
/// As [`parse`].
pub fn parse_memory(text: &str) -> Result<Memory, String> {
    let Some(share) = text.trim().strip_suffix('%') else {
        return parse(text).map(Memory::Bytes);
    };
    match share.trim().parse::<f64>() {
        Ok(share) if share > 0.0 && share <= 100.0 => Ok(Memory::Share(share)),
        Ok(_) => Err("expected a share above 0 % and at most 100 %".into()),
        Err(_) => Err(format!("`{}` is not a number", share.trim())),
    }
}

/// Shows bytes with three digits or so, in powers of 1024.
pub fn show(bytes: u64) -> impl fmt::Display {
    Shown(bytes)
}

struct Shown(u64);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64;
        let mut unit = "B";
        for next in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
            // 1023.5 would be shown as 1024.
            if value < 1023.5 {
                break;
            }
            value /= 1024.0;
            unit = next;
        }
        if unit == "B" || value >= 99.95 || (value - value.round()).abs() < 0.005 {
            write!(f, "{value:.0} {unit}")
        } else {
            write!(f, "{value:.1} {unit}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("1_000", 1000),
            ("12 B", 12),
            ("4 GiB", 4 << 30),
            ("4GiB", 4 << 30),
            ("4 gib", 4 << 30),
            ("4g", 4 << 30),
            ("512MB", 512_000_000),
            ("1.5 KiB", 1536),
            (" 2 TB ", 2_000_000_000_000),
            ("0.5 MiB", 1 << 19),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_a_reason() {
        for (text, reason) in [
            ("", "a number with a unit"),
            ("lots", "a number with a unit"),
            ("-1 GiB", "cannot be negative"),
            ("4 GX", "`GX` is no unit"),
            ("4 GiB each", "no unit"),
            ("1.2.3 MB", "`1.2.3` is not a number"),
            ("99999999999 TiB", "more bytes than any machine has"),
            ("99999999999.5 TiB", "more bytes than any machine has"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn shares_are_read() {
        assert_eq!(parse_memory("50 %"), Ok(Memory::Share(50.0)));
        assert_eq!(parse_memory("12.5%"), Ok(Memory::Share(12.5)));
        assert_eq!(parse_memory("1 MiB"), Ok(Memory::Bytes(1 << 20)));
        for text in ["0 %", "101 %", "-5 %", "x %", "NaN %"] {
            assert!(parse_memory(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1 MiB"),
            (4 << 30, "4 GiB"),
            (250 << 20, "250 MiB"),
            (64 << 30, "64 GiB"),
        ] {
            assert_eq!(show(bytes).to_string(), text);
        }
    }
}
