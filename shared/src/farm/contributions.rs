//! Which contributions a partial sum holds. A sum of partial sums is right exactly when their sets are disjoint and
//! together cover all: that check, not the absence of accidents, is why any order and any death gives the same bits.

/// A set of contribution numbers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Contributions {
    words: Vec<u64>,
}

/// Why two partial sums must not be added.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("contribution {0} is in both partial sums")]
pub struct Overlap(pub u32);

impl Contributions {
    /// False when it was in already.
    pub fn insert(&mut self, contribution: u32) -> bool {
        let (word, bit) = (contribution as usize / 64, contribution % 64);
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        let fresh = self.words[word] & (1 << bit) == 0;
        self.words[word] |= 1 << bit;
        fresh
    }

    pub fn contains(&self, contribution: u32) -> bool {
        self.words
            .get(contribution as usize / 64)
            .is_some_and(|w| w & (1 << (contribution % 64)) != 0)
    }

    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&w| w == 0)
    }

    pub fn len(&self) -> usize {
        self.words.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// Takes in a disjoint set; leaves itself alone when it is not.
    pub fn join(&mut self, other: &Self) -> Result<(), Overlap> {
        for (index, (a, b)) in self.words.iter().zip(&other.words).enumerate() {
            if a & b != 0 {
                return Err(Overlap(index as u32 * 64 + (a & b).trailing_zeros()));
            }
        }
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        for (a, b) in self.words.iter_mut().zip(&other.words) {
            *a |= b;
        }
        Ok(())
    }

    /// Whether it is exactly `0..contributions`.
    pub fn covers(&self, contributions: u32) -> bool {
        self.len() == contributions as usize && (0..contributions).all(|c| self.contains(c))
    }

    /// Sixty-four to a word, as they travel.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    pub fn from_words(words: Vec<u64>) -> Self {
        Self { words }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(of: &[u32]) -> Contributions {
        let mut set = Contributions::default();
        for &c in of {
            assert!(set.insert(c));
        }
        set
    }

    #[test]
    fn only_disjoint_sets_join_and_only_all_of_them_cover() {
        let mut a = set(&[0, 2, 64, 130]);
        assert!(!a.insert(64));
        assert_eq!(a.join(&set(&[1, 64])), Err(Overlap(64)));
        assert_eq!(a.len(), 4, "a refused set leaves no trace");
        a.join(&set(&[1, 3, 200])).unwrap();
        assert!(a.contains(200) && !a.contains(4));
        assert!(!a.covers(7));

        let mut even = set(&[0, 2, 4, 66]);
        even.join(&set(&[1, 3, 5])).unwrap();
        assert!(!even.covers(7), "seven of them, but not the first seven");
        assert!(set(&[1, 0, 2]).covers(3));
        assert!(!set(&[0, 1]).covers(3));
        assert!(set(&[]).covers(0));
    }
}
