//! The planted structure: what every column is like, and how chance is dealt to rows.

use super::{
    alias::{Builder, Slot},
    chance::{Quantiles, Stream, exp, key, ln},
    rows,
    shape::Shape,
};

/// Directions in which tastes in values differ.
pub const RANK: usize = 12;

/// What the streams of chance are for.
pub mod purpose {
    pub const LENGTHS: u64 = 1;
    pub const TOPICS: u64 = 2;
    pub const POPULARITY: u64 = 3;
    pub const COLUMNS: u64 = 4;
    pub const LABELS: u64 = 5;
    pub const FIRST: u64 = 6;
    pub const ROWS: u64 = 7;
    pub const ENTRIES: u64 = 8;
}

/// What a value is made of besides the row.
#[derive(Clone, Copy)]
pub struct Liking {
    pub bias: f32,
    pub factors: [f32; RANK],
}

/// All that does not hang on the row. Memory: about 100 bytes a column and 4 a row.
pub struct Model {
    pub shape: Shape,
    pub seed: u64,
    pub lengths: Vec<u32>,
    /// Subtopics in each topic.
    pub subtopics: usize,
    /// Popularity of all columns of each subtopic together.
    pub mass: Vec<f32>,
    /// Where each subtopic's part of `slots` ends.
    pub ends: Vec<u32>,
    /// Columns of a subtopic, in proportion to their popularity.
    pub slots: Vec<Slot>,
    pub subtopic: Vec<u16>,
    pub popularity: Vec<f32>,
    pub likings: Vec<Liking>,
    /// The columns in the order in which rows are made to hold them, so that none stays empty.
    pub first: Vec<u32>,
    /// Labels of the columns, ascending with gaps.
    pub labels: Vec<u32>,
    /// How much more a row likes a topic, a subtopic, than others do.
    pub topic_tastes: Quantiles,
    pub subtopic_tastes: Quantiles,
    pub normals: Quantiles,
    pub noise: Quantiles,
    /// Key of everything that hangs on a single entry.
    pub entry_key: u64,
}

// Set, with the shape's popularity, so that ml25m's singular values 1, 50 and 100 are as 14.9 : 1.115 : 1.
const TOPIC_SPREAD: f64 = 0.9;
const SUBTOPIC_SPREAD: f64 = 0.7;
const NOISE: f64 = 0.75;
/// Labels go up to this many times the number of columns, as MovieLens's do.
const LABEL_GAPS: f64 = 3.54;

