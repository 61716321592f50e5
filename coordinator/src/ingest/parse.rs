//! From text to records: a byte loop for plain lines, and the strict way for all others.
//!
//! Both give the same records for the same lines; the byte loop merely stops before a line that it does not understand.

use super::{
    dialect::{Delimiter, Plan},
    labels::{self, LabelTable},
    spill,
    values::ValueTable,
};

/// What one thread has made of its chunks.
pub(super) struct Local {
    pub rows: LabelTable,
    pub columns: LabelTable,
    pub values: ValueTable,
    /// Records of the present chunk.
    pub out: Vec<u8>,
    /// Whether they hold values rather than codes.
    pub wide: bool,
    pub entries: u64,
}

/// Why the fields of a line make no entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wrong {
    NoRow,
    NoColumn,
    NoValue,
    NotANumber,
    NotFinite,
}

impl Local {
    pub fn new(direct_max: u64) -> Self {
        Self {
            rows: LabelTable::new(direct_max),
            columns: LabelTable::new(direct_max),
            values: ValueTable::new(),
            out: Vec::new(),
            wide: false,
            entries: 0,
        }
    }

    /// Makes ready for the next chunk.
    pub fn begin(&mut self) {
        self.out.clear();
        self.wide = self.values.are_many();
    }

    #[inline]
    fn push(&mut self, row: u32, column: u32, value: Result<u8, f64>) {
        self.entries += 1;
        match value {
            Ok(code) if !self.wide => spill::put_coded(&mut self.out, row, column, code),
            Ok(code) => {
                spill::put_wide(&mut self.out, row, column, self.values.value(code));
            }
            Err(value) => {
                if !self.wide {
                    self.widen();
                }
                spill::put_wide(&mut self.out, row, column, value);
            }
        }
    }

    #[cold]
    fn widen(&mut self) {
        self.wide = true;
        let coded = std::mem::take(&mut self.out);
        for record in coded.chunks_exact(spill::CODED) {
            let (row, column) = spill::ids(record);
            spill::put_wide(&mut self.out, row, column, self.values.value(record[8]));
        }
    }

    /// Takes one entry, whatever its labels look like.
    pub fn accept(&mut self, row: &[u8], column: &[u8], value: Option<&[u8]>) -> Result<(), Wrong> {
        let (row, column) = (row.trim_ascii(), column.trim_ascii());
        if row.is_empty() {
            return Err(Wrong::NoRow);
        }
        if column.is_empty() {
            return Err(Wrong::NoColumn);
        }
        let value = value.map_or(Ok(1.0), number)?;
        let row = self.rows.text(row);
        let column = self.columns.text(column);
        let value = self.values.code(value).ok_or(value);
        self.push(row, column, value);
        Ok(())
    }
}

/// Reads a value.
pub(super) fn number(text: &[u8]) -> Result<f64, Wrong> {
    let text = text.trim_ascii();
    if text.is_empty() {
        return Err(Wrong::NoValue);
    }
    let value: f64 = std::str::from_utf8(text)
        .ok()
        .and_then(|t| t.parse().ok())
        .ok_or(Wrong::NotANumber)?;
    if !value.is_finite() {
        return Err(Wrong::NotFinite);
    }
    // One zero, not two.
    Ok(value + 0.0)
}

trait Gap: Copy {
    const QUOTES: bool;
    /// Whether a field may be empty.
    const EMPTY: bool;
    /// Whether a field ends here, if [`eat`](Gap::eat) agrees.
    fn may_end(self, byte: u8) -> bool;
    /// Where the next field starts when this one ends at `at`.
    fn eat(self, data: &[u8], at: usize) -> Option<usize>;
}

#[derive(Clone, Copy)]
struct Byte(u8);
#[derive(Clone, Copy)]
struct Colons;
#[derive(Clone, Copy)]
struct Blanks;

impl Gap for Byte {
    const QUOTES: bool = true;
    const EMPTY: bool = true;
    #[inline(always)]
    fn may_end(self, byte: u8) -> bool {
        byte == self.0
    }
    #[inline(always)]
    fn eat(self, data: &[u8], at: usize) -> Option<usize> {
        (data[at] == self.0).then_some(at + 1)
    }
}

impl Gap for Colons {
    const QUOTES: bool = false;
    const EMPTY: bool = true;
    #[inline(always)]
    fn may_end(self, byte: u8) -> bool {
        byte == b':'
    }
    #[inline(always)]
    fn eat(self, data: &[u8], at: usize) -> Option<usize> {
        (data[at] == b':' && data[at + 1] == b':').then_some(at + 2)
    }
}

