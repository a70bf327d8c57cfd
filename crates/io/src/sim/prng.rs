//! Random numbers that depend on nothing but their seed.

/// xoshiro256** 1.0 (Blackman and Vigna, 2018, public domain), seeded through splitmix64 as its
/// authors advise. Its numbers are part of every recorded seed: changing it makes old seeds
/// useless.
#[derive(Debug, Clone)]
pub struct SimPrng {
    state: [u64; 4],
}

impl SimPrng {
    /// The sequence that belongs to `seed`.
    pub fn new(seed: u64) -> SimPrng {
        let mut mix = seed;
        let state = std::array::from_fn(|_| {
            mix = mix.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = mix;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word ^ (word >> 31)
        });
        SimPrng { state }
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.state;
        let result = b.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        result
    }

    /// A number below `bound`; the bias is below 2^-32 for the bounds in use.
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "there is no number below 0");
        let wide = u128::from(self.next_u64()) * u128::from(bound);
        u64::try_from(wide >> 64).expect("the upper half of 128 bits")
    }

    /// A number from `min` to `max`, both included.
    pub fn between(&mut self, min: u64, max: u64) -> u64 {
        assert!(min <= max, "no number is between {min} and {max}");
        min + self.below((max - min).saturating_add(1))
    }

    /// True `ppm` times in a million. Draws a number only if `ppm` is not 0, so that a fault which
    /// is switched off changes nothing else.
    pub fn chance_ppm(&mut self, ppm: u32) -> bool {
        ppm > 0 && self.below(1_000_000) < u64::from(ppm)
    }

    /// True every other time.
    pub fn coin(&mut self) -> bool {
        self.next_u64() >> 63 == 1
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for piece in bytes.chunks_mut(8) {
            let word = self.next_u64().to_le_bytes();
            piece.copy_from_slice(&word[..piece.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_a_seed_never_change() {
        let mut prng = SimPrng::new(0);
        // Reference: xoshiro256** with the state that splitmix64 makes of seed 0.
        assert_eq!(prng.next_u64(), 0x99ec_5f36_cb75_f2b4);
        assert_eq!(prng.next_u64(), 0xbf6e_1f78_4956_452a);
        assert_ne!(SimPrng::new(1).next_u64(), SimPrng::new(2).next_u64());
    }

    #[test]
    fn bounds_hold_and_are_reached() {
        let mut prng = SimPrng::new(7);
        let mut seen = [false; 5];
        for _ in 0..1000 {
            let number = prng.between(10, 14);
            seen[usize::try_from(number - 10).unwrap()] = true;
        }
        assert_eq!(seen, [true; 5]);
        assert!(!prng.chance_ppm(0));
        assert!(prng.chance_ppm(1_000_000));
    }
}
