//! Labels of rows and columns: whatever the file calls them, and the index that each gets.
//!
//! If every label of an axis is a canonical unsigned integer (no sign, no leading zero, at most 18 digits), indices
//! follow the numbers; otherwise all labels of the axis are taken as text and indices follow their bytes. Either way the
//! order of lines plays no part.

use std::{
    borrow::Cow,
    io::{self, Read, Write},
};

use rustc_hash::FxHashMap;

/// Digits of the longest label that is kept as a number.
pub(super) const DIGITS_MAX: usize = 18;

/// The number a label is, when it is one and `to_string` would give the label back.
pub(super) fn canonical(label: &[u8]) -> Option<u64> {
    let plain = !label.is_empty()
        && label.len() <= DIGITS_MAX
        && label.iter().all(u8::is_ascii_digit)
        && (label[0] != b'0' || label.len() == 1);
    plain.then(|| label.iter().fold(0, |v, &d| v * 10 + u64::from(d - b'0')))
}

const TEXT: u64 = u64::MAX;

/// Labels that one thread has met, in the order in which it met them.
pub(super) struct LabelTable {
    /// Place plus one of small numbers.
    direct: Vec<u32>,
    direct_max: u64,
    hashed: FxHashMap<u64, u32>,
    texts: FxHashMap<Box<[u8]>, u32>,
    /// The number, or [`TEXT`].
    numbers: Vec<u64>,
}

impl LabelTable {
    pub fn new(direct_max: u64) -> Self {
        Self {
            direct: Vec::new(),
            direct_max,
            hashed: FxHashMap::default(),
            texts: FxHashMap::default(),
            numbers: Vec::new(),
        }
    }

    /// Places of many labels. The first loop only reads, so that lookups which miss the caches overlap.
    #[inline]
    pub fn numbers(&mut self, keys: &[u64], places: &mut [u32]) {
        let mut known = true;
        for (place, &key) in places.iter_mut().zip(keys) {
            let found = self.direct.get(key as usize).copied().unwrap_or(0);
            known &= found > 0;
            *place = found.wrapping_sub(1);
        }
        if !known {
            for (place, &key) in places.iter_mut().zip(keys) {
                if *place == u32::MAX {
                    *place = self.number(key);
                }
            }
        }
    }

    pub fn number(&mut self, key: u64) -> u32 {
        let next = self.numbers.len() as u32;
        let place = if key < self.direct_max {
            let at = key as usize;
            if at >= self.direct.len() {
                let len = (at + 1)
                    .next_power_of_two()
                    .clamp(1 << 12, self.direct_max as usize);
                self.direct.resize(len, 0);
            }
            match self.direct[at] {
                0 => {
                    self.direct[at] = next + 1;
                    next
                }
                known => known - 1,
            }
        } else {
            *self.hashed.entry(key).or_insert(next)
        };
        if place == next {
            self.numbers.push(key);
        }
        place
    }

    pub fn text(&mut self, label: &[u8]) -> u32 {
        if let Some(key) = canonical(label) {
            return self.number(key);
        }
        match self.texts.get(label) {
            Some(&place) => place,
            None => {
                let place = self.numbers.len() as u32;
                self.texts.insert(label.into(), place);
                self.numbers.push(TEXT);
                place
            }
        }
    }

    /// Labels met.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Keeps what merging needs.
    pub fn finish(self) -> Met {
        Met {
            numbers: self.numbers,
            texts: self.texts,
        }
    }
}

/// What a thread met, done with looking up.
pub(super) struct Met {
    numbers: Vec<u64>,
    texts: FxHashMap<Box<[u8]>, u32>,
}

/// One axis of the matrix, all threads together.
pub(super) struct Axis {
    pub labels: Labels,
    /// Per thread: index of each place.
    pub index_of: Vec<Vec<u32>>,
}

/// Merges what the threads met. `None`: more labels than a `u32` can tell apart.
pub(super) fn merge(met: Vec<Met>) -> Option<Axis> {
    let (labels, index_of) = if met.iter().all(|m| m.texts.is_empty()) {
        merge_numbers(&met)
    } else {
        merge_texts(&met)
    };
    if labels.len() >= u32::MAX as usize {
        return None;
    }
    Some(Axis { labels, index_of })
}

