//! Changing valid inputs into others, from a seed.

/// Longest input that mutation grows to, in bytes.
const INPUT_BYTES_MAX: usize = 64 * 1024;
/// Changes to one input.
const CHANGES_MAX: u64 = 6;
/// Values at which length and count arithmetic breaks.
const EDGES: [u64; 12] = [
    0,
    1,
    7,
    8,
    0x7f,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_ffff,
];

/// splitmix64: small, fast, and the same on every machine.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `count`, which is at least 1.
    pub fn below(&mut self, count: usize) -> usize {
        let count = u64::try_from(count.max(1)).expect("a count in memory");
        usize::try_from(self.draw() % count).expect("below a count in memory")
    }

    fn byte(&mut self) -> u8 {
        self.draw().to_le_bytes()[0]
    }
}

/// Makes inputs out of valid ones.
#[derive(Debug)]
pub struct Mutator<'a> {
    valid: &'a [Vec<u8>],
    random: Random,
}

impl<'a> Mutator<'a> {
    /// Mutations of these inputs, in the order that the seed gives.
    pub fn new(valid: &'a [Vec<u8>], seed: u64) -> Mutator<'a> {
        Mutator {
            valid,
            random: Random::new(seed),
        }
    }

    /// The next input.
    pub fn next_input(&mut self) -> Vec<u8> {
        let mut input = match self.random.below(self.valid.len() + 1) {
            // Now and then something that was never valid.
            index if index == self.valid.len() => {
                let length = self.random.below(512);
                (0..length).map(|_| self.random.byte()).collect()
            }
            index => self.valid[index].clone(),
        };
        for _ in 0..=self.random.draw() % CHANGES_MAX {
            self.change(&mut input);
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        if input.is_empty() {
            input.push(self.random.byte());
            return;
        }
        let at = self.random.below(input.len());
        match self.random.draw() % 7 {
            0 => input[at] ^= 1 << (self.random.draw() % 8),
            1 => input[at] = self.random.byte(),
            2 | 3 => {
                let edge = EDGES[self.random.below(EDGES.len())].to_le_bytes();
                let width = [1, 2, 4, 8][self.random.below(4)].min(input.len() - at);
                input[at..at + width].copy_from_slice(&edge[..width]);
            }
            4 => input.truncate(at),
            5 => {
                let end = (at + 1 + self.random.below(64)).min(input.len());
                let piece = input[at..end].to_vec();
                let to = self.random.below(input.len() + 1);
                input.splice(to..to, piece);
            }
            _ => {
                let Some(last) = self.valid.len().checked_sub(1) else {
                    return;
                };
                let other = &self.valid[self.random.below(last + 1)];
                let from = self.random.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_inputs() {
        let valid = [b"some valid input".to_vec(), b"and another".to_vec()];
        let inputs = |seed| {
            let mut mutator = Mutator::new(&valid, seed);
            (0..100).map(|_| mutator.next_input()).collect::<Vec<_>>()
        };
        assert_eq!(inputs(7), inputs(7));
        assert_ne!(inputs(7), inputs(8));
    }

    #[test]
    fn empty_inputs_can_be_mutated() {
        let mut mutator = Mutator::new(&[], 1);
        (0..1000).for_each(|_| drop(mutator.next_input()));
    }
}
