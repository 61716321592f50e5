//! How many entries each row has, and which rows make a block.

use std::ops::Range;

use super::{
    chance::{Stream, exp, quantile},
    shape::Shape,
};

/// Length of every row: log-normal quantiles beyond the shape's least, scaled and cut so that they sum to the entries
/// exactly, in random order. The lengths themselves do not hang on chance, so every seed has the same longest row.
pub fn lengths(shape: &Shape, order: &mut Stream) -> Vec<u32> {
    let rows = shape.rows as usize;
    let least = shape.row_min;
    let room = shape.row_max() - least;
    let target = shape.entries - u64::from(least) * rows as u64;
    let beyond: Vec<f64> = (0..rows)
        .map(|i| exp(shape.spread * quantile((i as f64 + 0.5) / rows as f64)))
        .collect();
    let length = |scale: f64, weight: f64| (scale * weight).min(f64::from(room)) as u32;
    let sum = |scale: f64| -> u64 { beyond.iter().map(|&w| u64::from(length(scale, w))).sum() };
    // The largest scale whose sum is not above the target, by bisection.
    let mut low = 0.0;
    let mut high = 1.0;
    while sum(high) < target && high < 1e30 {
        low = high;
        high *= 2.0;
    }
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if sum(middle) <= target {
            low = middle;
        } else {
            high = middle;
        }
    }
    let mut lengths: Vec<u32> = beyond.iter().map(|&w| length(low, w)).collect();
    let mut short = target - lengths.iter().map(|&d| u64::from(d)).sum::<u64>();
    while short > 0 {
        for d in lengths.iter_mut().rev().filter(|d| **d < room) {
            if short == 0 {
                break;
            }
            *d += 1;
            short -= 1;
        }
    }
    for d in &mut lengths {
        *d += least;
    }
    order.shuffle(&mut lengths);
    lengths
}

/// A run of rows that one thread draws at a time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Block {
    pub rows: Range<u32>,
    /// Entries of all rows before.
    pub start: u64,
}

/// Cuts the rows into blocks of about `entries` each.
pub fn blocks(lengths: &[u32], entries: u64) -> Vec<Block> {
    let mut blocks = Vec::new();
    let (mut first, mut start, mut held) = (0, 0, 0);
    for (row, &length) in lengths.iter().enumerate() {
        held += u64::from(length);
        if held >= entries || row + 1 == lengths.len() {
            let end = row as u32 + 1;
            blocks.push(Block {
                rows: first..end,
                start,
            });
            first = end;
            start += held;
            held = 0;
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_sum_exactly_and_keep_their_bounds() {
        for shape in [
            Shape::small(),
            Shape::ml25m(),
            Shape::netflix(),
            Shape::custom(7, 5, 35).unwrap(),
            Shape::custom(7, 5, 34).unwrap(),
            Shape::custom(1, 900, 900).unwrap(),
            Shape::custom(900, 1, 900).unwrap(),
            Shape::custom(300, 200, 301).unwrap(),
        ] {
            let lengths = lengths(&shape, &mut Stream::new(1, 1, 0));
            assert_eq!(lengths.len(), shape.rows as usize);
            assert_eq!(
                lengths.iter().map(|&d| u64::from(d)).sum::<u64>(),
                shape.entries,
                "{shape:?}"
            );
            assert!(
                lengths
                    .iter()
                    .all(|&d| d >= shape.row_min.max(1) && d <= shape.row_max()),
                "{shape:?}"
            );
        }
    }

    #[test]
    fn the_longest_row_of_ml25m_is_as_long_as_published_ones() {
        let lengths = lengths(&Shape::ml25m(), &mut Stream::new(1, 1, 0));
        let longest = lengths.into_iter().max().unwrap();
        assert!((17_000..=26_000).contains(&longest), "{longest}");
    }

    #[test]
    fn blocks_hold_every_row_once() {
        let lengths = [5, 1, 1, 9, 2];
        let block = |rows, start| Block { rows, start };
        assert_eq!(
            blocks(&lengths, 6),
            [block(0..2, 0), block(2..4, 6), block(4..5, 16)]
        );
    }
}