fn merge_numbers(met: &[Met]) -> (Labels, Vec<Vec<u32>>) {
    let count: usize = met.iter().map(|m| m.numbers.len()).sum();
    let max = met
        .iter()
        .flat_map(|m| &m.numbers)
        .max()
        .copied()
        .unwrap_or(0);
    if max / 64 <= 4 * count as u64 + 1024 {
        // Dense enough for a set of bits: the index is a rank in it.
        let mut bits = vec![0u64; max as usize / 64 + 1];
        for &key in met.iter().flat_map(|m| &m.numbers) {
            bits[key as usize / 64] |= 1 << (key % 64);
        }
        let mut sorted = Vec::new();
        let mut before = Vec::with_capacity(bits.len());
        for (word, &set) in bits.iter().enumerate() {
            before.push(sorted.len() as u32);
            let mut left = set;
            while left != 0 {
                sorted.push(word as u64 * 64 + u64::from(left.trailing_zeros()));
                left &= left - 1;
            }
        }
        let index = |key: &u64| {
            let word = *key as usize / 64;
            before[word] + (bits[word] & ((1 << (key % 64)) - 1)).count_ones()
        };
        let index_of = met
            .iter()
            .map(|m| m.numbers.iter().map(index).collect())
            .collect();
        return (Labels::Numbers(sorted), index_of);
    }
    let mut sorted: Vec<u64> = Vec::with_capacity(count);
    for m in met {
        sorted.extend_from_slice(&m.numbers);
    }
    sorted.sort_unstable();
    sorted.dedup();
    let index_of = met
        .iter()
        .map(|m| {
            m.numbers
                .iter()
                .map(|key| sorted.partition_point(|k| k < key) as u32)
                .collect()
        })
        .collect();
    (Labels::Numbers(sorted), index_of)
}

fn merge_texts(met: &[Met]) -> (Labels, Vec<Vec<u32>>) {
    let mut all: Vec<(Cow<'_, [u8]>, u32, u32)> = Vec::new();
    for (thread, m) in met.iter().enumerate() {
        for (text, &place) in &m.texts {
            all.push((Cow::Borrowed(text), thread as u32, place));
        }
        for (place, &number) in m.numbers.iter().enumerate() {
            if number != TEXT {
                let text = number.to_string().into_bytes();
                all.push((Cow::Owned(text), thread as u32, place as u32));
            }
        }
    }
    all.sort_unstable();
    let mut index_of: Vec<Vec<u32>> = met.iter().map(|m| vec![0; m.numbers.len()]).collect();
    let mut texts = Texts::default();
    let mut before: Option<&[u8]> = None;
    for (text, thread, place) in &all {
        if before != Some(text) {
            texts.push(text);
            before = Some(text);
        }
        index_of[*thread as usize][*place as usize] = texts.len() as u32 - 1;
    }
    (Labels::Texts(texts), index_of)
}

/// Texts one after the other.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Texts {
    bytes: Vec<u8>,
    ends: Vec<u64>,
}

impl Texts {
    fn push(&mut self, text: &[u8]) {
        self.bytes.extend_from_slice(text);
        self.ends.push(self.bytes.len() as u64);
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    fn get(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.bytes[start as usize..self.ends[index] as usize]
    }
}

/// Labels of one axis, by index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Labels {
    /// Ascending.
    Numbers(Vec<u64>),
    /// Ascending by bytes.
    Texts(Texts),
}

impl Labels {
    pub fn len(&self) -> usize {
        match self {
            Self::Numbers(numbers) => numbers.len(),
            Self::Texts(texts) => texts.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The label as it stood in the file. Panics beyond the end.
    pub fn bytes(&self, index: usize) -> Cow<'_, [u8]> {
        match self {
            Self::Numbers(numbers) => Cow::Owned(numbers[index].to_string().into_bytes()),
            Self::Texts(texts) => Cow::Borrowed(texts.get(index)),
        }
    }

    /// The label for people: bytes that are not UTF-8 are replaced. Panics beyond the end.
    pub fn text(&self, index: usize) -> Cow<'_, str> {
        match self {
            Self::Numbers(numbers) => Cow::Owned(numbers[index].to_string()),
            Self::Texts(texts) => String::from_utf8_lossy(texts.get(index)),
        }
    }

    /// Index of a label.
    pub fn find(&self, label: &[u8]) -> Option<usize> {
        match self {
            Self::Numbers(numbers) => numbers.binary_search(&canonical(label)?).ok(),
            Self::Texts(texts) => {
                let (mut low, mut high) = (0, texts.len());
                while low < high {
                    let middle = low + (high - low) / 2;
                    match texts.get(middle).cmp(label) {
                        std::cmp::Ordering::Less => low = middle + 1,
                        std::cmp::Ordering::Equal => return Some(middle),
                        std::cmp::Ordering::Greater => high = middle,
                    }
                }
                None
            }
        }
    }

