//! Lines of MovieLens's `ratings.csv`.

use super::draw::Entry;

pub const HEADER: &[u8] = b"userId,movieId,rating,timestamp\n";

/// Bytes of the longest line: four numbers, three commas, a newline.
const LINE_MAX: usize = 10 + 1 + 10 + 1 + 3 + 1 + 10 + 1;

/// Adds the line of an entry. Rows are numbered from 1; `label` is the column's.
#[inline]
pub fn push(text: &mut Vec<u8>, row: u32, label: u32, entry: Entry) {
    let mut line = Backwards {
        bytes: [0; LINE_MAX],
        at: LINE_MAX,
    };
    line.byte(b'\n');
    line.number(entry.time);
    line.byte(b',');
    line.byte(b'0' + 5 * (entry.half_stars % 2));
    line.byte(b'.');
    line.byte(b'0' + entry.half_stars / 2);
    line.byte(b',');
    line.number(label);
    line.byte(b',');
    line.number(row + 1);
    text.extend_from_slice(&line.bytes[line.at..]);
}

/// A line written from its end.
struct Backwards {
    bytes: [u8; LINE_MAX],
    at: usize,
}

impl Backwards {
    #[inline]
    fn byte(&mut self, byte: u8) {
        self.at -= 1;
        self.bytes[self.at] = byte;
    }

    #[inline]
    fn number(&mut self, mut number: u32) {
        while number >= 10 {
            self.byte(b'0' + (number % 10) as u8);
            number /= 10;
        }
        self.byte(b'0' + number as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_movielens_lines() {
        let mut text = Vec::new();
        let entry = |half_stars, time| Entry {
            column: 0,
            half_stars,
            time,
        };
        push(&mut text, 0, 10, entry(9, 1_574_327_703));
        push(&mut text, u32::MAX - 1, u32::MAX, entry(10, u32::MAX));
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "1,10,4.5,1574327703\n4294967295,4294967295,5.0,4294967295\n"
        );
    }
}
