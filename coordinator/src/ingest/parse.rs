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
    /// Lines of each row met, by place.
    pub row_counts: Vec<u32>,
}

/// Lines with numbers for labels and a code for the value, not yet looked up.
struct Batch {
    rows: [u64; BATCH],
    columns: [u64; BATCH],
    codes: [u8; BATCH],
    len: usize,
}

const BATCH: usize = 256;

impl Batch {
    fn new() -> Self {
        Self {
            rows: [0; BATCH],
            columns: [0; BATCH],
            codes: [0; BATCH],
            len: 0,
        }
    }

    /// Hands the lines on.
    #[inline(never)]
    fn flush(&mut self, local: &mut Local) {
        let len = std::mem::take(&mut self.len);
        let (mut rows, mut columns) = ([0; BATCH], [0; BATCH]);
        local.rows.numbers(&self.rows[..len], &mut rows[..len]);
        local
            .columns
            .numbers(&self.columns[..len], &mut columns[..len]);
        let rows = &rows[..len];
        local.count(rows);
        if local.wide {
            for ((&row, &column), &code) in rows.iter().zip(&columns).zip(&self.codes) {
                spill::put_wide(&mut local.out, row, column, local.values.value(code));
            }
        } else {
            local.out.reserve(len * spill::CODED);
            for ((&row, &column), &code) in rows.iter().zip(&columns).zip(&self.codes) {
                spill::put_coded(&mut local.out, row, column, code);
            }
        }
    }
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
            row_counts: Vec::new(),
        }
    }

    fn count(&mut self, rows: &[u32]) {
        self.entries += rows.len() as u64;
        if self.row_counts.len() < self.rows.len() {
            self.row_counts.resize(self.rows.len(), 0);
        }
        for &row in rows {
            self.row_counts[row as usize] += 1;
        }
    }

    /// Makes ready for the next chunk.
    pub fn begin(&mut self) {
        self.out.clear();
        self.wide = self.values.are_many();
    }

    #[inline]
    fn push(&mut self, row: u32, column: u32, value: Result<u8, f64>) {
        self.count(&[row]);
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
    /// Whether all that may end a field is below the digits, as line ends are.
    fn is_low(self) -> bool;
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
    fn is_low(self) -> bool {
        self.0 < b'0'
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
    fn is_low(self) -> bool {
        false
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
    fn is_low(self) -> bool {
        true
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

impl Key {
    fn place(self, table: &mut LabelTable, data: &[u8]) -> u32 {
        match self {
            Self::Number(number) => table.number(number),
            Self::Text(from, to) => table.text(&data[from..to]),
        }
    }
}

const ONES: u64 = u64::MAX / 255;

#[inline(always)]
fn word(data: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(data[at..at + 8].try_into().expect("eight bytes"))
}

/// The number whose digits start at `at`, and where they end. Eight bytes at a time: the lengths of labels vary, and a
/// loop over bytes would guess them wrong.
#[inline(always)]
fn digits(data: &[u8], at: usize) -> (u64, usize) {
    let bytes = word(data, at) ^ (ONES * 0x30);
    // Marks bytes above 9; above the first mark there may be wrong ones.
    let others = (bytes.wrapping_add(ONES * 0x76) | bytes) & (ONES * 0x80);
    if others == 0 {
        return many_digits(data, at);
    }
    let len = others.trailing_zeros() / 8;
    // The digits to the high end, zeros before them; twice half, for a length of 0.
    let shift = 32 - 4 * len;
    let pairs = (bytes << shift << shift).wrapping_mul(10 << 8 | 1) >> 8;
    let fours = (pairs & 0x00ff_00ff_00ff_00ff).wrapping_mul(100 << 16 | 1) >> 16;
    let number = (fours & 0x0000_ffff_0000_ffff).wrapping_mul(10_000 << 32 | 1) >> 32;
    (number, at + len as usize)
}

#[inline(never)]
fn many_digits(data: &[u8], mut at: usize) -> (u64, usize) {
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
        if gap.is_low() {
            // Past letters and digits, eight at a time: what may end a field is below '0'.
            let bytes = word(data, at);
            let low = bytes.wrapping_sub(ONES * 0x30) & !bytes & (ONES * 0x80);
            if low == 0 {
                at += 8;
                continue;
            }
            at += low.trailing_zeros() as usize / 8;
        }
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
    let mut batch = Batch::new();
    let mut at = start;
    while at < end {
        if data[at] == b'\n' {
            at += 1;
            continue;
        }
        let Some(line) = plain_line(gap, &roles, data, at) else {
            break;
        };
        if line.end > end {
            break;
        }
        at = line.end;
        let value = local.values.code_of_digits(line.mantissa, line.decimals);
        if let (Key::Number(row), Key::Number(column), Ok(code)) = (line.row, line.column, value) {
            batch.rows[batch.len] = row;
            batch.columns[batch.len] = column;
            batch.codes[batch.len] = code;
            batch.len += 1;
            if batch.len == BATCH {
                batch.flush(local);
            }
        } else {
            batch.flush(local);
            let row = line.row.place(&mut local.rows, data);
            let column = line.column.place(&mut local.columns, data);
            local.push(row, column, value);
        }
    }
    batch.flush(local);
    at
}

/// A line whose fields are as plain as can be.
struct Line {
    row: Key,
    column: Key,
    mantissa: u64,
    decimals: usize,
    end: usize,
}

#[inline(always)]
fn plain_line<G: Gap>(gap: G, roles: &[Role], data: &[u8], start: usize) -> Option<Line> {
    let mut at = start;
    let mut line = Line {
        row: Key::Number(0),
        column: Key::Number(0),
        mantissa: 1,
        decimals: 0,
        end: 0,
    };
    for (place, role) in roles.iter().enumerate() {
        match role {
            Role::Skip => {
                if G::QUOTES && data[at] == b'"' {
                    return None;
                }
                let end = field_end(gap, data, at);
                if !G::EMPTY && end == at {
                    return None;
                }
                at = end;
            }
            Role::Row => (line.row, at) = label(gap, data, at)?,
            Role::Column => (line.column, at) = label(gap, data, at)?,
            Role::Value => {
                let (whole, point) = digits(data, at);
                let mut len = point - at;
                if len == 0 {
                    return None;
                }
                line.mantissa = whole;
                at = point;
                if data[at] == b'.' {
                    let (fraction, end) = digits(data, at + 1);
                    line.decimals = end - at - 1;
                    len += line.decimals;
                    if len > 15 {
                        return None;
                    }
                    line.mantissa = whole * TENS[line.decimals] + fraction;
                    at = end;
                }
                if len > 15 {
                    return None;
                }
            }
        }
        if place + 1 < roles.len() {
            at = gap.eat(data, at)?;
        }
    }
    if data[at] == b'\r' {
        at += 1;
    }
    line.end = at + 1;
    (data[at] == b'\n').then_some(line)
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
