//! Numbers and tables, as people read them.

/// `100836` as `100,836`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `43100000.0` as `43.1 million`.
pub fn about(number: f64) -> String {
    for (scale, word) in [(1e12, " trillion"), (1e9, " billion"), (1e6, " million")] {
        if number >= 0.9995 * scale {
            let value = number / scale;
            let places = usize::from(value < 99.95);
            return format!("{value:.places$}{word}");
        }
    }
    if number.is_finite() {
        count(number.max(0.0).round() as u64)
    } else {
        number.to_string()
    }
}

/// Five digits that mean something: `534.42`, `0.0012346`, `1.2346e9`.
pub fn digits(number: f64) -> String {
    if number == 0.0 || !number.is_finite() {
        return number.to_string();
    }
    let magnitude = number.abs().log10().floor() as i32;
    if (-4..7).contains(&magnitude) {
        let places = usize::try_from(4 - magnitude).unwrap_or(0);
        format!("{number:.places$}")
    } else {
        format!("{number:.4e}")
    }
}

/// A way to show all of these numbers with their points below each other and five digits or more of each, as far as
/// their sizes allow.
pub fn aligned(numbers: &[f64]) -> impl Fn(f64) -> String {
    let magnitude = |x: f64| (x > 0.0 && x.is_finite()).then(|| x.log10().floor() as i32);
    let largest = numbers.iter().copied().filter_map(magnitude).max();
    let smallest = numbers.iter().copied().filter_map(magnitude).min();
    let places = match (largest, smallest) {
        (Some(largest), Some(smallest)) if (-2..7).contains(&largest) => {
            Some((4 - smallest).clamp(0, 6 - largest.min(2)) as usize)
        }
        _ => None,
    };
    move |number| match places {
        Some(places) => format!("{number:.places$}"),
        None => digits(number),
    }
}

/// `75.3` seconds as `1 min 15 s`.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "?".into();
    }
    if seconds < 0.9995 {
        return format!("{:.0} ms", seconds * 1000.0);
    }
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    match whole {
        0..120 => format!("{whole} s"),
        120..7200 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// A part of one as `21.20 %`.
pub fn percent(part: f64) -> String {
    format!("{:.2} %", part * 100.0)
}

/// Lines of a table: two blanks between columns, no trailing blanks. `left` names the columns that begin at the left.
pub fn table(rows: &[Vec<String>], left: &[usize]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    rows.iter()
        .map(|row| {
            let cells = row.iter().zip(&widths).enumerate();
            let cells: Vec<_> = cells
                .map(|(column, (cell, &width))| {
                    if left.contains(&column) {
                        format!("{cell:<width$}")
                    } else {
                        format!("{cell:>width$}")
                    }
                })
                .collect();
            cells.join("  ").trim_end().to_owned()
        })
        .collect()
}

/// Breaks text at blanks into lines of at most `width` characters. A longer word stays whole.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is a line");
        let length = line.chars().count();
        if length > 0 && length + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
        } else {
            if length > 0 {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

/// At most `width` characters; what is cut ends in `...`.
pub fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(3)).collect();
    format!("{}...", kept.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(100_836), "100,836");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(about(43_100_000.0), "43.1 million");
        assert_eq!(about(250e9), "250 billion");
        assert_eq!(about(100_836.2), "100,836");
        assert_eq!(digits(534.4214), "534.42");
        assert_eq!(digits(0.00123456), "0.0012346");
        assert_eq!(digits(1_234_567_890.0), "1.2346e9");
        assert_eq!(digits(12_345.6), "12346");
        assert_eq!(duration(0.0123), "12 ms");
        assert_eq!(duration(0.34), "340 ms");
        assert_eq!(duration(2.31), "2.3 s");
        assert_eq!(duration(75.3), "75 s");
        assert_eq!(duration(605.0), "10 min 05 s");
        assert_eq!(duration(7300.0), "2 h 01 min");
        assert_eq!(percent(0.212), "21.20 %");
        let show = aligned(&[534.42007, 89.070021, 10.688]);
        assert_eq!([534.42007, 10.688].map(show), ["534.420", "10.688"]);
        let show = aligned(&[1.0, 1e-9]);
        assert_eq!([1.0, 1e-9].map(show), ["1.000000", "0.000000"]);
        let show = aligned(&[123_456.7, 99_999.0]);
        assert_eq!([123_456.7, 99_999.0].map(show), ["123457", "99999"]);
        let show = aligned(&[3e12, 2e12]);
        assert_eq!([3e12].map(show), ["3.0000e12"]);
        assert_eq!([0.0].map(aligned(&[])), ["0"]);
    }

    #[test]
    fn text_is_broken_and_cut() {
        assert_eq!(wrap("one two three", 8), ["one two", "three"]);
        assert_eq!(wrap("unbreakable", 3), ["unbreakable"]);
        assert_eq!(cut("Lord of the Rings", 11), "Lord of...");
        assert_eq!(cut("Heat", 11), "Heat");
    }
}