    /// Writes `index,label` lines under that header, labels quoted where CSV wants it.
    pub fn write_csv(&self, out: impl Write) -> csv::Result<()> {
        let mut out = csv::Writer::from_writer(out);
        out.write_record(["index", "label"])?;
        for index in 0..self.len() {
            out.write_field(index.to_string())?;
            out.write_field(self.bytes(index))?;
            out.write_record(None::<&[u8]>)?;
        }
        out.flush()?;
        Ok(())
    }

    /// Compact form: gaps or lengths as variable-length numbers, then the texts, squeezed.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let mut raw = Vec::new();
        match self {
            Self::Numbers(numbers) => {
                let mut before = 0;
                for &number in numbers {
                    put_number(&mut raw, number - before);
                    before = number;
                }
            }
            Self::Texts(texts) => {
                for index in 0..texts.len() {
                    put_number(&mut raw, texts.get(index).len() as u64);
                }
                raw.extend_from_slice(&texts.bytes);
            }
        }
        out.push(u8::from(matches!(self, Self::Texts(_))));
        out.extend((self.len() as u64).to_le_bytes());
        out.extend((raw.len() as u64).to_le_bytes());
        let squeezed = squeeze(&raw).unwrap_or_default();
        out.extend((squeezed.len() as u64).to_le_bytes());
        out.extend_from_slice(if squeezed.is_empty() { &raw } else { &squeezed });
    }

    /// Reads what [`write`](Self::write) wrote, and takes it off `bytes`.
    pub(crate) fn read(bytes: &mut &[u8]) -> Option<Self> {
        let is_text = *bytes.split_off_first()? == 1;
        let mut number =
            || Some(u64::from_le_bytes(bytes.split_off(..8)?.try_into().ok()?) as usize);
        let (count, raw_len, squeezed_len) = (number()?, number()?, number()?);
        let raw = if squeezed_len == 0 {
            Cow::Borrowed(bytes.split_off(..raw_len)?)
        } else {
            let squeezed = bytes.split_off(..squeezed_len)?;
            // As it comes, and not what the length says, which may be anything.
            let mut raw = Vec::new();
            let reader = zstd::Decoder::with_buffer(squeezed).ok()?;
            let beyond = (raw_len as u64).checked_add(1)?;
            reader.take(beyond).read_to_end(&mut raw).ok()?;
            Cow::Owned(raw)
        };
        let mut raw: &[u8] = &raw;
        let mut numbers = Vec::with_capacity(count.min(raw.len()));
        for _ in 0..count {
            numbers.push(take_number(&mut raw)?);
        }
        let mut sum = 0u64;
        for number in &mut numbers {
            sum = sum.checked_add(*number)?;
            *number = sum;
        }
        if !is_text {
            return Some(Self::Numbers(numbers));
        }
        (numbers.last().copied().unwrap_or(0) == raw.len() as u64).then(|| {
            Self::Texts(Texts {
                bytes: raw.to_vec(),
                ends: numbers,
            })
        })
    }
}

fn squeeze(raw: &[u8]) -> io::Result<Vec<u8>> {
    zstd::bulk::compress(raw, 1)
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.split_off_first()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::harm::{harmed, largest_allocation};

    fn written(labels: &Labels) -> Vec<u8> {
        let mut bytes = Vec::new();
        labels.write(&mut bytes);
        bytes
    }

    fn texts() -> Labels {
        let mut texts = Texts::default();
        for user in 0..300 {
            texts.push(format!("user number {user:05}").as_bytes());
        }
        Labels::Texts(texts)
    }

    fn numbers() -> Labels {
        Labels::Numbers((0..300).map(|i| i * i).collect())
    }

    #[test]
    fn labels_return_as_they_left() {
        let none = Labels::Texts(Texts::default());
        for labels in [texts(), numbers(), none, Labels::Numbers(Vec::new())] {
            let bytes = written(&labels);
            let mut rest = &bytes[..];
            assert_eq!(Labels::read(&mut rest), Some(labels));
            assert!(rest.is_empty());
        }
    }

    proptest! {
        #[test]
        fn harmed_labels_are_read_without_harm(
            texts in harmed(written(&texts())),
            numbers in harmed(written(&numbers())),
        ) {
            for bytes in [texts, numbers] {
                let (read, most) = largest_allocation(|| Labels::read(&mut &bytes[..]));
                // What a few blocks of zstd can unfold to.
                prop_assert!(most <= 16 << 20, "{} bytes at once", most);
                if let Some(labels) = read {
                    for index in 0..labels.len() {
                        let _ = labels.bytes(index);
                    }
                }
            }
        }
    }
}
