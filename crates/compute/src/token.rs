//! Tokens: which moment of each partition an answer was computed at.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// A moment of some or all partitions: the last sequence of each that counts.
///
/// Every answer carries one. As `at` it is an upper bound, and gives the same bytes for ever; as
/// `min_sequence` it is a lower bound, so that one reads one's own writes. In text it is
/// `partition:sequence`, separated by commas.
///
/// # Examples
///
/// ```
/// let token: truthdb_compute::Token = "0:17,1:4".parse()?;
/// assert_eq!(token.get(1), Some(4));
/// assert_eq!(token.to_string(), "0:17,1:4");
/// # Ok::<(), truthdb_compute::TokenError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Token(BTreeMap<u32, u64>);

/// A text that is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no token: it must be like 0:17 or 0:17,1:4 (partition:sequence)")]
pub struct TokenError {
    /// The part that is wrong.
    pub text: String,
}

impl Token {
    /// A token of one partition.
    pub fn of(partition: u32, sequence: u64) -> Token {
        Token(BTreeMap::from([(partition, sequence)]))
    }

    /// The sequence of a partition, if it names one.
    pub fn get(&self, partition: u32) -> Option<u64> {
        self.0.get(&partition).copied()
    }

    /// Sets the sequence of a partition.
    pub fn set(&mut self, partition: u32, sequence: u64) {
        self.0.insert(partition, sequence);
    }

    /// The partitions and sequences, ascending.
    pub fn entries(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.0
            .iter()
            .map(|(partition, sequence)| (*partition, *sequence))
    }

    /// Whether it names no partition.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(u32, u64)> for Token {
    fn from_iter<I: IntoIterator<Item = (u32, u64)>>(entries: I) -> Token {
        Token(entries.into_iter().collect())
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (partition, sequence)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{partition}:{sequence}")?;
        }
        Ok(())
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Token, TokenError> {
        let error = |part: &str| TokenError {
            text: part.to_owned(),
        };
        let mut token = Token::default();
        for part in text.split(',').map(str::trim) {
            let (partition, sequence) = part.split_once(':').ok_or_else(|| error(part))?;
            let partition = partition.parse().map_err(|_| error(part))?;
            let sequence = sequence.parse().map_err(|_| error(part))?;
            if token.0.insert(partition, sequence).is_some() {
                return Err(error(part));
            }
        }
        Ok(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text() {
        let token: Token = [(3, 9), (0, 1)].into_iter().collect();
        assert_eq!(token.to_string(), "0:1,3:9");
        assert_eq!(token.to_string().parse::<Token>().unwrap(), token);
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for text in ["", "1", "a:1", "1:b", "1:2,", "1:2,1:3", "-1:2"] {
            text.parse::<Token>().unwrap_err();
        }
    }
}
