//! What a guest reads and writes through: the caller's tables, behind two traits.

use std::any::Any;

use crate::{KeyRange, Page};

/// The caller's tables failed, not the guest. Nothing is wrong with the module or the events; the
/// call has to be rolled back, and may be repeated when the cause is gone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the module's tables cannot be reached: {reason}")]
pub struct StateFault {
    /// What happened, for the operator.
    pub reason: String,
}

/// Tables that can be read. Table numbers are indices into the manifest's list and are checked by
/// the host, as are lengths of keys and values.
///
/// The types of a call travel into the engine and back as `Box<dyn …>`, hence `Any` and `Send`.
pub trait StateRead: Any + Send {
    /// The value of a key.
    ///
    /// # Errors
    ///
    /// If the tables cannot be reached.
    fn get(&mut self, table: u32, key: &[u8]) -> Result<Option<Vec<u8>>, StateFault>;

    /// At most `limit` rows of a range in bytewise order of keys, or backwards. An implementation
    /// stops before [`PAGE_BYTES_MAX`](crate::PAGE_BYTES_MAX) bytes of data (a first row always
    /// fits) and says by [`Page::more`] whether rows are left.
    ///
    /// # Errors
    ///
    /// If the tables cannot be reached.
    fn scan(
        &mut self,
        table: u32,
        range: &KeyRange,
        limit: u32,
        reverse: bool,
    ) -> Result<Page, StateFault>;
}

/// Tables that can be written. Reads of the same call see the writes.
pub trait StateWrite: StateRead {
    /// Sets the value of a key.
    ///
    /// # Errors
    ///
    /// If the tables cannot be reached.
    fn set(&mut self, table: u32, key: &[u8], value: &[u8]) -> Result<(), StateFault>;

    /// Removes a row; the answer is whether there was one.
    ///
    /// # Errors
    ///
    /// If the tables cannot be reached.
    fn delete(&mut self, table: u32, key: &[u8]) -> Result<bool, StateFault>;

    /// Removes the rows of a range; the answer is how many there were.
    ///
    /// # Errors
    ///
    /// If the tables cannot be reached.
    fn delete_range(&mut self, table: u32, range: &KeyRange) -> Result<u64, StateFault>;
}