impl Gap for Blanks {
    const QUOTES: bool = false;
    const EMPTY: bool = false;
    #[inline(always)]
    fn may_end(self, byte: u8) -> bool {
        byte == b' ' || byte == b'\t'
    }
    #[inline(always)]
    fn eat(self, data: &[u8], at: usize) -> Option<usize> {
        let mut to = at;
        while self.may_end(data[to]) {
            to += 1;
        }
        // Blanks before the end of a line are for the strict way.
        (to > at && data[to] != b'\n' && data[to] != b'\r').then_some(to)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Skip,
    Row,
    Column,
    Value,
}

/// Parses plain lines from `start` on; gives the start of the first line that it leaves to the strict way, or `end`.
/// `data` is longer than `end` by the padding, which holds zeros.
pub(super) fn fast(plan: &Plan, data: &[u8], start: usize, end: usize, local: &mut Local) -> usize {
    match plan.delimiter {
        Delimiter::Byte(b) => fast_with(Byte(b), plan, data, start, end, local),
        Delimiter::Colons => fast_with(Colons, plan, data, start, end, local),
        Delimiter::Blanks => fast_with(Blanks, plan, data, start, end, local),
    }
}

/// A label: a number, or where its text stands.
#[derive(Clone, Copy)]
enum Key {
    Number(u64),
    Text(usize, usize),
}

#[inline(always)]
fn digits(data: &[u8], mut at: usize) -> (u64, usize) {
    let mut number = 0u64;
    loop {
        let digit = data[at].wrapping_sub(b'0');
        if digit > 9 {
            return (number, at);
        }
        number = number.wrapping_mul(10).wrapping_add(u64::from(digit));
        at += 1;
    }
}

/// End of a field that starts at `at`.
#[inline(always)]
fn field_end<G: Gap>(gap: G, data: &[u8], mut at: usize) -> usize {
    loop {
        let byte = data[at];
        if byte == b'\n' || byte == b'\r' || (gap.may_end(byte) && gap.eat(data, at).is_some()) {
            return at;
        }
        at += 1;
    }
}

#[inline(always)]
fn label<G: Gap>(gap: G, data: &[u8], at: usize) -> Option<(Key, usize)> {
    let (number, end) = digits(data, at);
    let next = data[end];
    let ends = gap.may_end(next) || next == b'\n' || next == b'\r';
    let len = end - at;
    if ends && (1..=labels::DIGITS_MAX).contains(&len) && (data[at] != b'0' || len == 1) {
        return Some((Key::Number(number), end));
    }
    text_label(gap, data, at)
}

#[cold]
fn text_label<G: Gap>(gap: G, data: &[u8], at: usize) -> Option<(Key, usize)> {
    if G::QUOTES && data[at] == b'"' {
        return None;
    }
    let end = field_end(gap, data, at);
    let text = &data[at..end];
    let plain = !text.is_empty() && text.trim_ascii().len() == text.len();
    plain.then_some((Key::Text(at, end), end))
}

#[inline(always)]
fn fast_with<G: Gap>(
    gap: G,
    plan: &Plan,
    data: &[u8],
    start: usize,
    end: usize,
    local: &mut Local,
) -> usize {
    let mut roles = vec![Role::Skip; plan.fields];
    roles[plan.row] = Role::Row;
    roles[plan.column] = Role::Column;
    if let Some(value) = plan.value {
        roles[value] = Role::Value;
    }
    let last = roles.len() - 1;
    let (mut row, mut column) = (Key::Number(0), Key::Number(0));
    let (mut mantissa, mut decimals) = (1, 0);
    let mut at = start;
    'line: while at < end {
        let line = at;
        if data[at] == b'\n' {
            at += 1;
            continue;
        }
        for (place, role) in roles.iter().enumerate() {
            match role {
                Role::Skip => {
                    if G::QUOTES && data[at] == b'"' {
                        return line;
                    }
                    let end = field_end(gap, data, at);
                    if !G::EMPTY && end == at {
                        return line;
                    }
                    at = end;
                }
                Role::Row => match label(gap, data, at) {
                    Some((key, end)) => (row, at) = (key, end),
                    None => return line,
                },
                Role::Column => match label(gap, data, at) {
                    Some((key, end)) => (column, at) = (key, end),
                    None => return line,
                },
                Role::Value => {
                    let (whole, point) = digits(data, at);
                    let mut len = point - at;
                    if len == 0 {
                        return line;
                    }
                    (mantissa, decimals) = (whole, 0);
                    at = point;
                    if data[at] == b'.' {
                        let (fraction, end) = digits(data, at + 1);
                        decimals = end - at - 1;
                        len += decimals;
                        if len > 15 {
                            return line;
                        }
                        mantissa = whole * TENS[decimals] + fraction;
                        at = end;
                    }
                    if len > 15 {
                        return line;
                    }
                }
            }
            if place < last {
                match gap.eat(data, at) {
                    Some(next) => at = next,
                    None => return line,
                }
            }
        }
        if data[at] == b'\r' {
            at += 1;
        }
        if data[at] != b'\n' || at >= end {
            return line;
        }
        at += 1;
        let row = match row {
            Key::Number(number) => local.rows.number(number),
            Key::Text(from, to) => local.rows.text(&data[from..to]),
        };
        let column = match column {
            Key::Number(number) => local.columns.number(number),
            Key::Text(from, to) => local.columns.text(&data[from..to]),
        };
        let value = local.values.code_of_digits(mantissa, decimals);
        local.push(row, column, value);
        continue 'line;
    }
    at
}

const TENS: [u64; 16] = {
    let mut tens = [1; 16];
    let mut i = 1;
    while i < 16 {
        tens[i] = tens[i - 1] * 10;
        i += 1;
    }
    tens
};
