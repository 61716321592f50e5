//! The lines in random order, without disk: every entry has a hash, and the file is in the order of hashes. The matrix
//! is drawn once for each window of hashes and what falls outside the window is dropped before it costs anything.

use std::{io, sync::atomic::AtomicBool};

use super::{
    Page,
    chance::mix,
    draw::{Entry, Hand},
    each_row,
    model::Model,
    output::Packing,
    rows::Block,
    turns::{Early, in_order},
};

/// Entries of a window, about: 24 bytes each.
const WINDOW_ENTRIES: u64 = 8 << 20;
/// Entries written at a time, about.
const PIECE_ENTRIES: u64 = 1 << 17;

/// An entry waiting for its place. The hash orders; row and column settle the case of equal ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    hash: u64,
    row: u32,
    column: u32,
    time: u32,
    half_stars: u8,
}

/// Which of `count` equal parts of all hashes `hash` is in.
#[inline]
fn part(hash: u64, count: u64) -> u64 {
    ((u128::from(hash) * u128::from(count)) >> 64) as u64
}

pub fn write(
    model: &Model,
    threads: usize,
    packing: Packing,
    blocks: &[Block],
    stop: &AtomicBool,
    mut sink: impl FnMut(&[u8]) -> io::Result<()> + Send,
    pages: &mut Vec<Page>,
) -> Result<(), Early> {
    let windows = model.shape.entries.div_ceil(WINDOW_ENTRIES);
    let pieces = model
        .shape
        .entries
        .div_ceil(PIECE_ENTRIES)
        .div_ceil(windows);
    for window in 0..windows {
        let first = window * pieces;
        let drawn = in_order(
            threads,
            blocks.len(),
            stop,
            || (Hand::new(model), vec![Vec::new(); pieces as usize]),
            |(hand, heaps), block| {
                each_row(model, hand, &blocks[block], |hand, row| {
                    for &column in hand.columns() {
                        let word = hand.word(column);
                        // Mixed once more, so that the order tells nothing of noise and time.
                        let hash = mix(word);
                        let piece = part(hash, windows * pieces);
                        if (first..first + pieces).contains(&piece) {
                            let entry = hand.entry(column, word);
                            heaps[(piece - first) as usize].push(Waiting {
                                hash,
                                row,
                                column,
                                time: entry.time,
                                half_stars: entry.half_stars,
                            });
                        }
                    }
                });
                &[]
            },
            |_| Ok(()),
        )?;
        let heaps: Vec<Vec<Vec<Waiting>>> = drawn.into_iter().map(|(_, heaps)| heaps).collect();
        let written = in_order(
            threads,
            pieces as usize,
            stop,
            || (Vec::new(), Page::new(model, packing)),
            |(lines, page): &mut (Vec<Waiting>, Page), piece| {
                lines.clear();
                for heaps in &heaps {
                    lines.extend_from_slice(&heaps[piece]);
                }
                lines.sort_unstable();
                page.clear();
                for line in &*lines {
                    let entry = Entry {
                        column: line.column,
                        half_stars: line.half_stars,
                        time: line.time,
                    };
                    page.push(model, line.row, entry);
                }
                page.bytes()
            },
            &mut sink,
        )?;
        pages.extend(written.into_iter().map(|(_, page)| page));
    }
    Ok(())
}
