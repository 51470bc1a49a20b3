//! Writes that fail: counted, and for tests made to fail.

use std::collections::BTreeMap;
use std::io;

use anyhow::Context as _;

use super::maps::Maps;
use crate::tables::plan::Write;

#[derive(Debug, Default)]
pub(super) struct Trouble {
    failed: u64,
    /// Errors to come, by the number of the write from now; none but in tests.
    planned: BTreeMap<usize, i32>,
}

impl Trouble {
    pub(super) fn write(&mut self, maps: &mut Maps, write: &Write) -> anyhow::Result<()> {
        let result = match self.next() {
            Some(error) => Err(io::Error::from_raw_os_error(error)).with_context(|| format!("{write:?}")),
            None => maps.write(write),
        };
        self.failed += u64::from(result.is_err());
        result
    }

    pub(super) fn failed(&self) -> u64 {
        self.failed
    }

    pub(super) fn plan(&mut self, failures: impl IntoIterator<Item = (usize, i32)>) {
        self.planned = failures.into_iter().collect();
    }

    fn next(&mut self) -> Option<i32> {
        if self.planned.is_empty() {
            return None;
        }
        let mut planned = std::mem::take(&mut self.planned);
        let now = planned.remove(&0);
        self.planned = planned.into_iter().map(|(at, error)| (at - 1, error)).collect();
        now
    }
}
