//! Values that one thread has met: a table while they are few, then plain numbers.

use rustc_hash::FxHashMap;

/// Different values that a code of one byte can tell apart.
pub(super) const FEW: usize = 255;
const SMALL: usize = 1024;
const DECIMALS: usize = 3;
const POWERS: [f64; 16] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15,
];

/// What is known of a set of values.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ValueFacts {
    /// The different values, ascending, while they are few.
    pub distinct: Option<Vec<f64>>,
    /// Every value is an `f32` exactly.
    pub single: bool,
    pub max_abs: f64,
}

impl ValueFacts {
    pub fn none() -> Self {
        Self {
            distinct: Some(Vec::new()),
            single: true,
            max_abs: 0.0,
        }
    }

    pub fn join(self, other: Self) -> Self {
        let distinct = match (self.distinct, other.distinct) {
            (Some(mut a), Some(b)) => {
                a.extend(b);
                a.sort_unstable_by(f64::total_cmp);
                a.dedup();
                (a.len() <= FEW).then_some(a)
            }
            _ => None,
        };
        Self {
            distinct,
            single: self.single && other.single,
            max_abs: self.max_abs.max(other.max_abs),
        }
    }
}

pub(super) struct ValueTable {
    codes: FxHashMap<u64, u8>,
    table: Vec<f64>,
    /// Code plus one of `digits / 10^decimals`.
    small: Box<[u16]>,
    many: bool,
    single: bool,
    max_abs: f64,
}

impl ValueTable {
    pub fn new() -> Self {
        Self {
            codes: FxHashMap::default(),
            table: Vec::new(),
            small: vec![0; SMALL * DECIMALS].into(),
            many: false,
            single: true,
            max_abs: 0.0,
        }
    }

    /// The code of a value; `None` once there are too many for codes.
    pub fn code(&mut self, value: f64) -> Option<u8> {
        let bits = value.to_bits();
        if !self.many
            && let Some(&code) = self.codes.get(&bits)
        {
            return Some(code);
        }
        self.single &= f64::from(value as f32) == value;
        self.max_abs = self.max_abs.max(value.abs());
        if self.many || self.table.len() == FEW {
            self.many = true;
            return None;
        }
        let code = self.table.len() as u8;
        self.table.push(value);
        self.codes.insert(bits, code);
        Some(code)
    }

    /// As [`code`](Self::code), for a value written as digits and a number of decimals.
    #[inline]
    pub fn code_of_digits(&mut self, digits: u64, decimals: usize) -> Result<u8, f64> {
        if digits < SMALL as u64 && decimals < DECIMALS {
            let at = decimals * SMALL + digits as usize;
            let known = self.small[at];
            if known > 0 {
                return Ok((known - 1) as u8);
            }
            let value = from_digits(digits, decimals);
            let code = self.code(value).ok_or(value)?;
            self.small[at] = u16::from(code) + 1;
            return Ok(code);
        }
        let value = from_digits(digits, decimals);
        self.code(value).ok_or(value)
    }

    /// Whether codes no longer suffice.
    pub fn are_many(&self) -> bool {
        self.many
    }

    pub fn value(&self, code: u8) -> f64 {
        self.table[code as usize]
    }

    /// By code.
    pub fn table(&self) -> &[f64] {
        &self.table
    }

    pub fn facts(&self) -> ValueFacts {
        let mut distinct = self.table.clone();
        distinct.sort_unstable_by(f64::total_cmp);
        ValueFacts {
            distinct: (!self.many).then_some(distinct),
            single: self.single,
            max_abs: self.max_abs,
        }
    }
}

/// The nearest number to `digits / 10^decimals`: both are exact numbers (at most 15 digits), so one division rounds once,
/// as reading the text does.
#[inline]
fn from_digits(digits: u64, decimals: usize) -> f64 {
    digits as f64 / POWERS[decimals]
}
