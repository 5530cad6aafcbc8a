//! A seeded source of chance, so that a run with faults can be repeated: `SplitMix64` (Steele, Lea, Flood 2014).

/// 64 bits of state; every seed gives a full-period sequence.
#[derive(Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    /// Mixes the parts of a seed, so that each session, direction and kind of frame has a sequence of its own.
    pub(crate) fn new(parts: &[u64]) -> Self {
        let mut rng = Self(0);
        for part in parts {
            rng.0 ^= *part;
            rng.0 = rng.next();
        }
        rng
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// True with probability `odds` (0.0 to 1.0). Draws nothing at 0, so that an idle knob does not shift the others.
    pub(crate) fn chance(&mut self, odds: f64) -> bool {
        odds > 0.0 && self.unit() < odds
    }

    /// Evenly spread in `0..bound`; 0 for an empty range.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next() % bound }
    }

    fn unit(&mut self) -> f64 {
        let bits = u32::try_from(self.next() >> 32).unwrap_or(u32::MAX);
        f64::from(bits) / (f64::from(u32::MAX) + 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_gives_the_same_sequence_and_another_part_another_one() {
        let draw = |parts: &[u64]| {
            let mut rng = Rng::new(parts);
            (0..50).map(|_| rng.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(draw(&[7, 1]), draw(&[7, 1]));
        assert_ne!(draw(&[7, 1]), draw(&[7, 2]));
        assert_ne!(draw(&[7, 1]), draw(&[8, 1]));
    }

    #[test]
    fn chance_is_near_its_odds() {
        let mut rng = Rng::new(&[3]);
        let hits = (0..10_000).filter(|_| rng.chance(0.25)).count();
        assert!((2300..2700).contains(&hits), "{hits}");
        assert!(!rng.chance(0.0));
        assert!(rng.chance(1.0));
    }
}
