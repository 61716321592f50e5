//! Draws from a discrete distribution in constant time.

/// Walker's alias method: a slot drawn uniformly gives itself or its alias.
#[derive(Clone, Copy, Default)]
pub struct Slot {
    /// Below this the slot gives `own`.
    threshold: u32,
    own: u32,
    other: u32,
}

/// One of `slots` by 32 random bits: their product with the count has the slot above and its fraction below.
#[inline]
pub fn draw(slots: &[Slot], bits: u32) -> u32 {
    let product = u64::from(bits) * slots.len() as u64;
    let slot = &slots[(product >> 32) as usize];
    if (product as u32) < slot.threshold {
        slot.own
    } else {
        slot.other
    }
}

/// What building needs besides the slots.
#[derive(Default)]
pub struct Builder {
    scaled: Vec<f32>,
    small: Vec<u32>,
    large: Vec<u32>,
}

impl Builder {
    /// Fills `slots` so that `names[i]` is drawn in proportion to `weights[i]`. Cost: linear. Reference: Vose (1991).
    ///
    /// # Panics
    /// When the three differ in length.
    pub fn build(
        &mut self,
        weights: impl ExactSizeIterator<Item = f32> + Clone,
        name: impl Fn(u32) -> u32,
        slots: &mut [Slot],
    ) {
        assert_eq!(weights.len(), slots.len(), "one slot for each weight");
        let total: f64 = weights.clone().map(f64::from).sum();
        let scale = slots.len() as f64 / total;
        self.scaled.clear();
        self.scaled
            .extend(weights.map(|w| (f64::from(w) * scale) as f32));
        self.small.clear();
        self.large.clear();
        for (i, &weight) in self.scaled.iter().enumerate() {
            let heap = if weight < 1.0 {
                &mut self.small
            } else {
                &mut self.large
            };
            heap.push(i as u32);
        }
        while let (Some(&small), Some(&large)) = (self.small.last(), self.large.last()) {
            self.small.pop();
            let own = self.scaled[small as usize];
            slots[small as usize] = Slot {
                threshold: (f64::from(own) * 4_294_967_296.0) as u32,
                own: name(small),
                other: name(large),
            };
            let rest = self.scaled[large as usize] - (1.0 - own);
            self.scaled[large as usize] = rest;
            if rest < 1.0 {
                self.large.pop();
                self.small.push(large);
            }
        }
        // What is left is 1 but for rounding.
        for &i in self.small.iter().chain(&self.large) {
            slots[i as usize] = Slot {
                threshold: u32::MAX,
                own: name(i),
                other: name(i),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::chance::Stream;

    #[test]
    fn draws_follow_the_weights() {
        let weights = [0.0f32, 1.0, 5.0, 0.5, 3.5];
        let mut slots = [Slot::default(); 5];
        Builder::default().build(weights.iter().copied(), |i| i + 100, &mut slots);
        let mut stream = Stream::new(1, 2, 3);
        let mut seen = [0u32; 5];
        for _ in 0..100_000 {
            seen[draw(&slots, (stream.word() >> 32) as u32) as usize - 100] += 1;
        }
        assert_eq!(seen[0], 0);
        for (count, weight) in seen.iter().zip(weights) {
            assert!(
                (f64::from(*count) - 1e4 * f64::from(weight)).abs() < 700.0,
                "{seen:?}"
            );
        }
    }
}
