//! Draws the entries of one row.

use super::{
    alias::{self, Builder, Slot},
    chance::{Quantiles, Stream, key, ln},
    model::{Model, RANK, purpose},
};

/// One entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    pub column: u32,
    /// 1 is half a star, 10 are five stars.
    pub half_stars: u8,
    /// Seconds since 1970.
    pub time: u32,
}

/// Scratch of one thread, and the row it drew last.
pub struct Hand<'m> {
    model: &'m Model,
    /// One bit a column.
    taken: Vec<u64>,
    columns: Vec<u32>,
    broad: Vec<f32>,
    tastes: Vec<f32>,
    slots: Vec<Slot>,
    builder: Builder,
    race: Vec<(f64, u32)>,
    bias: f32,
    factors: [f32; RANK],
    key: u64,
    since: u32,
}

/// From the first rating of MovieLens to its 25M edition.
const TIMES: (u32, u32) = (789_652_009, 1_574_327_703);

impl<'m> Hand<'m> {
    pub fn new(model: &'m Model) -> Self {
        let subtopics = model.mass.len();
        Self {
            model,
            taken: vec![0; (model.shape.columns as usize).div_ceil(64)],
            columns: Vec::new(),
            broad: vec![0.0; subtopics / model.subtopics],
            tastes: vec![0.0; subtopics],
            slots: vec![Slot::default(); subtopics],
            builder: Builder::default(),
            race: Vec::new(),
            bias: 0.0,
            factors: [0.0; RANK],
            key: 0,
            since: 0,
        }
    }

    /// Draws `row`, whose entries are preceded by `start` others.
    pub fn draw(&mut self, row: u32, start: u64) {
        let model = self.model;
        let length = model.lengths[row as usize];
        let mut chance = Stream::new(model.seed, purpose::ROWS, u64::from(row));
        let mut own = [0.0; RANK + 1];
        model.normals.fill(&mut chance, &mut own);
        self.bias = 0.4 * own[RANK];
        self.factors.copy_from_slice(&own[..RANK]);
        self.key = key(model.entry_key, u64::from(row));
        self.since = TIMES.0 + chance.below(u64::from(TIMES.1 - TIMES.0)) as u32;

        self.columns.clear();
        for column in model.held(start, length) {
            self.take(column);
        }
        self.choose(&mut chance, length as usize);
        self.sort();
    }

    /// Columns of the row, ascending.
    pub fn columns(&self) -> &[u32] {
        &self.columns
    }

    /// A word of chance that belongs to the entry at `column` alone.
    #[inline]
    pub fn word(&self, column: u32) -> u64 {
        key(self.key, u64::from(column))
    }

    /// The entry at `column`, whose word is `word`.
    #[inline]
    pub fn entry(&self, column: u32, word: u64) -> Entry {
        let liking = &self.model.likings[column as usize];
        let mut product = [0.0f32; 4];
        for (a, b) in self
            .factors
            .chunks_exact(4)
            .zip(liking.factors.chunks_exact(4))
        {
            for i in 0..4 {
                product[i] += a[i] * b[i];
            }
        }
        let stars = 3.55
            + self.bias
            + liking.bias
            + ((product[0] + product[1]) + (product[2] + product[3]))
            + self.model.noise.pick(word);
        Entry {
            column,
            half_stars: (2.0 * stars + 0.5).clamp(1.0, 10.0) as u8,
            // Within about twelve days.
            time: self.since + (word >> (64 - 20)) as u32,
        }
    }

    #[inline]
    fn take(&mut self, column: u32) {
        let bits = &mut self.taken[column as usize / 64];
        let bit = 1 << (column % 64);
        if *bits & bit == 0 {
            *bits |= bit;
            self.columns.push(column);
        }
    }

    /// Draws different columns up to `length` of them, each in proportion to popularity times taste among those that
    /// are left: first with replacement, forgetting repeats; where those become too many, the rest by an exponential
    /// race, which is the same distribution.
    fn choose(&mut self, chance: &mut Stream, length: usize) {
        let model = self.model;
        model.topic_tastes.fill(chance, &mut self.broad);
        model.subtopic_tastes.fill(chance, &mut self.tastes);
        for (tastes, broad) in self
            .tastes
            .chunks_exact_mut(model.subtopics)
            .zip(&self.broad)
        {
            for taste in tastes {
                *taste *= broad;
            }
        }
        if self.columns.len() == length {
            return;
        }
        let weights = self
            .tastes
            .iter()
            .zip(&model.mass)
            .map(|(taste, mass)| taste * mass);
        self.builder.build(weights, |i| i, &mut self.slots);
        let tries = 3 * length + model.shape.columns as usize / 4;
        for _ in 0..tries {
            if self.columns.len() == length {
                return;
            }
            let word = chance.word();
            let subtopic = alias::draw(&self.slots, (word >> 32) as u32) as usize;
            let start = if subtopic == 0 {
                0
            } else {
                model.ends[subtopic - 1] as usize
            };
            let members = &model.slots[start..model.ends[subtopic] as usize];
            if !members.is_empty() {
                self.take(alias::draw(members, word as u32));
            }
        }
        self.race.clear();
        for column in 0..model.shape.columns {
            if self.taken[column as usize / 64] >> (column % 64) & 1 == 0 {
                let taste = self.tastes[usize::from(model.subtopic[column as usize])];
                let weight = f64::from(taste) * f64::from(model.popularity[column as usize]);
                self.race.push((-ln(chance.unit()) / weight, column));
            }
        }
        let missing = length - self.columns.len();
        if missing == 0 {
            return;
        }
        self.race
            .select_nth_unstable_by(missing - 1, |a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        for i in 0..missing {
            self.take(self.race[i].1);
        }
    }

    /// Puts the columns in order and forgets which were taken.
    fn sort(&mut self) {
        if self.columns.len() * 16 < self.taken.len() {
            for column in &self.columns {
                self.taken[*column as usize / 64] = 0;
            }
            self.columns.sort_unstable();
            return;
        }
        self.columns.clear();
        for (word, bits) in self.taken.iter_mut().enumerate() {
            while *bits != 0 {
                self.columns.push(word as u32 * 64 + bits.trailing_zeros());
                *bits &= *bits - 1;
            }
        }
    }
}

const _: () = assert!(RANK.is_multiple_of(4) && Quantiles::BITS <= 44);