impl Model {
    pub fn new(shape: Shape, seed: u64) -> Self {
        let columns = shape.columns as usize;
        let stream = |purpose| Stream::new(seed, purpose, 0);
        let lengths = rows::lengths(&shape, &mut stream(purpose::LENGTHS));
        // 16 topics of 16 subtopics, fewer where columns are few.
        let topics = ((columns as f64 / 8.0).sqrt() as usize).clamp(1, 16);
        let subtopics = topics;

        let mut popularity: Vec<f32> = (0..columns)
            .map(|rank| exp(-shape.fall * ln(1.0 + rank as f64 / shape.head)) as f32)
            .collect();
        stream(purpose::POPULARITY).shuffle(&mut popularity);

        let mut chance = stream(purpose::TOPICS);
        let topic_factors: Vec<[f32; RANK]> = (0..topics)
            .map(|_| std::array::from_fn(|_| (0.8 * chance.normal()) as f32))
            .collect();
        // Sizes of subtopics: exponential variables.
        let sizes: Vec<f32> = (0..topics * subtopics)
            .map(|_| -ln(chance.unit()) as f32)
            .collect();
        let mut builder = Builder::default();
        let mut by_size = vec![Slot::default(); sizes.len()];
        builder.build(sizes.iter().copied(), |i| i, &mut by_size);

        let weights: [f32; RANK] = {
            let mut weight = 0.5;
            std::array::from_fn(|_| {
                let now = weight;
                weight *= 0.85;
                now
            })
        };
        let normals = Quantiles::new(|z| z);
        let mut chance = stream(purpose::COLUMNS);
        let mut subtopic = Vec::with_capacity(columns);
        let mut likings = Vec::with_capacity(columns);
        let mut own = [0.0; RANK + 1];
        for _ in 0..columns {
            let at = super::alias::draw(&by_size, (chance.word() >> 32) as u32);
            subtopic.push(at as u16);
            normals.fill(&mut chance, &mut own);
            let common = &topic_factors[at as usize / subtopics];
            likings.push(Liking {
                bias: 0.45 * own[RANK],
                factors: std::array::from_fn(|t| weights[t] * (0.6 * own[t] + common[t])),
            });
        }

        let mut ends = vec![0u32; sizes.len()];
        let mut mass = vec![0.0f32; sizes.len()];
        for (&at, &popularity) in subtopic.iter().zip(&popularity) {
            ends[usize::from(at)] += 1;
            mass[usize::from(at)] += popularity;
        }
        let mut end = 0;
        for count in &mut ends {
            end += *count;
            *count = end;
        }
        let mut members: Vec<u32> = (0..shape.columns).collect();
        members.sort_by_key(|&column| subtopic[column as usize]);
        let mut slots = vec![Slot::default(); columns];
        let mut start = 0;
        for &end in &ends {
            let part = start..end as usize;
            let members = &members[part.clone()];
            if !members.is_empty() {
                let weights = members.iter().map(|&c| popularity[c as usize]);
                builder.build(weights, |i| members[i as usize], &mut slots[part]);
            }
            start = end as usize;
        }

        let mut first: Vec<u32> = (0..shape.columns).collect();
        stream(purpose::FIRST).shuffle(&mut first);
        Self {
            labels: labels(shape.columns, &mut stream(purpose::LABELS)),
            topic_tastes: Quantiles::new(|z| exp(TOPIC_SPREAD * z)),
            subtopic_tastes: Quantiles::new(|z| exp(SUBTOPIC_SPREAD * z)),
            noise: Quantiles::new(|z| NOISE * z),
            entry_key: key(seed, purpose::ENTRIES),
            shape,
            seed,
            lengths,
            subtopics,
            mass,
            ends,
            slots,
            subtopic,
            popularity,
            likings,
            first,
            normals,
        }
    }

    /// The columns that the row with entries `start..start + length` of the matrix must hold. Column number i of `first`
    /// belongs to an entry drawn from the i-th of as many equal parts of all entries, so long rows hold more of them
    /// and no row more than it has room for.
    pub fn held(&self, start: u64, length: u32) -> impl Iterator<Item = u32> + '_ {
        let entries = u128::from(self.shape.entries);
        let columns = u128::from(self.shape.columns);
        let end = start + u64::from(length);
        let part = move |i: u128| (i * entries / columns) as u64;
        // Parts that reach into the row: from the one that `start` is in, or the one before it.
        let from = (u128::from(start) * columns / entries).saturating_sub(1);
        (from..columns)
            .take_while(move |&i| part(i) < end)
            .filter(move |&i| {
                let (low, high) = (part(i), part(i + 1));
                let mut chance = Stream::new(self.seed, purpose::FIRST, 1 + i as u64);
                let at = low + chance.below(high - low);
                (start..end).contains(&at)
            })
            .map(|i| self.first[i as usize])
    }
}

/// `count` different labels, ascending, any choice of them from `1..=3.54 count` equally likely (Knuth's algorithm S).
fn labels(count: u32, chance: &mut Stream) -> Vec<u32> {
    let range = (f64::from(count) * LABEL_GAPS) as u32;
    let mut labels = Vec::with_capacity(count as usize);
    for label in 1..=range {
        let wanted = u64::from(count) - labels.len() as u64;
        if chance.below(u64::from(range - label + 1)) < wanted {
            labels.push(label);
        }
    }
    labels
}
